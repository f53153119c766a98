"""Lowering: what fusion and lowering make of whole graphs computes what the graphs say.

Random graphs are lowered and their kernels evaluated by numpy (which tests passes, fusion and lowering), and run on the
checked simulator (printing and templates as well). The directed tests below are graphs that once went wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from graph_runs import assert_same, built, by_numpy, expected, on_simulator
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from random_graphs import SIZES, feeds_of, random_graph

from arcweld.compiler import region
from arcweld.compiler.errors import DeviceError
from arcweld.compiler.ir import Graph
from arcweld.compiler.text import parse_graph
from arcweld.runtime.engine import Engine
from arcweld.runtime.sim.device import SimDevice

OTHER_SIZES = {"N": 1, "S": 2}


def drawn(data: st.DataObject, most: int = 16) -> Graph:
    """A graph whose every choice hypothesis makes, so that failures shrink."""
    pick: Callable[[int], int] = lambda n: data.draw(st.integers(0, n - 1)) if n > 1 else 0
    graph = random_graph(pick, 2 + pick(most))
    assume(bool(graph.nodes))
    return graph


def check_by_numpy(graph: Graph, disable: frozenset[str] = frozenset()) -> None:
    build = built(graph, disable)
    for seed, sizes in enumerate((SIZES, OTHER_SIZES)):
        feeds = feeds_of(graph, sizes, seed)
        assert_same(graph, by_numpy(build, feeds, sizes), expected(graph, feeds, sizes))


def check_on_simulator(graph: Graph) -> None:
    build = built(graph)
    for seed, sizes in enumerate((SIZES, OTHER_SIZES)):
        feeds = feeds_of(graph, sizes, seed)
        assert_same(graph, on_simulator(build, feeds, seed), expected(graph, feeds, sizes))


@given(st.data())
@settings(max_examples=120)
def test_random_graphs_by_numpy(data: st.DataObject) -> None:
    check_by_numpy(drawn(data))


@given(st.data())
@settings(max_examples=40)
def test_random_graphs_without_fusion(data: st.DataObject) -> None:
    check_by_numpy(drawn(data), frozenset({"fusion"}))


@given(st.data())
@settings(max_examples=15)
def test_random_graphs_on_the_simulator(data: st.DataObject) -> None:
    check_on_simulator(drawn(data, most=10))


@pytest.mark.slow
@given(st.data())
@settings(max_examples=500)
def test_many_random_graphs_by_numpy(data: st.DataObject) -> None:
    check_by_numpy(drawn(data))


@pytest.mark.slow
@given(st.data())
@settings(max_examples=60)
def test_many_random_graphs_on_the_simulator(data: st.DataObject) -> None:
    check_on_simulator(drawn(data))


def graph_of(text: str) -> Graph:
    return parse_graph("graph 'g'\n" + text)


MASKED = {
    # what is not read is 0, whatever the operator that would have computed it makes of a 0
    "trilu": "%b: f32[3, 4] = Trilu(%a, upper=0, k=-1) @ 'b'\noutput %b",
    "pad": """%b: f32[5, 6] = Pad(%a, pads=(1, 1, 1, 1), mode='constant', value=2.0) @ 'b'
%c: f32[5, 6] = Trilu(%b, upper=1, k=1) @ 'c'
output %c""",
    "concat": """%b: f32[6, 4] = Concat(%a, %x, axis=0) @ 'b'
%c: f32[6, 4] = Trilu(%b, upper=0, k=0) @ 'c'
output %c""",
    "constant": """%k: f32[3, 4] = ConstantOfShape(shape=(3, 4), value=2.0, dtype=dtype(f32)) @ 'k'
%t: f32[3, 4] = Trilu(%k, upper=1, k=0) @ 't'
%b: f32[3, 4] = Mul(%t, %a) @ 'b'
output %b""",
}


@pytest.mark.parametrize("name", MASKED)
def test_masked_reads_give_zero(name: str) -> None:
    graph = graph_of("input %x: f32[3, 4]\n%a: f32[3, 4] = Sigmoid(%x) @ 'a'\n" + MASKED[name])
    check_by_numpy(graph)
    check_on_simulator(graph)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("pads", [(-1, -2, 3, 2), (2, 3, -1, -2), (-1, -4, 1, 0), (5, -1, 7, -1)])
def test_what_is_cropped_is_not_repeated(mode: str, pads: tuple[int, ...]) -> None:
    """An axis that is cropped at one end and grows at the other repeats what is left of it."""
    rows, columns = pads[0] + pads[2], 4 + pads[1] + pads[3]
    graph = graph_of(f"""symbol S(lo=2, hi=64)
input %x: f32[S, 4]
%y: f32[S + {rows}, {columns}] = Pad(%x, pads={pads}, mode='{mode}', value=2.0) @ 'y'
output %y
""")
    check_by_numpy(graph)
    check_on_simulator(graph)


def test_convolution_of_no_channels_is_its_bias() -> None:
    graph = graph_of("""input %x: f32[2, 0, 5]
