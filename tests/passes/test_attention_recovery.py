"""Attention recovery: the forms in which exporters write it, and what must not become Attention."""

from __future__ import annotations

import numpy as np
import pytest
from pass_tools import body, build, check, ops

from arcweld.compiler.ir import Graph
from arcweld.compiler.options import Options
from arcweld.passes.attention import attention
from arcweld.passes.cleanup import cleanup
from arcweld.passes.constant_folding import constant_folding
from arcweld.passes.cse import cse
from arcweld.passes.layout import layout

HEADER = """
    input %q: f32[2, 3, 5, 8]
    input %k: f32[2, 3, 7, 8]
    input %v: f32[2, 3, 7, 4]
    input %seen: bool[2, 1, 5, 7]
    input %bias: f32[1, 3, 5, 7]
    weight %c: f32[] data=0.35
    weight %rc: f32[] data=2.857142857
    weight %low: f32[] data=float(-inf)
    weight %finite: f32[] data=-3e4
    weight %zero: f32[] data=0.0
    %kt = Transpose(%k, perm=(0, 1, 3, 2))
"""
SCORES = {
    "plain": "%s = MatMul(%q, %kt)",
    "times": "%m = MatMul(%q, %kt)\n%s = Mul(%m, %c)",
    "over": "%m = MatMul(%q, %kt)\n%s = Div(%m, %rc)",
    "query times": "%sq = Mul(%q, %c)\n%s = MatMul(%sq, %kt)",
    "keys times": "%sk = Mul(%c, %kt)\n%s = MatMul(%q, %sk)",
    "both times": "%sq = Div(%q, %rc)\n%sk = Mul(%kt, %c)\n%s = MatMul(%sq, %sk)",
}
SCALE = {"plain": 1.0, "both times": 0.1225}
MASKS = {
    "none": "%p = Softmax(%s, axis=3)",
    "added": "%a = Add(%bias, %s)\n%p = Softmax(%a, axis=3)",
    "seen": "%a = Where(%seen, %s, %finite)\n%p = Softmax(%a, axis=3)",
    "unseen": "%n = Not(%seen)\n%a = Where(%n, %finite, %s)\n%p = Softmax(%a, axis=3)",
    "seen and added": "%w = Where(%seen, %s, %finite)\n%a = Add(%w, %bias)\n%p = Softmax(%a, axis=3)",
    "two added": "%w = Add(%s, %bias)\n%a = Add(%w, %bias)\n%p = Softmax(%a, axis=3)",
    "added, then seen": "%w = Add(%s, %bias)\n%a = Where(%seen, %w, %finite)\n%p = Softmax(%a, axis=3)",
    "added, then unseen": "%w = Add(%s, %bias)\n%n = Not(%seen)\n%a = Where(%n, %low, %w)\n%p = Softmax(%a, axis=3)",
    "safe": """
        %a = Add(%s, %bias)
        %t = ReduceMax(%a, axes=(3,), keepdims=1)
        %i = IsInf(%t, detect_negative=1, detect_positive=0)
        %r = Softmax(%a, axis=3)
        %p = Where(%i, %zero, %r)
    """,
    "guarded": "%a = Where(%seen, %s, %low)\n%r = Softmax(%a, axis=3)\n%i = IsNaN(%r)\n%p = Where(%i, %zero, %r)",
}


def found(graph: Graph) -> dict[str, object]:
    (node,) = [n for n in graph.nodes if n.op == "Attention"]
    assert not {"Softmax", "MatMul"} & set(ops(graph))
    return dict(node.attrs)


@pytest.mark.parametrize("scores", SCORES)
def test_scales(scores: str) -> None:
    text = f"{HEADER}{SCORES[scores]}\n%p = Softmax(%s, axis=3)\n%y = MatMul(%p, %v)\noutput %y"
    attrs = found(check(text, attention))
    assert attrs["scale"] == pytest.approx(SCALE.get(scores, 0.35), rel=1e-6)


BOTH = ("seen and added", "added, then seen")  # an ordinary number is written, and others are added


@pytest.mark.parametrize("mask", [m for m in MASKS if m not in BOTH])
def test_masks(mask: str) -> None:
    text = f"{HEADER}{SCORES['times']}\n{MASKS[mask]}\n%y = MatMul(%p, %v)\noutput %y"
    graph = build(text)
    after = attention(graph, Options())
    found(after)
    assert after is not graph


