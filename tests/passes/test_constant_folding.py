"""Constant folding is bounded: what doubles, or is many, stays in the graph. What it computes: test_cleanup.py."""

from __future__ import annotations

from pass_tools import build

from arcweld.compiler.ir import Graph
from arcweld.compiler.options import Options
from arcweld.compiler.weights import GROWTH, MOST_STEPS, SMALL
from arcweld.passes.constant_folding import ROOM, constant_folding


def folded(text: str) -> Graph:
    return constant_folding(build(text), Options())


def doubled(op: str, count: int, first: str, attrs: str = "") -> str:
    lines = [f"%v{i + 1} = {op}(%v{i}, %v{i}{attrs})" for i in range(count)]
    return f"input %x: f32[1]\nweight %v0: {first}\n" + "\n".join(lines) + f"\noutput %v{count}\n"


def test_constants_that_double_stay_near_the_size_of_what_they_are_made_from() -> None:
    graph = folded(doubled("Concat", 24, "f32[1000]", ", axis=0"))
    assert max(w.data.nbytes for w in graph.weights.values()) <= SMALL
    assert graph.outputs[0].type.numel == 1000 << 24
    large = folded(doubled("Concat", 24, "f32[100000]", ", axis=0"))
    assert max(w.data.nbytes for w in large.weights.values()) == GROWTH * 400_000


def test_records_that_double_are_bounded() -> None:
    graph = folded(doubled("Add", 40, "f32[2]"))
    assert max(len(w.transform) for w in graph.weights.values()) <= 2 * MOST_STEPS
    assert 20 < len(graph.nodes) < 40


def test_all_results_of_constants_together_are_bounded() -> None:
    count = 2 * ROOM // SMALL
    lines = [f"%e{i} = Expand(%c, shape=({SMALL // 4},))\n%y{i} = Add(%e{i}, %x)\noutput %y{i}" for i in range(count)]
    graph = folded("input %x: f32[1]\nweight %c: f32[1] data=(2.0,)\n" + "\n".join(lines))
    assert sum(w.data.nbytes for w in graph.weights.values()) <= ROOM + 4
    assert len(graph.nodes) > count
