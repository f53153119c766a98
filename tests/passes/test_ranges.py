"""Sizes for which a node has no element to read: excluded where it is known which, and never read where it is not."""

from __future__ import annotations

import numpy as np
import pytest
from pass_tools import build

from arcweld.compiler.dims import free_symbols
from arcweld.compiler.errors import InputError
from arcweld.compiler.options import Options
from arcweld.driver import api
from arcweld.passes.ranges import ranges


def least(text: str) -> dict[str, int]:
    """The least value of each symbol of the graph after the pass."""
    graph = ranges(build(text), Options())
    return {s.name: s.lo for v in graph.values() for d in v.shape for s in free_symbols(d)}


@pytest.mark.parametrize(
    ("node", "lo"),
    [
        ("Resize(%x, sizes=(2, 4, 6), mode='linear')", 1),
        ("Resize(%x, sizes=(2, 2*n, 6), scales=(1.0, 2.0, 2.0), mode='linear')", 0),
        ("Resize(%x, sizes=(2, n, 6))", 0),
        ("Pad(%x, pads=(0, 1, 0, 0, 1, 0), mode='edge')", 1),
        ("Pad(%x, pads=(0, -2, 0, 0, 1, 0), mode='wrap')", 3),
        ("Pad(%x, pads=(0, 1, 0, 0, 1, 0))", 0),
        ("Pad(%x, pads=(0, 0, 1, 0, 0, 1), mode='edge')", 0),
        ("ArgMax(%x, axis=1)", 1),
        ("ArgMax(%x, axis=2)", 0),
        ("ReduceMax(%x, axes=(1,))", 0),
        ("Gather(%x, %i, axis=1)", 1),
        ("Gather(%x, %i, axis=2)", 0),
        ("Gather(%x, %j, axis=1)", 0),
    ],
)
def test_a_range_begins_where_there_is_something_to_read(node: str, lo: int) -> None:
    head = "symbol n(lo=0)\nsymbol m(lo=0)\ninput %x: f32[2, n, 3]\ninput %i: i64[4]\ninput %j: i64[m]\n"
    assert least(f"{head}%y = {node}\noutput %y")["n"] == lo


def test_a_range_begins_where_a_quotient_is_1() -> None:
    text = "symbol n(lo=0)\ninput %x: f32[(n + 1)//3]\n%y = Resize(%x, sizes=(5,))\noutput %y"
    assert least(text) == {"n": 2}


@pytest.mark.parametrize(
    "node",
    [
        "Resize(%x, sizes=(4,), mode='linear')", "Pad(%x, pads=(1, 1), mode='edge')",
        "Pad(%x, pads=(1, 1), mode='reflect')", "ArgMax(%x, axis=0)", "Gather(%x, %i, axis=0)",
    ],
)  # fmt: skip
def test_an_engine_refuses_the_size_0(node: str) -> None:
    graph = build(f"symbol n(lo=0)\ninput %x: f32[n]\ninput %i: i64[2]\n%y = {node}\noutput %y")
    engine = api.compile_graph(graph, device="sim", verify="off")
    indices = np.zeros(2, np.int64)
    assert (engine(np.ones(3, np.float32), indices) == (0 if "ArgMax" in node else 1)).all()
    with pytest.raises(InputError, match="dimension n is 0"):
        engine(np.ones(0, np.float32), indices)


@pytest.mark.parametrize(
    "node", ["Gather(%x, %i, axis=0)", "GatherElements(%x, %i, axis=0)", "GatherND(%x, %k)"],
)  # fmt: skip
def test_nothing_is_read_where_indices_point_into_nothing(node: str) -> None:
    """Whether there are indices is not known before the run, so the size 0 is taken."""
    head = "symbol n(lo=0)\nsymbol m(lo=0)\ninput %x: f32[n]\ninput %i: i64[m]\n%k = Reshape(%i, shape=(m, 1))\n"
    engine = api.compile_graph(build(f"{head}%y = {node}\noutput %y"), device="sim", verify="off")
    assert engine(np.ones(0, np.float32), np.zeros(0, np.int64)).shape == (0,)
    assert engine(np.ones(0, np.float32), np.zeros(3, np.int64)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("sizes", [(0, 5), (3, 0), (0, 0), (2, 3)])
def test_groups_of_no_pixels_are_normalised(sizes: tuple[int, int]) -> None:
    text = """
    symbol n(lo=0)
    symbol m(lo=0)
    input %x: f32[2, 8, n, m]
    weight %s: f32[8]
    weight %b: f32[8]
    %y = GroupNormalization(%x, %s, %b, num_groups=2)
    output %y
    """
    engine = api.compile_graph(build(text), device="sim")
    assert engine(np.ones((2, 8, *sizes), np.float32)).shape == (2, 8, *sizes)