@pytest.mark.parametrize("mask", BOTH)
def test_an_ordinary_number_beside_others_is_not_absorbed(mask: str) -> None:
    text = f"{HEADER}{SCORES['times']}\n{MASKS[mask]}\n%y = MatMul(%p, %v)\noutput %y"
    assert "Attention" not in ops(check(text, attention))


@pytest.mark.parametrize("number", [-1e4, -1e9, -3.4e38])
@pytest.mark.parametrize("mask", ["seen", "unseen"])
def test_a_row_that_a_number_fills_is_the_mean(mask: str, number: float) -> None:
    few = "weight %none: bool[1] data=(False,)\n%few = And(%seen, %none)\n"
    header = f"{HEADER}weight %number: f32[] data={number}\n{few}"
    masked = MASKS[mask].replace("%seen", "%few").replace("%finite", "%number")
    after = check(f"{header}{SCORES['times']}\n{masked}\n%y = MatMul(%p, %v)\noutput %y", attention)
    assert found(after)["fill"] == pytest.approx(number)


@pytest.mark.parametrize("mask", ["none", "added", "two added", "safe"])
def test_masks_compute_the_same(mask: str) -> None:
    check(f"{HEADER}{SCORES['times']}\n{MASKS[mask]}\n%y = MatMul(%p, %v)\noutput %y", attention)


@pytest.mark.parametrize(
    "mask", ["seen", "unseen", "seen and added", "added, then seen", "added, then unseen", "guarded"]
)
def test_boolean_masks_compute_the_same(mask: str) -> None:
    # the first key is seen by every query, so that no row is masked out
    seen = """
        weight %first: bool[7] data=(True, False, False, False, False, False, False)
        %some = Or(%seen, %first)
    """
    masked = MASKS[mask].replace("%seen", "%some")
    check(f"{HEADER}{seen}{SCORES['times']}\n{masked}\n%y = MatMul(%p, %v)\noutput %y", attention)


@pytest.mark.parametrize(("axis", "positive"), [(2, 0), (3, 1)])
def test_another_guard_stays(axis: int, positive: int) -> None:
    guard = f"""
        %t = ReduceMax(%s, axes=({axis},), keepdims=1)
        %i = IsInf(%t, detect_negative=1, detect_positive={positive})
        %r = Softmax(%s, axis=3)
        %p = Where(%i, %zero, %r)
    """
    after = check(f"{HEADER}{SCORES['times']}\n{guard}\n%y = MatMul(%p, %v)\noutput %y", attention)
    assert "Attention" not in ops(after)


LEARNED = """
    input %h: f32[3, 1, 1]
    %m = MatMul(%q, %kt)
    %g = Mul({scores})
    %a = Add(%bias, %g)
    %p = Softmax(%a, axis=3)
    %y = MatMul(%p, %v)
"""


@pytest.mark.parametrize("scores", ["%m, %h", "%h, %m"])
def test_a_learned_scale_for_each_head_multiplies_the_queries(scores: str) -> None:
    after = check(f"{HEADER}{LEARNED.format(scores=scores)}output %y", attention)
    assert found(after)["scale"] == 1.0
    assert ops(after).count("Mul") == 1


@pytest.mark.parametrize("output", ["%m", "%g", "%a"])
def test_scores_that_are_read_elsewhere_keep_their_scale(output: str) -> None:
    after = check(f"{HEADER}{LEARNED.format(scores='%m, %h')}output %y\noutput {output}", attention)
    assert "Attention" not in ops(after)


@pytest.mark.parametrize("mask", ["seen", "unseen", "seen and added", "added, then seen", "added, then unseen"])
def test_rows_that_the_lowest_number_masks_out_stay_uniform(mask: str) -> None:
    lowest = "weight %lowest: f32[] data=-3.4e38\nweight %none: bool[1] data=(False,)\n%few = And(%seen, %none)\n"
    masked = MASKS[mask].replace("%seen", "%few").replace("%finite", "%lowest").replace("%low,", "%lowest,")
    found(check(f"{HEADER}{lowest}{SCORES['times']}\n{masked}\n%y = MatMul(%p, %v)\noutput %y", attention))