input %w: f32[4, 0, 3]
input %b: f32[4]
%y: f32[2, 4, 3] = Conv(%x, %w, %b, strides=(1,), dilations=(1,), pads=(0, 0), group=1, layout='NCHW') @ 'y'
output %y
""")
    build, feeds = built(graph), feeds_of(graph, {})
    want = {"y": np.broadcast_to(feeds["b"][:, None], (2, 4, 3))}
    assert_same(graph, by_numpy(build, feeds, {}), want)
    assert_same(graph, on_simulator(build, feeds), want)


def test_digits_of_a_symbolic_product_agree() -> None:
    """The epilogue reads ``(m % (12*S)) // 12`` where the kernel makes ``(m // 12) % S``."""
    check_by_numpy(
        graph_of("""symbol S(lo=2, hi=64)
input %x: f32[2, S, 12, 4]
weight %w: f32[4, 6] source='w'
input %y: f32[2, 12*S, 1]
%v: f32[2, S, 12, 6] = MatMul(%x, %w) @ 'v'
%r: f32[2, 12*S, 6] = Reshape(%v, shape=(2, 12*S, 6)) @ 'r'
%a: f32[2, 12*S, 6] = Add(%r, %y) @ 'a'
output %a
""")
    )


HEADS = """symbol S(lo=2, hi=64)
input %q: f32[1, 2, 3, {d}]
input %k: f32[1, 2, 4, {d}]
input %v: f32[1, 2, 4, {e}]
%a: f32[1, 2, 3, {e}] = Attention(%q, %k, %v, scale=0.5, is_causal=0, fill=float(-inf), softcap=0.0) @ 'a'
output %a
"""


@pytest.mark.parametrize(("d", "e", "fused"), [("S", "4", 0), ("4", "S", 0), ("257", "8", 0), ("256", "8", 1)])
def test_heads_that_no_template_takes_are_decomposed(d: str, e: str, fused: int) -> None:
    graph = graph_of(HEADS.format(d=d, e=e))
    assert sum(p.bound.kernel.template == "attention" for p in built(graph).planned) == fused
    check_by_numpy(graph)


@pytest.mark.parametrize("mask", ["_", "%m"])
def test_caps_and_sinks(mask: str) -> None:
    check_by_numpy(
        graph_of(f"""symbol S(lo=2, hi=64)
input %q: f32[1, 4, 2, 8]
input %k: f32[1, 2, S, 8]
input %v: f32[1, 2, S, 8]
input %m: bool[1, 1, 2, S]
input %s: f32[4]
%a: f32[1, 4, 2, 8] = Attention(%q, %k, %v, {mask}, %s, scale=0.5, is_causal=0, fill=-2.0, softcap=0.7) @ 'a'
output %a
""")
    )


SCATTER = """symbol S(lo=2, hi=64)
input %x: f32[S, 4]
weight %i: i64[3, 1] data=(0, -1, {third})
input %u: f32[3, 4]
%a: f32[S, 4] = Relu(%x) @ 'a'
%w: f32[3, 4] = Sigmoid(%u) @ 'w'
%s: f32[S, 4] = ScatterND(%a, %i, %w, reduction='{how}', padding=0, strict=0) @ 's'
%y: f32[S, 4] = Neg(%s) @ 'y'
output %y
"""


