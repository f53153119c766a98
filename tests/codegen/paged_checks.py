"""Attention over pages against contiguous caches to the bit, and against numpy: inputs for both, and the comparison."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paged_oracle
from paged_graphs import SCALE, Arrays, Problem, Table

from arcweld.compiler.dtypes import DType
from arcweld.compiler.paged import check_table
from arcweld.runtime.engine import Engine


def drawn(x: Problem, table: Table, rng: np.random.Generator, beyond: float = np.nan) -> tuple[Arrays, Arrays]:
    """The inputs of the paged and of the contiguous form, of equal caches. What no sequence has is NaN.

    In contiguous caches it is ``beyond``: those implementations that read whole tiles multiply it by zero.
    """

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
            whole[n][b, :, len(places) :] = beyond
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


def check(
    x: Problem, table: Table, rng: np.random.Generator, engine_of: Callable[[Problem, str], Engine], beyond: float
) -> None:
    """Both forms to the same bits, the pages as they should be afterwards, and near what numpy gives.

    ``beyond`` as in ``drawn``.
    """
    pages, whole = drawn(x, table, rng, beyond)
    check_table(*table.parts, pages=table.pages, page_size=table.page_size, length=x.length)
    got = engine_of(x, "paged").run({n: a.copy() for n, a in pages.items()})
    want = engine_of(x, "contiguous").run(dict(whole))
    np.testing.assert_array_equal(got["y"].view(np.uint8), want["y"].view(np.uint8))
    tolerance = 2e-3 if x.dtype is DType.F16 else 1e-5
    np.testing.assert_allclose(got["y"].astype(np.float64), softmax_attention(x, whole, table), tolerance, tolerance)
    for n in ("k", "v"):
        there = paged_oracle.dense({"length": x.length}, got[f"{n}_now"], *table.parts)
        lengths = paged_oracle.lengths({"page_size": table.page_size}, table.indptr, table.last)
        exists = np.arange(x.length) < lengths[:, None]
        np.testing.assert_array_equal(there, np.where(exists[:, None, :, None], whole[n], 0))