@pytest.mark.parametrize("scores", ["Where(%seen, %s, %lowest)", "Where(%unseen, %lowest, %s)"])
def test_two_masks_of_lowest_numbers_overflow_where_both_hold(scores: str) -> None:
    """A row that one mask empties weighs alike the keys that the other leaves."""
    text = f"""
        {HEADER}{SCORES["times"]}
        weight %lowest: f32[] data=-3.4e38
        %unseen = Not(%seen)
        %w = {scores}
        %emptied = Mul(%bias, %zero)
        %everywhere = Add(%emptied, %lowest)
        %a = Add(%w, %everywhere)
        %p = Softmax(%a, axis=3)
        %r = IsNaN(%p)
        %f = Where(%r, %zero, %p)
        %y = MatMul(%f, %v)
        output %y
    """
    with np.errstate(over="ignore"):
        found(check(text, attention))


def test_keys_need_no_transpose_left() -> None:
    text = """
        input %x: f32[2, 5, 24]
        %h = Reshape(%x, shape=(2, 5, 3, 8))
        %q = Transpose(%h, perm=(0, 2, 1, 3))
        %kt = Transpose(%h, perm=(0, 2, 3, 1))
        %s = MatMul(%q, %kt)
        %p = Softmax(%s, axis=3)
        %o = MatMul(%p, %q)
        %t = Transpose(%o, perm=(0, 2, 1, 3))
        %y = Reshape(%t, shape=(2, 5, 24))
        output %y
    """
    after = check(text, attention, cleanup, cse)
    assert ops(after) == ["Reshape", "Transpose", "Attention", "Transpose", "Reshape"]
    assert len({v.name for v in after.nodes[2].operands()}) == 1


@pytest.mark.parametrize("rank", [2, 3])
def test_without_heads(rank: int) -> None:
    lead, perm = ("", "(1, 0)") if rank == 2 else ("6, ", "(0, 2, 1)")
    text = f"""
        input %q: f32[{lead}5, 8]
        input %k: f32[{lead}7, 8]
        input %v: f32[{lead}7, 4]
        input %mask: f32[{lead}5, 7]
        %kt = Transpose(%k, perm={perm})
        %m = MatMul(%q, %kt)
        %s = Add(%m, %mask)
        %p = Softmax(%s, axis={rank - 1})
        %y = MatMul(%p, %v)
        output %y
    """
    found(check(text, attention))


def test_a_causal_mask_of_an_attention_node_goes() -> None:
    text = """
        input %q: f32[2, 3, 4, 8]
        weight %m: bool[4, 4] data=(True, False, False, False, True, True, False, False, True, True, True, False, True, True, True, True)
        %y = Attention(%q, %q, %q, %m, scale=0.5)
        output %y
    """  # noqa: E501
    expected = "%y = Attention(%q, %q, %q, scale=0.5, is_causal=1, fill=float(-inf), softcap=0.0)\noutput %y"
    assert body(check(text, attention)) == expected


@pytest.mark.parametrize("dtype", ["f32", "bool"])
def test_a_constant_triangle_is_the_causal_mask(dtype: str) -> None:
    seen = [j <= i for i in range(4) for j in range(4)]
    if dtype == "bool":
        weight = f"weight %t: bool[1, 1, 4, 4] data={tuple(seen)}"
        masked = "weight %low: f32[] data=-1e9\n%a = Where(%t, %m, %low)"
    else:
        weight = f"weight %t: f32[4, 4] data={tuple(0.0 if s else -1e30 for s in seen)}"
        masked = "%a = Add(%m, %t)"
    text = f"""
        input %q: f32[2, 3, 4, 8]
        {weight}
        %kt = Transpose(%q, perm=(0, 1, 3, 2))
        %m = MatMul(%q, %kt)
        {masked}
        %p = Softmax(%a, axis=3)
        %y = MatMul(%p, %q)
        output %y
    """
    after = check(text, attention)
    assert found(after)["is_causal"] == 1
    assert len(after.nodes[-1].operands()) == 3


TRIANGLES = {
    "tril of ones": "%o = ConstantOfShape(shape=(n, n), value=1, dtype=dtype(bool))\n%t = Trilu(%o, upper=0, k=0)",
    "not triu": "%o = ConstantOfShape(shape=(1, n, n), value=1, dtype=dtype(bool))\n%u = Trilu(%o, upper=1, k=1)\n"
    "%t = Not(%u)",
    "rows >= columns": "%t = GreaterOrEqual(%rows, %columns)",
    "columns <= rows": "%t = LessOrEqual(%columns, %rows)",
    "not rows < columns": "%u = Less(%rows, %columns)\n%t = Not(%u)",
}
LOOKALIKES = {
    "without the diagonal": "%t = Greater(%rows, %columns)",
    "the other way": "%t = LessOrEqual(%rows, %columns)",
    "shifted": "%o = ConstantOfShape(shape=(n, n), value=1, dtype=dtype(bool))\n%t = Trilu(%o, upper=0, k=1)",
    "from 1": "%p1 = Range(start=1, step=1, length=n, dtype=dtype(i64))\n%r1 = Reshape(%p1, shape=(n, 1))\n"
    "%t = GreaterOrEqual(%r1, %columns)",
}


