"""Compiles the simulator's runtime library and the kernels with a host C++ compiler, cached by content.

A kernel becomes a small shared library whose undefined symbols (the ``sim_*`` functions) resolve against the runtime
library, which is loaded first and globally. Each ends with a hash of itself; a damaged one is made again.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from arcweld.compiler.errors import EnvironmentError_
from arcweld.compiler.paths import cache_dir, forget_oldest, touch
from arcweld.runtime.sim.tools import Compilers, run_compiler, workspace

log = logging.getLogger("arcweld.sim")

_HERE = Path(__file__).parent
_COMMON_FLAGS = (
    *("-std=c++17", "-fPIC", "-shared", "-fno-exceptions", "-fno-rtti", "-fno-plt"),
    *("-fno-strict-aliasing", "-fno-math-errno"),
)
_RUNTIME_FLAGS = (*_COMMON_FLAGS, "-O3", "-pthread", "-fno-semantic-interposition", "-Wl,-Bsymbolic")
# -nostdlib: the C library's functions come from the process, and linking them again would double the time.
_KERNEL_FLAGS = (*_COMMON_FLAGS, "-nostdlib", "-fno-trapping-math", "-ffp-contract=fast", "-w")
MAX_LIBRARIES = 100_000  # in the cache: about 2 GB
_MAGIC = b"ARCWELD1"  # before the hash of what precedes it
_FAST_FLAGS = ("-O2", "-ftree-vectorize", "-g1")
_CHECKED_FLAGS = ("-O1", "-g1", "-fno-omit-frame-pointer", "-DSIM_CHECKED")


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A host C++ compiler: the command, the first line of ``--version``, and flags for it and for this CPU."""

    command: tuple[str, ...]
    version: str
    flags: tuple[str, ...]
    instrument: tuple[str, ...]  # every memory access calls a __tsan_* hook, without linking the sanitizer's library


@dataclass(frozen=True, slots=True)
class SimSource:
    """A kernel to be compiled. ``arch`` (``sm_80``, ``sm_90a``) sets ``__CUDA_ARCH__``; ``checked`` adds the checks."""

    name: str
    entry: str
    source: str
    arch: str
    checked: bool


def include_dirs() -> tuple[Path, ...]:
    """The folders of the simulator's headers and of the headers that kernels include."""
    return _HERE, Path(str(importlib.resources.files("arcweld.codegen.include")))


@cache
def toolchain() -> Toolchain:
    """The compiler: ``CXX``, else g++, clang++ or the package ziglang.

    Raises EnvironmentError_ if there is none, if it does not run, or on another platform than Linux on x86-64.
    """
    if platform.machine() not in ("x86_64", "AMD64") or not sys.platform.startswith("linux"):
        raise EnvironmentError_(f"the sim device needs Linux on x86-64, not {sys.platform} on {platform.machine()}")
    command = _find_compiler()
    probe = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    if probe.returncode:
        raise EnvironmentError_(
            f"the C++ compiler `{shlex.join(command)}` does not run: {probe.stderr.strip()[:200]}",
            hint="set CXX to a working g++ or clang++",
        )
    cpu = Path("/proc/cpuinfo").read_text(errors="replace")
    v3 = all(f" {flag}" in cpu for flag in ("avx2", "fma", "f16c", "bmi2"))
    is_zig = any("zig" in part for part in command)
    flags = [("-mcpu=x86_64_v3" if is_zig else "-march=x86-64-v3")] if v3 else []
    version = probe.stdout.splitlines()[0]
    if "Free Software Foundation" in probe.stdout:
        flags.append("-fvect-cost-model=dynamic")  # clang's default; GCC's at -O2 leaves register tiles scalar
        return Toolchain(command, version, tuple(flags), ("-fsanitize=thread",))
    flags.append("-fno-sanitize=undefined")  # on by default in zig's clang
    return Toolchain(command, version, tuple(flags), ("-Xclang", "-fsanitize=thread"))


def _find_compiler() -> tuple[str, ...]:
    if configured := os.environ.get("CXX"):
        command = tuple(shlex.split(configured))
        if not shutil.which(command[0]):
            raise EnvironmentError_(f"CXX names `{command[0]}`, which is not installed", hint="unset CXX or correct it")
        return command
    for name in ("g++", "clang++"):
        if path := shutil.which(name):
            return (path,)
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "c++")
    raise EnvironmentError_(
        "the sim device needs a C++ compiler and found none",
        hint="apt-get install g++   (or: pip install ziglang, or set CXX)",
    )


