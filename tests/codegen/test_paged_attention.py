"""Attention and appends over pages, on the checked simulator: against contiguous caches to the bit, and numpy."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import paged_oracle
import pytest
from graph_runs import built
from hypothesis import given, settings
from hypothesis import strategies as st

from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Rewriter, TensorType, Value
from arcweld.compiler.ops.emit import Emitter
from arcweld.compiler.paged import PagedCache, check_table, table_inputs
from arcweld.driver.build import Build
from arcweld.runtime.engine import Engine
from arcweld.runtime.sim.device import SimDevice

F32, F16 = DType.F32, DType.F16
Arrays = dict[str, np.ndarray]
BATCH, PAGE = symbol("b", 1, 8), symbol("size", 1, 64)
PAGES, ENTRIES = symbol("pages", 1, 4096), symbol("entries", 1, 4096)


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


def _cache(x: Problem, *more: Value) -> tuple[Rewriter, PagedCache, Value]:
    queries = Value("q", TensorType(x.dtype, (x.batch, x.heads, x.new, x.d)))
    table = table_inputs(x.batch, ENTRIES)
    rw = Rewriter(Graph("attention", (queries, *more, *table), (), ()))
    return rw, PagedCache(Emitter(rw, ("layer",)), *table, page_size=x.page_size, length=x.length), queries


@functools.cache
def paged(x: Problem) -> Graph:
    """Appends keys and values to their pages, then attends."""
    news = [Value(n, TensorType(x.dtype, (x.batch, x.groups, x.new, x.d))) for n in ("new_k", "new_v")]
    pages = [Value(n, TensorType(x.dtype, (PAGES, x.page_size, x.groups, x.d))) for n in ("k", "v")]
    rw, cache, queries = _cache(x, *news, *pages)
    keys, values = (cache.append(p, n) for p, n in zip(pages, news))
    y = cache.attend(queries, keys, values, scale=0.25, window=x.window)
    return rw.finish().replace(
        outputs=(y, keys, values), output_labels=("y", "k_now", "v_now"), aliases={"k_now": "k", "v_now": "v"}
    )


@functools.cache
def contiguous(x: Problem) -> Graph:
    """The same attention to caches [batch, groups, length, d]."""
    caches = [Value(n, TensorType(x.dtype, (x.batch, x.groups, x.length, x.d))) for n in ("k", "v")]
    size = Value("sized", TensorType(DType.I32, (x.page_size,)))
    rw, cache, queries = _cache(x, *caches, size)
    mask = cache.visible(x.new, x.window)
    y = cache.e.emit("Attention", queries, *caches, mask, scale=0.25)
    return rw.finish().replace(outputs=(y,), output_labels=("y",))


@functools.cache
def build_of(x: Problem, form: str) -> Build:
    return built(paged(x) if form == "paged" else contiguous(x))


@functools.cache
def engine_of(x: Problem, form: str, seed: int = 0) -> Engine:
    return Engine(build_of(x, form).data, SimDevice(checked=True, seed=seed))


@dataclass(frozen=True)
class Table:
    """A table, and how many pages there are."""

    indptr: np.ndarray
    indices: np.ndarray
    last: np.ndarray
    pages: int
    page_size: int

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


def drawn(x: Problem, table: Table, rng: np.random.Generator) -> tuple[Arrays, Arrays]:
    """The inputs of the paged and of the contiguous form, of equal caches. What no sequence has is NaN."""

    def some(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(x.dtype.numpy)

    batch = len(table.last)
    feeds = {"q": some(batch, x.heads, x.new, x.d), **table.feeds}
    whole = {n: some(batch, x.groups, x.length, x.d) for n in ("k", "v")}
    own = paged_oracle.places(table.indptr, table.indices, table.last, table.page_size)
    pages = {n: np.full((table.pages, table.page_size, x.groups, x.d), np.nan, x.dtype.numpy) for n in ("k", "v")}
    news = {f"new_{n}": np.full((batch, x.groups, x.new, x.d), np.nan, x.dtype.numpy) for n in ("k", "v")}
    for n in ("k", "v"):
        for b, places in enumerate(own):
            whole[n][b, :, len(places) :] = np.nan
            for t, place in enumerate(places):
                back = len(places) - t
                if back <= x.new:
                    news[f"new_{n}"][b, :, x.new - back] = whole[n][b, :, t]
                else:
                    pages[n][place] = whole[n][b, :, t]
    sized = np.zeros(table.page_size, np.int32)
    return {**feeds, **news, **pages}, {**feeds, **whole, "sized": sized}


def softmax_attention(x: Problem, feeds: Arrays, table: Table) -> np.ndarray:
    """In f64, one query after another."""
    own = paged_oracle.places(table.indptr, table.indices, table.last, table.page_size)
    out = np.zeros(feeds["q"].shape)
    for b, places in enumerate(own):
        for h in range(x.heads):
            for s in range(x.new):
                end = len(places) - x.new + s + 1
                first = 0 if x.window is None else max(0, end - x.window)
                if end > first:
                    g = h // (x.heads // x.groups)
                    k, v = (feeds[n][b, g, first:end].astype(np.float64) for n in ("k", "v"))
                    score = k @ feeds["q"][b, h, s].astype(np.float64) * 0.25
                    p = np.exp(score - score.max())
                    out[b, h, s] = p @ v / p.sum()
    return out


def check(x: Problem, table: Table, rng: np.random.Generator) -> None:
    """Both forms to the same bits, the pages as they should be afterwards, and near what numpy gives."""
    pages, whole = drawn(x, table, rng)
    given_table = (table.indptr, table.indices, table.last)
    check_table(*given_table, pages=table.pages, page_size=table.page_size, length=x.length)
    got = engine_of(x, "paged").run({n: a.copy() for n, a in pages.items()})
    want = engine_of(x, "contiguous").run(dict(whole))
    np.testing.assert_array_equal(got["y"].view(np.uint8), want["y"].view(np.uint8))
    tolerance = 2e-3 if x.dtype is F16 else 1e-5
    np.testing.assert_allclose(got["y"].astype(np.float64), softmax_attention(x, whole, table), tolerance, tolerance)
    for n in ("k", "v"):
        there = paged_oracle.dense({"length": x.length}, got[f"{n}_now"], *given_table)
        held = np.nan_to_num(whole[n], nan=0.0)
        np.testing.assert_array_equal(there, held)


@st.composite
def tables(draw: st.DrawFn) -> tuple[Table, int]:
    page_size = draw(st.one_of(st.sampled_from([1, 2, 8, 16, 64]), st.integers(1, 64)))
    lengths = draw(st.lists(st.one_of(st.sampled_from([0, 1, 2]), st.integers(0, 130)), min_size=1, max_size=3))
    seed = draw(st.integers(0, 1 << 30))
    return table_of(lengths, page_size, np.random.default_rng(seed)), seed


@pytest.mark.parametrize("dtype", [F32, F16])
@settings(max_examples=300, deadline=None, derandomize=True)
@given(tables(), st.sampled_from([1, 3]))
def test_pages_are_contiguous_caches_to_the_bit(dtype: DType, drawn_table: tuple[Table, int], new: int) -> None:
    """Any page size, order and lengths; one new position or several. Keys are divided among blocks."""
    table, seed = drawn_table
    check(Problem(dtype, new), table, np.random.default_rng(seed))
