"""Packs the temporaries of one run into one allocation: tensors whose lifetimes do not overlap may share bytes.

The algorithm is greedy by size with best fit (Y. Pisarchyk, J. Lee, "Efficient memory management for deep neural net
inference", 2020). On real graphs the result is within a few per cent of the lower bound, the largest sum of live bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ALIGNMENT = 256  # bytes


@dataclass(frozen=True, slots=True)
class Interval:
    """A buffer of ``nbytes``, alive from launch ``first`` to launch ``last``, both included."""

    nbytes: int
    first: int
    last: int


def aligned(nbytes: int) -> int:
    """``nbytes`` rounded up to the arena's alignment."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def pack_intervals(intervals: Sequence[Interval]) -> tuple[list[int], int]:
    """Byte offset of each buffer (a multiple of 256) and the size of the arena in bytes. Empty buffers are at 0."""
    count = len(intervals)
    offsets = [0] * count
    start = np.zeros(count, np.int64)  # of the buffers placed so far, in order of placing
    stop = np.zeros(count, np.int64)
    first = np.zeros(count, np.int64)
    last = np.zeros(count, np.int64)
    placed = total = 0
    for index in sorted(range(count), key=lambda i: (-intervals[i].nbytes, intervals[i].first, i)):
        item = intervals[index]
        size = aligned(item.nbytes)
        if size == 0:
            continue
        alive = (first[:placed] <= item.last) & (last[:placed] >= item.first)
        at = _best_gap(start[:placed][alive], stop[:placed][alive], size)
        offsets[index] = at
        start[placed], stop[placed], first[placed], last[placed] = at, at + size, item.first, item.last
        placed += 1
        total = max(total, at + size)
    return offsets, total


def _best_gap(starts: np.ndarray, stops: np.ndarray, size: int) -> int:
    """The offset of the smallest gap between the occupied ranges that holds ``size`` bytes; else their end."""
    order = np.argsort(starts, kind="stable")
    best, spare = -1, None
    reached = 0
    for begin, end in zip(starts[order].tolist(), stops[order].tolist()):
        gap = begin - reached
        if gap >= size and (spare is None or gap - size < spare):
            best, spare = reached, gap - size
        reached = max(reached, end)
    return best if best >= 0 else reached
