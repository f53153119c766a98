"""What a collector writes and the comparison reads: one revision's rendered kernels with their launch facts.

Raise ``VERSION`` when the meaning of a field changes: files of another version are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from arcweld.compiler.tiling import Tiling

VERSION = 1


class FormatError(Exception):
    """A file that this revision can't read."""


@dataclass(frozen=True, slots=True)
class Tiled:
    """What a model of time needs of a tiled kernel, at its sizes or the ones that estimates assume.

    ``kind`` as in ``cost.choice``; ``shared_bytes`` and ``threads`` of a block.
    """

    kind: str
    tiling: Tiling[int]
    shared_bytes: int
    threads: int


@dataclass(frozen=True, slots=True)
class Record:
    """One rendered kernel.

    id      where it comes from, such as ``case:contract:f16_nk/sm_80/mma#2``: what the two revisions are matched by
    arch    the architecture to compile it for
    entry   the name of its entry point, which holds a hash of the text
    text    index of its source in ``Collection.texts``
    launch  launch facts (grid, block, shared memory, parameters), one a line
    tiled   None for a kernel without tiles, and in records of revisions that did not write it
    """

    id: str
    arch: str
    entry: str
    text: int
    launch: tuple[str, ...]
    tiled: Tiled | None = None


@dataclass(frozen=True, slots=True)
class Collection:
    """All kernels of a revision.

    options  NVRTC's options by architecture
    headers  texts of the headers by name
    absent   catalogue models that were not in the cache
    """

    version: int
    options: dict[str, tuple[str, ...]]
    headers: dict[str, str]
    texts: tuple[str, ...]
    records: tuple[Record, ...]
    absent: tuple[str, ...]


def save(collection: Collection, path: Path) -> None:
    """Writes a collection as MessagePack."""
    path.write_bytes(msgspec.msgpack.encode(collection))


def load(path: Path) -> Collection:
    """Reads a collection. Raises FormatError for another version's."""
    data = path.read_bytes()
    found = msgspec.msgpack.decode(data).get("version")
    if found != VERSION:
        raise FormatError(f"records of version {found} can't be compared with version {VERSION}: choose a later BASE")
    return msgspec.msgpack.decode(data, type=Collection)
