"""Fields of few bits in words and bytes. All functions take and give matrices, and work along their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

CHUNK = 1 << 20  # elements that are unpacked at a time: a byte each, and a few temporary arrays of that size


def row_chunks(rows: int, columns: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about ``CHUNK`` elements, each but the last a multiple of ``multiple`` rows."""
    step = max(1, CHUNK // max(1, columns * multiple)) * multiple
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def fields(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first ``count`` fields of ``bits`` bits (1 to 8) of each row of 32-bit words, as u8.

    Fields follow one another without gaps, the first one in the lowest bits; a field may begin in one word and end in
    the next.
    """
    words = np.ascontiguousarray(words).view(np.uint32)
    if bits in (1, 2, 4, 8):
        return byte_fields(words.astype("<u4", copy=False).view(np.uint8), bits, count)
    found = np.empty((words.shape[0], count), np.uint8)
    for i in range(min(32, count)):  # 32 fields fill ``bits`` words: those at one place in them have one shift
        word, shift = divmod(i * bits, 32)
        part = found[:, i::32]
        field = words[:, word::bits][:, : part.shape[1]] >> np.uint32(shift)
        if shift + bits > 32:
            field |= words[:, word + 1 :: bits][:, : part.shape[1]] << np.uint32(32 - shift)
        part[:] = field & np.uint32((1 << bits) - 1)
    return found


def byte_fields(rows: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first ``count`` fields of 1, 2, 4 or 8 bits of each row of bytes, the first one in the lowest bits."""
    if bits == 8:
        return rows[:, :count]
    per = 8 // bits
    found = np.empty((rows.shape[0], rows.shape[1] * per), np.uint8)
    for k in range(per):
        found[:, k::per] = rows >> np.uint8(k * bits) & np.uint8((1 << bits) - 1)
    return found[:, :count]


def packed_rows(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes of ``bits`` bits (1, 2, 4 or 8), a byte each, as rows of whole bytes; bits behind the last code are 0."""
    if bits == 8:
        return codes
    per = 8 // bits
    rows, columns = codes.shape
    packed = np.zeros((rows, -(-columns // per)), np.uint8)
    for k in range(per):
        part = codes[:, k::per]
        packed[:, : part.shape[1]] |= part << np.uint8(k * bits)
    return packed


def packed_in_chunks(
    codes: Callable[[int, int], np.ndarray],
    shape: tuple[int, int],
    bits: int,
    order: np.ndarray | None = None,
    multiple: int = 1,
) -> np.ndarray:
    """``packed_rows`` of a matrix whose rows from ``a`` to ``b`` are ``codes(a, b)``, a chunk at a time.

    ``order``: the columns in this order. ``multiple``: of rows that ``codes`` can take. Beside the result, memory for
    a few times ``CHUNK`` bytes is used.
    """
    rows, columns = shape
    packed = np.empty((rows, -(-columns * bits // 8)), np.uint8)
    for a, b in row_chunks(rows, columns, multiple):
        part = codes(a, b)
        packed[a:b] = packed_rows(part if order is None else part[:, order], bits)
    return packed
