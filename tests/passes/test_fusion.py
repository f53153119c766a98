"""Fusion: which nodes share a kernel in the usual situations, why others don't, and that what comes out can run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pass_tools import build
from random_graphs import random_graph

from arcweld.compiler.errors import UnsupportedError, VerifyError
from arcweld.compiler.options import Options
from arcweld.compiler.region import FusedGraph, Region, is_hero
from arcweld.driver.build import materialise_outputs
from arcweld.passes.fusion import MAX_INDEXED, MAX_NODES, MAX_OPERANDS, fuse
from arcweld.passes.pipeline import run_passes
from arcweld.passes.places import LARGE_CODE, MAX_CODE
from arcweld.passes.schedule import schedule

CODES = {"movement", "broadcast", "operands", "cycle", "prologue", "shared", "recompute", "size", "indices"}


def fused(text: str) -> FusedGraph:
    return schedule(fuse(build(text)))


def groups(f: FusedGraph) -> list[tuple[str, ...]]:
    """The names of each region's nodes, in launch order."""
    return [tuple(n.output.name for n in r.nodes) for r in f.regions]


def region_of(f: FusedGraph, name: str) -> Region:
    """The region that stores a value."""
    (found,) = [r for r in f.regions if any(o.name == name for o in r.outputs)]
    return found


def refusals(f: FusedGraph) -> set[tuple[str, str, str]]:
    return {(r.producer, r.consumer, r.code) for r in f.refusals}


# ---------------------------------------------------------------------------------------------------------- epilogues

PRODUCT = """input %x: f32[4, 8]
weight %w: f32[8, 6]
weight %b: f32[6]
%m: f32[4, 6] = MatMul(%x, %w) @ 'm'
"""


def test_bias_activation_and_residual_follow_a_product() -> None:
    f = fused(
        "input %r: f32[4, 6]\n"
        + PRODUCT
        + """%a: f32[4, 6] = Add(%m, %b) @ 'a'
%g: f32[4, 6] = Relu(%a) @ 'g'
%y: f32[4, 6] = Add(%g, %r) @ 'y'
output %y
"""
    )
    assert groups(f) == [("m", "a", "g", "y")]
    assert [v.name for v in f.regions[0].inputs] == ["x", "w", "b", "r"]
    assert [v.name for v in f.regions[0].outputs] == ["y"]
    assert f.regions[0].template == "contract"


def test_several_results_of_one_epilogue_are_all_stored() -> None:
    f = fused(
        PRODUCT
        + """%a: f32[4, 6] = Relu(%m) @ 'a'
%s: f32[4, 6] = Sigmoid(%m) @ 's'
output %a
output %s
output %m
"""
    )
    assert groups(f) == [("m", "a", "s")]
    assert [v.name for v in f.regions[0].outputs] == ["m", "a", "s"]


def test_a_value_that_another_kernel_needs_is_stored_on_the_way() -> None:
    f = fused(
        "weight %v: f32[6, 6]\n"
        + PRODUCT
        + """%a: f32[4, 6] = Relu(%m) @ 'a'
%n: f32[4, 6] = MatMul(%a, %v) @ 'n'
%y: f32[4, 6] = Add(%n, %a) @ 'y'
output %y
"""
    )
    assert groups(f) == [("m", "a"), ("n", "y")]


def test_a_broadcast_result_is_not_recomputed_for_every_reader() -> None:
    f = fused("""input %x: f32[4, 8]
%s: f32[4, 1] = ReduceSum(%x, axes=(1,), keepdims=1) @ 's'
%y: f32[4, 8] = Mul(%x, %s) @ 'y'
output %y
""")
    assert groups(f) == [("s",), ("y",)]
    assert refusals(f) == {("s", "y", "broadcast")}


@pytest.mark.parametrize(
    ("op", "together"),
    [
        ("%t: f32[4, 2, 3] = Reshape(%m, shape=(4, 2, 3)) @ 't'", True),
        ("%t: f32[6, 4] = Transpose(%m, perm=(1, 0)) @ 't'", False),
        ("%t: f32[4, 3] = Slice(%m, starts=(0, 0), sizes=(4, 3), steps=(1, 2)) @ 't'", False),
    ],
)
def test_views_of_a_result(op: str, together: bool) -> None:
    """A reshape is stored by the kernel itself; other movements are kernels of their own, or index maps of readers."""
    f = fused(PRODUCT + op + "\noutput %t\n")
    assert (len(f.regions) == 1) == together
    if not together:
        assert refusals(f) == {("m", "t", "movement")}


