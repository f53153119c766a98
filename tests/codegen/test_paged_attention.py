"""Attention and appends over pages, on the checked simulator: against contiguous caches to the bit, and numpy."""

from __future__ import annotations

import functools

import numpy as np
import paged_oracle
import pytest
from graph_runs import built
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_graphs import SCALE, Arrays, Problem, Table, contiguous, paged, table_of

from arcweld.compiler.dtypes import DType
from arcweld.compiler.paged import check_table
from arcweld.driver.build import Build
from arcweld.runtime.engine import Engine
from arcweld.runtime.sim.device import SimDevice

F32, F16 = DType.F32, DType.F16


@functools.cache
def build_of(x: Problem, form: str) -> Build:
    return built(paged(x) if form == "paged" else contiguous(x))


@functools.cache
def engine_of(x: Problem, form: str, seed: int = 0) -> Engine:
    return Engine(build_of(x, form).data, SimDevice(checked=True, seed=seed))


def drawn(x: Problem, table: Table, rng: np.random.Generator) -> tuple[Arrays, Arrays]:
    """The inputs of the paged and of the contiguous form, of equal caches. What no sequence has is NaN."""

    def some(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(x.dtype.numpy)

    batch = len(table.last)
    feeds = {"q": some(batch, x.heads, x.new, x.d), **table.feeds}
    whole = {n: some(batch, x.groups, x.length, x.d) for n in ("k", "v")}
    own = paged_oracle.places(*table.parts, table.page_size)
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
    own = paged_oracle.places(*table.parts, table.page_size)
    out = np.zeros(feeds["q"].shape)
    for b, places in enumerate(own):
        for h in range(x.heads):
            for s in range(x.new):
                end = len(places) - x.new + s + 1
                first = 0 if x.window is None else max(0, end - x.window)
                if end > first:
                    g = h // (x.heads // x.groups)
                    k, v = (feeds[n][b, g, first:end].astype(np.float64) for n in ("k", "v"))
                    score = k @ feeds["q"][b, h, s].astype(np.float64) * SCALE
                    p = np.exp(score - score.max())
                    out[b, h, s] = p @ v / p.sum()
    return out


def check(x: Problem, table: Table, rng: np.random.Generator) -> None:
    """Both forms to the same bits, the pages as they should be afterwards, and near what numpy gives."""
    pages, whole = drawn(x, table, rng)
    check_table(*table.parts, pages=table.pages, page_size=table.page_size, length=x.length)
    got = engine_of(x, "paged").run({n: a.copy() for n, a in pages.items()})
    want = engine_of(x, "contiguous").run(dict(whole))
    np.testing.assert_array_equal(got["y"].view(np.uint8), want["y"].view(np.uint8))
    tolerance = 2e-3 if x.dtype is F16 else 1e-5
    np.testing.assert_allclose(got["y"].astype(np.float64), softmax_attention(x, whole, table), tolerance, tolerance)
    for n in ("k", "v"):
        there = paged_oracle.dense({"length": x.length}, got[f"{n}_now"], *table.parts)
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
