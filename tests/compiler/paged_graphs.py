"""Graphs of one attention layer over paged and over contiguous caches, and tables for them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Rewriter, TensorType, Value
from arcweld.compiler.ops.emit import Emitter
from arcweld.compiler.paged import PagedCache, table_inputs

Arrays = dict[str, np.ndarray]
BATCH, PAGE = symbol("b", 1, 8), symbol("size", 1, 64)
PAGES, ENTRIES = symbol("pages", 1, 4096), symbol("entries", 1, 4096)
SCALE = 0.25


@dataclass(frozen=True)
class Problem:
    """Attention of the last ``new`` positions with ``heads`` query heads and ``groups`` heads of keys of size ``d``."""

    dtype: DType
    new: int = 1
    heads: int = 4
    groups: int = 2
    d: int = 16
    length: int = 130
    window: int | None = None
    batch: Dim = BATCH
    page_size: Dim = PAGE
    pages: Dim = PAGES
    entries: Dim = ENTRIES


def _cache(x: Problem, *more: Value) -> tuple[Rewriter, PagedCache, Value]:
    queries = Value("q", TensorType(x.dtype, (x.batch, x.heads, x.new, x.d)))
    table = table_inputs(x.batch, x.entries)
    rw = Rewriter(Graph("attention", (queries, *more, *table), (), ()))
    return rw, PagedCache(Emitter(rw, ("layer",)), *table, page_size=x.page_size, length=x.length), queries


@functools.cache
def paged(x: Problem) -> Graph:
    """Appends keys and values to their pages, then attends."""
    news = [Value(n, TensorType(x.dtype, (x.batch, x.groups, x.new, x.d))) for n in ("new_k", "new_v")]
    pages = [Value(n, TensorType(x.dtype, (x.pages, x.page_size, x.groups, x.d))) for n in ("k", "v")]
    rw, cache, queries = _cache(x, *news, *pages)
    keys, values = (cache.append(p, n) for p, n in zip(pages, news))
    y = cache.attend(queries, keys, values, scale=SCALE, window=x.window)
    return rw.finish().replace(
        outputs=(y, keys, values), output_labels=("y", "k_now", "v_now"), aliases={"k_now": "k", "v_now": "v"}
    )


@functools.cache
def reading(x: Problem) -> Graph:
    """Attention to pages that hold the last positions already."""
    pages = [Value(n, TensorType(x.dtype, (x.pages, x.page_size, x.groups, x.d))) for n in ("k", "v")]
    rw, cache, queries = _cache(x, *pages)
    y = cache.attend(queries, *pages, scale=SCALE, window=x.window)
    return rw.finish().replace(outputs=(y,), output_labels=("y",))


@functools.cache
def appending(x: Problem) -> Graph:
    """The append of keys alone."""
    new = Value("new_k", TensorType(x.dtype, (x.batch, x.groups, x.new, x.d)))
    pages = Value("k", TensorType(x.dtype, (x.pages, x.page_size, x.groups, x.d)))
    rw, cache, _ = _cache(x, new, pages)
    now = cache.append(pages, new)
    return rw.finish().replace(outputs=(now,), output_labels=("k_now",), aliases={"k_now": "k"})


@functools.cache
def contiguous(x: Problem) -> Graph:
    """The same attention to caches [batch, groups, length, d]; ``sized`` only says how large pages are."""
    caches = [Value(n, TensorType(x.dtype, (x.batch, x.groups, x.length, x.d))) for n in ("k", "v")]
    sized = Value("sized", TensorType(DType.I32, (x.page_size,)))
    rw, cache, queries = _cache(x, *caches, sized)
    y = cache.e.emit("Attention", queries, *caches, cache.visible(x.new, x.window), scale=SCALE)
    return rw.finish().replace(outputs=(y,), output_labels=("y",))


FORMS = {"paged": paged, "reading": reading, "appending": appending, "contiguous": contiguous}


@dataclass(frozen=True)
class Table:
    """A table, and how many pages there are."""

    indptr: np.ndarray
    indices: np.ndarray
    last: np.ndarray
    pages: int
    page_size: int

    @property
    def parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.indptr, self.indices, self.last

    @property
    def feeds(self) -> Arrays:
        return {"kv_indptr": self.indptr, "kv_indices": self.indices, "kv_last_page_len": self.last}


def table_of(lengths: list[int], page_size: int, rng: np.random.Generator, spare: int = 2) -> Table:
    """A table with pages in random order, some of which no sequence has; entries that no sequence has are no pages."""
    own = [-(-n // page_size) for n in lengths]
    count = sum(own) + spare
    indices = rng.permutation(count)[: sum(own)]
    indices = np.concatenate([indices, np.full(spare, 1 << 20)])
    last = [n - (k - 1) * page_size if k else 0 for n, k in zip(lengths, own)]
    indptr = np.cumsum([0, *own])
    return Table(*(np.asarray(a, np.int32) for a in (indptr, indices, last)), count, page_size)
