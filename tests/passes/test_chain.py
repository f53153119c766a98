"""Chains: which regions a product of few rows takes, and that the numbers are those of the operators' references."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from arcweld.compiler.dims import evaluate
from arcweld.compiler.ir import EMPTY, Graph, Weight
from arcweld.compiler.options import Options
from arcweld.compiler.reference import run_reference
from arcweld.compiler.region import FusedGraph
from arcweld.compiler.text import parse_graph
from arcweld.driver.build import build_graph
from arcweld.runtime.engine import Engine
from arcweld.runtime.sim.device import SimDevice

NORMS = {
    "rms": "%h = RMSNormalization(%x, %g, axis=2, epsilon=1e-05) @ 'norm'\n",
    "layer": "%h = LayerNormalization(%x, %g, %g, axis=2, epsilon=1e-05) @ 'norm'\n",
    "softmax": "%h = Softmax(%x, axis=2) @ 'norm'\n",
}


def rope(x: str, y: str, heads: int, rows: int | str, half: str, dtype: str) -> str:
    """RoPE of ``x`` [1, heads, rows, 8]: by halves, by neighbours, or of the first half of a head only."""
    shape = f"[1, {heads}, {rows}, 4]"
    if half == "neighbours":
        pair = f"{dtype}[1, {heads}, {rows}, 4, 2]"
        one = pair.replace("2]", "1]")
        size = f"(1, {heads}, {rows}, 4, 1)"
        return f"""%{y}p: {pair} = Reshape(%{x}, shape=(1, {heads}, {rows}, 4, 2))
%{y}a: {one} = Slice(%{y}p, starts=(0, 0, 0, 0, 0), sizes={size}, steps=(1, 1, 1, 1, 1))
%{y}b: {one} = Slice(%{y}p, starts=(0, 0, 0, 0, 1), sizes={size}, steps=(1, 1, 1, 1, 1))
%{y}n = Neg(%{y}b)
%{y}c = Concat(%{y}n, %{y}a, axis=4)
%{y}r: {dtype}[1, {heads}, {rows}, 8] = Reshape(%{y}c, shape=(1, {heads}, {rows}, 8))
%{y}u = Mul(%{x}, %cos)
%{y}v = Mul(%{y}r, %sin)
%{y} = Add(%{y}u, %{y}v) @ '{y}'
"""
    width = 4 if half == "halves" else 2
    part = f"{dtype}[1, {heads}, {rows}, {width}]"
    size = f"(1, {heads}, {rows}, {width})"
    text = f"""%{y}a: {part} = Slice(%{x}, starts=(0, 0, 0, 0), sizes={size}, steps=(1, 1, 1, 1))
%{y}b: {part} = Slice(%{x}, starts=(0, 0, 0, {width}), sizes={size}, steps=(1, 1, 1, 1))
%{y}n = Neg(%{y}b)
%{y}r = Concat(%{y}n, %{y}a, axis=3)
"""
    if half == "halves":
        return text + f"%{y}u = Mul(%{x}, %cos)\n%{y}v = Mul(%{y}r, %sin)\n%{y} = Add(%{y}u, %{y}v) @ '{y}'\n"
    size = f"(1, {heads}, {rows}, 4)"
    return text + f"""%{y}d: {dtype}{shape} = Slice(%{x}, starts=(0, 0, 0, 0), sizes={size}, steps=(1, 1, 1, 1))
%{y}e: {dtype}{shape} = Slice(%{x}, starts=(0, 0, 0, 4), sizes={size}, steps=(1, 1, 1, 1))
%{y}k: {dtype}[1, 1, {rows}, 4] = Slice(%cos, starts=(0, 0, 0, 0), sizes=(1, 1, {rows}, 4), steps=(1, 1, 1, 1))
%{y}l: {dtype}[1, 1, {rows}, 4] = Slice(%sin, starts=(0, 0, 0, 0), sizes=(1, 1, {rows}, 4), steps=(1, 1, 1, 1))
%{y}u = Mul(%{y}d, %{y}k)
%{y}v = Mul(%{y}r, %{y}l)
%{y}w = Add(%{y}u, %{y}v)
%{y} = Concat(%{y}w, %{y}e, axis=3) @ '{y}'
"""


def projections(rows: int | str, dtype: str, norm: str, how: str, bias: bool) -> str:
    """Norm, queries, keys and values of 3 + 1 + 1 heads of 8, RoPE, and keys and values into caches."""
    text = f"""input %x: {dtype}[1, {rows}, 24]
