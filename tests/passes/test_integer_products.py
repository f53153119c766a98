"""Products of dequantised 8-bit operands: the integers are multiplied, with the same results up to f32 rounding."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from pass_tools import build, ops, run

from arcweld.compiler.ir import Graph, Weight
from arcweld.compiler.options import Options
from arcweld.compiler.reference import run_reference
from arcweld.compiler.verifier import verify
from arcweld.passes.common import count_ops
from arcweld.passes.integer_products import integer_products
from arcweld.passes.pipeline import run_passes


def graph_of(text: str) -> Graph:
    """The graph of a text; 8-bit weights without data have their type's whole range, i32 ones some thousands."""
    graph, rng = build(text), np.random.default_rng(3)
    weights = {}
    for name, w in graph.weights.items():
        if w.data.dtype.kind in "iu" and "data=" not in next(s for s in text.splitlines() if f"weight %{name}:" in s):
            info = np.iinfo(w.data.dtype if w.data.dtype.itemsize == 1 else np.int16)
            data = rng.integers(info.min, info.max + 1, w.data.shape).astype(w.data.dtype)
            w = Weight(data, w.source)
        weights[name] = dataclasses.replace(w)
    return graph.replace(weights=weights)


def check(text: str, dims: dict[str, int] | None = None) -> Graph:
    """The graph after the pass, which computes the same to within a few roundings of its largest result."""
    before = graph_of(text)
    after = run(before, integer_products)
    rng, feeds = np.random.default_rng(4), {}
    for v in before.inputs:
        shape = tuple(d if isinstance(d, int) else (dims or {})[str(d)] for d in v.shape)
        info = np.iinfo(v.dtype.numpy)
        feeds[v.name] = rng.integers(info.min, info.max + 1, shape).astype(v.dtype.numpy)
    (want,), (got,) = (run_reference(g, feeds).values() for g in (before, after))
    assert got.dtype == want.dtype
    limit = 1e-2 if want.dtype == np.float16 else 2e-6
    np.testing.assert_allclose(got, want, rtol=0, atol=limit * float(np.abs(want).max()))
    lowered = run_passes(before, Options(), verify_each=True)
    assert count_ops(lowered, "MatMul") + count_ops(lowered, "Conv") == 0
    return after


MATMUL = """
    symbol n(lo=1, hi=64)
    input %x: u8[2, n, 32]
    weight %sx: f32[] data=(0.02,)
    weight %zx: u8[] data=(131,)
    weight %w: i8[32, 6]
    weight %sw: f32[6]
    weight %zw: i8[6]
"""


def test_a_product_with_scales_and_zero_points_of_columns() -> None:
    text = """
        %a = DequantizeLinear(%x, %sx, %zx, axis=0)
        %b = DequantizeLinear(%w, %sw, %zw, axis=1)
        %y = MatMul(%a, %b)
        output %y
    """
    after = check(MATMUL + text, {"n": 5})
    assert "DequantizeLinear" not in ops(after)
    # sums of the activations' rows are part of the product; those of the weights are constants
    assert ops(after) == ["MatMulInteger", "Sub", "Cast", "Mul"]
    assert [len(n.operands()) for n in after.nodes][:1] == [3]


def test_symmetric_weights_need_no_sums() -> None:
    text = """
        %a = DequantizeLinear(%x, %sx, %zx, axis=0)
        %b = DequantizeLinear(%w, %sw, axis=1)
        %y = MatMul(%a, %b)
        output %y
    """
    assert ops(check(MATMUL + text, {"n": 5})) == ["MatMulInteger", "Sub", "Cast", "Mul"]


def test_weights_that_are_transposed_behind_their_scales() -> None:
    text = """
        weight %v: i8[6, 32]
        %a = DequantizeLinear(%x, %sx, %zx, axis=0)
        %b = DequantizeLinear(%v, %sw, axis=0)
        %t = Transpose(%b, perm=(1, 0))
        %y = MatMul(%a, %t)
        output %y
    """
    assert ops(check(MATMUL + text, {"n": 5})) == ["MatMulInteger", "Sub", "Cast", "Mul"]