def test_trailing_views_are_left_to_their_readers() -> None:
    f = fused(
        "weight %v: f32[3, 5]\n"
        + PRODUCT
        + """%t: f32[8, 3] = Reshape(%m, shape=(8, 3)) @ 't'
%y: f32[8, 5] = MatMul(%t, %v) @ 'y'
output %y
"""
    )
    assert groups(f) == [("m",), ("t", "y")]


def test_a_kernel_can_hold_only_so_many_operands() -> None:
    count = MAX_OPERANDS + 4
    lines = [f"input %r{k}: f32[4, 6]" for k in range(count)] + [PRODUCT.strip()]
    last = "m"
    for k in range(count):
        lines.append(f"%a{k}: f32[4, 6] = Add(%{last}, %r{k}) @ 'a{k}'")
        last = f"a{k}"
    f = fused("\n".join(lines) + f"\noutput %{last}\n")
    assert len(f.regions) == 2
    assert all(len(r.inputs) <= MAX_OPERANDS + 2 for r in f.regions)
    assert {code for _, _, code in refusals(f)} == {"operands"}


# ---------------------------------------------------------------------------------------------------------- prologues


def test_reductions_compute_their_operand_on_the_way() -> None:
    f = fused("""input %x: f32[4, 8]
input %y: f32[8]
%a: f32[4, 8] = Mul(%x, %y) @ 'a'
%e: f32[4, 8] = Exp(%a) @ 'e'
%s: f32[4] = ReduceSum(%e, axes=(1,), keepdims=0) @ 's'
output %s
""")
    assert groups(f) == [("a", "e", "s")]


def test_products_read_through_views_and_casts_only() -> None:
    f = fused("""input %x: f16[4, 3, 2]
input %w: f32[8, 6]
%t: f16[3, 4, 2] = Transpose(%x, perm=(1, 0, 2)) @ 't'
%r: f16[3, 8] = Reshape(%t, shape=(3, 8)) @ 'r'
%c: f32[3, 8] = Cast(%r, to=dtype(f32)) @ 'c'
%v: f32[8, 6] = Sigmoid(%w) @ 'v'
%m: f32[3, 6] = MatMul(%c, %v) @ 'm'
output %m
""")
    assert groups(f) == [("v",), ("t", "r", "c", "m")]
    assert refusals(f) == {("v", "m", "prologue")}


def test_a_normalisation_stores_the_sum_that_it_reads() -> None:
    """The residual stream: every element passes through the row program, which stores it for the next layer."""
    f = fused("""input %x: f32[4, 8]
input %y: f32[4, 8]
weight %g: f32[8]
weight %b: f32[8]
%r: f32[4, 8] = Add(%x, %y) @ 'r'
%n: f32[4, 8] = LayerNormalization(%r, %g, %b, axis=1, epsilon=1e-05) @ 'n'
output %n
output %r
""")
    assert groups(f) == [("r", "n")]
    assert {v.name for v in f.regions[0].outputs} == {"r", "n"}


def test_a_shared_operand_is_computed_once() -> None:
    f = fused("""input %x: f32[4, 8]
%e: f32[4, 8] = Exp(%x) @ 'e'
%s: f32[4] = ReduceSum(%e, axes=(1,), keepdims=0) @ 's'
%m: f32[8] = ReduceMax(%e, axes=(0,), keepdims=0) @ 'm'
output %s
output %m
""")
    assert sorted(groups(f)) == [("e",), ("m",), ("s",)]
    assert ("e", "s", "shared") in refusals(f)


def test_constants_are_computed_by_every_kernel_for_itself() -> None:
    f = fused("""input %x: f32[4, 8]
%k: f32[4, 8] = ConstantOfShape(shape=(4, 8), value=2.0, dtype=dtype(f32)) @ 'k'
%p: f32[4, 8] = Mul(%x, %k) @ 'p'
%q: f32[4, 8] = Add(%x, %k) @ 'q'
%a: f32[4] = ReduceSum(%p, axes=(1,), keepdims=0) @ 'a'
%b: f32[8] = ReduceSum(%q, axes=(0,), keepdims=0) @ 'b'
output %a
output %b
""")
    assert sorted(groups(f)) == [("k", "p", "a"), ("k", "q", "b")]


def test_nothing_is_launched_for_what_no_output_needs() -> None:
    f = fused("""input %x: f32[4, 8]
weight %w: f32[8, 4] source='w'
%dead: f32[4, 4] = MatMul(%x, %w) @ 'dead'
%a: f32[4] = ReduceSum(%x, axes=(1,), keepdims=0) @ 'a'
output %a
""")
    assert groups(f) == [("a",)]


