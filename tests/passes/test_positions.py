"""Comparisons with constant positions: computed from indices, unless they read an array of the model."""

from __future__ import annotations

import pytest
from pass_tools import check, ops

from arcweld.compiler.ir import Graph
from arcweld.compiler.options import Options
from arcweld.passes.constant_folding import constant_folding
from arcweld.passes.positions import positions

HEADER = "input %at: i64[1]\ninput %x: f32[100]\n"


def folded(graph: Graph, options: Options) -> Graph:
    return positions(constant_folding(graph, options), options)


@pytest.mark.parametrize("op", ["Less", "LessOrEqual", "Greater", "GreaterOrEqual"])
@pytest.mark.parametrize(("start", "step"), [(0, 1), (7, -3)])
def test_a_folded_range_becomes_one_again(op: str, start: int, step: int) -> None:
    text = f"""{HEADER}%r = Range(start={start}, step={step}, length=100, dtype=dtype(i64))
    %t = Reshape(%r, shape=(1, 100))
    %y = {op}(%t, %at)
    output %y"""
    graph = check(text, folded)
    assert ops(graph).count("Range") == 1
    assert not graph.weights


def test_an_array_of_the_model_stays_one() -> None:
    numbers = ", ".join(map(str, range(100)))
    graph = check(f"{HEADER}weight %t: i64[100] data=({numbers})\n%y = Less(%t, %at)\noutput %y", folded)
    assert "Range" not in ops(graph)


def test_other_numbers_stay() -> None:
    text = f"""{HEADER}%r = Range(start=0, step=1, length=100, dtype=dtype(i64))
    %q = Mul(%r, %r)
    %y = Less(%q, %at)
    output %y"""
    assert "Range" not in ops(check(text, folded))
