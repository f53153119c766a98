"""Paged caches: keys and values of many sequences in pages of one tensor, which a table assigns to the sequences.

The table is FlashInfer's (Ye et al., 2025): sequence ``b`` has the pages ``indices[indptr[b]:indptr[b + 1]]`` in this
order; all of them are full but the last one, of which ``last_page_len[b]`` positions are used. A sequence without pages
has length 0. The references raise IndexError for an entry of the table that is out of range. Kernels clamp it, and in
checked mode it is an error; negative entries don't count from the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, floordiv, is_nonneg, mod
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.expr import Expr, all_of, binary, both, cast, checked_index, const, dynamic_index, index, where
from arcweld.compiler.ir import Node, TensorType, Value
from arcweld.compiler.ops.gather import INDEX
from arcweld.compiler.ops.movement import movement, operand
from arcweld.compiler.ops.registry import Attr, Case, Reader
from arcweld.compiler.ops.shapes import check_dtype, check_equal, check_rank, if_any, present, split_optional

Attrs = Mapping[str, Any]
Arrays = Sequence[np.ndarray | None]
Types = Sequence[TensorType | None]


def _check_table(op: str, indptr: TensorType, last: TensorType, indices: TensorType | None = None) -> Dim:
    """The number of sequences. Raises ModelError where the operands are no table."""
    for t in (indptr, last, *([] if indices is None else [indices])):
        check_dtype(op, t, INDEX)
        check_rank(op, t, 1, 1)
    check_equal(op, "indptr has an entry more than last_page_len", indptr.shape[0], last.shape[0] + 1)
    return last.shape[0]


def _check_page_size(op: str, size: Dim) -> None:
    if not is_nonneg(size - 1):
        raise ModelError(f"{op}: pages of {size} positions")


# ------------------------------------------------------------------------------------------------------ references


def table_lengths(indptr: np.ndarray, last: np.ndarray, page_size: int) -> np.ndarray:
    """The length of each sequence, as i64."""
    pages = np.diff(indptr.astype(np.int64))
    return np.where(pages > 0, (pages - 1) * page_size + last.astype(np.int64), 0)


def _own_pages(indptr: np.ndarray, indices: np.ndarray, b: int, count: int) -> np.ndarray:
    """The first ``count`` pages of sequence ``b``. Raises IndexError where the table has fewer entries."""
    first = int(indptr[b])
    if first < 0 or first + count > indices.size:
        raise IndexError(f"sequence {b} has {count} pages from entry {first} on, of a table of {indices.size}")
    own: np.ndarray = indices[first : first + count]
    return own


def _read(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    pages, indptr, indices, last = _present(arrays)
    size = pages.shape[1]
    lengths = np.minimum(table_lengths(indptr, last, size), attrs["length"])
    out = np.zeros((len(last), pages.shape[2], attrs["length"], pages.shape[3]), pages.dtype)
    for b, length in enumerate(lengths):
        own = _own_pages(indptr, indices, b, -(-int(length) // size))
        if np.any((own < 0) | (own >= len(pages))):
            raise IndexError(f"the pages {own} of sequence {b}, of {len(pages)}")
        rows = pages[own].reshape(-1, *pages.shape[2:])[:length]
        out[b, :, :length] = rows.transpose(1, 0, 2)
    return (out,)


def _slots(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    indptr, indices, last, *new = _present(arrays)
    size, count = attrs["page_size"], attrs["count"]
    out = np.full((len(last), count, 2), -1, indices.dtype)
    for b, length in enumerate(table_lengths(indptr, last, size)):
        own = _own_pages(indptr, indices, b, -(-int(length) // size))
        padding = count - int(new[0][b]) if new else 0
        for k, position in enumerate(range(int(length) - count, int(length))):
            if position >= 0 and k >= padding:
                if own[position // size] < 0:
                    raise IndexError(f"page {own[position // size]} of sequence {b}")
                out[b, k] = own[position // size], position % size
    return (out,)


def _present(arrays: Arrays) -> list[np.ndarray]:
    return [a for a in arrays if a is not None]


# ------------------------------------------------------------------------------------------------------- lowerings


def _length(reader: Reader, indptr: Value, last: Value, b: Dim, page_size: Dim) -> Expr:
    """The length of sequence ``b``, as i64."""
    first, end, used = (cast(reader.read(v, (at,)), DType.I64) for v, at in ((indptr, b), (indptr, b + 1), (last, b)))
    full = binary("mul", end - first - 1, index(page_size))
    return where(binary("gt", end, first), full + used, const(0, DType.I64))


def _within(at: Expr, extent: Dim, needed: Expr | None) -> Dim:
    """The coordinate ``at`` of an axis of ``extent`` elements, which has to be inside of it if it is ``needed``.

    It is clamped in 32 bits: attention does so for every key, and no table has more entries or pages.
    """
    return dynamic_index(checked_index(at, extent, needed, strict=False), extent, dtype=DType.I32)


def _entry(reader: Reader, indptr: Value, b: Dim, number: Dim) -> Expr:
    """The entry of the table, as i64, that says page ``number`` of sequence ``b``."""
    return binary("add", cast(reader.read(indptr, (b,)), DType.I64), index(number))


def _page(reader: Reader, indices: Value, entry: Expr, exists: Expr) -> Expr:
    """The page at ``entry`` of the table, as i64, if that position of the sequence ``exists``; else any entry."""
    at = _within(entry, indices.shape[0], all_of([reader.mask, exists]))
    return cast(reader.read(indices, (at,), if_any([indices.shape[0]])), DType.I64)


# ------------------------------------------------------------------------------------------------------- operators


def _infer_lengths(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    indptr, last = present("PagedLengths", types, 2)
    _check_page_size("PagedLengths", attrs["page_size"])
    return (TensorType(DType.I64, (_check_table("PagedLengths", indptr, last),)),)


def _lower_lengths(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    indptr, last = node.operands()
    return _length(reader, indptr, last, coords[0], node.attrs["page_size"])


def _infer_slots(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (indptr, indices, last), (new,) = split_optional("PagedSlots", types, 3, 4)
    _check_page_size("PagedSlots", attrs["page_size"])
    if new is not None:
        check_dtype("PagedSlots", new, INDEX)
        check_rank("PagedSlots", new, 1, 1)
        check_equal("PagedSlots", "there is one number of new positions for each sequence", new.shape[0], last.shape[0])
    return (indices.with_shape((_check_table("PagedSlots", indptr, last, indices), attrs["count"], 2)),)


def _lower_slots(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    indptr, indices, last, *new = node.operands()
    b, k, part = coords
    size, back = node.attrs["page_size"], index(k - node.attrs["count"])
    position = binary("add", _length(reader, indptr, last, b, size), back)
    exists = binary("ge", position, const(0, DType.I64))
    for v in new:
        own = binary("add", cast(reader.read(v, (b,)), DType.I64), back)
        exists = both(exists, binary("ge", own, const(0, DType.I64)))
    t = dynamic_index(position, indices.shape[0] * size)
    entry, zero = _entry(reader, indptr, b, floordiv(t, size)), const(0, DType.I64)
    page = _page(reader, indices, entry, exists)
    most = int(np.iinfo(indices.dtype.numpy).max)  # how many pages there are is known to the scatter only
    page = checked_index(page, most, all_of([reader.mask, exists]), strict=False)
    slot = index(mod(t, size))
    wanted = (page, slot)[part] if isinstance(part, int) else where(binary("eq", index(part), zero), page, slot)
    inside = both(binary("ge", entry, zero), binary("lt", entry, index(indices.shape[0])))
    return cast(where(both(exists, inside), wanted, const(-1, DType.I64)), indices.dtype)


def _infer_read(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    pages, indptr, indices, last = present("PagedRead", types, 4)
    check_rank("PagedRead", pages, 4, 4)
    _check_page_size("PagedRead", pages.shape[1])
    batch = _check_table("PagedRead", indptr, last, indices)
    return (pages.with_shape((batch, pages.shape[2], attrs["length"], pages.shape[3])),)


def _lower_read(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    pages, indptr, indices, last = node.operands()
    b, head, t, column = coords
    size = pages.shape[1]
    exists = binary("lt", index(t), _length(reader, indptr, last, b, size))
    page = _page(reader, indices, _entry(reader, indptr, b, floordiv(t, size)), exists)
    found = _within(page, pages.shape[0], all_of([reader.mask, exists]))
    return reader.read(pages, (found, mod(t, size), head, column), exists)


_INDPTR, _INDICES, _LAST = (np.array(a, np.int32) for a in ([0, 2, 2, 3], [4, 1, 0], [1, 0, 3]))
_WIDE = tuple(a.astype(np.int64) for a in (_INDPTR, _INDICES, _LAST))

movement(
    "PagedLengths", "indptr last_page_len", _infer_lengths,
    lambda a, p: (table_lengths(operand(a), operand(a, 1), p["page_size"]),), _lower_lengths,
    {"page_size": Attr("dim", required=True)},
    [
        Case((_INDPTR, _LAST), {"page_size": 3}),
        Case((_WIDE[0], _WIDE[2]), {"page_size": 16}),
        Case((np.array([0, 0], np.int32), np.array([7], np.int32)), {"page_size": 16}),
    ],
    doc="i64: the length of each sequence of a table of pages; 0 for one without pages",
)  # fmt: skip
movement(
    "PagedSlots", "indptr indices last_page_len new?", _infer_slots, _slots, _lower_slots,
    {"page_size": Attr("dim", required=True), "count": Attr("dim", required=True)},
    [
        Case((_INDPTR, np.array([4, 1, 0, 9, 9], np.int32), _LAST), {"page_size": 3, "count": 1}),
        Case(_WIDE, {"page_size": 3, "count": 5}),
        Case((_INDPTR, _INDICES, _LAST, np.array([3, 1, 2], np.int32)), {"page_size": 3, "count": 2}),
    ],
    doc="the page and the place in it of the last ``count`` positions of each sequence, [batch, count, 2];"
    " -1 and -1 for positions before the first one, and for those before the last ``new`` of a sequence",
    needs=lambda n: [n.operands()[1].shape[0]],
)  # fmt: skip
movement(
    "PagedRead", "pages indptr indices last_page_len", _infer_read, _read, _lower_read,
    {"length": Attr("dim", required=True)},
    [
        Case(((5, 3, 2, 4), _INDPTR, _INDICES, _LAST), {"length": 7}, ("f32", "f16")),
        Case(((5, 3, 1, 8), *_WIDE), {"length": 2}, ("f32", "i64")),
        Case(((6, 1, 2, 3), _INDPTR, _INDICES, np.array([1, 0, 1], np.int32)), {"length": 4}, ("f32",)),
    ],
    doc="pages [pages, page_size, heads, head size] as [batch, heads, length, head size]; zeros beyond each sequence",
    needs=lambda n: [n.operands()[0].shape[0], n.operands()[2].shape[0]],
)  # fmt: skip
