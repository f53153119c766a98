"""The order that nodes are imported in, where a file has them in another."""

from __future__ import annotations

import time

import onnx
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from arcweld.compiler.onnx.order import in_order

N = helper.make_node


def _reading(edges: list[set[int]]) -> list[onnx.NodeProto]:
    """Node ``i`` writes ``i`` and reads what ``edges[i]`` lists."""
    return [N("Sum", [str(e) for e in sorted(reads)], [str(i)]) for i, reads in enumerate(edges)]


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.permutations(range(n)), st.integers(0, 2**66 - 1))))
def test_each_node_follows_what_it_reads(drawn: tuple[list[int], int]) -> None:
    place, bits = drawn
    pairs = [(a, b) for a in range(len(place)) for b in range(a)]
    edges: list[set[int]] = [set() for _ in place]
    for k, (a, b) in enumerate(pairs):
        if bits >> k & 1:
            edges[place[a]].add(place[b])
    nodes = _reading(edges)
    found = in_order(nodes)
    assert sorted(n.output[0] for n in found) == sorted(n.output[0] for n in nodes)
    seen: set[str] = set()
    for n in found:
        assert set(n.input) <= seen
        seen.add(n.output[0])


def test_nodes_that_are_in_order_stay_where_they_are() -> None:
    nodes = _reading([set(), {0}, set(), {1}, {0, 2}])
    assert [n.output[0] for n in in_order(nodes)] == ["0", "1", "2", "3", "4"]


def test_those_that_have_to_wait_come_behind_all_that_do_not() -> None:
    nodes = _reading([{3}, set(), {0}, {5}, {1}, set()])
    assert [n.output[0] for n in in_order(nodes)] == ["1", "4", "5", "3", "0", "2"]


def test_nodes_that_wait_for_each_other_come_last() -> None:
    circle = [{1}, {2}, {0}, {1}, set(), {5}, {4}]
    assert [n.output[0] for n in in_order(_reading(circle))] == ["4", "6", "0", "1", "2", "3", "5"]


def test_a_file_in_reverse_takes_no_quadratic_time() -> None:
    """Sweeping until nothing moves took more than a minute for this."""
    n = 20_000
    nodes = _reading([{i + 1} if i + 1 < n else set() for i in range(n)])
    started = time.process_time()
    assert in_order(nodes)[0].output[0] == str(n - 1)
    assert time.process_time() - started < 15
