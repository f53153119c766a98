"""Movement of quantised values: integers move where values were dequantised and quantised around it, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from pass_tools import build, ops, run

from arcweld.compiler.ir import Graph
from arcweld.compiler.options import Options
from arcweld.compiler.reference import run_reference
from arcweld.passes.quantised_movement import quantised_movement

HEAD = """
    input %x: u8[2, 4, 6, 8]
    input %z: u8[2, 4, 6, 8]
    weight %s: f32[] data=(0.0371,)
    weight %p: u8[] data=(131,)
    weight %t: f32[] data=(0.0372,)
    weight %o: u8[] data=(130,)
    %a = DequantizeLinear(%x, %s, %p, axis=0)
    %b = DequantizeLinear(%z, %s, %p, axis=0)
"""
QUANTISE = "%y = QuantizeLinear(%m, %s, %p, axis=0, dtype=dtype(u8))\noutput %y"


def check(text: str) -> Graph:
    """The graph after the pass, which gives equal bits for integers of the whole range."""
    before = build(HEAD + text)
    after, rng = run(before, quantised_movement), np.random.default_rng(0)
    feeds = {v.name: rng.integers(0, 256, v.shape).astype(np.uint8) for v in before.inputs}
    (want,), (got,) = (run_reference(g, feeds).values() for g in (before, after))
    np.testing.assert_array_equal(got, want)
    return after


@pytest.mark.parametrize(
    "moved",
    [
        "Transpose(%a, perm=(0, 2, 1, 3))", "Reshape(%a, shape=(8, 48))", "Concat(%a, %b, axis=1)",
        "Slice(%a, starts=(0, 1, 0, 0), sizes=(2, 2, 6, 8), steps=(1, 1, 1, 1))",
        "MaxPool(%a, kernel_shape=(3, 3), strides=(2, 2), dilations=(1, 1), pads=(1, 1, 1, 1))",
    ],
)  # fmt: skip
def test_integers_move(moved: str) -> None:
    assert ops(check(f"%m = {moved}\n{QUANTISE}")) == [moved.partition("(")[0]]


def test_quantising_again_changes_nothing() -> None:
    assert ops(check("%m = DequantizeLinear(%x, %s, %p, axis=0)\n" + QUANTISE + "\n%r = Relu(%a)")) == []


def test_a_chain_of_movements() -> None:
    text = """
        %m0 = Reshape(%a, shape=(8, 48))
        %q0 = QuantizeLinear(%m0, %s, %p, axis=0, dtype=dtype(u8))
        %d0 = DequantizeLinear(%q0, %s, %p, axis=0)
        %m = Transpose(%d0, perm=(1, 0))
    """
    assert ops(check(text + QUANTISE)) == ["Reshape", "Transpose"]


@pytest.mark.parametrize("scale", ["1e-30", "3e38", "0.0371"])
def test_every_integer_survives_its_scale(scale: str) -> None:
    """The pass relies on it; scales near the ends of f32's range are left alone."""
    text = f"""
        input %x: u8[256]
        weight %s: f32[] data=({scale},)
        weight %p: u8[] data=(131,)
        %a = DequantizeLinear(%x, %s, %p, axis=0)
        %y = QuantizeLinear(%a, %s, %p, axis=0, dtype=dtype(u8))
        output %y
    """
    before = build(text)
    after = run(before, quantised_movement)
    assert (ops(after) == []) == (scale != "3e38")
    every = np.arange(256, dtype=np.uint8)
    if scale != "3e38":
        np.testing.assert_array_equal(*(next(iter(run_reference(g, {"x": every}).values())) for g in (before, after)))


@pytest.mark.parametrize(
    "text",
    [
        "%m = Transpose(%a, perm=(0, 2, 1, 3))\n%y = QuantizeLinear(%m, %t, %p, axis=0, dtype=dtype(u8))\noutput %y",
        "%m = Transpose(%a, perm=(0, 2, 1, 3))\n%y = QuantizeLinear(%m, %s, %o, axis=0, dtype=dtype(u8))\noutput %y",
        "%m = Transpose(%a, perm=(0, 2, 1, 3))\n%y = QuantizeLinear(%m, %s, axis=0, dtype=dtype(i8))\noutput %y",
        f"%c = Relu(%b)\n%m = Concat(%a, %c, axis=1)\n{QUANTISE}",
        f"%m = Relu(%a)\n{QUANTISE}",
    ],
)
def test_others_stay(text: str) -> None:
    graph = build(HEAD + text)
    assert quantised_movement(graph, Options()) is graph
