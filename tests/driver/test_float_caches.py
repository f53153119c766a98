"""Decode steps over caches of 8-bit floats with scales, contiguous and in pages: attention reads the bytes."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import test_byte_caches as bytes_
from paged_graphs import table_of
from paged_oracle import places

from arcweld.codegen.nvrtc.cache import DiskCache
from arcweld.compiler.dtypes import DType
from arcweld.compiler.options import Options
from arcweld.compiler.text import parse_graph
from arcweld.driver.build import Build, build_graph
from arcweld.runtime.engine import Engine
from arcweld.runtime.sim.device import SimDevice

GROUPS, HEAD, HEADS, ROOM, STEP = bytes_.GROUPS, bytes_.HEAD, bytes_.HEADS, bytes_.ROOM, bytes_.STEP
STORED = (DType.F8E4M3FN, DType.F8E5M2)


def built(stored: DType, precision: str, compiled: bool = False) -> Build:
    text = bytes_.HEADER.replace("i8[", f"{stored.value}[") + f"weight %step: f32[] data={STEP}\n"
    for n in "kv":
        static = bytes_.STATIC.replace("dtype(i8)", f"dtype({stored.value})")
        text += bytes_.NEW.format(n=n, groups=GROUPS, head=HEAD) + static.format(n=n, groups=GROUPS)
    graph = parse_graph(text + bytes_.REST)
    rng = np.random.default_rng(0)
    weights = dict(graph.weights)
    for n, w in graph.weights.items():
        if w.data.size > 1:
            weights[n] = type(w)((rng.standard_normal(w.data.shape) / 8).astype(np.float32), w.source)
    graph = graph.replace(weights=weights)
    options = Options(arch=("sm_80", "sm_90a") if compiled else ("sm_80",), precision=precision)
    return build_graph(graph, options, compile_kernels=compiled, cache=DiskCache())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("stored", STORED)
def test_steps_over_floats_of_8_bits(stored: DType, precision: str) -> None:
    build = built(stored, precision)
    program, w = build.data.program, {n: a.data.astype(np.float64) for n, a in build.imported.weights.items()}
    (attention,) = [x for x in program.launches if x.template == "attention"]
    assert {"knew", "vnew"} <= set(attention.reads)
    assert {"k", "v"} == {a.of for a in program.aliases}
    engine = Engine(build.data, SimDevice(checked=True))
    for at in (0, 1, 31, ROOM - 1):
        rng = np.random.default_rng(at)
        x = rng.standard_normal((1, bytes_.HIDDEN)).astype(np.float32)
        caches = {n: (rng.standard_normal((1, GROUPS, ROOM, HEAD)) * 8).astype(stored.numpy) for n in "kv"}
        got = engine.run({"x": x, "at": np.array([at]), **{n: a.copy() for n, a in caches.items()}})
        wide = {}
        for n in "kv":
            new = (x.astype(np.float64) @ w[f"w{n}"]).reshape(GROUPS, HEAD)
            caches[n][0, :, at] = (new / STEP).astype(np.float32).astype(stored.numpy)
            found, want = (a.astype(np.float64) for a in (got[f"{n}new"], caches[n]))
            # a value between two numbers of the type may become either: one of 2**mantissa apart
            apart = np.abs(found - want) > np.abs(want) * float(ml_dtypes.finfo(stored.numpy).eps)
            assert not apart.any()
            assert np.mean(found != want) < (1e-3 if precision == "fp32" else 1e-2)
            wide[n] = (found * STEP)[0, :, : at + 1]
        q = (x.astype(np.float64) @ w["wq"]).reshape(GROUPS, HEADS // GROUPS, HEAD)
        scores = np.einsum("ghd,gtd->ght", q, wide["k"]) / math.sqrt(HEAD)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        y = np.einsum("ght,gtd->ghd", p / p.sum(-1, keepdims=True), wide["v"]).reshape(1, -1) @ w["wo"]
        close = 1e-5 if precision == "fp32" else 1e-2
        np.testing.assert_allclose(got["y"], y, rtol=0, atol=close * np.abs(y).max())


def test_the_kernels_compile() -> None:
    build = built(DType.F8E4M3FN, "fp16", compiled=True)
    kernels = {v.kernel for x in build.data.program.launches for v in x.variants}
    assert {k for _, k in build.data.cubins} == kernels


@pytest.mark.parametrize("stored", STORED)
def test_pages_of_floats(stored: DType) -> None:
    graph = bytes_.paged_graph(DType.F32, stored)
    build = build_graph(graph, Options(arch=("sm_80",)), compile_kernels=False)
    assert build.fused.copied == {}
    (attention,) = [x for x in build.data.program.launches if x.template == "attention"]
    assert {"k_now", "v_now"} <= set(attention.reads)
    rng, lengths = np.random.default_rng(4), [9, 1, 96, 8]
    table = table_of(lengths, 8, rng)
    shapes = {"q": (4, 4, 1, HEAD), "new_k": (4, 2, 1, HEAD), "new_v": (4, 2, 1, HEAD)}
    feeds = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()} | table.feeds
    caches = {n: (rng.standard_normal((table.pages, 8, 2, HEAD)) * 8).astype(stored.numpy) for n in "kv"}
    got = Engine(build.data, SimDevice(checked=True)).run({**feeds, **{n: a.copy() for n, a in caches.items()}})
    for b, own in enumerate(places(*table.parts, 8)):
        dense = []
        for n, scale in zip("kv", bytes_.PAGED_SCALES):
            page, slot = own[-1]
            step = np.array(scale, np.float32)[:, None]
            caches[n][page, slot] = (feeds[f"new_{n}"][b, :, 0] / step).astype(stored.numpy)
            dense.append(np.array([caches[n][p, s].astype(np.float64) * step for p, s in own]).transpose(1, 0, 2))
        q = feeds["q"][b, :, 0].astype(np.float64).reshape(2, 2, HEAD)
        scores = np.einsum("ghd,gtd->ght", q, dense[0]) * 0.25
        p = np.exp(scores - scores.max(-1, keepdims=True))
        want = np.einsum("ght,gtd->ghd", p / p.sum(-1, keepdims=True), dense[1]).reshape(4, HEAD)
        np.testing.assert_allclose(got["y"][b, :, 0], want, rtol=0, atol=1e-5 * np.abs(want).max())
    for n in "kv":
        np.testing.assert_array_equal(got[f"{n}_now"].view(np.uint8), caches[n].view(np.uint8))