@pytest.mark.parametrize("how", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize("most", [64, 0])
def test_scatters_search_or_store_in_place(how: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few updates one kernel does it all; with many, a copy and the stores; products have no atomic."""
    monkeypatch.setattr(region, "MAX_SEARCH", most)
    graph = graph_of(SCATTER.format(how=how, third=2 if how == "none" else 0))
    searched = most > 0 or how == "mul"
    templates = [p.bound.kernel.template for p in built(graph).planned]
    assert ("scatter" not in templates) == searched
    for sizes in ({"S": 5}, {"S": 4}):
        feeds = feeds_of(graph, sizes)
        build = built(graph)
        want = expected(graph, feeds, sizes)
        assert_same(graph, by_numpy(build, feeds, sizes), want)
        assert_same(graph, on_simulator(build, feeds), want)


@pytest.mark.parametrize("most", [64, 0])
def test_scatters_ignore_indices_out_of_range(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region, "MAX_SEARCH", most)
    graph = graph_of("""input %x: f32[4, 2]
weight %i: i64[3, 1] data=(7, 1, -5)
input %u: f32[3, 2]
%s: f32[4, 2] = ScatterND(%x, %i, %u, reduction='add', padding=0, strict=0) @ 's'
output %s
""")
    feeds = feeds_of(graph, {})
    want = feeds["x"].copy()
    want[1] += feeds["u"][1]
    engine = Engine(built(graph).data, SimDevice())
    assert_same(graph, {"s": engine(feeds["x"], feeds["u"])}, {"s": want})
    with pytest.raises(DeviceError, match=r"index (7|-5) is out of range for an axis of 4 elements"):
        on_simulator(built(graph), feeds)  # in checked mode


def test_outputs_keep_their_names_when_passes_rename_values() -> None:
    graph = graph_of("input %x: f32[3, 4]\n%m: f32[3, 1] = ReduceMean(%x, axes=(1,), keepdims=1) @ 'm'\noutput %m\n")
    assert [t.name for t in built(graph).data.program.outputs] == ["m"]


def test_a_row_program_does_not_store_what_its_own_epilogue_waits_for() -> None:
    """The softmax could store %b for others on the way; but %d, which its epilogue needs, is computed from %b."""
    graph = graph_of("""input %x: f32[3]
input %y: f32[3]
%b: f32[3] = Add(%x, %y) @ 'b'
%c: f32[3] = LogSoftmax(%b, axis=0) @ 'c'
%d: f32[3] = Mul(%b, %y) @ 'd'
%e: f32[3] = Mul(%c, %d) @ 'e'
output %e
output %c
output %d
""")
    check_by_numpy(graph)


def test_an_epilogue_reads_its_hero_at_one_element() -> None:
    """Two views of a product meet; only where they hold the same element is that the product's own kernel."""
    graph = graph_of("""input %a: f32[2, 3, 2, 4]
input %b: f32[2, 3, 4, 2]
%m: f32[2, 3, 2, 2] = MatMul(%a, %b) @ 'm'
%t: f32[2, 3, 2, 2] = Transpose(%m, perm=(2, 1, 0, 3)) @ 't'
%y: f32[2, 3, 2, 2] = Sub(%m, %t) @ 'y'
%r: f32[12, 2] = Reshape(%m, shape=(12, 2)) @ 'r'
%s: f32[2, 3, 2, 2] = Reshape(%r, shape=(2, 3, 2, 2)) @ 's'
%z: f32[2, 3, 2, 2] = Mul(%m, %s) @ 'z'
output %y
output %z
""")
    check_by_numpy(graph)
    check_on_simulator(graph)
    kernels = [{n.op for n in r.nodes} for r in built(graph, frozenset({"cleanup"})).fused.regions]
    assert any({"MatMul", "Mul"} <= ops for ops in kernels)
    assert not any({"MatMul", "Sub"} <= ops for ops in kernels)


@pytest.mark.parametrize("shape", ["0", "1, 0", "0, 2", "3, 0, 5"])
@pytest.mark.parametrize("rows", [0, 2])
def test_reshapes_of_empty_results(shape: str, rows: int) -> None:
    """Behind a product, and by themselves."""
    text = f"""input %x: f32[{rows}, 3]
weight %w: f32[3, 0]
%m: f32[{rows}, 0] = MatMul(%x, %w) @ 'm'
%y: f32[{shape}] = Reshape(%m, shape=({shape},)) @ 'y'
%z: f32[{shape}] = Relu(%y) @ 'z'
output %z
"""
    for disable in (frozenset[str](), frozenset({"cleanup"}), frozenset({"fusion"})):
        check_by_numpy(graph_of(text), disable)
    check_by_numpy(graph_of(f"input %m: f32[{rows}, 0]\n" + "\n".join(text.splitlines()[3:])), frozenset({"cleanup"}))
    check_on_simulator(graph_of(text))


@pytest.mark.parametrize("keys", [0, 3])
def test_attention_to_no_keys_is_zero(keys: int) -> None:
    graph = graph_of("""symbol T(lo=0, hi=8)
input %q: f32[1, 2, 3, 4]
input %k: f32[1, 2, T, 4]
input %v: f32[1, 2, T, 8]
%y: f32[1, 2, 3, 8] = Attention(%q, %k, %v, scale=0.5, is_causal=0, fill=float(-inf), softcap=0.0) @ 'y'
output %y
""")
    feeds = feeds_of(graph, {"T": keys})
    q, k, v = (torch.from_numpy(feeds[name]) for name in "qkv")
    want = {"y": torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.5).numpy()}
    assert_same(graph, expected(graph, feeds, {}), want)
    build = built(graph)
    assert_same(graph, by_numpy(build, feeds, {"T": keys}), want)
    assert_same(graph, on_simulator(build, feeds), want)


def test_attention_that_was_decomposed_stays_so() -> None:
    graph = graph_of(HEADS.format(d="S", e="S").replace("f32", "f16"))
    assert all(p.bound.kernel.template != "attention" for p in built(graph).planned)
    check_by_numpy(graph)


def test_an_epilogue_may_ignore_the_sums() -> None:
    """The condition is known when kernels are printed: what is stored does not depend on the product any more."""
    graph = graph_of("""input %x: f32[2, 3, 4]
input %y: f32[2, 4, 2]
input %z: f32[2, 3, 2]
weight %i: i32[] data=0
weight %k: i32[] data=1
%v: f32[2, 3, 2] = MatMul(%x, %y) @ 'v'
%c: bool[] = Equal(%i, %k) @ 'c'
%w: f32[2, 3, 2] = Where(%c, %v, %z) @ 'w'
output %w
""")
    build = built(graph, frozenset({"constant-folding"}))
    feeds = feeds_of(graph, {})
    assert_same(graph, on_simulator(build, feeds), expected(graph, feeds, {}))
