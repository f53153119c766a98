"""Operators of very many operands become trees of those that a kernel takes."""

from __future__ import annotations

import pytest
from pass_tools import body, check, lines, ops

from arcweld.passes import split_operands as module
from arcweld.passes.split_operands import split_operands


@pytest.fixture(autouse=True)
def few_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 2)


def wide(op: str, count: int, dtype: str = "f32", rest: str = "") -> str:
    text = "".join(f"input %x{i}: {dtype}[3]\n" for i in range(count))
    result = f"{dtype}[{3 * count}]" if op == "Concat" else f"{dtype}[3]"
    return text + f"%y: {result} = {op}({', '.join(f'%x{i}' for i in range(count))}{rest}) @ 'y'\noutput %y\n"


@pytest.mark.parametrize(("op", "rest"), [("Max", ""), ("Min", ""), ("Concat", ", axis=0")])
def test_order_is_kept(op: str, rest: str) -> None:
    graph = check(wide(op, 5, rest=rest), split_operands, rtol=0, atol=0)
    assert body(graph) == lines(
        f"""
        %y.part = {op}(%x0, %x1{rest}) @ 'y'
        %y.part.1 = {op}(%x2, %x3{rest}) @ 'y'
        %y.part.2 = {op}(%y.part, %y.part.1{rest}) @ 'y'
        %y = {op}(%y.part.2, %x4{rest}) @ 'y'
        output %y
        """
    )


def test_sums() -> None:
    assert ops(check(wide("Sum", 3), split_operands)) == ["Sum", "Sum"]
    assert ops(check(wide("Sum", 3, "i64"), split_operands)) == ["Sum", "Sum"]


def test_a_mean_is_a_share_of_the_sum() -> None:
    graph = check(wide("Mean", 4), split_operands)
    assert ops(graph) == ["Sum", "Sum", "Sum", "Mul"]
    assert graph.outputs[0].name == "y"


def test_half_precision_is_summed_in_f32() -> None:
    graph = check(wide("Mean", 3, "f16"), split_operands, rtol=2e-3, atol=2e-3)
    assert ops(graph) == ["Cast", "Cast", "Sum", "Cast", "Sum", "Mul", "Cast"]


def test_few_operands_stay() -> None:
    assert ops(check(wide("Sum", 2), split_operands)) == ["Sum"]
    assert ops(check(wide("Concat", 2, rest=", axis=0"), split_operands)) == ["Concat"]
