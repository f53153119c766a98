"""Merged batches: products get their batch axes back where reshapes cancel, and attention is found behind them."""

from __future__ import annotations

import pytest
from pass_tools import body, build, check, lines, ops

from arcweld.compiler.options import Options
from arcweld.passes.attention import attention
from arcweld.passes.batches import batches
from arcweld.passes.cleanup import cleanup

HEADER = """
    symbol b(lo=1, hi=8)
    input %q: f32[b, 3, 5, 8]
    input %k: f32[b, 3, 7, 8]
    input %v: f32[b, 3, 7, 4]
    input %mask: f32[b, 1, 5, 7]
    input %slope: f32[3*b, 1, 7]
    weight %c: f32[] data=0.35
    %qm = Reshape(%q, shape=(3*b, 5, 8))
    %vm = Reshape(%v, shape=(3*b, 7, 4))
"""
KEYS = {
    "transposed, then merged": "%kt = Transpose(%k, perm=(0, 1, 3, 2))\n%km = Reshape(%kt, shape=(3*b, 8, 7))",
    "merged, then transposed": "%kt = Reshape(%k, shape=(3*b, 7, 8))\n%km = Transpose(%kt, perm=(0, 2, 1))",
}
APART = """
    %r = Reshape(%s, shape=(b, 3, 5, 7))
    %a = Add(%r, %mask)
    %p = Softmax(%a, axis=3)
    %pm = Reshape(%p, shape=(3*b, 5, 7))
"""
SCORES = {
    "masked with the axes apart": APART,
    "never taken apart": "%x = Mul(%s, %c)\n%pm = Softmax(%x, axis=2)",
    "numbers of merged batches added": "%x = Mul(%s, %c)\n%y = Add(%x, %slope)\n%pm = Softmax(%y, axis=2)",
}


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("scores", SCORES)
def test_attention_behind_merged_heads(keys: str, scores: str) -> None:
    text = f"""
        {HEADER}{KEYS[keys]}
        %s = MatMul(%qm, %km)
        {SCORES[scores]}
        %om = MatMul(%pm, %vm)
        %o = Reshape(%om, shape=(b, 3, 5, 4))
        output %o
    """
    after = check(text, batches, attention, cleanup, dims={"b": 2})
    assert ops(after).count("Attention") == 1
    assert not {"MatMul", "Softmax"} & set(ops(after))
    assert ops(after).count("Reshape") == scores.startswith("numbers")


def test_an_operand_that_was_never_merged_is_taken_apart_too() -> None:
    after = check(
        """
        input %x: f32[2, 3, 5, 8]
        input %w: f32[6, 8, 4]
        input %u: f32[1, 4, 9]
        %xm = Reshape(%x, shape=(6, 5, 8))
        %m = MatMul(%xm, %w)
        %n = MatMul(%m, %u)
        %y = Reshape(%n, shape=(2, 3, 5, 9))
        output %y
        """,
        batches,
    )
    assert body(after) == lines("""
        %reshape.1 = Reshape(%w, shape=(2, 3, 8, 4))
        %m.batches = MatMul(%x, %reshape.1)
        %n.batches = MatMul(%m.batches, %u)
        output %n.batches
    """)


@pytest.mark.parametrize("axes", ["1, 2, 3", "2, 1, 3", "2, 3"])
def test_axes_of_one_element_are_those_of_the_scores(axes: str) -> None:
    after = check(
        f"""
        input %q: f32[1, 2, 3, 5, 8]
        %qm = Reshape(%q, shape=(6, 5, 8))
        %kt = Transpose(%q, perm=(0, 1, 2, 4, 3))
        %km = Reshape(%kt, shape=(6, 8, 5))
        %s = MatMul(%qm, %km)
        %a = Reshape(%s, shape=({axes}, 5, 5))
        %p = Softmax(%a, axis={axes.count(",") + 2})
        %pm = Reshape(%p, shape=(6, 5, 5))
        %om = MatMul(%pm, %qm)
        %o = Reshape(%om, shape=({axes}, 5, 8))
        output %o
        """,
        batches, attention,
    )  # fmt: skip
    assert ops(after).count("Attention") == 1


@pytest.mark.parametrize(
    "text",
    [
        # nothing takes the batches apart again
        "%w = Reshape(%vm, shape=(3*b, 4, 7))\n%y = MatMul(%vm, %w)\noutput %y",
        # a result with other batches
        "%n = MatMul(%vm, %u)\n%t = Transpose(%n, perm=(2, 1, 0))\n%y = Reshape(%t, shape=(9, 7, b, 3))\noutput %y",
        # a batch of one against many
        "%o = Reshape(%one, shape=(1, 5, 8))\n%e = Add(%o, %qm)\n%m = MatMul(%e, %eight)\noutput %m",
    ],
)
def test_left_alone(text: str) -> None:
    extra = "input %u: f32[1, 4, 9]\ninput %one: f32[1, 1, 5, 8]\ninput %eight: f32[1, 8, 2]\n"
    graph = build(HEADER + extra + text)
    check(HEADER + extra + text, batches, dims={"b": 2})
    assert batches(graph, Options()) is graph