input %at: i64[1, 1, {rows}, 8]
input %keys: {dtype}[1, 1, 12, 8]
input %values: {dtype}[1, 1, 12, 8]
input %cos: {dtype}[1, 1, {rows}, 8]
input %sin: {dtype}[1, 1, {rows}, 8]
weight %g: {dtype}[24]
weight %w: {dtype}[24, 40]
weight %bias: {dtype}[40]
{NORMS[norm]}%m = MatMul(%h, %w) @ 'product'
"""
    text += "%y = Add(%m, %bias)\n" if bias else "%y = Identity(%m)\n"
    for name, start, heads in (("q", 0, 3), ("k", 24, 1), ("v", 32, 1)):
        width = heads * 8
        text += f"""%{name}s: {dtype}[1, {rows}, {width}] = Slice(%y, starts=(0, 0, {start}), \
sizes=(1, {rows}, {width}), steps=(1, 1, 1))
%{name}h: {dtype}[1, {rows}, {heads}, 8] = Reshape(%{name}s, shape=(1, {rows}, {heads}, 8))
%{name}t: {dtype}[1, {heads}, {rows}, 8] = Transpose(%{name}h, perm=(0, 2, 1, 3))
"""
    text += rope("qt", "q", 3, rows, how, dtype) + rope("kt", "k", 1, rows, how, dtype)
    return text + """%keys_now = ScatterElements(%keys, %at, %k, axis=2, reduction='none', strict=1) @ 'keys'
%values_now = ScatterElements(%values, %at, %vt, axis=2, reduction='none', strict=1) @ 'values'
output %q 'q'
output %keys_now 'keys_now' in %keys
output %values_now 'values_now' in %values
"""


def gated(rows: int | str, dtype: str, act: str) -> str:
    """RMSNorm, gate and up of 20 columns each as two products, an activation of the gate times up."""
    return f"""input %x: {dtype}[1, {rows}, 24]
