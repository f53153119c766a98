"""Copies of large arrays in several threads: numpy releases Python's global lock while it copies or converts."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from arcweld.compiler.cpus import available_cpus

LARGE = 1 << 20  # elements: about a millisecond of one core, ten times the cost of starting threads
_COLUMNS = 64  # of the copy that are written together


def converted(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """``array.astype(dtype)``, in several threads for a large array in C order, or the transpose of one."""
    if array.size >= LARGE and array.flags.f_contiguous and not array.flags.c_contiguous:
        return converted(array.T, dtype).T
    if array.size < LARGE or not array.flags.c_contiguous:
        return array.astype(dtype)
    copy = np.empty(array.shape, dtype)
    flat, target = array.reshape(-1), copy.reshape(-1)

    def part(start: int, stop: int) -> None:
        with np.errstate(all="ignore"):  # the caller's setting is its thread's own
            target[start:stop] = flat[start:stop].astype(dtype)

    _in_parts(part, array.size)
    return copy


def contiguous(array: np.ndarray) -> np.ndarray:
    """``array`` itself if its elements are in C order, else a copy in C order.

    A transposed matrix is copied in groups of 64 columns. numpy's own copy goes along the rows of the copy and so
    fetches a cache line of the source for every element. A group of columns uses the whole line, which is three times
    as fast for 768 x 3072 elements of f16.
    """
    if array.ndim != 2 or array.flags.c_contiguous or not array.flags.f_contiguous:
        return np.ascontiguousarray(array).reshape(array.shape)
    copy = np.empty(array.shape, array.dtype)

    def part(first: int, last: int) -> None:
        for start in range(first, last, _COLUMNS):
            stop = min(start + _COLUMNS, last)
            copy[:, start:stop] = array[:, start:stop]

    if array.size < LARGE:
        part(0, array.shape[1])
    else:
        _in_parts(part, array.shape[1])
    return copy


def _in_parts(part: Callable[[int, int], None], size: int) -> None:
    """Calls ``part(start, stop)`` for ranges that cover ``range(size)``, each in a thread of its own, at most 8."""
    count = min(available_cpus(), 8)
    step = -(-size // count)
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(part, start, min(start + step, size)) for start in range(0, size, step)]:
            done.result()
