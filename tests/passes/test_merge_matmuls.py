"""Sibling products: several products of one activation become one, unless their results have epilogues of their own."""

from __future__ import annotations

import pytest
from pass_tools import build, check, ops

from arcweld.compiler.options import Options
from arcweld.passes.merge_matmuls import merge_matmuls

QKV = """
    symbol n(lo=1, hi=64)
    input %x: f32[2, n, 8]
    weight %wq: f32[8, 6]
    weight %wk: f32[8, 6]
    weight %wv: f32[8, 4]
    weight %bq: f32[6]
    weight %bv: f32[1, 4]
    %q0 = MatMul(%x, %wq)
    %q = Add(%bq, %q0)
    %k = MatMul(%x, %wk)
    %v0 = MatMul(%x, %wv)
    %v = Add(%v0, %bv)
"""


def test_sibling_products_become_one() -> None:
    text = (
        QKV
        + """
        %kt = Transpose(%k, perm=(0, 2, 1))
        %s = MatMul(%q, %kt)
        %p = Softmax(%s, axis=2)
        %y = MatMul(%p, %v)
        output %y
    """
    )
    after = check(text, merge_matmuls, dims={"n": 5})
    assert ops(after) == ["MatMul", "Add", "Slice", "Slice", "Slice", "Transpose", "MatMul", "Softmax", "MatMul"]
    merged = after.weights[after.nodes[0].operands()[1].name]
    assert merged.data.shape == (8, 16)
    assert [args[0] for step, args in merged.transform if step == "source"] == ["wq", "wk", "wv"]


@pytest.mark.parametrize("tail", ["%r = Relu(%{0})\noutput %r", "output %{0}"])
def test_siblings_with_an_epilogue_stay(tail: str) -> None:
    text = QKV + "\n".join(tail.format(v).replace("%r", f"%r{v}") for v in "qkv")
    graph = build(text)
    assert merge_matmuls(graph, Options()) is graph


ADAPTED = """
    symbol n(lo=1, hi=64)
    input %x: f32[n, 8]
    input %ends: i32[3]
    weight %aq: f32[3, 8, 2]
    weight %ak: f32[3, 8, 4]
    weight %bq: f32[3, 2, 6]
    weight %bk: f32[3, 4, 5]
    %lq = GroupedMatMul(%x, %aq, %ends)
    %lk = GroupedMatMul(%x, %ak, %ends)
"""


def test_sibling_grouped_products_become_one() -> None:
    """The first products of two layers' adapters; the second ones have operands of their own."""
    text = ADAPTED + """
        %q = GroupedMatMul(%lq, %bq, %ends)
        %k = GroupedMatMul(%lk, %bk, %ends)
        output %q
        output %k
    """
    after = check(text, merge_matmuls, dims={"n": 9})
    assert ops(after) == ["GroupedMatMul", "Slice", "Slice", "GroupedMatMul", "GroupedMatMul"]
    merged = after.weights[after.nodes[0].operands()[1].name]
    assert merged.data.shape == (3, 8, 6)
    assert [args[0] for step, args in merged.transform if step == "source"] == ["aq", "ak"]


@pytest.mark.parametrize(
    "tail",
    [
        "%r = Relu(%lq)\noutput %r\n%k = GroupedMatMul(%lk, %bk, %ends)\noutput %k", "output %lq\noutput %lk",
        "input %other: i32[3]\n%m = GroupedMatMul(%x, %ak, %other)\n%q = GroupedMatMul(%lq, %bq, %ends)\n"
        "%k = GroupedMatMul(%m, %bk, %ends)\noutput %q\noutput %k",
    ],
)
def test_other_grouped_products_stay(tail: str) -> None:
    """Those with an epilogue, results of the graph, and those of other groups of rows."""
    lines = ADAPTED.replace("%lk = GroupedMatMul(%x, %ak, %ends)\n", "") if "%other" in tail else ADAPTED
    graph = build(lines + tail)
    assert merge_matmuls(graph, Options()) is graph
