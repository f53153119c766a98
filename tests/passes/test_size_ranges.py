"""Which sizes of a graph get regions of their own, and what the graph is at these sizes."""

from __future__ import annotations

import pytest
from pass_tools import build

from arcweld.compiler.dims import bounds, free_symbols
from arcweld.compiler.errors import UsageError
from arcweld.compiler.options import Options
from arcweld.compiler.size_ranges import SizeRange
from arcweld.compiler.verifier import verify
from arcweld.passes.size_ranges import size_ranges

WIDE = "weight %w: f32[1024, 1024]\n%y = MatMul(%x, %w)\noutput %y"
STEP = """symbol s(lo=1)
input %x: f32[{rows}, s, 64]
input %k: f32[{rows}, 4, 128, 16]
input %i: i64[s, 1]
weight %w: f32[64, 64]
%m = MatMul(%x, %w)
%h = Reshape(%m, shape=({rows}, s, 4, 16))
%t = Transpose(%h, perm=(0, 2, 1, 3))
%u = Transpose(%k, perm=(2, 0, 1, 3))
%v = Transpose(%t, perm=(2, 0, 1, 3))
%n = ScatterND(%u, %i, %v, reduction='none', strict=0)
%new = Transpose(%n, perm=(1, 2, 0, 3))
output %m
output %new in %k
"""
GROWING = """symbol s(lo=1)
symbol p(lo=1)
input %x: f32[1, s, 64]
input %k: f32[1, 4, p, 16]
weight %w: f32[64, 64]
%m = MatMul(%x, %w)
%h = Reshape(%m, shape=(1, s, 4, 16))
%t = Transpose(%h, perm=(0, 2, 1, 3))
%new = Concat(%k, %t, axis=2)
output %m
output %new
"""


def labels(text: str, precision: str = "fp32") -> list[str]:
    return [r.label for r in size_ranges(build(text), Options(precision=precision))]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("symbol n(lo=1)\ninput %x: f32[n, 1024]\n" + WIDE, ["n=1..8", "n=1..64"]),
        ("symbol n(lo=1, hi=64)\ninput %x: f32[n, 2, 1024]\n" + WIDE, ["n=1..4", "n=1..32"]),
        ("symbol n(lo=2, hi=64, multiple_of=2)\ninput %x: f32[n, 1024]\n" + WIDE, ["n=2..8"]),
        ("symbol n(lo=1, hi=8)\ninput %x: f32[n, 1024]\n" + WIDE, []),  # few rows at all sizes
        ("symbol n(lo=9)\ninput %x: f32[n, 1024]\n" + WIDE, []),
        ("symbol n(lo=1)\ninput %x: f32[n, 16, 1024]\n" + WIDE, []),
        ("symbol n(lo=1)\nsymbol m(lo=1)\ninput %x: f32[n, m, 1024]\n" + WIDE, []),  # sentences are not as short
        ("input %x: f32[4, 1024]\n" + WIDE, []),
        ("symbol n(lo=1)\ninput %x: f32[n, 64]\n" + WIDE.replace("1024", "64"), []),  # too few weights
        (STEP.format(rows="1"), ["s=1", "s=1..64"]),
        ("symbol b(lo=1)\n" + STEP.format(rows="b"), ["b=1..8,s=1", "b=1..64,s=1", "s=1"]),
        ("symbol b(lo=1, hi=8)\n" + STEP.format(rows="b"), ["s=1"]),
        (STEP.format(rows="1").replace("s(lo=1)", "s(lo=2)"), []),
        (GROWING, ["s=1", "s=1..64"]),
    ],
)
def test_the_sizes_at_which_products_have_few_rows(text: str, found: list[str]) -> None:
    assert labels(text) == found


def test_more_rows_of_half_precision_are_few() -> None:
    text = "symbol n(lo=1)\ninput %x: f32[n, 1024]\n" + WIDE
    assert labels(text, "bf16") == ["n=1..16", "n=1..64"]
    assert labels(text.replace("f32", "f16")) == ["n=1..16", "n=1..64"]
    assert labels(text.replace("1024", "1025"), "fp16") == ["n=1..8", "n=1..64"]


def test_convolutions_read_more_than_the_classifier() -> None:
    text = """symbol n(lo=1)
    input %x: f32[n, 64, 8, 8]
    weight %c: f32[1024, 64, 5, 5]
    weight %w: f32[1024, 1024]
    %a = Conv(%x, %c, strides=(1, 1), pads=(2, 2, 2, 2), dilations=(1, 1), group=1)
    %p = ReduceMax(%a, axes=(2, 3), keepdims=0)
    %y = MatMul(%p, %w)
    output %y"""
    assert labels(text) == []
    pointwise = text.replace("64, 5, 5]", "64, 1, 1]").replace("pads=(2, 2, 2, 2)", "pads=(0, 0, 0, 0)")
    assert labels(pointwise) == ["n=1..8", "n=1..64"]


def test_a_graph_at_the_sizes_of_a_range() -> None:
    graph = build(GROWING)
    one = SizeRange.of({"s": 1}).narrowed(graph)
    verify(one)
    assert [s.name for s in one.symbols()] == ["p"]
    assert one.inputs[0].shape == (1, 1, 64)
    assert str(one.outputs[1].shape[2]) == "p + 1"
    few = SizeRange.of({"s": (1, 8), "p": (2, 5)}).narrowed(graph)
    assert {s.name: (s.lo, s.hi) for v in few.values() for d in v.shape for s in free_symbols(d)} == {
        "s": (1, 8), "p": (2, 5)
    }  # fmt: skip
    assert bounds(few.outputs[1].shape[2]) == (3, 13)


@pytest.mark.parametrize(
    ("bounds_", "said"),
    [({"q": 1}, "no dimension is called 'q'"), ({"s": 0}, "not within that of s"), ({"s": (3, 2)}, "not within")],
)
def test_impossible_ranges(bounds_: dict[str, int | tuple[int, int]], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        SizeRange.of(bounds_).narrowed(build(GROWING))
