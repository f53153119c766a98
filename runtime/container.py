"""The container format of an engine file: a zip archive of stored (uncompressed), aligned members.

The standard library writes it. Reading is a strict parser of the few structures that such an archive has (PKWARE's
APPNOTE.TXT, 4.3): it checks every offset and size before use and refuses all other features of zip.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

from arcweld.compiler.errors import EngineFileError

MAX_MEMBERS = 65_535
MAX_NAME = 255
ALIGNMENT = 256  # bytes, of each member's data in the file

_NAME = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]*(/[A-Za-z0-9_\-][A-Za-z0-9_.\-]*){0,3}")
_EPOCH = (1980, 1, 1, 0, 0, 0)
_PADDING_ID = 0xD935  # the extra field that archive aligners use
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL = struct.Struct("<4s2B4HL2L2H")


@dataclass(frozen=True, slots=True)
class Span:
    """A member's bytes in the file (``offset`` and ``size`` in bytes) and their CRC-32."""

    offset: int
    size: int
    crc: int


def valid_name(name: str) -> bool:
    """True for a relative path of plain components, none of which starts with a dot."""
    return len(name) <= MAX_NAME and _NAME.fullmatch(name) is not None


class Writer:
    """Writes an archive member by member, aligned and hashed. The bytes depend on names and contents only.

    ``members`` maps the names written so far to (size in bytes, SHA-256 in hexadecimal).
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._zip = zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=True)
        self.members: dict[str, tuple[int, str]] = {}

    def add(self, name: str, chunks: Iterable[bytes | memoryview], size: int) -> None:
        """Writes a member of ``size`` bytes, given in chunks.

        Raises EngineFileError for an invalid name, a name already used, or chunks of another total size.
        """
        if not valid_name(name) or name in self.members:
            raise EngineFileError(f"member name {name!r} is invalid or taken")
        info = zipfile.ZipInfo(name, _EPOCH)
        info.external_attr = 0o644 << 16
        info.file_size = size
        info.extra = self._padding(info)
        digest = hashlib.sha256()
        with self._zip.open(info, "w") as member:
            for chunk in chunks:
                digest.update(chunk)
                member.write(chunk)
        if info.file_size != size:
            raise EngineFileError(f"member {name} has {info.file_size} bytes, {size} were announced")
        self.members[name] = (size, digest.hexdigest())

    def _padding(self, info: zipfile.ZipInfo) -> bytes:
        large = info.file_size * 1.05 > zipfile.ZIP64_LIMIT
        start = self._stream.tell() + _LOCAL.size + len(info.filename.encode()) + (20 if large else 0)
        gap = -start % ALIGNMENT
        if gap == 0:
            return b""
        gap += ALIGNMENT if gap < 4 else 0
        return struct.pack("<2H", _PADDING_ID, gap - 4) + bytes(gap - 4)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        """Writes the directory. After an exception nothing is written, by the archive's finaliser neither."""
        if failed is None:
            self._zip.close()
        self._zip.fp = None


def read_directory(data: memoryview) -> dict[str, Span]:
    """The members of the archive that fills ``data``, by name.

    Raises EngineFileError for bytes outside the members and the directory, for overlapping or compressed members, and
    for any other feature of zip that ``Writer`` does not use.
    """
    try:
        offset, size, count = _find_directory(data)
        return _read_entries(data, offset, size, count)
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise EngineFileError(f"the archive is damaged: {error}") from None


def _find_directory(data: memoryview) -> tuple[int, int, int]:
    """Offset, size and number of entries of the central directory."""
    at = len(data) - _END.size
    if at < 0 or bytes(data[at : at + 4]) != b"PK\5\6":
        raise EngineFileError("this is not an engine file, or its end is missing")
    _, disk, first_disk, here, count, size, offset, comment = _END.unpack_from(data, at)
    limit = at
    locator = at - _LOCATOR.size
    if locator >= 0 and bytes(data[locator : locator + 4]) == b"PK\6\7":
        _, _, record, _ = _LOCATOR.unpack_from(data, locator)
        if record != locator - _END64.size:
            raise EngineFileError("the archive's directory is damaged")
        mark, _, _, _, disk, first_disk, here, count, size, offset = _END64.unpack_from(data, record)
        limit = record
        if mark != b"PK\6\6":
            raise EngineFileError("the archive's directory is damaged")
    if disk or first_disk or comment or here != count or count > MAX_MEMBERS or offset + size != limit:
        raise EngineFileError("the archive's directory is damaged")
    return offset, size, count


def _read_entries(data: memoryview, at: int, size: int, count: int) -> dict[str, Span]:
    directory_start, end = at, at + size
    members: dict[str, Span] = {}
    headers: list[tuple[int, int]] = []
    for _ in range(count):
        if end - at < _CENTRAL.size:
            raise EngineFileError("the archive's directory is cut short")
        entry = _CENTRAL.unpack_from(data, at)
        name_size, extra_size, comment_size = entry[12:15]
        tail = at + _CENTRAL.size
        at = tail + name_size + extra_size + comment_size
        if entry[0] != b"PK\1\2" or at > end or comment_size:
            raise EngineFileError("the archive's directory is damaged")
        name = bytes(data[tail : tail + name_size]).decode("ascii")
        if not valid_name(name) or name in members:
            raise EngineFileError(f"member name {name[:80]!r} is invalid or occurs twice")
        extra = data[tail + name_size : tail + name_size + extra_size]
        span, header = _member(data, name, entry, extra, directory_start)
        members[name] = span
        headers.append((header, span.offset + span.size))
    if at != end:
        raise EngineFileError("the archive's directory has bytes that belong to no member")
    headers.sort()
    for (_, stop), (start, _) in pairwise(headers):
        if stop > start:
            raise EngineFileError("two members of the archive overlap")
    return members


def _member(data: memoryview, name: str, entry: tuple[int, ...], extra: memoryview, limit: int) -> tuple[Span, int]:
    """Checks one directory entry against its local header; returns the member's span and its header's offset."""
    flags, method, stored, size, start = entry[5], entry[6], entry[10], entry[11], entry[18]
    if 0xFFFFFFFF in (stored, size, start):
        size, stored, start = _zip64(extra, size, stored, start)
    if flags or method or stored != size:
        raise EngineFileError(f"member {name} is compressed or encrypted", hint="engine files hold stored members only")
    if start + _LOCAL.size > limit:
        raise EngineFileError(f"member {name} lies outside the file")
    local = _LOCAL.unpack_from(data, start)
    name_at = start + _LOCAL.size
    begin = name_at + local[10] + local[11]
    same = local[0] == b"PK\3\4" and not local[3] and not local[4] and local[10] == len(name)
    if not same or bytes(data[name_at : name_at + len(name)]) != name.encode():
        raise EngineFileError(f"member {name} and the directory disagree")
    if begin + size > limit:
        raise EngineFileError(f"member {name} lies outside the file")
    return Span(begin, size, entry[9]), start


def _zip64(extra: memoryview, size: int, stored: int, start: int) -> tuple[int, int, int]:
    """Size, stored size and offset, with those that do not fit 32 bits read from the ZIP64 extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            values = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            wide = [next(values, -1) if v == 0xFFFFFFFF else v for v in (size, stored, start)]
            if -1 in wide:
                break
            return wide[0], wide[1], wide[2]
        at += 4 + length
    raise EngineFileError("a large member's sizes are missing")