def test_views_of_weights_and_zero_points() -> None:
    """One direction's of an LSTM, as its operator holds them: a zero point of 0 is seen through the views."""
    text = """
        weight %v: i8[2, 32, 6]
        weight %zv: i8[2, 6] data=(0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0)
        %v0 = Slice(%v, starts=(0, 0, 0), sizes=(1, 32, 6), steps=(1, 1, 1))
        %v1 = Reshape(%v0, shape=(32, 6))
        %z0 = Slice(%zv, starts=(0, 0), sizes=(1, 6), steps=(1, 1))
        %z1 = Reshape(%z0, shape=(6,))
        %a = DequantizeLinear(%x, %sx, %zx, axis=0)
        %b = DequantizeLinear(%v1, %sw, %z1, axis=1)
        %y = MatMul(%a, %b)
        output %y
    """
    for row, operands in ((0, 2), (1, 3)):
        after = check(MATMUL + text.replace("(0, 0), sizes=(1, 6)", f"({row}, 0), sizes=(1, 6)"), {"n": 5})
        assert ops(after) == ["MatMulInteger", "Sub", "Cast", "Mul"]
        assert len(after.nodes[0].operands()) == operands


def test_both_operands_are_activations() -> None:
    text = """
        input %x: u8[2, 7, 32]
        input %k: i8[2, 9, 32]
        weight %sx: f32[] data=(0.02,)
        weight %zx: u8[] data=(131,)
        weight %zk: i8[] data=(-5,)
        %a = DequantizeLinear(%x, %sx, %zx, axis=0)
        %b = DequantizeLinear(%k, %sx, %zk, axis=0)
        %t = Transpose(%b, perm=(0, 2, 1))
        %y = MatMul(%a, %t)
        output %y
    """
    assert ops(check(text)).count("ReduceSum") == 1  # over the columns of the right one


GEMM = """
    input %x: i8[7, 32]
    weight %sx: f32[] data=(0.5,)
    weight %w: u8[6, 32]
    weight %sw: f32[6] data=(0.5, 0.25, 0.125, 1.0, 2.0, 4.0)
    weight %zw: u8[6]
    weight %c: i32[6]
    weight %sc: f32[6] data=(0.25, 0.125, 0.0625, 0.5, 1.0, 2.0)
    weight %other: f32[6]
    %a = DequantizeLinear(%x, %sx, axis=0)
    %b = DequantizeLinear(%w, %sw, %zw, axis=0)
"""


def test_a_bias_of_the_same_scale_is_added_in_integers() -> None:
    after = check(GEMM + "%d = DequantizeLinear(%c, %sc, axis=0)\n%y = Gemm(%a, %b, %d, transB=1)\noutput %y")
    assert "DequantizeLinear" not in ops(after)
    assert ops(after)[-3:] == ["Add", "Cast", "Mul"]


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_another_bias_is_added_behind_the_scale(beta: float) -> None:
    for bias in ("%d = DequantizeLinear(%c, %other, axis=0)", "%d = Relu(%other)"):
        after = check(GEMM + f"{bias}\n%y = Gemm(%a, %b, %d, transB=1, alpha=0.75, beta={beta})\noutput %y")
        assert ops(after)[-1] == "Add"


def test_a_bias_with_which_sums_might_wrap_is_added_behind_the_scale() -> None:
    text = GEMM.replace("%c: i32[6]", "%c: i32[6] data=(2147483647, 0, 0, 0, 0, 0)")
    after = check(text + "%d = DequantizeLinear(%c, %sc, axis=0)\n%y = Gemm(%a, %b, %d, transB=1)\noutput %y")
    assert ops(after)[-1] == "Add"


