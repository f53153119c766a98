"""Reads the header of a safetensors file: which tensor lies where. Contents are neither read nor copied.

The format (https://github.com/huggingface/safetensors): 8 bytes with the header's length, the header in JSON, the
contents of all tensors one after another, without gaps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from arcweld.compiler.dtypes import DEVICE_TYPES, DType
from arcweld.compiler.errors import ModelError, UnsupportedError

MAX_HEADER = 100_000_000  # bytes, the format's own limit
MAX_RANK, MAX_SIZE = 32, 1 << 48  # no tensor is larger; products of such sizes are checked as exact integers

# The format's names. Packed types have none here: engines hold them as bytes, and checkpoints as bytes or words.
NAMES: Mapping[DType, str] = {d: d.value.upper() for d in DEVICE_TYPES.values() if not d.is_storage} | {
    DType.F8E4M3FN: "F8_E4M3", DType.F8E5M2: "F8_E5M2", DType.F8E8M0: "F8_E8M0",
    DType.F8E4M3FNUZ: "F8_E4M3FNUZ", DType.F8E5M2FNUZ: "F8_E5M2FNUZ",
}  # fmt: skip
_DTYPES = {name: d for d, name in NAMES.items()}


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor in a header: the format's name of its type, its shape, and where its bytes begin and end."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's type, shape, and the first and the last but one of its bytes, counted from the start of the file."""

    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says: the place of each tensor, and text that the writer added."""

    places: Mapping[str, Place]
    metadata: Mapping[str, str]


def read_header(data: memoryview) -> Header:
    """The header of the file with the contents ``data``.

    Raises ModelError for a damaged header, and where the tensors do not fill the rest of the file exactly: one that is
    cut off, tensors that overlap, gaps. Raises UnsupportedError for a type that Arcweld has no elements of.
    """
    if len(data) < 8:
        raise ModelError("the weights file has no header")
    length = int.from_bytes(data[:8], "little")
    if length > min(MAX_HEADER, len(data) - 8):
        raise ModelError("the weights file's header is longer than the file")
    try:
        raw = msgspec.json.decode(data[8 : 8 + length], type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(raw.pop("__metadata__", msgspec.Raw(b"{}")), type=dict[str, str])
        entries = {name: msgspec.json.decode(entry, type=Entry) for name, entry in raw.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"the weights file's header is damaged: {error}") from None
    return Header(_places(entries, 8 + length, len(data)), metadata)


def _places(entries: Mapping[str, Entry], start: int, size: int) -> dict[str, Place]:
    places: dict[str, Place] = {}
    at = start
    for name, entry in sorted(entries.items(), key=lambda e: e[1].data_offsets):
        dtype = _DTYPES.get(entry.dtype)
        if dtype is None:
            raise UnsupportedError(f"weight {name[:80]!r} has elements of type {entry.dtype[:20]}")
        if len(entry.shape) > MAX_RANK or any(not 0 <= s < MAX_SIZE for s in entry.shape):
            raise ModelError(f"weight {name[:80]!r} has a damaged shape")
        begin, end = (start + offset for offset in entry.data_offsets)
        need = dtype.nbytes(math.prod(entry.shape))
        if begin != at or end - begin != need:
            raise ModelError(
                f"weight {name[:80]!r} does not lie where it should: it needs {need} bytes from byte {at}, and the "
                f"header says {begin} to {end}"
            )
        if end > size:
            raise ModelError(
                f"the file ends at byte {size}, inside of weight {name[:80]!r}, which needs bytes {begin} to {end}"
            )
        places[name] = Place(dtype, entry.shape, begin, end)
        at = end
    if at != size:
        raise ModelError("the weights file has bytes that belong to no weight")
    return places