# ----------------------------------------------------------------------------------------------- pointwise and scatters


def test_chains_of_pointwise_nodes_are_one_kernel() -> None:
    f = fused("""input %x: f32[4, 8]
input %y: f32[8, 4]
%t: f32[4, 8] = Transpose(%y, perm=(1, 0)) @ 't'
%a: f32[4, 8] = Add(%x, %t) @ 'a'
%b: f32[4, 8] = Relu(%a) @ 'b'
%c: f32[2, 8] = Slice(%b, starts=(0, 0), sizes=(2, 8), steps=(2, 1)) @ 'c'
output %c
""")
    assert groups(f) == [("t", "a", "b", "c")]


@pytest.mark.parametrize("sampler", ["resize", "grid sample"])
def test_expensive_chains_are_not_repeated_for_every_tap(sampler: str) -> None:
    f = fused(RESIZED if sampler == "resize" else SAMPLED)
    assert ("b", "c", "recompute") in refusals(f)


RESIZED = """input %x: f32[1, 1, 8, 8]
%a: f32[1, 1, 8, 8] = Erf(%x) @ 'a'
%b: f32[1, 1, 8, 8] = Tanh(%a) @ 'b'
%c: f32[1, 1, 16, 16] = Resize(%b, sizes=(1, 1, 16, 16), scales=None, mode='cubic', \
coordinate_transformation_mode='half_pixel', nearest_mode='floor', cubic_coeff_a=-0.75, exclude_outside=0, \
extrapolation_value=0.0, roi=None) @ 'c'
output %c
"""

SAMPLED = """input %x: f32[1, 1, 8, 8]
input %g: f32[1, 16, 16, 2]
%a: f32[1, 1, 8, 8] = Erf(%x) @ 'a'
%b: f32[1, 1, 8, 8] = Tanh(%a) @ 'b'
%c: f32[1, 1, 16, 16] = GridSample(%b, %g, mode='cubic', padding_mode='zeros', align_corners=0, pixels=0) @ 'c'
output %c
"""

def test_values_that_are_read_at_many_places_are_stored() -> None:
    """Written out, the last of twelve would read x 4,096 times."""
    lines = [
        f"%v{i + 1}: f32[{2 << i + 1}] = Concat(%v{i}, %v{i}, axis=0) @ 'n{i}'" for i in range(12)
    ]  # fmt: skip
    f = fused("input %v0: f32[2]\n" + "\n".join(lines) + "\noutput %v12\n")
    assert [len(r.nodes) for r in f.regions] == [2, 5, 5]  # 1 + 2 + 4 + 8 + 16 places
    assert {r[2] for r in refusals(f)} == {"recompute"}
    valid(f)


def test_what_is_read_at_one_place_by_several_is_computed_once() -> None:
    """Directly and through equal views: written out as a tree, the chain would compute a Tanh 2**12 times."""
    lines = [
        f"%t{i}: f32[{3 - i % 2}, {2 + i % 2}] = Tanh(%v{i}) @ 't{i}'\n"
        f"%a{i}: f32[{2 + i % 2}, {3 - i % 2}] = Transpose(%v{i}, perm=(1, 0)) @ 'a{i}'\n"
        f"%b{i}: f32[{2 + i % 2}, {3 - i % 2}] = Transpose(%t{i}, perm=(1, 0)) @ 'b{i}'\n"
        f"%v{i + 1}: f32[{2 + i % 2}, {3 - i % 2}] = Mul(%a{i}, %b{i}) @ 'v{i}'"
        for i in range(12)
    ]  # fmt: skip
    f = fused("input %v0: f32[3, 2]\n" + "\n".join(lines) + "\noutput %v12\n")
    assert [len(r.nodes) for r in f.regions] == [48]


SCATTER = """input %x: f32[500, 4]
input %i: i64[{n}, 1]
input %u: f32[{n}, 4]
%a: f32[500, 4] = Relu(%x) @ 'a'
%s: f32[500, 4] = ScatterND(%a, %i, %u, reduction='{how}', padding=0, strict=0) @ 's'
%y: f32[500, 4] = Neg(%s) @ 'y'
output %y
"""


