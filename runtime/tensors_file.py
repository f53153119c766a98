"""Reads and writes the safetensors format without copies: views of a mapped file, chunks while writing.

Any safetensors reader opens an engine's ``weights.safetensors`` once it is extracted from the archive.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
import numpy as np

from arcweld.compiler.dtypes import from_numpy
from arcweld.compiler.errors import EngineFileError, ModelError, UnsupportedError
from arcweld.compiler.safetensors_format import NAMES, Entry, read_header

_CHUNK = 1 << 24  # bytes


def header(arrays: Mapping[str, np.ndarray]) -> tuple[bytes, list[str], int]:
    """The header with its length, the names in the order of the data, and the size of the file in bytes.

    Arrays with wide elements come first, so that each array is aligned to its element size.
    """
    order = sorted(arrays, key=lambda n: (-arrays[n].dtype.itemsize, n))
    entries: dict[str, object] = {}
    at = 0
    for name in order:
        array = arrays[name]
        entries[name] = Entry(NAMES[from_numpy(array.dtype)], array.shape, (at, at + array.nbytes))
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
    try:
        found = read_header(data)
    except (ModelError, UnsupportedError) as error:
        raise EngineFileError(error.message) from None
    arrays: dict[str, np.ndarray] = {}
    for name, place in found.places.items():
        view = np.frombuffer(data[place.begin : place.end], np.uint8)
        if view.ctypes.data % place.dtype.size:
            view = view.copy()  # written by another tool, in another order
        arrays[name] = view.view(place.dtype.numpy).reshape(place.shape)
        arrays[name].flags.writeable = False
    return arrays
