"""Whose memory an array is: gives pages of mapped files back, and tells arrays that nobody can write."""

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
    if data.nbytes < WORTHWHILE or not is_dense(data):
        return
    start = data.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + data.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def is_mapped(data: np.ndarray) -> bool:
    """Whether ``data`` is part of a mapped file."""
    return isinstance(root(data), mmap.mmap)


def is_dense(data: np.ndarray) -> bool:
    """Whether the elements fill a range of memory, whatever the order of the axes."""
    order = sorted(range(data.ndim), key=lambda axis: -data.strides[axis])
    return data.transpose(order).flags.c_contiguous


def make_constant(data: np.ndarray) -> np.ndarray:
    """``data``, which nobody else refers to, made read-only for good."""
    found: object = data
    while isinstance(found, np.ndarray):
        found.flags.writeable = False
        found = found.base
    return data


def is_constant(data: np.ndarray) -> bool:
    """Whether nobody can write to the memory of ``data``: not to a mapped file, which other processes may change."""
    owner = root(data)
    return isinstance(owner, bytes) or (isinstance(owner, np.ndarray) and not owner.flags.writeable)


def root(data: np.ndarray) -> object:
    """The object whose memory ``data`` is a view of; ``data`` itself where it owns its memory."""
    found: object = data
    while isinstance(found, np.ndarray) and found.base is not None:
        found = found.base
    return found.obj if isinstance(found, memoryview) else found
