"""Builds graphs over paged caches: lengths, positions, appends, and attention that reads keys and values from pages.

    cache = PagedCache(Emitter(rw, ("layer 0",)), *table, page_size=16, length=4096)
    keys = cache.append(key_pages, new_keys)  # an output over the input ``key_pages``: it is written in place
    values = cache.append(value_pages, new_values)
    y = cache.attend(queries, keys, values, scale=0.125)

The table says what each sequence holds after this call, the new positions included. The same attention and the same
scatter as for contiguous caches compute it: the pages are only another way to find a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import InputError
from arcweld.compiler.ir import TensorType, Value
from arcweld.compiler.ops.emit import Emitter

TABLE = ("kv_indptr", "kv_indices", "kv_last_page_len")


def table_inputs(batch: Dim, entries: Dim, prefix: str = "") -> tuple[Value, Value, Value]:
    """The inputs of a graph for the table of ``batch`` sequences with at most ``entries`` pages in all, as i32.

    Entries behind the last sequence's pages are not read: a table of constant size serves every call.
    """
    shapes: tuple[Dim, ...] = (batch + 1, entries, batch)
    indptr, indices, last = (Value(prefix + n, TensorType(DType.I32, (d,))) for n, d in zip(TABLE, shapes))
    return indptr, indices, last


@dataclass(frozen=True, slots=True)
class PagedCache:
    """Emits the nodes that read and write caches in pages ``[pages, page_size, heads, head size]`` by one table.

    Nodes that several layers have in common are emitted for each, and computed once.

    e          where the nodes go
    indptr     [batch + 1]: where the pages of each sequence begin in ``indices``
    indices    the pages of all sequences
    last       [batch]: how many positions of each sequence's last page are used, of 1 to ``page_size``
    page_size  positions of a page
    length     the most positions that a sequence may have: what is beyond is not read
    new        [batch]: how many new tokens each sequence has, if not as many as a call takes; the others come first and
               are padding. None: tokens before a sequence's first position are padding
    """

    e: Emitter
    indptr: Value
    indices: Value
    last: Value
    page_size: Dim
    length: Dim
    new: Value | None = None

    def lengths(self) -> Value:
        """The length of each sequence: i64[batch]."""
        return self.e.emit("PagedLengths", self.indptr, self.last, page_size=self.page_size)

    def positions(self, count: Dim) -> Value:
        """The positions of the last ``count`` tokens of each sequence: i64[batch, count]; 0 before the first."""
        zero = self.e.const(0, DType.I64)
        return self.e.reshape(self.e.emit("Max", self._last(count), zero), (self.last.shape[0], count))

    def _last(self, count: Dim) -> Value:
        """The positions of the last ``count`` tokens, i64[batch, 1, count, 1]; those before the first are negative."""
        batch = self.last.shape[0]
        steps = self.e.emit("Range", start=-count, step=1, length=count, dtype=DType.I64)
        lengths = self.e.reshape(self.lengths(), (batch, 1, 1, 1))
        return self.e.emit("Add", lengths, self.e.reshape(steps, (1, 1, count, 1)))

    def append(self, pages: Value, rows: Value, scale: Value | None = None) -> Value:
        """The pages with ``rows`` [batch, heads, count, head size] at the last ``count`` positions of each sequence.

        Padding is written nowhere. Sequences may share pages, but none to which they append. Pages of 8 bits have a
        ``scale``, one number or one for each head, by which rows are divided before they are rounded.
        """
        table = self.indptr, self.indices, self.last, *([] if self.new is None else [self.new])
        slots = self.e.emit("PagedSlots", *table, page_size=self.page_size, count=rows.shape[2])
        if scale is not None:
            rows = self.e.emit("QuantizeLinear", rows, scale, axis=1, dtype=pages.dtype)
        rows = self.e.transpose(rows, (0, 2, 1, 3))
        return self.e.emit("ScatterND", pages, slots, rows, padding=1)

    def read(self, pages: Value, scale: Value | None = None) -> Value:
        """The pages as [batch, heads, length, head size], with zeros beyond the end of each sequence.

        Pages of 8 bits are multiplied by their ``scale`` (as in ``append``). Scales of each position and head are in
        pages of their own: [pages, page size, heads, 1].
        """
        table = self.indptr, self.indices, self.last
        found = self.e.emit("PagedRead", pages, *table, length=self.length)
        if scale is None:
            return found
        if scale.type.rank != 4:
            return self.e.emit("DequantizeLinear", found, scale, axis=1)
        scales = self.e.emit("PagedRead", scale, *table, length=self.length)
        return self.e.emit("DequantizeLinear", found, scales, axis=3, block=found.shape[3])

    def visible(self, count: Dim, window: int | None = None) -> Value:
        """Which keys the last ``count`` tokens attend to: bool[batch, 1, count, length], those up to their own.

        With a ``window``, the last so many of these.
        """
        own = self._last(count)
        keys = self.e.emit("Range", start=0, step=1, length=self.length, dtype=DType.I64)
        keys = self.e.reshape(keys, (1, 1, 1, self.length))
        seen = self.e.emit("LessOrEqual", keys, own)
        if window is None:
            return seen
        first = self.e.emit("Sub", own, self.e.const(window, DType.I64))
        return self.e.emit("And", seen, self.e.emit("Greater", keys, first))

    def attend(
        self, queries: Value, keys: Value, values: Value, *, scale: float, window: int | None = None,
        softcap: float = 0.0, sink: Value | None = None, key_scale: Value | None = None,
        value_scale: Value | None = None,
    ) -> Value:  # fmt: skip
        """Attention of the last tokens of each sequence, queries [batch, heads, count, head size], to its pages.

        ``keys`` and ``values`` are pages that hold the last tokens too, those of 8 bits with scales as in ``read``;
        those of another float type are converted.
        Results of padding mean nothing.
        """
        mask = self.visible(queries.shape[2], window)
        found = (self.read(keys, key_scale), self.read(values, value_scale))
        wide = (x if x.dtype is queries.dtype else self.e.emit("Cast", x, to=queries.dtype) for x in found)
        return self.e.emit("Attention", queries, *wide, mask, sink, scale=scale, softcap=softcap)


def quantised_rows(e: Emitter, rows: Value) -> tuple[Value, Value]:
    """``rows`` [..., size] as i8, and the scale of each: f32 [..., 1].

    The scale is the largest magnitude over 127, and at least the smallest normal number, so that zeros stay zeros.
    """
    axis, size = rows.type.rank - 1, rows.shape[-1]
    most = e.cast(e.emit("ReduceMax", e.emit("Abs", rows), axes=(axis,), keepdims=1), DType.F32)
    scale = e.emit("Div", most, e.const(127.0, DType.F32))
    scale = e.emit("Max", scale, e.const(np.finfo(np.float32).tiny, DType.F32))
    return e.emit("QuantizeLinear", rows, scale, axis=axis, block=size, dtype=DType.I8), scale


def check_table(
    indptr: np.ndarray, indices: np.ndarray, last: np.ndarray, *, pages: int, page_size: int,
    length: int | None = None, new: int = 0,
) -> None:  # fmt: skip
    """Checks a table on the host. Raises InputError where kernels would read or write another place than is meant.

    pages      how many pages there are
    page_size  positions of a page
    length     the most positions that a sequence may have; None: any number
    new        how many positions of each sequence are appended: the pages that they are in belong to no other sequence
    """
    if indptr.ndim != 1 or indices.ndim != 1 or last.shape != (indptr.size - 1,):
        shapes = ", ".join(f"{n} {list(a.shape)}" for n, a in zip(TABLE, (indptr, indices, last)))
        raise InputError(f"no table of pages: {shapes}")
    begin, own = indptr[:-1].astype(np.int64), np.diff(indptr.astype(np.int64))
    for b in np.flatnonzero((own < 0) | (begin < 0) | (begin + own > indices.size)):
        raise InputError(f"sequence {b} has pages {indptr[b]} to {indptr[b + 1]} of a table of {indices.size}")
    for b in np.flatnonzero((own > 0) & ((last < 1) | (last > page_size))):
        raise InputError(f"the last page of sequence {b} holds {last[b]} positions, not 1 to {page_size}")
    lengths = np.where(own > 0, (own - 1) * page_size + last, 0)
    for b in np.flatnonzero(lengths > (length or np.inf)):
        raise InputError(f"sequence {b} has more than {length} positions", hint="build for a greater length")
    used = np.concatenate([indices[i : i + n] for i, n in zip(begin, own)]) if own.size else indices[:0]
    for page in used[(used < 0) | (used >= pages)][:1]:
        raise InputError(f"page {page} of {pages}")
    if new:
        _check_owned(indices, begin, own, lengths, used, page_size, new)


def _check_owned(
    indices: np.ndarray, begin: np.ndarray, own: np.ndarray, lengths: np.ndarray, used: np.ndarray, page_size: int,
    new: int,
) -> None:  # fmt: skip
    """Raises InputError where a page with one of a sequence's last ``new`` positions is another sequence's too."""
    readers = np.bincount(used, minlength=1)
    for b in np.flatnonzero(own):
        first = max(0, int(lengths[b]) - new) // page_size
        written = indices[begin[b] + first : begin[b] + own[b]]
        for page in written[readers[written] > 1][:1]:
            raise InputError(f"sequence {b} appends to page {page}, which another sequence has too")
