"""Sizes to verify at: inside their ranges, odd ones, and beyond every tile that can be afforded."""

from __future__ import annotations

import math

from arcweld.compiler.dims import Dim, parse, var
from arcweld.compiler.text import parse_graph
from arcweld.driver.points import Goal, beyond, small_points

TEXT = """graph 'g'
symbol n(lo=1)
symbol h(lo=2, hi=90, multiple_of=2)
input %x: f32[n, 8*h]
%y = Relu(%x)
output %y
"""
GRAPH = parse_graph(TEXT)
BASE = {"n": 1, "h": 4}


def dim(text: str) -> Dim:
    return parse(text, {s.name: var(s) for s in GRAPH.symbols()})


def test_odd_and_least_sizes_are_allowed_ones() -> None:
    points = small_points(GRAPH, BASE)
    found = {p.name: dict(p.sizes) for p in reversed(points)}
    assert found["least"] == {"n": 1, "h": 2}
    assert found["odd"]["h"] % 2 == 0
    assert 3 <= found["odd"]["n"] <= 7
    assert len(set(found["odd"].values())) == 2  # so that one taken for the other is seen


def test_sizes_that_leave_a_value_empty_grow() -> None:
    text = TEXT.replace("%y = Relu(%x)", "%y = Slice(%x, starts=(0, 0), sizes=(n - 4, 1), steps=(1, 1))")
    graph = parse_graph(text)
    assert all(p.sizes["n"] > 4 for p in small_points(graph, {"n": 9, "h": 4}))


def test_goals_are_met_with_the_least_growth() -> None:
    goals = [Goal("a", dim("n"), 32), Goal("b", dim("n*h"), 1000), Goal("c", dim("h"), 64)]
    point, left = beyond(GRAPH, goals, BASE, lambda sizes, entries: math.prod(sizes.values()), 1e9)
    assert point is not None
    assert not left
    assert all(g.met(point.sizes) for g in goals)
    assert point.sizes["h"] == 66
    assert point.sizes["n"] == 33


def test_what_cannot_be_reached_or_paid_is_left() -> None:
    goals = [Goal("a", dim("n"), 32), Goal("b", dim("n"), 10_000), Goal("c", dim("h"), 90)]
    point, left = beyond(GRAPH, goals, BASE, lambda sizes, entries: float(sizes["n"]), 100)
    assert point is not None
    assert point.sizes == {"n": 33, "h": 4}
    assert {g.entry for g in left} == {"b", "c"}
    assert beyond(GRAPH, goals, BASE, lambda sizes, entries: math.inf, 100)[0] is None
