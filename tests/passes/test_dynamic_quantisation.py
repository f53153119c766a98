"""Dynamic quantisation becomes one operator or two, with the same results bit for bit."""

from __future__ import annotations

import pytest
from pass_tools import GraphPass, build, check, ops, run

from arcweld.compiler.options import Options
from arcweld.passes.dynamic_quantisation import MOST_ELEMENTS, dynamic_quantisation
from arcweld.passes.patterns_pointwise import clips
from arcweld.passes.pipeline import run_passes

PASSES: tuple[GraphPass, ...] = (clips, dynamic_quantisation)


def quantised(shape: str, *, axes: str = "(0, 1)", largest: str = "x", steps: float = 255.0) -> str:
    """The arithmetic that importers write for DynamicQuantizeLinear, and readers of all of its results."""
    return f"""
        symbol n(lo=1, hi=64)
        input %x: f32[{shape}]
        input %z: f32[{shape}]
        weight %none: f32[] data=0.0
        weight %one: f32[] data=1.0
        weight %steps: f32[] data={steps}
        %least = ReduceMin(%x, axes={axes}, keepdims=0)
        %low = Min(%least, %none)
        %most = ReduceMax(%{largest}, axes={axes}, keepdims=0)
        %high = Max(%most, %none)
        %span = Sub(%high, %low)
        %step = Div(%span, %steps)
        %empty = Equal(%step, %none)
        %scale = Where(%empty, %one, %step)
        %twice = Add(%scale, %scale)
        %minus = Neg(%low)
        %ratio = Div(%minus, %scale)
        %clipped = Clip(%ratio, min=0.0, max=255.0)
        %rounded = Round(%clipped)
        %zero = Cast(%rounded, to=dtype(u8))
        %y = QuantizeLinear(%x, %scale, %zero, axis=0, dtype=dtype(u8))
        output %y
        output %twice
        output %zero
        output %z
    """


def test_it_is_one_operator_whose_results_are_all_read() -> None:
    after = check(quantised("3, 40"), *PASSES)
    assert ops(after) == ["DynamicQuantizeLinear", "Add"]


def test_of_a_bounded_open_size() -> None:
    assert "DynamicQuantizeLinear" in ops(check(quantised("n, 40"), *PASSES, dims={"n": 5}))


@pytest.mark.parametrize("shape", [f"2, {MOST_ELEMENTS // 2 + 1}", "m, 40"], ids=["large", "open"])
def test_of_a_large_tensor_only_the_range_is_an_operator(shape: str) -> None:
    text = quantised(shape).replace("symbol n(lo=1, hi=64)", "symbol m(lo=1)" if "m" in shape else "")
    after = check(text, *PASSES, dims={"m": 5})
    assert ops(after) == ["DynamicRange", "Add", "QuantizeLinear"]


@pytest.mark.parametrize(
    "text",
    [
        quantised("1, 40", axes="(1,)"),  # its scale is a vector
        quantised("3, 40", largest="z"),
        quantised("3, 40", steps=127.0),
    ],
    ids=["other axes", "another tensor", "another range"],
)
def test_other_arithmetic_stays(text: str) -> None:
    before = build(text)
    assert ops(run(before, *PASSES)) == ops(run(before, clips))


def test_in_half_precision_the_tensor_stays_f32() -> None:
    after = run_passes(build(quantised("3, 40")), Options(precision="fp16"), verify_each=True)
    (node,) = [n for n in after.nodes if n.op == "DynamicQuantizeLinear"]
    assert str(node.operands()[0].type) == "f32[3, 40]"
