"""Narrowing to half types: types at the edges, what stays f32, constants in range, and accuracy."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from pass_tools import HALF, body, build, check, lines, ops, run

from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import UsageError
from arcweld.compiler.ir import Graph
from arcweld.compiler.options import Options
from arcweld.compiler.weights import replay
from arcweld.passes.cleanup import cleanup
from arcweld.passes.decompose import decompose
from arcweld.passes.precision import precision

FP16 = Options(precision="fp16")
HALF_TOLERANCE = {"fp16": 1e-2, "bf16": 8e-2}


def type_of(graph: Graph, name: str) -> DType:
    return next(o.dtype for n in graph.nodes for o in n.outputs if o.name == name)


def test_fp32_changes_nothing() -> None:
    graph = build("input %x: f32[4]\n%y = Neg(%x)\noutput %y")
    assert precision(graph, Options()) is graph


def test_integer_graphs_stay() -> None:
    graph = build("input %x: i64[4]\n%y = Neg(%x)\noutput %y")
    assert precision(graph, FP16) is graph


@pytest.mark.parametrize("name", HALF)
def test_edges_keep_their_types_and_weights_are_cast(name: str) -> None:
    after = check(
        """
        input %x: f32[3, 8]
        input %i: i64[3]
        weight %w: f32[8, 4]
        weight %t: f32[5, 4]
        %a = MatMul(%x, %w)
        %e = Gather(%t, %i, axis=0, strict=0)
        %b = Add(%a, %e)
        %y = Relu(%b)
        output %y
        output %b
        """,
        precision, options=Options(precision=name), rtol=HALF_TOLERANCE[name], atol=4 * HALF_TOLERANCE[name],
    )  # fmt: skip
    assert body(after) == lines(f"""
        %x.{HALF[name].value} = Cast(%x, to=dtype({HALF[name].value}))
        %a = MatMul(%x.{HALF[name].value}, %w.{HALF[name].value})
        %e = Gather(%t.{HALF[name].value}, %i, axis=0, strict=0)
        %b = Add(%a, %e)
        %y = Relu(%b)
        %y.f32 = Cast(%y, to=dtype(f32))
        %b.f32 = Cast(%b, to=dtype(f32))
        output %y.f32
        output %b.f32
    """)
    assert all(type_of(after, n) is HALF[name] for n in "aeby")
    weight = after.weights[f"w.{HALF[name].value}"]
    new = np.full((8, 4), 1.001, np.float32)
    assert replay(weight.transform, {"w": new}).dtype == HALF[name].numpy


def test_a_variance_keeps_its_range() -> None:
    # squares of 300 overflow f16, and so does their sum
    text = """
        input %x: f32[2, 64]
        weight %k: f32[] data=300.0
        weight %eps: f32[] data=1e-12
        %s = Mul(%x, %k)
        %m = ReduceMean(%s, axes=(1,), keepdims=1)
        %d = Sub(%s, %m)
        %q = Mul(%d, %d)
        %v = ReduceMean(%q, axes=(1,), keepdims=1)
        %ve = Add(%v, %eps)
        %r = Rsqrt(%ve)
        %y = Mul(%d, %r)
        output %y
    """
    after = check(text, decompose, precision, cleanup, options=FP16, rtol=1e-2, atol=1e-2)
    assert type_of(after, "q") is DType.F32
    assert type_of(after, "ve") is DType.F32
    assert type_of(after, "d") is DType.F32  # a rounded mean would shift the whole row


def test_values_from_positions_stay_f32() -> None:
    text = """
        symbol n(lo=1, hi=4096)
        input %x: f32[n, 8]
        weight %f: f32[1, 8]
        %p = Range(start=0, step=1, length=n, dtype=dtype(i64))
        %c = Cast(%p, to=dtype(f32))
        %r = Reshape(%c, shape=(n, 1))
        %a = MatMul(%r, %f)
        %s = Sin(%a)
        %y = Mul(%x, %s)
        output %y
    """
    after = check(text, precision, options=FP16, dims={"n": 3000}, rtol=1e-2, atol=1e-2)
    assert type_of(after, "s") is DType.F32
    assert type_of(after, "y") is DType.F16


def test_a_mask_of_huge_numbers_stays_f32() -> None:
    text = """
        input %q: f32[1, 2, 4, 8]
        input %keep: i64[1, 1, 1, 4]
        weight %one: f32[] data=1.0
        weight %low: f32[] data=-3.4028235e38
        %k = Cast(%keep, to=dtype(f32))
        %z = Sub(%one, %k)
        %m = Mul(%z, %low)
        %y = Attention(%q, %q, %q, %m, scale=0.3)
        output %y
    """
    after = check(text, precision, options=FP16, rtol=1e-2, atol=1e-2)
    assert type_of(after, "m") is DType.F32
    assert type_of(after, "y") is DType.F16


def test_products_of_8_bit_integers_are_exact() -> None:
    # 64 * 127 * 255 is beyond f16: the product and its scaling stay f32
    text = """
        input %x: f32[2, 64]
        weight %s: f32[] data=0.01
        weight %z: u8[] data=3
        weight %w: f32[64, 8] data=127.0
        weight %k: f32[] data=1e-4
        %q = QuantizeLinear(%x, %s, %z, axis=0)
        %f = Cast(%q, to=dtype(f32))
        %p = MatMul(%f, %w)
        %i = Cast(%p, to=dtype(i32))
        %g = Cast(%i, to=dtype(f32))
        %y = Mul(%g, %k)
        %r = Relu(%y)
        output %r
    """
    after = check(text, precision, options=FP16, rtol=5e-3, atol=5e-3)
    assert [type_of(after, n).value for n in "fpgyr"] == ["f32", "f32", "f32", "f32", "f16"]


def test_a_network_on_integer_pixels_is_half_from_its_first_layer() -> None:
    text = """
        input %x: u8[1, 3, 8, 8]
        weight %w: f32[4, 3, 3, 3]
        weight %k: f32[] data=0.0039
        %f = Cast(%x, to=dtype(f32))
        %n = Mul(%f, %k)
        %y = Conv(%n, %w, strides=(1, 1), dilations=(1, 1), pads=(1, 1, 1, 1), group=1)
        output %y
    """
    after = check(text, precision, options=FP16, rtol=5e-3, atol=5e-3)
    assert type_of(after, "y") is DType.F16


def test_constants_beyond_the_range_are_clamped(caplog: pytest.LogCaptureFixture) -> None:
    text = """
        input %x: f32[2, 8]
        weight %low: f32[] data=-3.4028235e38
        weight %zero: f32[] data=0.0
        %g = Less(%x, %zero)
        %w = Where(%g, %low, %x)
        %y = Softmax(%w, axis=1)
        output %y
    """
    with caplog.at_level(logging.WARNING, logger="arcweld.passes"):
        after = check(text, precision, options=FP16, rtol=1e-2, atol=1e-2)
    assert "clamped to 6.55e+04" in caplog.text
    (weight,) = [w.data for n, w in after.weights.items() if n.startswith("low")]
    assert weight == -65504


def test_fill_values_are_clamped_and_infinities_kept(caplog: pytest.LogCaptureFixture) -> None:
    text = """
        input %x: f32[2, 4]
        weight %inf: f32[] data=float(-inf)
        weight %zero: f32[] data=0.0
        %p = Pad(%x, pads=(0, 1, 0, 1), value=-1e30)
        %g = Less(%x, %zero)
        %w = Where(%g, %inf, %x)
        output %p
        output %w
    """
    with caplog.at_level(logging.WARNING, logger="arcweld.passes"):
        after = run(build(text), precision, options=FP16)
    (pad,) = [n for n in after.nodes if n.op == "Pad"]
    assert pad.attrs["value"] == -65504.0
    assert any(np.isneginf(w.data).any() for w in after.weights.values())
    bf16 = run(build(text), precision, options=Options(precision="bf16"))
    (pad,) = [n for n in bf16.nodes if n.op == "Pad"]
    assert pad.attrs["value"] == -1e30


def test_tiny_constants_are_added_in_f32() -> None:
    text = """
        input %x: f32[8]
        weight %eps: f32[] data=1e-9
        %r = Relu(%x)
        %a = Add(%r, %eps)
        %y = Log(%a)
        output %y
    """
    after = run(build(text), precision, options=FP16)
    assert type_of(after, "a") is DType.F32
    assert type_of(after, "y") is DType.F16
    assert type_of(run(build(text), precision, options=Options(precision="bf16")), "a") is DType.BF16


def test_named_nodes_and_quantisation_stay_f32() -> None:
    text = """
        input %x: f32[2, 8]
        weight %s: f32[] data=0.013
        weight %z: u8[] data=128
        weight %w: f32[8, 8]
        %q = QuantizeLinear(%x, %s, %z, axis=0)
        %d = DequantizeLinear(%q, %s, %z, axis=0)
        %a = MatMul(%d, %w) @ 'delicate'
        %y = MatMul(%a, %w) @ 'robust'
        output %y
    """
    after = check(text, precision, options=Options("fp16", keep_f32=frozenset({"delicate"})), rtol=2e-2, atol=2e-2)
    assert [type_of(after, n).value for n in ("d", "a", "y")] == ["f32", "f32", "f16"]


def test_casts_of_the_model_follow() -> None:
    text = """
        input %x: f16[8]
        input %i: i32[8]
        %w = Cast(%x, to=dtype(f32))
        %e = Exp(%w)
        %b = Cast(%i, to=dtype(f64))
        %n = Cast(%e, to=dtype(f16))
        output %n
        output %b
    """
    after = check(text, precision, cleanup, options=FP16, rtol=1e-2, atol=1e-2)
    assert ops(after) == ["Exp", "Cast"]


def test_unknown_precision_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="fp8"):
        Options(precision="fp8")


def test_positions_that_count_pixels_stay_f32() -> None:
    """Offsets of a layer may be half; the sum with a pixel's number may not: f16 has no 2049."""
    after = precision(
        build(
            """
            input %x: f32[1, 2, 4, 3000]
            input %o: f32[1, 2, 9, 2]
            weight %w: f32[2, 2]
            weight %b: f32[9, 2]
            %m = MatMul(%o, %w)
            %p = Add(%m, %b)
            %y = GridSample(%x, %p, align_corners=0, mode='linear', padding_mode='zeros', pixels=1)
            output %y
            """
        ),
        FP16,
    )
    assert (type_of(after, "m"), type_of(after, "p"), type_of(after, "y")) == (DType.F16, DType.F32, DType.F16)


