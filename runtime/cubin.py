"""What object code says of its kernels: a reader of as much of a cubin, an ELF file, as that takes."""

from __future__ import annotations

import struct

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")  # ELF64, little-endian (System V gABI, chapter 4)
_SECTION = struct.Struct("<IIQQQQIIQQ")
_WORDS, _REGISTERS = 4, 0x2F  # of an entry of .nv.info: its value has a size of its own; EIATTR_REGCOUNT


def registers(cubin: bytes) -> int | None:
    """The most registers that a thread of any kernel in ``cubin`` uses, as ptxas counted; None where it tells none.

    Such a count is an entry of the section ``.nv.info``, as ``cuobjdump --dump-elf`` shows them: a symbol's number and
    the count, for each kernel. Code that ends too early, or is no ELF file, tells none.
    """
    try:
        info = _section(cubin, b".nv.info")
        return max(_counts(info), default=None)
    except (struct.error, IndexError, ValueError):
        return None


def _section(code: bytes, name: bytes) -> bytes:
    """The contents of the section of that name, empty where there is none."""
    header = _HEADER.unpack_from(code)
    if header[0][:6] != b"\x7fELF\x02\x01":
        raise ValueError("no little-endian ELF64 file")
    at, size, count, names = header[6], header[11], header[12], header[13]
    sections = [_SECTION.unpack_from(code, at + k * size) for k in range(count)]
    texts = _bytes(code, sections[names])
    for s in sections:
        if texts[s[0] : texts.index(b"\0", s[0])] == name:
            return _bytes(code, s)
    return b""


def _bytes(code: bytes, section: tuple[int, ...]) -> bytes:
    found = code[section[4] : section[4] + section[5]]
    if len(found) != section[5]:
        raise ValueError("a section ends behind the file")
    return found


def _counts(info: bytes) -> list[int]:
    found, at = [], 0
    while at < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        if (form, attribute) == (_WORDS, _REGISTERS):
            found.append(struct.unpack_from("<II", info, at + 4)[1])
        at += 4 + (size if form == _WORDS else 0)
    return found