weight %g: {dtype}[24]
weight %a: {dtype}[24, 20]
weight %b: {dtype}[24, 20]
{NORMS["rms"]}%gate = MatMul(%h, %a) @ 'gate'
%up = MatMul(%h, %b) @ 'up'
%s = {act} @ 'act'
%y = Mul(%s, %up) @ 'y'
output %y 'y'
"""


def parsed(text: str) -> Graph:
    """The graph, with random weights."""
    graph = parse_graph("graph 'g'\n" + text)
    rng = np.random.default_rng(6)
    data = {k: rng.standard_normal(w.data.shape).astype(w.data.dtype) for k, w in graph.weights.items()}
    return graph.replace(weights={k: Weight(d, k) for k, d in data.items()})


def fused(text: str) -> FusedGraph:
    return build_graph(parsed(text), Options(arch=("sm_80",)), compile_kernels=False, verify_each=True).fused


def feeds(text: str, sizes: Mapping[str, int] = EMPTY) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    made: dict[str, np.ndarray] = {}
    for v in parsed(text).inputs:
        shape = tuple(evaluate(d, sizes) for d in v.shape)
        made[v.name] = rng.standard_normal(shape).astype(v.dtype.numpy)
    if "at" in made:
        shape = made["at"].shape
        made["at"] = np.broadcast_to(rng.permutation(12)[: shape[-2], None], shape).astype(np.int64).copy()
    return made


def check(text: str, templates: list[str], tolerance: float, sizes: Sequence[Mapping[str, int]] = (EMPTY,)) -> None:
    """The regions' templates, and the outputs on the checked simulator, warps in an adverse order, for two seeds.

    ``sizes``: the open dimensions of each run.
    """
    graph = parsed(text)
    build = build_graph(graph, Options(arch=("sm_80",)), compile_kernels=False, verify_each=True)
    assert sorted(r.template for r in build.fused.regions) == sorted(templates)
    for seed, size in itertools.product((0, 1), sizes):
        given = feeds(text, size)
        want = run_reference(graph, given, bind=size)
        got = Engine(build.data, SimDevice(checked=True, seed=seed)).run({k: v.copy() for k, v in given.items()})
        for label, o in zip(graph.labels(), graph.outputs):
            scale = float(np.abs(want[o.name].astype(np.float64)).max())
            np.testing.assert_allclose(
                got[label].astype(np.float64), want[o.name].astype(np.float64), rtol=tolerance, atol=tolerance * scale
            )


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize(
    ("norm", "how", "bias"),
    [("rms", "halves", False), ("rms", "neighbours", True), ("layer", "some", True), ("softmax", "halves", True)],
)
def test_norm_rope_and_caches_are_one_kernel(rows: int, dtype: str, norm: str, how: str, bias: bool) -> None:
    text = projections(rows, dtype, norm, how, bias)
    check(text, ["chain"], 1e-5 if dtype == "f32" else 4e-3)
    (region,) = fused(text).regions
    assert region.in_place == {"keys_now": "keys", "values_now": "values"}
    assert region.chain is not None
    assert region.chain.unit == {"halves": (2, 4), "neighbours": (2, 1), "some": (2, 2)}[how]


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("act", ["Silu(%gate)", "Gelu(%gate, approximate='tanh')", "Relu(%gate)"])
def test_gate_and_up_are_one_product(rows: int, act: str) -> None:
    check(gated(rows, "f32", act), ["chain"], 1e-5)
    (region,) = fused(gated(rows, "f32", act)).regions
    assert region.chain is not None
    assert region.chain.unit == (2, 20)


def heads(rows: int | str, dtype: str, norm: str) -> str:
    """Queries of 4 heads and keys of 2, packed as [2, 2 + 1, 8] as Falcon does, each normed by itself, then RoPE.

    Each key is shared by two heads, and stored for both. Norms have a scale, and LayerNorm reads the sum of a bias.
    """
    op = "RMSNormalization(%{0}t, %g8, axis=4, epsilon=1e-05)" if norm == "rms" else (
        "LayerNormalization(%{0}t, %g8, %g8, axis=4, epsilon=1e-05)")  # fmt: skip
    text = f"""input %x: {dtype}[1, {rows}, 24]
input %cos: {dtype}[1, 1, {rows}, 8]
input %sin: {dtype}[1, 1, {rows}, 8]
weight %g: {dtype}[24]
weight %w: {dtype}[24, 48]
weight %bias: {dtype}[48]
weight %g8: {dtype}[8]
{NORMS["rms"]}%m = MatMul(%h, %w) @ 'product'
%y = Add(%m, %bias)
%p: {dtype}[1, {rows}, 2, 3, 8] = Reshape(%y, shape=(1, {rows}, 2, 3, 8))
"""
    for name, start, size in (("q", 0, 2), ("k", 2, 1)):
        part = f"{dtype}[1, {rows}, 2, {size}, 8]"
        text += f"""%{name}s: {part} = Slice(%p, starts=(0, 0, 0, {start}, 0), \
sizes=(1, {rows}, 2, {size}, 8), steps=(1, 1, 1, 1, 1))
%{name}t: {dtype}[1, 2, {size}, {rows}, 8] = Transpose(%{name}s, perm=(0, 2, 3, 1, 4))
%{name}n = {op.format(name)} @ '{name} norm'
"""
    text += f"""%ke: {dtype}[1, 2, 2, {rows}, 8] = Expand(%kn, shape=(1, 2, 2, {rows}, 8))
