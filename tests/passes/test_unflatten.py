"""Unflattening: reshapes around row-wise work cancel, and stay where they have to."""

from __future__ import annotations

import pytest
from pass_tools import body, build, check, lines, ops

from arcweld.compiler.options import Options
from arcweld.passes.unflatten import unflatten

HEADER = """
    symbol b(lo=1, hi=8)
    input %x: f32[b, 5, 8]
    weight %w: f32[8, 6]
    weight %v: f32[6, 8]
    weight %c: f32[6]
    weight %k: f32[] data=0.5
"""


def test_flat_layers_work_on_the_axes_of_their_operand() -> None:
    after = check(
        HEADER + """
        %f = Reshape(%x, shape=(5*b, 8))
        %m = MatMul(%f, %w)
        %a = Add(%c, %m)
        %g = Gelu(%a)
        %n = LayerNormalization(%g, %c, axis=1)
        %h = Mul(%n, %a)
        %o = MatMul(%h, %v)
        %y = Reshape(%o, shape=(b, 5, 8))
        output %y
        """,
        unflatten, dims={"b": 2},
    )  # fmt: skip
    assert body(after) == lines("""
        %m.rows = MatMul(%x, %w)
        %a.rows = Add(%c, %m.rows)
        %g.rows = Gelu(%a.rows, approximate='none')
        %n.rows = LayerNormalization(%g.rows, %c, axis=2, epsilon=1e-05)
        %h.rows = Mul(%n.rows, %a.rows)
        %o.rows = MatMul(%h.rows, %v)
        output %o.rows
    """)


def test_a_split_joins_the_reshape_in_front_of_the_work() -> None:
    after = check(
        """
        input %x: f32[2, 5, 3, 4]
        weight %w: f32[12, 6]
        weight %c: f32[6]
        input %r: f32[2, 5, 6]
        %f = Reshape(%x, shape=(10, 12))
        %m = MatMul(%f, %w)
        %a = Add(%m, %c)
        %s = Softmax(%a, axis=1)
        %o = Reshape(%s, shape=(2, 5, 6))
        %y = Add(%o, %r)
        output %y
        """,
        unflatten,
    )
    assert body(after) == lines("""
        %reshape = Reshape(%x, shape=(2, 5, 12))
        %m.rows = MatMul(%reshape, %w)
        %a.rows = Add(%m.rows, %c)
        %o = Softmax(%a.rows, axis=2)
        %y = Add(%o, %r)
        output %y
    """)


@pytest.mark.parametrize(
    "text",
    [
        # nothing splits the rows again
        "%f = Reshape(%x, shape=(5*b, 8))\n%m = MatMul(%f, %w)\noutput %m",
        # rows are not kept
        "%f = Reshape(%x, shape=(8*b, 5))\n%m = Relu(%f)\n%y = Reshape(%m, shape=(b, 8, 5))\noutput %y",
        # a reduction over rows
        "%f = Reshape(%x, shape=(5*b, 8))\n%m = ReduceMax(%f, axes=(0,), keepdims=1)\n"
        "%y = Reshape(%m, shape=(1, 1, 8))\noutput %y",
        # a normalisation of columns
        "%f = Reshape(%x, shape=(5*b, 8))\n%m = Softmax(%f, axis=0)\n%y = Reshape(%m, shape=(b, 5, 8))\noutput %y",
        # what is split has no operand
        "%m = Range(start=0, step=1, length=20, dtype=dtype(f32))\n%y = Reshape(%m, shape=(4, 5))\noutput %y",
        # an operand that varies by row
        "input %r: f32[5*b, 8]\n%f = Reshape(%x, shape=(5*b, 8))\n%m = Add(%f, %r)\n%y = Reshape(%m, shape=(b, 5, 8))\n"
        "output %y",
    ],
)
def test_where_reshapes_have_to_stay(text: str) -> None:
    check(HEADER + text, unflatten, dims={"b": 2})


def test_without_a_gain_the_graph_is_the_same() -> None:
    graph = build(HEADER + "%f = Reshape(%x, shape=(5*b, 8))\n%m = MatMul(%f, %w)\noutput %m")
    assert unflatten(graph, Options()) is graph
    plain = build(HEADER + "%m = MatMul(%x, %w)\noutput %m")
    assert unflatten(plain, Options()) is plain


def test_work_that_others_read_is_not_moved() -> None:
    text = """
        input %x: f32[2, 5, 3, 4]
        weight %w: f32[12, 6]
        %f = Reshape(%x, shape=(10, 12))
        %m = MatMul(%f, %w)
        %o = Reshape(%m, shape=(2, 5, 6))
        output %o
        output %m
    """
    assert ops(check(text, unflatten)).count("MatMul") == 1