def triangle_text(triangle: str, masked: str) -> str:
    return f"""
        symbol n(lo=1, hi=64)
        input %q: f32[2, 3, n, 8]
        weight %zero: f32[] data=0.0
        weight %low: f32[] data=-1e9
        %p0 = Range(start=0, step=1, length=n, dtype=dtype(i64))
        %rows = Reshape(%p0, shape=(1, 1, n, 1))
        %columns = Reshape(%p0, shape=(1, n))
        {triangle}
        %kt = Transpose(%q, perm=(0, 1, 3, 2))
        %m = MatMul(%q, %kt)
        {masked}
        %p = Softmax(%a, axis=3)
        %y = MatMul(%p, %q)
        output %y
    """


MASKED = {
    "chosen": "%a = Where(%t, %m, %low)",
    "added": "%w = Where(%t, %zero, %low)\n%a = Add(%m, %w)",
    "filled, then added": "%f = ConstantOfShape(shape=(n, n), value=-1e9, dtype=dtype(f32))\n"
    "%w = Where(%t, %zero, %f)\n%a = Add(%m, %w)",
}


@pytest.mark.parametrize("triangle", TRIANGLES)
@pytest.mark.parametrize("masked", MASKED.values(), ids=MASKED)
def test_a_computed_triangle_is_the_causal_mask(triangle: str, masked: str) -> None:
    after = check(triangle_text(TRIANGLES[triangle], masked), attention, dims={"n": 5})
    assert found(after)["is_causal"] == 1
    assert [op for op in ops(after) if op != "Transpose"] == ["Attention"]


PARTS = """
    input %q: f32[b, 3, n, 8]
    input %seen: bool[b, 1, 1, n]
    weight %zero: f32[] data=0.0
    weight %low: f32[] data=-1e30
    %positions = Range(start=0, step=1, length=n, dtype=dtype(i64))
    %rows = Reshape(%positions, shape=(n, 1))
    %columns = Reshape(%positions, shape=(1, n))
    %triangle = LessOrEqual(%columns, %rows)
    weight %naught: i64[] data=0
    %every = GreaterOrEqual(%rows, %naught)
"""
JOINED = {
    "causal and given": ("%t = And(%triangle, %seen)", 1, ["%seen"]),
    "given and all and causal": ("%u = And(%seen, %every)\n%t = And(%u, %triangle)", 1, ["%seen"]),
    "repeated": ("%u = And(%triangle, %seen)\n%t = Expand(%u, shape=(b, 3, n, n))", 1, ["%seen"]),
    "all": ("%t = Expand(%every, shape=(b, 1, n, n))", 0, []),
    "given and all": ("%t = And(%every, %seen)", 0, ["%seen"]),
    "given": ("%t = Identity(%seen)", 0, ["%t"]),
}


@pytest.mark.parametrize("joined", JOINED)
def test_of_joined_conditions_only_the_unknown_stay(joined: str) -> None:
    node, causal, rest = JOINED[joined]
    text = f"{PARTS}{node}\n%y = Attention(%q, %q, %q, %t, scale=0.5)\noutput %y"
    after = check(text, attention, dims={"n": 5, "b": 2})
    assert found(after)["is_causal"] == causal
    assert [f"%{v.name}" for v in after.nodes[-1].operands()[3:]] == rest


@pytest.mark.parametrize("joined", ["causal and given", "repeated", "all"])
def test_joined_conditions_as_infinity_to_add(joined: str) -> None:
    node, causal, rest = JOINED[joined]
    # the first key is seen by everybody: a row without any would be NaN
    text = f"""
        {PARTS.replace("%seen:", "%given:").replace("-1e30", "float(-inf)")}
        weight %first: i64[] data=0
        %is_first = Equal(%columns, %first)
        %seen = Or(%given, %is_first)
        {node}
        %w = Where(%t, %zero, %low)
        %y = Attention(%q, %q, %q, %w, scale=0.5)
        output %y
    """
    after = check(text, attention, dims={"n": 5, "b": 2})
    assert found(after)["is_causal"] == causal
    assert len(after.nodes[-1].operands()) == 3 + len(rest)


