"""Sibling integer products become one, with their scales, zero points and biases, and the same results bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from pass_tools import build, ops, run

from arcweld.compiler.ir import Graph, Weight
from arcweld.compiler.options import Options
from arcweld.compiler.reference import run_reference
from arcweld.passes.merge_integer_matmuls import merge_integer_matmuls

HEAD = """
    symbol n(lo=1, hi=64)
    input %x: u8[2, n, 8]
    input %s: f32[]
    input %z: u8[]
    weight %wq: i8[8, 6]
    weight %wk: i8[8, 6]
    weight %wv: i8[8, 4]
    weight %sq: f32[6]
    weight %sk: f32[]
    weight %sv: f32[1]
    weight %cq: i32[1, 6]
    weight %ck: i32[1, 6]
    weight %cv: i32[1, 4]
    weight %bq: f32[6]
    weight %bk: f32[6]
    weight %bv: f32[4]
    weight %yq: f32[] data=0.5
    weight %yk: f32[] data=0.25
    weight %yv: f32[] data=0.125
    weight %p: u8[] data=3
    weight %o: u8[] data=0
    %zi = Cast(%z, to=dtype(i32))
"""
# a dynamically quantised product: its left operand's scale and zero point are values
PRODUCT = """
    %m{0} = MatMulInteger(%x, %w{0})
    %c{0}0 = Mul(%zi, %c{0})
    %d{0} = Sub(%m{0}, %c{0}0)
    %f{0} = Cast(%d{0}, to=dtype(f32))
    %s{0}0 = Mul(%s, %s{0})
    %{0} = Mul(%f{0}, %s{0}0)
"""
BIAS = "%{0}b = Add(%{0}, %b{0})\n"
ROUND = "%{0}r = QuantizeLinear(%{0}b, %y{0}, %{1}, axis=0, dtype=dtype(u8))\n"
ENDS = "%{0}e = Transpose(%{0}{1}, perm=(0, 2, 1))\noutput %{0}e\n"


def graph_of(text: str) -> Graph:
    graph, rng = build(text), np.random.default_rng(3)
    full = {n: rng.integers(-128, 128, graph.weights[n].data.shape, np.int8) for n in ("wq", "wk", "wv")}
    return graph.replace(weights={n: Weight(full.get(n, w.data), w.source or n) for n, w in graph.weights.items()})


def check(text: str) -> Graph:
    before = graph_of(text)
    after = run(before, merge_integer_matmuls)
    x = np.random.default_rng(4).integers(0, 256, (2, 5, 8), np.uint8)
    feeds = {"x": x, "s": np.float32(0.02), "z": np.uint8(121)}
    want, got = (run_reference(g, {k: np.asarray(v) for k, v in feeds.items()}) for g in (before, after))
    assert list(want) == list(got)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    return after


def each(text: str, *more: str, of: str = "qkv") -> str:
    return "".join(text.format(v, *more) for v in of)


def test_products_with_scales_of_columns_and_of_all() -> None:
    after = check(HEAD + each(PRODUCT) + each(ENDS, ""))
    product = ["Cast", "MatMulInteger", "Mul", "Sub", "Cast", "Mul", "Mul"]
    assert ops(after) == [*product, *["Slice"] * 3, *["Transpose"] * 3]
    merged = next(n for n in after.nodes if n.op == "MatMulInteger")
    weight = after.weights[merged.operands()[1].name]
    assert weight.data.shape == (8, 16)
    assert [args[0] for step, args in weight.transform if step == "source"] == ["wq", "wk", "wv"]


def test_biases_and_rounding_are_joined_too() -> None:
    after = check(HEAD + each(PRODUCT + BIAS) + each(ROUND, "p") + each(ENDS, "r"))
    assert ops(after).count("MatMulInteger") == ops(after).count("Add") == ops(after).count("QuantizeLinear") == 1


def test_zero_points_of_weights() -> None:
    text = PRODUCT.replace("%w{0})", "%w{0}, %n{0})")
    head = HEAD + "weight %nq: i8[] data=-3\nweight %nk: i8[6]\nweight %nv: i8[4]\n"
    assert ops(check(head + each(text) + each(ENDS, ""))).count("MatMulInteger") == 1


def test_different_zero_points_of_results() -> None:
    rounded = each(ROUND, "p", of="q") + each(ROUND, "o", of="kv")
    after = check(HEAD + each(PRODUCT + BIAS) + rounded + each(ENDS, "r"))
    assert ops(after).count("QuantizeLinear") == 1


@pytest.mark.parametrize(
    "text",
    [
        each(PRODUCT) + "".join(f"%{v}e = Relu(%{v})\noutput %{v}e\n" for v in "qkv"),
        each(PRODUCT) + "output %q\noutput %k\noutput %v\n",
        each(PRODUCT, of="q") + each(PRODUCT + BIAS, of="k") + each(ENDS, "", of="q") + each(ENDS, "b", of="k"),
        each(PRODUCT, of="q") + each(PRODUCT.replace("%s, %sk", "%sk, %sk").replace("%s, %s{0}", "%s{0}, %s"), of="k")
        + each(ENDS, "", of="qk"),
    ],
    ids=["epilogues", "outputs", "a bias of one", "factors in another order"],
)
def test_others_stay(text: str) -> None:
    graph = graph_of(HEAD + text)
    assert merge_integer_matmuls(graph, Options()) is graph