@pytest.mark.parametrize(
    ("n", "how", "expected"),
    [
        (8, "none", [("a", "s", "y")]), (8, "add", [("a", "s", "y")]), (100, "none", [("a", "s"), ("y",)]),
        (100, "add", [("a", "s"), ("y",)]), (100, "mul", [("a", "s", "y")]),
    ],
)  # fmt: skip
def test_scatters_in_place_take_no_epilogue(n: int, how: str, expected: list[tuple[str, ...]]) -> None:
    f = fused(SCATTER.format(n=n, how=how))
    assert groups(f) == expected
    assert f.regions[0].template == ("search" if len(expected) == 1 else "scatter")


# -------------------------------------------------------------------------------------------------------------- cycles


def test_an_epilogue_does_not_wait_for_a_kernel_that_waits_for_it() -> None:
    """The softmax reads the product and the sum reads the softmax: the sum can't be stored by the product's kernel."""
    f = fused(
        PRODUCT
        + """%s: f32[4, 6] = Softmax(%m, axis=1) @ 's'
%y: f32[4, 6] = Add(%m, %s) @ 'y'
output %y
"""
    )
    assert groups(f) == [("m",), ("s", "y")]
    assert ("m", "y", "cycle") in refusals(f)


def test_an_operand_is_not_stored_by_a_kernel_that_needs_what_is_made_of_it() -> None:
    f = fused("""input %x: f32[3, 4]
input %y: f32[3, 4]
%b: f32[3, 4] = Add(%x, %y) @ 'b'
%c: f32[3, 4] = LogSoftmax(%b, axis=1) @ 'c'
%d: f32[3, 4] = Mul(%b, %y) @ 'd'
%e: f32[3, 4] = Mul(%c, %d) @ 'e'
output %e
output %d
""")
    valid(f)


def test_regions_in_a_circle_are_a_defect() -> None:
    f = fuse(
        build("""input %x: f32[4]
%a: f32[4] = Relu(%x) @ 'a'
%b: f32[4] = Exp(%a) @ 'b'
output %a
output %b
"""),
        enabled=False,
    )
    a, b = (region_of(f, n) for n in "ab")
    twisted = [Region(a.name, a.template, None, a.nodes, b.outputs, a.outputs), b]
    with pytest.raises(VerifyError, match="in a circle"):
        schedule(FusedGraph(f.graph, tuple(twisted), ()))
    with pytest.raises(VerifyError, match="which no region stores"):
        schedule(FusedGraph(f.graph, (b,), ()))


# ------------------------------------------------------------------------------------------------------ what must hold


def valid(f: FusedGraph) -> None:
    """Regions in an order in which every value is stored once, before it is read, by one kernel with one hero."""
    ready = {v.name for v in f.graph.inputs} | set(f.graph.weights)
    stored: list[str] = []
    for r in f.regions:
        assert r.outputs, f"region {r.name} stores nothing"
        assert {v.name for v in r.inputs} <= ready, r.name
        made = {o.name for n in r.nodes for o in n.outputs}
        assert {v.name for n in r.nodes for v in n.operands()} <= made | {v.name for v in r.inputs}
        heroes = [n for n in r.nodes if is_hero(n)]
        assert heroes == ([] if r.hero is None else [r.hero])
        stored += [o.name for o in r.outputs]
        ready |= {o.name for o in r.outputs}
    assert len(stored) == len(set(stored))
    assert f.graph.output_names() <= set(stored) | {v.name for v in f.graph.inputs} | set(f.graph.weights)
    heroes_run = [r.hero.output.name for r in f.regions if r.hero is not None]
    assert len(heroes_run) == len(set(heroes_run))
    together = [{n.name for n in r.nodes} for r in f.regions]
    for x in f.refusals:
        assert x.code in CODES
        assert x.detail
        assert not any(x.producer in names and x.consumer in names for names in together), x


# -------------------------------------------------------------------------------------------------------------- bounds


def chain(op: str, length: int, operands: str = "%{}") -> str:
    lines = [
        f"%v{i + 1}: f32[4, 6] = {op}({operands.format(f'v{i}')}) @ 'n{i}'" for i in range(length)
    ]  # fmt: skip
    return "input %v0: f32[4, 6]\n" + "\n".join(lines) + f"\noutput %v{length}\n"


def test_a_kernel_has_a_bounded_number_of_nodes() -> None:
    f = fused(chain("Relu", 2 * MAX_NODES + 1))
    assert [len(r.nodes) for r in f.regions] == [1, MAX_NODES, MAX_NODES]
    assert {r[2] for r in refusals(f)} == {"size"}
    valid(f)


