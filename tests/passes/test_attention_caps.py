"""Attention recovery of capped scores (Gemma 2) and of sinks (gpt-oss), as exporters write them."""

from __future__ import annotations

import pytest
from pass_tools import check, ops
from test_attention_recovery import HEADER, MASKS, found

from arcweld.passes.attention import attention

CAP = "weight %cap: f32[] data=0.8\nweight %under: f32[] data=1.25\n"
CAPPED = {
    "over and times": "%m = MatMul(%q, %kt)\n%x = Mul(%m, %c)\n%o = Div(%x, %cap)\n%h = Tanh(%o)\n%s = Mul(%h, %cap)",
    "times twice": "%m = MatMul(%q, %kt)\n%x = Mul(%m, %c)\n%o = Mul(%under, %x)\n%h = Tanh(%o)\n%s = Mul(%cap, %h)",
    "scaled queries": "%sq = Mul(%q, %c)\n%m = MatMul(%sq, %kt)\n%o = Div(%m, %cap)\n%h = Tanh(%o)\n%s = Mul(%h, %cap)",
}
SINK = "input %sink: f32[3]\n%r = Reshape(%sink, shape=(1, 3, 1, 1))\n%e = Expand(%r, shape=(2, 3, 5, 1))\n"
FOLDED = f"weight %e: f32[2, 3, 5, 1] data=({', '.join(2 * 5 * ['0.5'] + 5 * ['1.0'] + 10 * ['0.5'] + 5 * ['1.0'])})\n"
TIMES = "%m = MatMul(%q, %kt)\n%s = Mul(%m, %c)\n"
JOINED = "%j = Concat({0}, %e, axis=3)\n"
LESS_MAX = "%top = ReduceMax(%j, axes=(3,), keepdims=1)\n%d = Sub(%j, %top)\n%w = Softmax(%d, axis=3)\n"
CUT = "%p = Slice(%w, starts=(0, 0, 0, 0), sizes=(2, 3, 5, 7), steps=(1, 1, 1, 1))\n"
PLAIN = "%w = Softmax(%j, axis=3)\n"
END = "\n%y = MatMul(%p, %v)\noutput %y"
ADDED = "%a = Add(%bias, %s)\n"


@pytest.mark.parametrize("scores", CAPPED)
@pytest.mark.parametrize("mask", ["none", "added", "seen", "unseen", "two added", "added, then unseen", "guarded"])
def test_caps(scores: str, mask: str) -> None:
    attrs = found(check(f"{HEADER}{CAP}{CAPPED[scores]}\n{MASKS[mask]}{END}", attention))
    assert attrs["softcap"] == pytest.approx(0.8)
    assert attrs["scale"] == pytest.approx(0.35)


def test_a_factor_that_is_no_cap_is_left() -> None:
    scores = CAPPED["over and times"].replace("Mul(%h, %cap)", "Mul(%h, %less)")
    text = f"{HEADER}{CAP}weight %less: f32[] data=-0.8\n{scores}"
    assert "Attention" not in ops(check(f"{text}\n{MASKS['none']}{END}", attention))


@pytest.mark.parametrize("softmax", [PLAIN, LESS_MAX])
@pytest.mark.parametrize(("mask", "last"), [("", "%s"), (ADDED, "%a")])
def test_sinks(mask: str, last: str, softmax: str) -> None:
    graph = check(f"{HEADER}{SINK}{TIMES}{mask}{JOINED.format(last)}{softmax}{CUT}{END}", attention)
    (node,) = (n for n in graph.nodes if n.op == "Attention")
    assert node.inputs[4] is not None
    assert (node.inputs[3] is None) == (not mask)
    assert not {"Softmax", "Concat", "Slice", "MatMul"} & set(ops(graph))


def test_a_sink_that_was_spread_while_folding() -> None:
    graph = check(f"{HEADER}{FOLDED}{TIMES}{JOINED.format('%s')}{PLAIN}{CUT}{END}", attention)
    (node,) = (n for n in graph.nodes if n.op == "Attention")
    assert node.inputs[4] is not None
    assert node.inputs[4].shape == (3,)


def test_capped_scores_beside_a_sink() -> None:
    text = f"{HEADER}{CAP}{SINK}{CAPPED['times twice']}\n{ADDED}{JOINED.format('%a')}{LESS_MAX}{CUT}{END}"
    assert found(check(text, attention))["softcap"] == pytest.approx(0.8)


OTHERS = {
    "of each query": SINK.replace("[3]", "[5]").replace("(1, 3, 1, 1)", "(1, 1, 5, 1)"),
    "of each element": "input %e: f32[2, 3, 5, 1]\n",
    "one for all heads": SINK.replace("[3]", "[1]").replace("(1, 3, 1, 1)", "(1, 1, 1, 1)"),
}


@pytest.mark.parametrize("sink", OTHERS)
def test_other_columns_are_no_sinks(sink: str) -> None:
    graph = check(f"{HEADER}{OTHERS[sink]}{TIMES}{JOINED.format('%s')}{PLAIN}{CUT}{END}", attention)
    assert "Attention" not in ops(graph)


def test_a_column_in_front_is_no_sink() -> None:
    text = f"{HEADER}{SINK}{TIMES}%j = Concat(%e, %s, axis=3)\n{PLAIN}{CUT}{END}"
    assert "Attention" not in ops(check(text, attention))


def test_a_slice_of_other_columns_is_no_sink() -> None:
    text = f"{HEADER}{SINK}{TIMES}{JOINED.format('%s')}{PLAIN}{CUT.replace('(0, 0, 0, 0)', '(0, 0, 0, 1)')}{END}"
    assert "Attention" not in ops(check(text, attention))
