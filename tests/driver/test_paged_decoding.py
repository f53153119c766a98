"""Decoder layers over paged caches: how many kernels they are, and many steps of several sequences against numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from graph_runs import built
from harness import assert_compiles
from paged_graphs import Arrays, Decoder, angles, decoder, layer_weights

from arcweld.compiler.dims import symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.paged import TABLE, check_table
from arcweld.compiler.text import parse_graph, print_graph
from arcweld.driver.api import build_data
from arcweld.runtime.arrays import aligned_empty
from arcweld.runtime.engine import Engine
from arcweld.runtime.sim.device import SimDevice


@pytest.mark.parametrize("x", [Decoder(layers=2), Decoder(DType.F16, 2, batch=1), Decoder(layers=2, batch=2, new=3)])
def test_a_layer_is_five_kernels(x: Decoder) -> None:
    """Norm, product, RoPE and appends; attention; product and sum; norm, gate and up; product and sum.

    Once for all layers: the places of new positions, and the cosines and sines of their angles.
    """
    fused = built(decoder(x)).fused
    layer = ["chain", "attention", "contract", "chain", "contract"]
    assert sorted(r.template for r in fused.regions) == sorted(["pointwise", "pointwise", *layer, *layer])
    assert fused.copied == {}
    appends = {s: r.template for r in fused.regions for s in r.in_place.values()}
    assert appends == dict.fromkeys(["k0", "v0", "k1", "v1"], "chain")


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("dtype", [DType.F16, DType.F32])
def test_kernels_of_real_sizes_compile_without_spills(dtype: DType, batch: int) -> None:
    x = Decoder(dtype, 1, batch, 1, 16, 8, 128, 1024, 3072, length=32768, page_size=16, pages=4096)
    for launch in built(decoder(x)).planned:
        for source in launch.sources:
            assert_compiles(source)


def test_the_text_form_is_read_back() -> None:
    text = print_graph(decoder(Decoder(layers=1)), data_limit=1 << 20)
    assert print_graph(parse_graph(text), data_limit=1 << 20) == text


def by_numpy(x: Decoder, hidden: np.ndarray) -> np.ndarray:
    """The layers' results for all positions of one sequence [positions, hidden], in f64."""
    y, count = hidden.astype(np.float64), len(hidden)
    cos, sin = (np.tile(f(angles(x)[:count]), 2)[:, None] for f in (np.cos, np.sin))

    def normed(a: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return np.asarray(a / np.sqrt((a * a).mean(-1, keepdims=True) + 1e-5) * scale)

    def turned(a: np.ndarray) -> np.ndarray:
        first, second = np.split(a, 2, axis=-1)
        return np.asarray(a * cos + np.concatenate([-second, first], -1) * sin)

    for weights in layer_weights(x):
        w = {n: a.astype(np.float64) for n, a in weights.items()}
        heads = (normed(y, w["norm"]) @ w["qkv"]).reshape(count, -1, x.d)
        q, k, v = np.split(heads, [x.heads, x.heads + x.groups], axis=1)
        k, v = (np.repeat(a, x.heads // x.groups, axis=1) for a in (turned(k), v))
        score = np.einsum("shd,thd->hst", turned(q), k) * x.d**-0.5
        score = np.where(np.tri(count, dtype=bool), score, -np.inf)
        p = np.exp(score - score.max(-1, keepdims=True))
        found = np.einsum("hst,thd->shd", p / p.sum(-1, keepdims=True), v).reshape(count, -1)
        y = y + found @ w["out"]
        inside = normed(y, w["norm2"])
        gate = inside @ w["gate"]
        y = y + (gate / (1 + np.exp(-gate)) * (inside @ w["up"])) @ w["down"]
    return y


class Pages:
    """Gives pages to sequences as they grow, in random order, and takes those of finished ones back."""

    def __init__(self, x: Decoder, rng: np.random.Generator) -> None:
        assert isinstance(x.pages, int)
        assert isinstance(x.page_size, int)
        assert isinstance(x.batch, int)
        self.x, self.size, self.count = x, x.page_size, x.pages
        self.free = [int(p) for p in rng.permutation(x.pages)]
        self.own: list[list[int]] = [[] for _ in range(x.batch)]
        self.lengths = [0] * x.batch

    def grow(self, b: int, by: int) -> None:
        self.lengths[b] += by
        while len(self.own[b]) * self.size < self.lengths[b]:
            self.own[b].append(self.free.pop())

    def drop(self, b: int) -> None:
        self.free[:0] = self.own[b]
        self.own[b], self.lengths[b] = [], 0

    def table(self) -> Arrays:
        flat = [p for own in self.own for p in own]
        indices = np.full(self.count, -1, np.int32)  # entries that no sequence has are never read
        indices[: len(flat)] = flat
        last = [n - (len(own) - 1) * self.size if own else 0 for n, own in zip(self.lengths, self.own)]
        parts = np.cumsum([0, *map(len, self.own)]), indices, last
        found = {n: np.asarray(a, np.int32) for n, a in zip(TABLE, parts)}
        check_table(*found.values(), pages=self.count, page_size=self.size, length=self.x.length, new=5)
        return found


def two_engines(x: Decoder) -> tuple[Engine, Engine]:
    """For prompts and for steps."""
    prompts, step = (built(decoder(form)).data for form in (replace(x, new=5), x))
    return Engine(prompts, SimDevice(checked=True)), Engine(step, SimDevice(checked=True))


def one_engine(x: Decoder) -> tuple[Engine, Engine]:
    """One for both, with kernels of its own for a step."""
    graph, device = decoder(replace(x, new=symbol("s", 1, 16))), SimDevice(checked=True)
    build, _, _ = build_data(graph, device=device, verify="off", ranges=[{"s": 1}])
    engine = Engine(build.data, device)
    return engine, engine


@pytest.mark.parametrize("engines", [two_engines, one_engine])
@pytest.mark.parametrize(("dtype", "tolerance"), [(DType.F32, 1e-5), (DType.F16, 1e-2)])
def test_prompts_then_steps_of_sequences_that_come_and_go(
    dtype: DType, tolerance: float, engines: Callable[[Decoder], tuple[Engine, Engine]]
) -> None:
    """Prompts of 0 to 5 tokens, padded in front, also behind a history; steps of one token, without those that wait.

    One sequence ends, and another one gets its pages.
    """
    x, rng = Decoder(dtype, 2, page_size=4, pages=16), np.random.default_rng(8)
    prompts, step = engines(x)
    pages = Pages(x, rng)
    state = {n: aligned_empty((16, 4, x.groups, x.d), dtype.numpy) for n in ("k0", "v0", "k1", "v1")}
    for a in state.values():
        a[...] = np.nan
    seen: list[list[np.ndarray]] = [[], [], []]

    def run(engine: Engine, new: int, counts: list[int]) -> None:
        hidden = rng.standard_normal((3, new, x.hidden)).astype(dtype.numpy)
        for b, count in enumerate(counts):
            pages.grow(b, count)
            seen[b] += list(hidden[b, new - count :])
        found = engine.run({"x": hidden, **state, **pages.table(), "new": np.array(counts, np.int32)})
        state.update({n: found[f"{n}_now"] for n in state})
        for b, count in enumerate(counts):
            if count:
                want = by_numpy(x, np.array(seen[b]))[-count:]
                got = found["y"][b, new - count :].astype(np.float64)
                np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())

    run(prompts, 5, [5, 1, 0])
    for _ in range(6):
        run(step, 1, [1, 1, 0])
    pages.drop(0)
    seen[0] = []
    run(prompts, 5, [2, 0, 3])
    for _ in range(3):
        run(step, 1, [1, 0, 1])
    run(prompts, 5, [1, 2, 4])
    run(step, 1, [1, 1, 1])