def runtime_library() -> Path:
    """The path of the simulator's runtime library, built on first use (about two seconds). Raises CompileError."""
    tools = toolchain()
    sources = sorted(_HERE.glob("*.cpp"))
    flags = [*_RUNTIME_FLAGS, *tools.flags]
    key = _digest(tools, flags, [*sources, *sorted(_HERE.glob("*.h"))], "")
    path = cache_dir() / "sim" / f"runtime-{key}.so"
    if not _intact(path):
        _make(path, [*tools.command, *flags, *map(str, sources)], "the sim runtime", "")
    return path


def kernel_library(kernel: SimSource) -> Path:
    """The path of the kernel's library, compiled unless cached. Raises CompileError with the kernel's line."""
    path = _kernel_path(kernel)
    if not _intact(path):
        _compile(kernel, path)
    return path


def kernel_libraries(kernels: Sequence[SimSource], jobs: int = 2) -> list[Path]:
    """``kernel_library`` of each kernel. ``jobs`` processes compile what is not cached; equal sources only once."""
    from concurrent.futures import ThreadPoolExecutor

    paths = [_kernel_path(kernel) for kernel in kernels]
    missing = {path: kernel for path, kernel in zip(paths, kernels) if not _intact(path)}
    compilers = Compilers()
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:  # each thread only waits for its compiler
        try:
            futures = [pool.submit(_compile, kernel, path, compilers) for path, kernel in missing.items()]
            for future in futures:
                future.result()
        except (KeyboardInterrupt, SystemExit):
            pool.shutdown(wait=False, cancel_futures=True)
            compilers.stop()
            raise
    return paths


def _kernel_flags(kernel: SimSource) -> list[str]:
    number = "".join(c for c in kernel.arch.removeprefix("sm_") if c.isdigit())
    tools = toolchain()
    mode = (*_CHECKED_FLAGS, *tools.instrument) if kernel.checked else _FAST_FLAGS
    return [*_KERNEL_FLAGS, *tools.flags, *mode, f"-D__CUDA_ARCH__={number}0"]


@cache
def _headers() -> tuple[Path, ...]:
    return tuple(path for folder in include_dirs() for path in sorted([*folder.glob("*.h"), *folder.glob("*.cuh")]))


def _kernel_path(kernel: SimSource) -> Path:
    key = _digest(toolchain(), _kernel_flags(kernel), _headers(), kernel.name + "\0" + kernel.source)
    return cache_dir() / "sim" / f"{kernel.entry[:60]}-{key}.so"


@cache
def _content(path: Path, mtime_ns: int) -> bytes:
    del mtime_ns  # part of the cache's key only
    return path.read_bytes()


def _digest(tools: Toolchain, flags: Sequence[str], files: Sequence[Path], text: str) -> str:
    h = hashlib.sha256()
    for part in (*tools.command, tools.version, *flags, text):
        h.update(part.encode() + b"\0")
    for path in files:
        h.update(path.name.encode() + b"\0" + _content(path, path.stat().st_mtime_ns) + b"\0")
    return h.hexdigest()[:24]


def _compile(kernel: SimSource, path: Path, compilers: Compilers | None = None) -> None:
    includes = [f"-I{folder}" for folder in include_dirs()]
    text = f'#line 1 "{kernel.name}.cu"\n{kernel.source}'
    log.debug("compiling %s%s", kernel.name, " with checks" if kernel.checked else "")
    command = [*toolchain().command, *_kernel_flags(kernel), *includes, "-include", "cuda_sim.h", "-x", "c++", "-"]
    _make(path, command, f"kernel {kernel.name}", text, compilers)


def _make(path: Path, command: list[str], what: str, stdin: str, compilers: Compilers | None = None) -> None:
    """Makes the library ``path`` by a compiler command without its output, and appends the hash."""
    with workspace(path) as folder:
        made = folder / path.name
        run_compiler([*command, "-o", str(made)], what, stdin, folder, compilers)
        try:
            with made.open("r+b") as file:
                content = file.read()
                file.write(_MAGIC + hashlib.sha256(content).digest())
            os.replace(made, path)
            if path.stem.endswith("0"):  # a digit of its hash: one in sixteen counts the others
                forget_oldest(path.parent, MAX_LIBRARIES)
        except OSError as error:
            raise EnvironmentError_(f"{path} cannot be written: {error.strerror}") from error


def _intact(path: Path) -> bool:
    """Whether the library is there and ends with its own hash. The loader does not see what is behind its sections."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise EnvironmentError_(f"{path} cannot be read: {error.strerror}") from error
    tail = len(data) - len(_MAGIC) - hashlib.sha256().digest_size
    if tail > 0 and data[tail:] == _MAGIC + hashlib.sha256(memoryview(data)[:tail]).digest():
        touch(path)
        return True
    log.warning("the library %s is damaged: it is made again", path)
    return False
