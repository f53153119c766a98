"""Files of measured times: TensorRT's form, as ``trtexec --exportProfile`` writes it, written and read.

It is a list whose first entry holds the number of measurements. Every other entry has exactly the keys ``name``,
``timeMs`` (of all measurements together), ``averageMs``, ``medianMs`` and ``percentage``. The first entry also says,
below ``arcweld``, what was measured, so that times of one engine are not taken for those of another one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from arcweld.compiler.errors import ProfileError
from arcweld.compiler.logs import printable
from arcweld.runtime.engine_file import EngineData
from arcweld.runtime.profiler import HOST, LaunchTime

MOST_BYTES = 1 << 26


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The times of one launch, or of a step of the host, in milliseconds; ``percentage`` is that of ``time_ms``."""

    name: str
    time_ms: float
    average_ms: float
    median_ms: float
    percentage: float


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured: the engine's fingerprint, the device's name and architecture, the values of the symbols.

    ``host`` names the rows that are steps of the host.
    """

    engine: str
    device: str
    arch: str
    sizes: dict[str, int]
    host: tuple[str, ...] = ()


class _Head(msgspec.Struct, frozen=True):
    count: int
    arcweld: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """Measured times in the order of execution; ``measured`` is None for a file that does not say it."""

    count: int
    rows: tuple[Row, ...]
    measured: Measured | None


def fingerprint(data: EngineData) -> str:
    """A SHA-256 of the program and of its kernels' texts: engines that have the same run the same kernels."""
    digest = hashlib.sha256(msgspec.json.encode(data.program))
    for name, text in sorted(data.sources.items()):
        digest.update(f"\n{name}\n{text}".encode())
    return digest.hexdigest()


def profile_rows(times: Sequence[LaunchTime], count: int, measured: Measured) -> list[dict[str, Any]]:
    """The content of a profile; ``count``: rounds that each launch was timed in. A host's step counts as if it had
    taken in each round what it took in the one call.
    """
    total = sum(t.mean for t in times) or 1.0
    host = tuple(t.name for t in times if t.template == HOST)
    said = msgspec.to_builtins(msgspec.structs.replace(measured, host=host))
    return [
        {"count": count, "arcweld": said},
        *(
            {
                "name": t.name, "timeMs": t.mean * count * 1e3, "averageMs": t.mean * 1e3,
                "medianMs": t.seconds * 1e3, "percentage": 100 * t.mean / total,
            }
            for t in times
        ),
    ]  # fmt: skip


def read_profile(path: str) -> Profile:
    """The profile in a file. Raises ProfileError for a file that cannot be read, or that is no profile."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ProfileError(f"the profile cannot be read: {error.strerror}", node=path) from None
    if len(content) > MOST_BYTES:
        raise ProfileError(f"the file has more than {MOST_BYTES} bytes, which no profile has", node=path)
    try:
        first, *rest = msgspec.json.decode(content, type=list[msgspec.Raw])
        head = msgspec.json.decode(first, type=_Head)
        rows = tuple(msgspec.json.decode(r, type=Row) for r in rest)
        said = head.arcweld or {}
        measured = None if head.arcweld is None or "times" in said else msgspec.convert(said, Measured)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ProfileError(
            f"the file is no profile: {printable(str(error))}", node=path,
            hint="`onnx-to-engine bench --exportProfile` writes profiles, in the form of trtexec",
        ) from None  # fmt: skip
    if "times" in said:
        raise ProfileError("the times in the file are modelled, not measured", node=path)
    if head.count < 1:
        raise ProfileError(f"the profile counts {head.count} measurements", node=path)
    names = set[str]()
    for r in rows:
        if r.name in names or not all(0 <= t < math.inf for t in (r.time_ms, r.average_ms, r.median_ms)):
            wrong = "is there twice" if r.name in names else "has a time that is no time"
            raise ProfileError(f"the profile is damaged: {printable(r.name)!r} {wrong}", node=path)
        names.add(r.name)
    return Profile(head.count, rows, measured)


def check_profile(profile: Profile, path: str, data: EngineData, launches: Sequence[str]) -> None:
    """Raises ProfileError for a profile of another engine; ``launches``: the names of those that serve the sizes.

    A profile that does not say what was measured has to name just these launches.
    """
    hint = "`onnx-to-engine bench ENGINE --exportProfile` on a GPU writes one of this engine"
    if profile.measured is not None:
        if profile.measured.engine != fingerprint(data):
            raise ProfileError("the profile is of another engine", node=path, hint=hint)
        known = {*(x.name for x in data.program.all_launches()), *profile.measured.host}
        if odd := [r.name for r in profile.rows if r.name not in known]:
            raise ProfileError(f"the profile is damaged: the engine has no launch {printable(odd[0])!r}", node=path)
        return
    names = {r.name for r in profile.rows}
    if odd := sorted(names.symmetric_difference(launches)):
        where = "the profile" if odd[0] in names else "the engine"
        raise ProfileError(
            f"the profile is of another engine: only {where} has a launch {printable(odd[0])!r}", node=path, hint=hint
        )


def sizes_in(profile: Profile) -> Mapping[str, int]:
    """The sizes that a profile was measured with; empty where it does not say."""
    return {} if profile.measured is None else profile.measured.sizes