def test_the_bits_of_a_number_are_those_of_its_f32() -> None:
    after = precision(build("input %x: f32[4]\n%b = BitCast(%x, to=dtype(i32))\n%y = Neg(%b)\noutput %y"), FP16)
    assert ops(after) == ["BitCast", "Neg"]


def test_random_numbers_are_compared_in_f32() -> None:
    text = """
        input %p: f32[4]
        %u = Uniform(seed=1, half=0, shape=(4,), dtype=dtype(f32))
        %b = Less(%u, %p)
        output %b
        """
    after = precision(build(text), FP16)
    assert (type_of(after, "u"), ops(after)) == (DType.F32, ["Uniform", "Less"])


@pytest.mark.parametrize("name", HALF)
def test_scales_of_quantised_rows_and_their_caches_stay_f32(name: str) -> None:
    """Rows are narrowed; the scale of a small one is no number of 16 bits, and the cache of scales is not copied."""
    graph = build(
        """
        input %x: f32[3, 8]
        input %at: i32[3, 1]
        input %codes: i8[5, 8]
        input %scales: f32[5, 1]
        weight %least: f32[] data=1e-30
        %r = Relu(%x)
        %a = Abs(%r)
        %m = ReduceMax(%a, axes=(1,), keepdims=1)
        %s = Max(%m, %least)
        %q = QuantizeLinear(%r, %s, _, axis=1, block=8, dtype=dtype(i8))
        %codes_now = ScatterND(%codes, %at, %q)
        %scales_now = ScatterND(%scales, %at, %s)
        %y = DequantizeLinear(%codes_now, %scales_now, axis=1, block=8)
        %z = Neg(%y)
        output %z
        output %codes_now
        output %scales_now
        """
    )
    after = precision(graph, Options(precision=name))
    half = HALF[name]
    assert {type_of(after, n) for n in ("s", "scales_now")} == {DType.F32}
    assert {type_of(after, n) for n in ("r", "m")} == {half}
    casts = {n.operands()[0].name for n in after.nodes if n.op == "Cast"}
    assert not casts & {"scales", "scales_now", "s"}
