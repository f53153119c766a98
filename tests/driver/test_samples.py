"""Sample inputs: sizes inside their ranges, values that the graph can digest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import UsageError
from arcweld.compiler.ir import Graph
from arcweld.compiler.reference import run_reference
from arcweld.compiler.text import parse_graph
from arcweld.driver.samples import Draw, sample_inputs, sample_sizes
from arcweld.driver.value_uses import index_extent


def graph_of(text: str) -> Graph:
    return parse_graph("graph 'g'\n" + text)


def identity(*inputs: str, symbols: str = "") -> Graph:
    lines = [symbols] if symbols else []
    lines += [f"input %x{k}: {t}" for k, t in enumerate(inputs)]
    lines += [f"%y{k}: {t} = Identity(%x{k}) @ 'y{k}'\noutput %y{k}" for k, t in enumerate(inputs)]
    return graph_of("\n".join(lines) + "\n")


def test_batches_are_one_and_other_dimensions_about_32() -> None:
    graph = identity("f32[n, s, 8]", "f32[s, t]", symbols="symbol n(lo=1)\nsymbol s(lo=1)\nsymbol t(lo=1)")
    assert sample_sizes(graph) == {"n": 1, "s": 32, "t": 32}
    assert sample_sizes(graph, {"s": 5}) == {"n": 1, "s": 5, "t": 32}


@given(lo=st.integers(1, 90), span=st.integers(0, 90), multiple=st.sampled_from([1, 2, 7, 8]))
def test_sizes_stay_in_range(lo: int, span: int, multiple: int) -> None:
    lo = -(-lo // multiple) * multiple
    hi = lo + span
    text = f"symbol n(lo={lo}, hi={hi}, multiple_of={multiple})"
    size = sample_sizes(identity("f32[2, n]", symbols=text))["n"]
    assert lo <= size <= hi
    assert size % multiple == 0


def test_unknown_names_are_refused() -> None:
    graph = identity("f32[n]", symbols="symbol n(lo=1)")
    with pytest.raises(UsageError, match="no dimension is called m"):
        sample_sizes(graph, {"m": 3})
    with pytest.raises(UsageError, match="no input is called z"):
        sample_inputs(graph, {"n": 2}, ranges={"z": (0, 1)})


def test_values_by_type() -> None:
    kinds = ("f32", "f16", "bf16", "f64", "i64", "u8", "bool")
    graph = identity(*(f"{t}[50]" for t in kinds))
    feeds = sample_inputs(graph, {})
    for k, t in enumerate(kinds):
        x = feeds[f"x{k}"]
        assert (x.dtype, x.shape) == (DType(t).numpy, (50,))
        assert len(np.unique(x.astype(np.float64))) > (1 if t == "bool" else 20)
        assert (x.astype(np.float64).min() < 0) == DType(t).is_signed
    mild = sample_inputs(graph, {}, draw=Draw.UNIT)["x0"]
    assert 0 <= mild.min() < mild.max() < 1


def test_the_seed_decides() -> None:
    graph = identity("f32[20]")
    first, again, other = (sample_inputs(graph, {}, seed=s)["x0"] for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_ranges_are_for_one_input_or_all() -> None:
    graph = identity("f32[100]", "i32[100]")
    feeds = sample_inputs(graph, {}, ranges={"x0": (-3.0, -2.0), "": (5, 7)})
    assert -3 <= feeds["x0"].min() <= feeds["x0"].max() <= -2
    assert set(np.unique(feeds["x1"])) == {5, 6, 7}


GATHER = """input %i: i64[40]
weight %table: f32[7, 3] source='t'
%c: i32[40] = Cast(%i, to=dtype(i32)) @ 'c'
%r: i32[4, 10] = Reshape(%c, shape=(4, 10)) @ 'r'
%y: f32[4, 10, 3] = Gather(%table, %r, axis=0, strict=0) @ 'y'
output %y
"""


def test_indices_stay_below_what_they_index() -> None:
    graph = graph_of(GATHER)
    assert index_extent(graph, graph.inputs[0]) == 7
    found = sample_inputs(graph, {})["i"]
    assert set(np.unique(found)) == set(range(7))


def test_the_least_of_several_extents() -> None:
    text = GATHER.replace("output %y", "%z: f32[40] = Gather(%row, %i, axis=0, strict=0) @ 'z'\noutput %y\noutput %z")
    graph = graph_of(text.replace("weight %table", "weight %row: f32[4] source='r'\nweight %table"))
    assert index_extent(graph, graph.inputs[0]) == 4


def test_every_coordinate_of_a_gather_nd_exists() -> None:
    graph = graph_of("""input %x: f32[2, 9, 3]