%qh: {dtype}[1, 4, {rows}, 8] = Reshape(%qn, shape=(1, 4, {rows}, 8))
%kh: {dtype}[1, 4, {rows}, 8] = Reshape(%ke, shape=(1, 4, {rows}, 8))
"""
    text += rope("qh", "queries", 4, rows, "halves", dtype) + rope("kh", "keys", 4, rows, "halves", dtype)
    return text + "output %queries 'queries'\noutput %keys 'keys'\n"


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("rows", [1, 2, 8])
def test_norms_of_heads_are_in_the_product_s_kernel(rows: int, norm: str, dtype: str) -> None:
    text = heads(rows, dtype, norm)
    check(text, ["chain"], 2e-5 if dtype == "f32" else 6e-3)
    (region,) = fused(text).regions
    assert region.chain is not None
    assert region.chain.unit == (8, 1)
    assert len(region.chain.heads) == 2
    assert {(p.start, p.strides, len(p.repeats)) for p in region.chain.parts} == {(0, (24, 8, 1), 0), (16, (24, 1), 1)}


@pytest.mark.parametrize("rows", [9, 12])
def test_up_to_sixteen_rows_of_16_bit_types_are_one_kernel(rows: int) -> None:
    check(projections(rows, "f16", "rms", "halves", True), ["chain"], 4e-3)
    check(gated(rows, "bf16", "Silu(%gate)"), ["chain"], 2e-2)
    check(gated(rows, "f32", "Silu(%gate)"), ["rowwise", "contract", "contract"], 1e-5)


def test_many_rows_need_weights_in_pieces_along_k() -> None:
    graph = parsed(gated(12, "f16", "Silu(%gate)"))
    options = Options(arch=("sm_80",), disable=frozenset({"pack-weights"}))
    build = build_graph(graph, options, compile_kernels=False)
    assert "chain" not in {r.template for r in build.fused.regions}


OPEN = [{"B": 1}, {"B": 3}, {"B": 8}]


def with_open_batch(text: str) -> str:
    """The graph of one row with an open number of them along the first axis."""
    for before in ("[", "sizes=(", "shape=("):
        text = text.replace(f"{before}1, ", f"{before}B, ")
    return "symbol B(lo=1, hi=8)\n" + text


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_an_open_batch_of_few_rows_is_one_kernel(dtype: str) -> None:
    tolerance = 2e-5 if dtype == "f32" else 6e-3
    for text in (
        projections(1, dtype, "rms", "halves", True), gated(1, dtype, "Silu(%gate)"), heads(1, dtype, "layer"),
    ):  # fmt: skip
        check(with_open_batch(text), ["chain"], tolerance, OPEN)


def test_an_open_batch_of_16_bit_types_may_have_sixteen_rows() -> None:
    text = with_open_batch(gated(1, "f16", "Silu(%gate)")).replace("hi=8", "hi=16")
    check(text, ["chain"], 6e-3, [{"B": 1}, {"B": 11}, {"B": 16}])


def test_an_open_number_of_positions_is_one_kernel() -> None:
    sizes = [{"R": 2}, {"R": 8}]
    for text in (projections("R", "f16", "rms", "halves", False), gated("R", "f32", "Silu(%gate)")):
        check("symbol R(lo=2, hi=8)\n" + text, ["chain"], 4e-3, sizes)


@pytest.mark.parametrize("behind", ["Softmax(%m, axis=1)", "RMSNormalization(%m, %s, axis=1, epsilon=0.01)"])
def test_a_product_of_one_column_has_no_heads(behind: str) -> None:
    text = f"""input %x: f32[2, 4]
