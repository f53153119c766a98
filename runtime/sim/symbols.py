"""Turns the code addresses in the simulator's messages into file:line of the kernel's source."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import PurePath

_ADDRESS = re.compile(r"@\[(.+?)\+(0x[0-9a-f]+)\]")
_SHIMS = ("prims.cuh", "scalars.cuh", "sim_prims.h", "sim_host.h", "sim_functions.h", "cuda_sim.h",
          "sim_math.h", "sim_api.h")


def resolve(message: str) -> str:
    """``message`` with every ``@[library+0xoffset]`` replaced by ``file:line``, and by the caller's if inlined."""
    return _ADDRESS.sub(lambda match: _line(match.group(1), int(match.group(2), 16)), message)


def _line(library: str, offset: int) -> str:
    tool = shutil.which("addr2line") or shutil.which("llvm-addr2line")
    if not tool:
        return f"{PurePath(library).name}+{offset:#x} (install binutils for the line)"
    # A return address is one past the call: look up the byte before it.
    command = [tool, "-i", "-e", library, hex(offset - 1)]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    frames = [_tidy(line) for line in output.splitlines() if line and not line.startswith("??")]
    own = [frame for frame in frames if frame.rsplit(":", 1)[0] not in _SHIMS] or frames
    if not own:
        return f"{PurePath(library).name}+{offset:#x}"
    return own[0] if len(own) == 1 or own[0] == own[-1] else f"{own[0]} (from {own[-1]})"


def _tidy(frame: str) -> str:
    return PurePath(re.sub(r" \(discriminator \d+\)", "", frame)).name
