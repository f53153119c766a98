"""Reads and writes the safetensors format without copies: views of a mapped file, chunks while writing.

Any safetensors reader opens an engine's ``weights.safetensors`` once it is extracted from the archive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import msgspec
import numpy as np

from arcweld.compiler.dtypes import DEVICE_TYPES, DType, from_numpy
from arcweld.compiler.errors import EngineFileError

MAX_HEADER = 100_000_000  # bytes, the format's own limit
_CHUNK = 1 << 24  # bytes
# the format has no names for packed types, whose arrays are bytes, and for the others that numpy's do not view
_NAMES: dict[DType, str] = {d: d.value.upper() for d in DEVICE_TYPES.values() if not d.is_storage} | {
    DType.F8E4M3FN: "F8_E4M3", DType.F8E5M2: "F8_E5M2", DType.F8E8M0: "F8_E8M0",
    DType.F8E4M3FNUZ: "F8_E4M3FNUZ", DType.F8E5M2FNUZ: "F8_E5M2FNUZ",
}  # fmt: skip
_DTYPES = {name: d for d, name in _NAMES.items()}


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def header(arrays: Mapping[str, np.ndarray]) -> tuple[bytes, list[str], int]:
    """The header with its length, the names in the order of the data, and the size of the file in bytes.

    Arrays with wide elements come first, so that each array is aligned to its element size.
    """
    order = sorted(arrays, key=lambda n: (-arrays[n].dtype.itemsize, n))
    entries: dict[str, object] = {}
    at = 0
    for name in order:
        array = arrays[name]
        entries[name] = _Entry(_NAMES[from_numpy(array.dtype)], array.shape, (at, at + array.nbytes))
        at += array.nbytes
    header = msgspec.json.encode(entries)
    header += b" " * (-(8 + len(header)) % 256)
    return len(header).to_bytes(8, "little") + header, order, 8 + len(header) + at


def chunks(arrays: Mapping[str, np.ndarray], header: bytes, order: list[str]) -> Iterator[bytes | memoryview]:
    """The bytes of the file in chunks, for what ``header`` returned."""
    yield header
    for name in order:
        flat = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8)
        for start in range(0, flat.size, _CHUNK):
            yield flat[start : start + _CHUNK].data


def read(data: memoryview) -> dict[str, np.ndarray]:
    """Read-only arrays that share the memory of ``data``. Raises EngineFileError for a damaged file."""
    if len(data) < 8:
        raise EngineFileError("the weights file has no header")
    length = int.from_bytes(data[:8], "little")
    if length > min(MAX_HEADER, len(data) - 8):
        raise EngineFileError("the weights file's header is longer than the file")
    try:
        entries = msgspec.json.decode(data[8 : 8 + length], type=dict[str, _Entry])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineFileError(f"the weights file's header is damaged: {error}") from None
    body = data[8 + length :]
    arrays: dict[str, np.ndarray] = {}
    at = 0
    for name, entry in sorted(entries.items(), key=lambda e: e[1].data_offsets):
        begin, end = entry.data_offsets
        dtype = _DTYPES.get(entry.dtype)
        if dtype is None or len(entry.shape) > 32 or any(not 0 <= s < 1 << 48 for s in entry.shape):
            raise EngineFileError(f"weight {name[:80]!r} has a damaged type or shape")
        if begin != at or end - begin != math.prod(entry.shape) * dtype.size or end > len(body):
            raise EngineFileError(f"weight {name[:80]!r} does not lie where it should")
        view = np.frombuffer(body[begin:end], np.uint8)
        if view.ctypes.data % dtype.size:
            view = view.copy()  # written by another tool, in another order
        arrays[name] = view.view(dtype.numpy).reshape(entry.shape)
        arrays[name].flags.writeable = False
        at = end
    if at != len(body):
        raise EngineFileError("the weights file has bytes that belong to no weight")
    return arrays