weight %w: f32[4, 1]
weight %s: f32[1]
%m = MatMul(%x, %w) @ 'm'
%y = {behind} @ 'y'
output %y
"""
    check(text, ["contract", "rowwise"], 1e-5)


def test_an_open_batch_that_may_be_larger_stays_apart() -> None:
    text = with_open_batch(gated(1, "f32", "Silu(%gate)")).replace("hi=8", "hi=9")
    check(text, ["rowwise", "contract", "contract"], 1e-5, [{"B": 9}])


X = "input %x: f32[4, 16]\nweight %g: f32[16]\nweight %w: f32[16, 8]\n"
TALL = X.replace("[4, 16]", "[9, 16]")
NORM = "%h = RMSNormalization(%x, %g, axis=1, epsilon=1e-05)\n"
APART = {
    "nine rows": (TALL + NORM + "%y = MatMul(%h, %w)\noutput %y\n", ["rowwise", "contract"]),
    "the norm is an output": (X + NORM + "%y = MatMul(%h, %w)\noutput %y\noutput %h\n", ["rowwise", "contract"]),
    "the norm is read behind the product": (
        X.replace("[16, 8]", "[16, 16]") + NORM + "%m = MatMul(%h, %w)\n%y = Add(%m, %h)\noutput %y\n",
        ["rowwise", "contract"],
    ),
    "the norm is of columns of the product": (
        "input %x: f32[4, 16]\nweight %w: f32[4, 8]\n%s = Softmax(%x, axis=1)\n"
        "%h: f32[16, 4] = Transpose(%s, perm=(1, 0))\n"
        "%i: f32[8, 4] = Slice(%h, starts=(0, 0), sizes=(8, 4), steps=(1, 1))\n%y = MatMul(%i, %w)\noutput %y\n",
        ["rowwise", "contract"],
    ),
    "another row of the product is read": (
        X + "%m = MatMul(%x, %w)\n%a: f32[3, 8] = Slice(%m, starts=(0, 0), sizes=(3, 8), steps=(1, 1))\n"
        "%b: f32[3, 8] = Slice(%m, starts=(1, 0), sizes=(3, 8), steps=(1, 1))\n%y = Sub(%a, %b)\noutput %y\n",
        ["contract", "pointwise"],
    ),
    "columns of many units are read": (
        X + "%m = MatMul(%x, %w)\n%r: f32[4, 8] = Slice(%m, starts=(0, 7), sizes=(4, 8), steps=(1, -1))\n"
        "%y = Add(%m, %r)\n%z: f32[4, 7] = Slice(%m, starts=(0, 1), sizes=(4, 7), steps=(1, 1))\n"
        "output %y\noutput %z\n",
        ["chain"],
    ),
    "the whole cache is read": (
        "input %x: f32[1, 16]\nweight %w: f32[16, 8]\ninput %c: f32[12, 8]\ninput %at: i64[1, 8]\n%m = MatMul(%x, %w)\n"
        "%n = ScatterElements(%c, %at, %m, axis=0, reduction='none', strict=1)\n%y = Tanh(%n)\n"
        "output %n 'n' in %c\noutput %y\n",
        ["chain", "pointwise"],
    ),
    "the old cache is read with the product": (
        "input %x: f32[1, 16]\nweight %w: f32[16, 8]\ninput %c: f32[12, 8]\ninput %at: i64[1, 8]\n%m = MatMul(%x, %w)\n"
        "%n = ScatterElements(%c, %at, %m, axis=0, reduction='none', strict=1)\n"
        "%o: f32[1, 8] = Slice(%c, starts=(3, 0), sizes=(1, 8), steps=(1, 1))\n"
        "%p: f32[1, 8] = Slice(%m, starts=(0, 7), sizes=(1, 8), steps=(1, -1))\n"
        "%y = Add(%o, %p)\noutput %n 'n' in %c\noutput %y\n",
        ["contract", "pointwise", "scatter"],
    ),
    "the norm is of all columns": (
        X + "%m = MatMul(%x, %w)\n%y = Softmax(%m, axis=1)\noutput %y\n", ["contract", "rowwise"]
    ),
    "another place is read where the product says": (
        X + "input %t: f32[9, 8]\n%m = MatMul(%x, %w)\n%i: i64[4, 8] = Cast(%m, to=dtype(i64))\n"
        "%y: f32[4, 8] = GatherElements(%t, %i, axis=0, strict=0)\noutput %y\n",
        ["contract", "pointwise"],
    ),
    "the result is needed by way of another kernel": (
        X + "%m = MatMul(%x, %w)\n%s = ReduceSum(%m, axes=(0,), keepdims=1)\n%y = Div(%m, %s)\noutput %y\n",
        ["contract", "reduce", "pointwise"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_what_stays_apart(name: str) -> None:
    text, templates = APART[name]
    check(text, templates, 1e-5)