input %i: i64[30, 2]
%k: i64[2, 15, 2] = Reshape(%i, shape=(2, 15, 2)) @ 'k'
%y: f32[2, 15] = GatherND(%x, %k, batch_dims=1, strict=0) @ 'y'
output %y
""")
    run_reference(graph, sample_inputs(graph, {}))
    assert index_extent(graph, graph.inputs[1]) == 3


@pytest.mark.parametrize("count", [5, 12, 30])
def test_plain_scatters_get_distinct_places(count: int) -> None:
    """More updates than places must meet somewhere; otherwise none do."""
    graph = graph_of(f"""input %x: f32[4, 3, 2]
input %i: i64[{count}, 2]
input %u: f32[{count}, 2]
%y: f32[4, 3, 2] = ScatterND(%x, %i, %u, reduction='none', padding=0, strict=0) @ 'y'
output %y
""")
    feeds = sample_inputs(graph, {})
    run_reference(graph, feeds)
    assert len({tuple(row) for row in feeds["i"]}) == min(count, 12)


def test_whole_slices_are_written_at_distinct_places() -> None:
    graph = graph_of("""symbol n(lo=1)
input %x: f32[2, n, 4]
input %i: i32[5]
input %u: f32[2, 5, 4]
%c: i64[5] = Cast(%i, to=dtype(i64)) @ 'c'
%r: i64[1, 5, 1] = Reshape(%c, shape=(1, 5, 1)) @ 'r'
%e: i64[2, 5, 4] = Expand(%r, shape=(2, 5, 4)) @ 'e'
%y: f32[2, n, 4] = ScatterElements(%x, %e, %u, axis=1, reduction='none', strict=0) @ 'y'
output %y
""")
    for n in (5, 7, 40):
        feeds = sample_inputs(graph, {"n": n})
        run_reference(graph, feeds)
        assert len(set(feeds["i"])) == 5


def test_scattered_elements_meet_nowhere_along_their_axis() -> None:
    graph = graph_of("""symbol n(lo=1)
input %x: f32[6, n]
input %i: i32[2, n]
input %u: f32[2, n]
%y: f32[6, n] = ScatterElements(%x, %i, %u, axis=0, reduction='none', strict=0) @ 'y'
output %y
""")
    feeds = sample_inputs(graph, {"n": 40})
    run_reference(graph, feeds)
    assert feeds["i"].dtype == np.int32
    assert all(a != b for a, b in feeds["i"].T)
    assert len(np.unique(feeds["i"])) == 6


RUN = """input %cache: f32[2, 16, 8]
input %at: i64[2]
input %new: f32[2, 3, 8]
%a: i64[2, 1, 1] = Reshape(%at, shape=(2, 1, 1))
"""
STEPS = "%r: i64[3] = Range(start=0, step=1, length=3, dtype=i64)\n%s: i64[1, 3, 1] = Reshape(%r, shape=(1, 3, 1))\n"
WRITTEN = """%i: i64[2, 3, 8] = Expand(%p, shape=(2, 3, 8))
%y = ScatterElements(%cache, %i, %new, axis=1, reduction='none', strict=1)
output %y
"""


@pytest.mark.parametrize(
    ("sums", "most"),
    [
        ("%p = Add(%a, %s)\n", 13),
        ("weight %c: i64[] data=(4,)\n%d = Add(%a, %c)\n%p = Add(%d, %s)\n", 9),
        ("weight %c: i64[] data=(2,)\n%d = Sub(%a, %c)\nweight %z: i64[] data=(0,)\n%e = Max(%d, %z)\n"
         "%p = Add(%e, %s)\n", 15),
    ],
    ids=["a run", "a run further on", "a run that ends there"],
)  # fmt: skip
def test_runs_that_a_scatter_writes_end_inside_its_data(sums: str, most: int) -> None:
    """Every place that fits is drawn, and none that does not."""
    graph = graph_of(RUN + STEPS + sums + WRITTEN)
    drawn = [sample_inputs(graph, {}, seed=seed)["at"] for seed in range(100)]
    assert (np.min(drawn), np.max(drawn)) == (0, most)


def test_places_that_are_not_sums_are_at_the_beginning() -> None:
    graph = graph_of(RUN + STEPS + "%b = Mul(%a, %a)\n%p = Add(%b, %s)\n" + WRITTEN)
    assert max(sample_inputs(graph, {}, seed=seed)["at"].max() for seed in range(20)) == 1
