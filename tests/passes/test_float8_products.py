"""Products of dequantised 8-bit floats: these are multiplied, with the same results up to the rounding of f32 sums."""

from __future__ import annotations

import numpy as np
import pytest
from pass_tools import build, ops, run

from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import Graph
from arcweld.compiler.options import Options
from arcweld.compiler.reference import run_reference
from arcweld.passes.common import count_ops
from arcweld.passes.float8_products import float8_products
from arcweld.passes.pipeline import run_passes


def check(text: str, dims: dict[str, int] | None = None) -> Graph:
    """The graph after the pass, which computes the same to within a few roundings of its largest result."""
    before = build(text)
    after = run(before, float8_products)
    rng, feeds = np.random.default_rng(4), {}
    for v in before.inputs:
        shape = tuple(d if isinstance(d, int) else (dims or {})[str(d)] for d in v.shape)
        feeds[v.name] = (rng.uniform(0.1, 9, shape) * rng.choice([-1, 1], shape)).astype(v.dtype.numpy)
    (want,), (got,) = (run_reference(g, feeds).values() for g in (before, after))
    assert got.dtype == want.dtype
    limit = 1e-2 if want.dtype == np.float16 else 2e-6
    np.testing.assert_allclose(got, want, rtol=0, atol=limit * float(np.abs(want).max()))
    lowered = run_passes(before, Options(), verify_each=True)
    assert count_ops(lowered, "MatMul") + count_ops(lowered, "Conv") == 0
    return after


MATMUL = """
    symbol n(lo=1, hi=64)
    input %x: f8e4m3fn[2, n, 32]
    weight %sx: f32[] data=(0.02,)
    weight %w: f8e5m2[32, 6]
    weight %sw: f32[6]
"""


def test_one_scale_and_scales_of_columns() -> None:
    text = """
        %a = DequantizeLinear(%x, %sx, axis=0)
        %b = DequantizeLinear(%w, %sw, axis=1)
        %y = MatMul(%a, %b)
        output %y
    """
    assert ops(check(MATMUL + text, {"n": 5})) == ["MatMulFloat8", "Mul"]


def test_a_zero_point_that_gives_the_type() -> None:
    text = """
        weight %zx: f8e4m3fn[] data=(0.0,)
        %a = DequantizeLinear(%x, %sx, %zx, axis=0)
        %b = DequantizeLinear(%w, %sw, axis=1)
        %y = MatMul(%a, %b)
        output %y
    """
    assert ops(check(MATMUL + text, {"n": 5})) == ["MatMulFloat8", "Mul"]


def test_scales_that_are_computed_for_each_row() -> None:
    text = """
        input %s: f32[2, n, 1]
        %a = DequantizeLinear(%x, %s, axis=2, block=32)
        %b = DequantizeLinear(%w, %sw, axis=1)
        %y = MatMul(%a, %b)
        output %y
    """
    assert ops(check(MATMUL + text, {"n": 5})).count("Mul") == 2


def test_a_transposed_weight_with_16_bit_scales() -> None:
    text = """
        input %x: f8e4m3fn[7, 32]
        weight %sx: f16[] data=(0.25,)
        weight %v: f8e4m3fn[6, 32]
        weight %sv: f16[6]
        %a = DequantizeLinear(%x, %sx, axis=0)
        %b = DequantizeLinear(%v, %sv, axis=0)
        %t = Transpose(%b, perm=(1, 0))
        %y = MatMul(%a, %t)
        output %y
    """
    assert ops(check(text)) == ["MatMulFloat8", "Mul", "Cast"]


@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm_with_scales_of_rows_and_columns(trans_a: int, trans_b: int) -> None:
    x, rows = ("32, 7", 1) if trans_a else ("7, 32", 0)
    w, columns = ("6, 32", 0) if trans_b else ("32, 6", 1)
    text = f"""
        input %x: f8e4m3fn[{x}]
        input %s: f32[7]
        weight %w: f8e4m3fn[{w}]
        weight %sw: f32[6]
        weight %c: f32[6]
        %a = DequantizeLinear(%x, %s, axis={rows})
        %b = DequantizeLinear(%w, %sw, axis={columns})
        %y = Gemm(%a, %b, %c, transA={trans_a}, transB={trans_b}, alpha=0.5, beta=2.0)
        output %y
    """
    assert count_ops(check(text), "MatMulFloat8") == 1


def test_a_convolution_with_scales_of_images_and_filters() -> None:
    text = """
        input %x: f8e4m3fn[2, 4, 6, 6]
        input %s: f32[2]
        weight %w: f8e4m3fn[8, 2, 3, 3]
        weight %sw: f32[8]
        weight %c: f32[8]
        %a = DequantizeLinear(%x, %s, axis=0)
        %b = DequantizeLinear(%w, %sw, axis=0)
        %y = Conv(%a, %b, %c, strides=(2, 1), dilations=(1, 1), pads=(1, 1, 1, 1), group=2)
        output %y
    """
    assert count_ops(check(text), "ConvFloat8") == 1


LEFT_ALONE = {
    "scales_along_k": """
        weight %sk: f32[32]
        %a = DequantizeLinear(%x, %sk, axis=2)
        %b = DequantizeLinear(%w, %sw, axis=1)
    """,
    "blocks_along_k": """
        weight %sb: f32[2, 6]
        %a = DequantizeLinear(%x, %sx, axis=0)
        %b = DequantizeLinear(%w, %sb, axis=0, block=16)
    """,
    "a_zero_point": """
        weight %zx: f8e4m3fn[] data=(1.0,)
        %a = DequantizeLinear(%x, %sx, %zx, axis=0)
        %b = DequantizeLinear(%w, %sw, axis=1)
    """,
    "one_operand": """
        %a = Cast(%x, to=dtype(f32))
        %b = DequantizeLinear(%w, %sw, axis=1)
    """,
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_left_alone(name: str) -> None:
    graph = build(f"{MATMUL}{LEFT_ALONE[name]}\n    %y = MatMul(%a, %b)\n    output %y\n")
    assert float8_products(graph, Options()) is graph


def test_half_precision_keeps_sums_until_they_are_scaled() -> None:
    text = """
        input %s: f32[2, n, 1]
        %a = DequantizeLinear(%x, %s, axis=2, block=32)
        %b = DequantizeLinear(%w, %sw, axis=1)
        %m = MatMul(%a, %b)
        %y = Relu(%m)
        output %y
    """
    graph = run_passes(build(MATMUL + text), Options(precision="fp16"), verify_each=True)
    types = {n.op: n.output.dtype.value for n in graph.nodes}
    assert (types["MatMulFloat8"], types["Mul"], types["Relu"]) == ("f32", "f32", "f16")


@pytest.mark.parametrize(
    ("scale", "said"), [("f32[5]", "scale and axis 1"), ("f32[2, 6]", "rank"), ("i32[6]", "i32")]
)
def test_scales_of_a_wrong_shape_or_type_are_refused(scale: str, said: str) -> None:
    text = f"""
        input %w: f8e4m3fn[32, 6]
        weight %s: {scale}
        %b = DequantizeLinear(%w, %s, axis=1)
        output %b
    """
    with pytest.raises(ModelError, match=said):
        build(text)
