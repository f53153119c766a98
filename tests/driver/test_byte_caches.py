"""Decode steps over caches of 8 bits: the bytes are what attention reads, whatever scales they have."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from paged_graphs import Problem, table_of
from paged_oracle import places

from arcweld.codegen.nvrtc.cache import DiskCache
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Rewriter, TensorType, Value
from arcweld.compiler.ops.emit import Emitter
from arcweld.compiler.options import Options
from arcweld.compiler.paged import PagedCache, table_inputs
from arcweld.compiler.text import parse_graph
from arcweld.driver.build import Build, build_graph
from arcweld.driver.draws import draw_sample
from arcweld.driver.evidence import VerifyOptions, verify_build
from arcweld.runtime.engine import Engine
from arcweld.runtime.sim.device import SimDevice

HIDDEN, HEADS, GROUPS, HEAD, ROOM, STEP = 64, 4, 2, 32, 160, 0.0625
WIDE = GROUPS * HEAD
HEADER = f"""graph 'step'
input %x: f32[1, {HIDDEN}]
input %at: i64[1]
input %k: i8[1, {GROUPS}, {ROOM}, {HEAD}]
input %v: i8[1, {GROUPS}, {ROOM}, {HEAD}]
weight %wq: f32[{HIDDEN}, {HEADS * HEAD}]
weight %wk: f32[{HIDDEN}, {WIDE}]
weight %wv: f32[{HIDDEN}, {WIDE}]
weight %wo: f32[{HEADS * HEAD}, {HIDDEN}]
%at4 = Reshape(%at, shape=(1, 1, 1, 1))
%wide = Expand(%at4, shape=(1, {GROUPS}, 1, {HEAD}))
%qm = MatMul(%x, %wq)
%q = Reshape(%qm, shape=(1, {HEADS}, 1, {HEAD}))
"""
NEW = """%{n}m = MatMul(%x, %w{n})
%{n}n = Reshape(%{n}m, shape=(1, {groups}, 1, {head}))
"""
STATIC = """%{n}q = QuantizeLinear(%{n}n, %step, _, axis=0, dtype=dtype(i8))
%{n}new = ScatterElements(%{n}, %wide, %{n}q, axis=2, reduction='none', strict=1)
%{n}f = DequantizeLinear(%{n}new, %step, _, axis=0)
"""
# each token and head has a scale of its own, which is state too
DYNAMIC = """%{n}a = Abs(%{n}n)
%{n}x = ReduceMax(%{n}a, axes=(3,), keepdims=1)
%{n}t = Mul(%{n}x, %c127)
%{n}d = Div(%{n}n, %{n}t)
%{n}q = QuantizeLinear(%{n}d, %one, _, axis=0, dtype=dtype(i8))
%{n}new = ScatterElements(%{n}, %wide, %{n}q, axis=2, reduction='none', strict=1)
%narrow{n} = Expand(%at4, shape=(1, {groups}, 1, 1))
%{n}snew = ScatterElements(%{n}s, %narrow{n}, %{n}t, axis=2, reduction='none', strict=1)
%{n}c = Cast(%{n}new, to=dtype(f32))
%{n}f = Mul(%{n}c, %{n}snew)
"""
REST = f"""%places = Range(start=0, step=1, length={ROOM}, dtype=dtype(i64))
%row = Reshape(%places, shape=(1, 1, 1, {ROOM}))
%m = LessOrEqual(%row, %at)
%a = Attention(%q, %kf, %vf, %m, scale={1 / math.sqrt(HEAD)}, is_causal=0, fill=float(-inf), softcap=0.0)
%merged = Reshape(%a, shape=(1, {HEADS * HEAD}))
%y = MatMul(%merged, %wo)
output %y
output %knew in %k
output %vnew in %v
"""


def graph_of(dynamic: bool) -> Graph:
    text = HEADER
    if dynamic:
        scales = f"f32[1, {GROUPS}, {ROOM}, 1]"
        text += f"input %ks: {scales}\ninput %vs: {scales}\nweight %c127: f32[] data={1 / 127}\n"
        text += "weight %one: f32[] data=1.0\n"
    else:
        text += f"weight %step: f32[] data={STEP}\n"
    for n in "kv":
        text += NEW.format(n=n, groups=GROUPS, head=HEAD) + (DYNAMIC if dynamic else STATIC).format(n=n, groups=GROUPS)
    graph = parse_graph(text + REST + ("output %ksnew in %ks\noutput %vsnew in %vs\n" if dynamic else ""))
    rng = np.random.default_rng(0)
    random = {n: rng.standard_normal(w.data.shape) / 8 for n, w in graph.weights.items() if w.data.size > 1}
    changed = {n: replace(graph.weights[n], data=a.astype(np.float32)) for n, a in random.items()}
    return graph.replace(weights={**graph.weights, **changed})


def built(dynamic: bool, precision: str = "fp32", compiled: bool = False) -> Build:
    options = Options(arch=("sm_80", "sm_90a") if compiled else ("sm_80",), precision=precision)
    return build_graph(graph_of(dynamic), options, compile_kernels=compiled, cache=DiskCache())


def feeds_of(dynamic: bool, at: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(at)
    found = {"x": rng.standard_normal((1, HIDDEN)).astype(np.float32), "at": np.array([at])}
    found |= {n: rng.integers(-127, 128, (1, GROUPS, ROOM, HEAD)).astype(np.int8) for n in "kv"}
    if dynamic:
        found |= {f"{n}s": rng.uniform(0.01, 0.1, (1, GROUPS, ROOM, 1)).astype(np.float32) for n in "kv"}
    return found


def expected(graph: Graph, feeds: dict[str, np.ndarray], dynamic: bool) -> dict[str, np.ndarray]:
    """In f64: each new row rounded to bytes, then softmax attention over the keys up to the position."""
    w = {n: a.data.astype(np.float64) for n, a in graph.weights.items()}
    x, at = feeds["x"].astype(np.float64), int(feeds["at"][0])
    found, wide = {}, {}
    for n in "kv":
        new = (x @ w[f"w{n}"]).reshape(GROUPS, HEAD)
        scale = np.abs(new).max(1, keepdims=True) / 127 if dynamic else np.full((GROUPS, 1), STEP)
        cache = feeds[n].copy()
        cache[0, :, at] = np.clip(np.rint(new / scale), -128, 127)
        scales = feeds[f"{n}s"].copy() if dynamic else np.full((1, GROUPS, ROOM, 1), STEP)
        scales[0, :, at] = scale
        found[f"{n}new"], wide[n] = cache, (cache * scales.astype(np.float64))[0, :, : at + 1]
        if dynamic:
            found[f"{n}snew"] = scales
    q = (x @ w["wq"]).reshape(GROUPS, HEADS // GROUPS, HEAD)
    scores = np.einsum("ghd,gtd->ght", q, wide["k"]) / math.sqrt(HEAD)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    y = np.einsum("ght,gtd->ghd", p / p.sum(-1, keepdims=True), wide["v"])
    return found | {"y": y.reshape(1, -1) @ w["wo"]}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_steps_over_bytes(dynamic: bool, precision: str) -> None:
    build = built(dynamic, precision)
    engine = Engine(build.data, SimDevice(checked=True))
    for at in (0, 1, 31, ROOM - 1):
        feeds = feeds_of(dynamic, at)
        want = expected(graph_of(dynamic), feeds, dynamic)
        got = engine.run({n: a.copy() for n, a in feeds.items()})
        close = 1e-5 if precision == "fp32" else 1e-2
        np.testing.assert_allclose(got["y"], want["y"], rtol=0, atol=close * np.abs(want["y"]).max())
        for n in "kv":
            off = np.abs(got[f"{n}new"].astype(int) - want[f"{n}new"])
            assert off.max() <= 1  # where a value lies between two steps
            assert np.mean(off != 0) <= (0 if precision == "fp32" else 1e-3)
            if dynamic:
                np.testing.assert_allclose(got[f"{n}snew"], want[f"{n}snew"], rtol=1e-3 if close > 1e-4 else 1e-6)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_attention_reads_the_bytes(dynamic: bool, precision: str) -> None:
    """No launch stores what is as large as a cache, except the caches themselves, which stay where they are."""
    program = built(dynamic, precision).data.program
    (attention,) = [x for x in program.launches if x.template == "attention"]
    assert {"knew", "vnew"} <= set(attention.reads)
    assert {"k", "v"} <= {a.of for a in program.aliases}
    sizes = {t.name: math.prod(map(int, t.shape)) for t in (*program.temps, *program.outputs)}
    written = {w for x in program.launches for w in x.writes}
    assert [w for w in written if sizes[w] >= GROUPS * ROOM * HEAD and w not in ("knew", "vnew")] == []
    if not dynamic:  # the append is part of the product before it
        assert [x.template for x in program.launches] == ["chain", "attention", "contract"]


def test_the_build_is_verified_and_compiles() -> None:
    graph = graph_of(dynamic=True)
    build = built(dynamic=True, compiled=True)
    assert len(build.data.cubins) >= 2 * len({x.variants[0].kernel for x in build.data.program.launches})
    sample = draw_sample(graph, None)
    engine = Engine(build.data, SimDevice(arch="sm_80"))
    evidence = verify_build(build, engine, sample, VerifyOptions("full"), "fp32")
    assert {k["status"] for k in evidence["kernels"] if k["arch"] == "sm_80"} == {"verified"}


# ------------------------------------------------------------------------------------------------------------- in pages


def paged_graph(dtype: DType, stored: DType = DType.I8) -> Graph:
    """Appends to pages of ``stored`` with a scale for each head, and attends to them."""
    x = Problem(dtype, length=96, page_size=8, d=HEAD)
    shape = (x.batch, x.groups, x.new, x.d)
    news = [Value(n, TensorType(dtype, shape)) for n in ("new_k", "new_v")]
    pages = [Value(n, TensorType(stored, (x.pages, 8, x.groups, x.d))) for n in "kv"]
    queries = Value("q", TensorType(dtype, (x.batch, x.heads, x.new, x.d)))
    table = table_inputs(x.batch, x.entries)
    rw = Rewriter(Graph("attention", (queries, *news, *pages, *table), (), ()))
    cache = PagedCache(Emitter(rw, ("layer",)), *table, page_size=8, length=x.length)
    scales = [rw.constant(np.array(s, dtype.numpy), dtype, "scale") for s in PAGED_SCALES]
    keys, values = (cache.append(p, n, s) for p, n, s in zip(pages, news, scales))
    y = cache.attend(queries, keys, values, scale=0.25, key_scale=scales[0], value_scale=scales[1])
    return rw.finish().replace(
        outputs=(y, keys, values), output_labels=("y", "k_now", "v_now"), aliases={"k_now": "k", "v_now": "v"}
    )


PAGED_SCALES = ([0.03125, 0.0625], [0.125, 0.015625])  # of two heads, for keys and values


@pytest.mark.parametrize(("dtype", "close"), [(DType.F32, 1e-5), (DType.F16, 5e-3)])
def test_pages_of_bytes(dtype: DType, close: float) -> None:
    """Lengths 1, 8, 9 and 96; the pages are read and written as bytes, by one attention and a scatter each."""
    build = build_graph(paged_graph(dtype), Options(arch=("sm_80",)), compile_kernels=False)
    assert build.fused.copied == {}
    program, rng = build.data.program, np.random.default_rng(4)
    (attention,) = [x for x in program.launches if x.template == "attention"]
    assert {"k_now", "v_now"} <= set(attention.reads)
    lengths = [9, 1, 96, 8]
    table = table_of(lengths, 8, rng)
    shapes = {"q": (4, 4, 1, HEAD), "new_k": (4, 2, 1, HEAD), "new_v": (4, 2, 1, HEAD)}
    feeds = {n: rng.standard_normal(s).astype(dtype.numpy) for n, s in shapes.items()} | table.feeds
    caches = {n: rng.integers(-127, 128, (table.pages, 8, 2, HEAD)).astype(np.int8) for n in "kv"}
    got = Engine(build.data, SimDevice(checked=True)).run({**feeds, **{n: a.copy() for n, a in caches.items()}})
    for b, own in enumerate(places(*table.parts, 8)):
        dense = []
        for n, scale in zip("kv", PAGED_SCALES):
            page, slot = own[-1]
            step = np.array(scale)[:, None]
            caches[n][page, slot] = np.clip(np.rint(feeds[f"new_{n}"][b, :, 0].astype(np.float64) / step), -128, 127)
            dense.append(np.array([caches[n][p, s] * step for p, s in own]).transpose(1, 0, 2))
        q = feeds["q"][b, :, 0].astype(np.float64).reshape(2, 2, HEAD)
        scores = np.einsum("ghd,gtd->ght", q, dense[0]) * 0.25
        p = np.exp(scores - scores.max(-1, keepdims=True))
        want = np.einsum("ght,gtd->ghd", p / p.sum(-1, keepdims=True), dense[1]).reshape(4, HEAD)
        np.testing.assert_allclose(got["y"][b, :, 0], want, rtol=0, atol=close * np.abs(want).max())
    for n in "kv":
        np.testing.assert_array_equal(got[f"{n}_now"], caches[n])