def test_so_has_the_epilogue_of_a_product() -> None:
    text = chain("Relu", MAX_NODES).replace("input %v0: f32[4, 6]\n", PRODUCT.replace("%m:", "%v0:"))
    f = fused(text)
    assert [(r.template, len(r.nodes)) for r in f.regions] == [("contract", MAX_NODES), ("pointwise", 1)]
    assert refusals(f) == {("m", f"n{MAX_NODES - 1}", "size")}


def test_expensive_operators_fill_a_kernel_sooner() -> None:
    most = MAX_CODE // LARGE_CODE["Sin"]
    f = fused(chain("Sin", 2 * most))
    assert [len(r.nodes) for r in f.regions] == [most, most]
    assert {r[2] for r in refusals(f)} == {"size"}


def test_views_count_too() -> None:
    text = chain("Transpose", MAX_NODES + 2, "%{}, perm=(1, 0)").replace("f32[4, 6]", "f32[6, 6]")
    f = fused(text)
    assert [len(r.nodes) for r in f.regions] == [2, MAX_NODES]


def test_dependent_reads_are_few() -> None:
    lines = [f"%v{i + 1}: i64[5] = Gather(%t, %v{i}, axis=0, strict=0) @ 'n{i}'" for i in range(MAX_INDEXED + 1)]
    f = fused("input %t: i64[8]\ninput %v0: i64[5]\n" + "\n".join(lines) + f"\noutput %v{MAX_INDEXED + 1}\n")
    assert [len(r.nodes) for r in f.regions] == [1, MAX_INDEXED]
    assert {r[2] for r in refusals(f)} == {"indices"}


def test_wide_sums_cast_their_operands_themselves() -> None:
    count = MAX_OPERANDS + 3
    text = "".join(f"input %x{i}: f16[4]\n" for i in range(count))
    text += "".join(f"%c{i}: f32[4] = Cast(%x{i}, to=dtype(f32)) @ 'c{i}'\n" for i in range(count))
    text += f"%y: f32[4] = Sum({', '.join(f'%c{i}' for i in range(count))}) @ 'y'\noutput %y\n"
    assert [len(r.nodes) for r in fused(text).regions] == [count + 1]


@given(st.data())
@settings(max_examples=150)
def test_random_graphs_give_valid_schedules(data: st.DataObject) -> None:
    pick: Callable[[int], int] = lambda n: data.draw(st.integers(0, n - 1)) if n > 1 else 0
    graph = random_graph(pick, 4 + pick(24))
    assume(bool(graph.nodes))
    graph = materialise_outputs(run_passes(materialise_outputs(graph), Options()))
    valid(schedule(fuse(graph)))
    alone = schedule(fuse(graph, enabled=False))
    valid(alone)
    assert len(alone.regions) == len(graph.nodes)


def test_composite_operators_must_be_gone() -> None:
    graph = build("input %x: f32[4]\n%a: f32[1] = ReduceMean(%x, axes=(0,), keepdims=1) @ 'a'\noutput %a\n")
    with pytest.raises(UnsupportedError, match="without being decomposed"):
        fuse(graph)


def test_transposes_of_scalars_follow_a_hero() -> None:
    graph = build("""input %x: f32[4, 3]
%s: f32[] = ReduceSum(%x, axes=(0, 1), keepdims=0) @ 's'
%t: f32[] = Transpose(%s, perm=()) @ 't'
%y: f32[] = Neg(%t) @ 'y'
output %y
""")
    valid(schedule(fuse(graph)))


@pytest.mark.parametrize("widen", ["DequantizeLinear(%q, %s, axis=0)", "Cast(%q, to=dtype(f32))"])
def test_an_8_bit_result_that_is_stored_anyway_is_widened_where_it_is_read(widen: str) -> None:
    text = f"""
        input %x: i8[4, 8]
        weight %w: i8[8, 8]
        weight %s: f32[]
        %m = MatMulInteger(%x, %w)
        %f = Cast(%m, to=dtype(f32))
        %q = QuantizeLinear(%f, %s, axis=0, dtype=dtype(i8))
        %n = MatMulInteger(%q, %w)
        %d = {widen}
        %g = Cast(%n, to=dtype(f32))
        %y = Add(%g, %d)
        output %y
    """
    f = fused(text)
    assert groups(f) == [("m", "f", "q"), ("n", "d", "g", "y")]
    assert [v.name for v in region_of(f, "q").outputs] == ["q"]
    # a product reads its operands several times: it gets them widened
    f = fused(text.replace("%g = Cast(%n, to=dtype(f32))", "weight %v: f32[8, 8]\n%g = MatMul(%d, %v)"))
    assert ("m", "f", "q", "d") in groups(f)
