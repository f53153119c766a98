"""Releases memory of mapped files: the pages of a weight that was read only to make another weight."""

from __future__ import annotations

import mmap

import numpy as np

WORTHWHILE = 1 << 20  # bytes of an array from which releasing its pages pays


def give_back(data: np.ndarray) -> None:
    """Removes from this process's memory the pages of a mapped file that lie wholly inside ``data``.

    A later access reads them from the file again. Does nothing for arrays in ordinary memory, arrays of less than
    ``WORTHWHILE`` bytes, and systems without ``madvise``.
    """
    mapped = root(data)
    if not isinstance(mapped, mmap.mmap) or not hasattr(mapped, "madvise"):
        return
    if data.nbytes < WORTHWHILE or not data.flags.c_contiguous:
        return
    start = data.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + data.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def root(data: np.ndarray) -> object:
    """The object whose memory ``data`` is a view of; ``data`` itself where it owns its memory."""
    found: object = data
    while isinstance(found, np.ndarray) and found.base is not None:
        found = found.base
    return found.obj if isinstance(found, memoryview) else found