@pytest.mark.parametrize("joined", ["causal and given", "repeated", "all", "given and all"])
def test_joined_conditions_as_numbers_to_add(joined: str) -> None:
    """A row that is masked out entirely weighs all keys alike, those behind the triangle too: the mask stays whole."""
    node, _, rest = JOINED[joined]
    nobody = "weight %none: bool[1] data=(False,)\n%seen = And(%given, %none)\n"
    text = f"""
        {PARTS.replace("%seen:", "%given:")}{nobody}{node}
        %w = Where(%t, %zero, %low)
        %y = Attention(%q, %q, %q, %w, scale=0.5)
        output %y
    """
    after = check(text, attention, dims={"n": 5, "b": 2})
    assert found(after)["is_causal"] == 0
    assert len(after.nodes[-1].operands()) == 3 + len(rest)


@pytest.mark.parametrize("triangle", LOOKALIKES)
def test_other_triangles_stay_masks(triangle: str) -> None:
    graph = build(triangle_text(LOOKALIKES[triangle], "%a = Where(%t, %m, %low)"))
    after = attention(graph, Options())
    assert found(after)["is_causal"] == 0


@pytest.mark.parametrize(
    "change",
    [
        ("axis=3", "axis=2"),
        ("output %y", "output %y\noutput %p"),
        ("output %y", "output %y\noutput %s"),
        ("%v: f32[2, 3, 7, 4]", "%v: f32[1, 3, 7, 4]"),
        ("%a = Add(%bias, %s)", "%a = Mul(%bias, %s)"),
    ],
)
def test_what_is_not_attention_stays(change: tuple[str, str]) -> None:
    text = f"{HEADER}{SCORES['times']}\n{MASKS['added']}\n%y = MatMul(%p, %v)\noutput %y"
    assert "Attention" not in ops(check(text.replace(*change), attention))


def test_a_mask_of_small_numbers_is_no_mask() -> None:
    text = f"{HEADER}weight %small: f32[] data=-5.0\n{SCORES['times']}\n%a = Where(%seen, %s, %small)\n"
    assert "Attention" not in ops(check(text + "%p = Softmax(%a, axis=3)\n%y = MatMul(%p, %v)\noutput %y", attention))


def test_transformer_block_keeps_only_the_head_transposes() -> None:
    text = """
        symbol n(lo=1, hi=64)
        input %x: f32[2, n, 24]
        weight %w: f32[24, 24]
        %a = MatMul(%x, %w)
        %h = Reshape(%a, shape=(2, n, 3, 8))
        %q = Transpose(%h, perm=(0, 2, 1, 3))
        %f = Reshape(%q, shape=(6, n, 8))
        %ft = Transpose(%f, perm=(0, 2, 1))
        %kt = Reshape(%ft, shape=(2, 3, 8, n))
        %s = MatMul(%q, %kt)
        %p = Softmax(%s, axis=3)
        %o = MatMul(%p, %q)
        %t = Transpose(%o, perm=(0, 2, 1, 3))
        %y = Reshape(%t, shape=(2, n, 24))
        output %y
    """
    after = check(text, attention, layout, constant_folding, cleanup, cse, dims={"n": 5})
    assert ops(after) == ["MatMul", "Reshape", "Transpose", "Attention", "Transpose", "Reshape"]


@pytest.mark.parametrize("again", ["", "%more = Add(%m5, %masked)"])
@pytest.mark.parametrize("groups", ["1, 3", "2, 3"])
def test_masks_of_groups_of_windows(groups: str, again: str) -> None:
    """Scores are split into images and windows, each window has a mask, and they are joined again."""
    images = int(groups[0])
    text = f"""
        input %q: f32[{3 * images}, 2, 4, 8]
        input %bias: f32[1, 2, 4, 4]
        input %m: f32[3, 4, 4]
        %kt = Transpose(%q, perm=(0, 1, 3, 2))
        %s = MatMul(%q, %kt)
        %b = Add(%s, %bias)
        %split = Reshape(%b, shape=({groups}, 2, 4, 4))
        %m5 = Reshape(%m, shape=(1, 3, 1, 4, 4))
        %masked = Add(%split, %m5)
        {again}
        %joined = Reshape(%{"more" if again else "masked"}, shape=({3 * images}, 2, 4, 4))
        %p = Softmax(%joined, axis=3)
        %y = MatMul(%p, %q)
        output %y
    """
    after = check(text, attention, cleanup)
    assert found(after)["scale"] == 1.0
