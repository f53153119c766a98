"""Files of checkpoints, mapped into memory and never read as a whole, and their JSON files."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from arcweld.compiler.errors import ArcweldError, ModelError
from arcweld.compiler.paths import open_inside
from arcweld.compiler.safetensors_format import Place, read_header

MAX_JSON = 256 << 20  # bytes; an index of a hundred thousand tensors has about ten million
COPY_AGAIN = "the file is damaged or was not copied whole: fetch it again"


def map_file(file: BinaryIO, name: str) -> np.ndarray:
    """The contents of an open file as read-only ``u8[size]``, a view of a mapping. Raises ModelError for none."""
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode) or not found.st_size:
        raise ModelError("the file is empty or no file at all", node=name, hint=COPY_AGAIN)
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def map_path(path: Path) -> np.ndarray:
    """The contents of the file that a user named, as ``map_file`` gives them."""
    try:
        with path.open("rb") as file:
            return map_file(file, str(path))
    except OSError as error:
        raise ModelError(f"cannot read the checkpoint: {error.strerror or error}", node=str(path)) from error


def read_json(folder: Path, name: str) -> dict[str, Any] | None:
    """The object in the JSON file ``name`` of a checkpoint's folder; None if there is no such file.

    Raises ModelError for anything but an object, and for a file of more than ``MAX_JSON`` bytes.
    """
    if not os.path.lexists(folder / name):
        return None
    with open_inside(folder, name, f"the file {name!r} of the checkpoint", hub=True) as file:
        found_file = os.fstat(file.fileno())
        if not stat.S_ISREG(found_file.st_mode) or found_file.st_size > MAX_JSON:
            raise ModelError(f"the file is no file, or larger than {MAX_JSON >> 20} MiB", node=name, hint=COPY_AGAIN)
        data = file.read(found_file.st_size)
    try:
        found: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"the file is no JSON object: {error}", node=name, hint=COPY_AGAIN) from error
    return found


def open_safetensors(folder: Path, name: str, place: str) -> dict[str, np.ndarray]:
    """Views of the tensors in the file ``name`` of a folder. ``place`` begins errors of a file that cannot be opened.

    A view keeps the file's alignment, which may be less than an element. Raises ModelError for a damaged file,
    UnsupportedError for elements of a type that Arcweld lacks.
    """
    with open_inside(folder, name, place, hub=True) as file:
        data = map_file(file, name)
    try:
        places = read_header(data.data).places
    except ArcweldError as error:
        raise type(error)(error.message, node=name, hint=error.hint or COPY_AGAIN) from None
    return {tensor: view(data, p) for tensor, p in places.items()}


def view(data: np.ndarray, place: Place) -> np.ndarray:
    """The tensor at a place of a file's contents, without a copy."""
    return np.ndarray(place.shape, place.dtype.numpy, data.data, place.begin)