CONV = """
    input %x: u8[2, 4, 7, 6]
    weight %sx: f32[] data=(0.02,)
    weight %zx: u8[] data=(131,)
    weight %b: f32[6]
    %a = DequantizeLinear(%x, %sx, %zx, axis=0)
"""


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("zeros", ["", ", %zw"])
def test_convolutions(group: int, zeros: str) -> None:
    text = f"""
        weight %w: i8[6, {4 // group}, 3, 3]
        weight %sw: f32[6]
        weight %zw: i8[6]
        %c = DequantizeLinear(%w, %sw{zeros}, axis=0)
        %y = Conv(%a, %c, %b, strides=(2, 1), dilations=(1, 1), pads=(1, 0, 1, 2), group={group})
        output %y
    """
    after = check(CONV + text)
    assert ops(after).count("ConvInteger") == 1
    assert "ReduceSum" not in ops(after)
    assert ops(after)[-3:] == ["Cast", "Mul", "Add"]


def test_results_of_half_precision_stay_so() -> None:
    text = """
        input %x: u8[5, 32]
        weight %s: f16[] data=(0.0625,)
        weight %w: i8[32, 6]
        %a = DequantizeLinear(%x, %s, axis=0)
        %b = DequantizeLinear(%w, %s, axis=0)
        %y = MatMul(%a, %b)
        output %y
    """
    assert ops(check(text)) == ["MatMulInteger", "Cast", "Mul", "Cast"]


@pytest.mark.parametrize(
    "text",
    [
        # a scale for each k, or for each row of the left operand
        MATMUL.replace("%sw: f32[6]", "%sw: f32[32]")
        + "%a = DequantizeLinear(%x, %sx, %zx, axis=0)\n%b = DequantizeLinear(%w, %sw, axis=0)\n%y = MatMul(%a, %b)",
        "input %x: u8[5, 32]\nweight %s: f32[5]\nweight %t: f32[]\nweight %w: i8[32, 6]\n"
        "%a = DequantizeLinear(%x, %s, axis=0)\n%b = DequantizeLinear(%w, %t, axis=0)\n%y = MatMul(%a, %b)",
        # sums that might pass i32, or whose number of terms is open
        "input %x: u8[1, 33100]\nweight %t: f32[]\nweight %w: u8[33100, 1]\n"
        "%a = DequantizeLinear(%x, %t, axis=0)\n%b = DequantizeLinear(%w, %t, axis=0)\n%y = MatMul(%a, %b)",
        "symbol k(lo=1)\ninput %x: u8[1, k]\nweight %t: f32[]\ninput %w: u8[k, 1]\n"
        "%a = DequantizeLinear(%x, %t, axis=0)\n%b = DequantizeLinear(%w, %t, axis=0)\n%y = MatMul(%a, %b)",
        # 16 bits; one operand is not quantised
        "input %x: u16[1, 32]\nweight %t: f32[]\nweight %w: u8[32, 1]\n"
        "%a = DequantizeLinear(%x, %t, axis=0)\n%b = DequantizeLinear(%w, %t, axis=0)\n%y = MatMul(%a, %b)",
        "input %a: f32[1, 32]\nweight %t: f32[]\nweight %w: u8[32, 1]\n"
        "%b = DequantizeLinear(%w, %t, axis=0)\n%y = MatMul(%a, %b)",
    ],
)  # fmt: skip
def test_others_stay(text: str) -> None:
    graph = build(text + "\noutput %y")
    assert integer_products(graph, Options()) is graph


def test_the_largest_depth_is_exact() -> None:
    """33,025 products of 255 by 255 are just below 2**31."""
    depth = 33025
    text = f"""
        input %x: u8[1, {depth}]
        weight %t: f32[] data=(1.0,)
        weight %w: u8[{depth}, 1]
        %a = DequantizeLinear(%x, %t, axis=0)
        %b = DequantizeLinear(%w, %t, axis=0)
        %y = MatMul(%a, %b)
        output %y
    """
    graph = build(text)
    graph = graph.replace(weights={**graph.weights, "w": Weight(np.full((depth, 1), 255, np.uint8), "w")})
    after = run(graph, integer_products)
    assert "MatMulInteger" in ops(after)
    (got,) = run_reference(after, {"x": np.full((1, depth), 255, np.uint8)}).values()
    assert got == np.float32(depth * 255 * 255)
    verify(after)
