"""Indices out of range in inputs on the host: found before a kernel runs, and only where they are indices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from arcweld.compiler.errors import DeviceError, InputError
from arcweld.compiler.options import Options
from arcweld.compiler.text import parse_graph
from arcweld.driver.build import build_graph
from arcweld.driver.limits import index_limits
from arcweld.runtime.engine import Engine
from arcweld.runtime.sim.device import SimDevice

APPEND = """graph 'append'
symbol s(lo=1, hi=8)
input %x: f32[s, 4]
input %at: i64[s]
input %k: f32[16, 4]
%places = Reshape(%at, shape=(s, 1))
%wide = Expand(%places, shape=(s, 4))
%new = ScatterElements(%k, %wide, %x, axis=0, reduction='none', strict=1)
output %new in %k
"""
RUN = """graph 'run'
symbol s(lo=1, hi=8)
input %x: f32[2, s, 4]
input %length: i64[2]
input %k: f32[2, 16, 4]
%first = Reshape(%length, shape=(2, 1, 1))
%r = Range(start=0, step=1, length=s, dtype=dtype(i64))
%run = Reshape(%r, shape=(1, s, 1))
%places = Add(%run, %first)
%wide = Expand(%places, shape=(2, s, 4))
%new = ScatterElements(%k, %wide, %x, axis=1, reduction='none', strict=1)
output %new in %k
"""


def limits(text: str) -> list[tuple[str, ...]]:
    return [(x.input, x.extent, x.least, x.most) for x in index_limits(parse_graph(text))]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (APPEND, [("at", "16", "0", "0")]),
        (RUN, [("length", "16", "0", "s - 1")]),
        (APPEND.replace("strict=1", "strict=0"), []),  # an update out of range is dropped
        (RUN.replace("Add(%run, %first)", "Sub(%first, %run)"), [("length", "16", "-s + 1", "0")]),
        (RUN.replace("Add(%run", "Mul(%run"), []),
        (RUN.replace("%places = Add(%run, %first)", "%p = Add(%run, %first)\n%places = Add(%p, %p)"), []),
        # each element has one position only
        (APPEND.replace("%places = Reshape(%at", "%r = Range(start=0, step=1, length=s, dtype=dtype(i64))\n"
                        "%sum = Add(%at, %r)\n%places = Reshape(%sum"), []),
        ("graph 'g'\nsymbol n(lo=1)\ninput %i: i32[3]\ninput %x: f32[n, 4]\n"
         "%y = Gather(%x, %i, axis=0, strict=1)\noutput %y", [("i", "n", "0", "0")]),
        ("graph 'g'\ninput %i: i64[3]\ninput %j: i64[3]\ninput %x: f32[9, 4]\n"
         "%s = Where(%c, %i, %j)\n%y = Gather(%x, %s, axis=0, strict=1)\noutput %y".replace("%c", "%b").replace(
             "input %x", "input %b: bool[3]\ninput %x"), []),
    ],
)  # fmt: skip
def test_what_is_known_of_inputs(text: str, found: list[tuple[str, ...]]) -> None:
    assert limits(text) == found


def engine(text: str) -> Engine:
    return Engine(build_graph(parse_graph(text), Options(), compile_kernels=False).data, SimDevice(checked=True))


def feeds(text: str, s: int, at: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(s)
    if text is APPEND:
        shapes: dict[str, tuple[int, ...]] = {"x": (s, 4), "k": (16, 4)}
    else:
        shapes = {"x": (2, s, 4), "k": (2, 16, 4)}
    found = {n: rng.standard_normal(d).astype(np.float32) for n, d in shapes.items()}
    return {**found, ("at" if text is APPEND else "length"): np.array(at, np.int64)}


@pytest.mark.parametrize(
    ("text", "s", "at"),
    [
        (APPEND, 2, [15, 16]), (APPEND, 1, [-17]), (APPEND, 3, [1, 2, 1 << 40]),
        (RUN, 3, [2, 14]), (RUN, 8, [0, 9]), (RUN, 1, [16, 0]), (RUN, 2, [-17, 3]),
    ],
)  # fmt: skip
def test_nothing_is_written(text: str, s: int, at: list[int]) -> None:
    given = feeds(text, s, at)
    before = given["k"].copy()
    with pytest.raises(InputError, match="is out of range for an axis of 16 elements"):
        engine(text).run(given)
    np.testing.assert_array_equal(given["k"], before)


@pytest.mark.parametrize(
    ("text", "s", "at"),
    [(APPEND, 2, [15, -16]), (APPEND, 3, [1, 2, 0]), (RUN, 3, [2, 13]), (RUN, 8, [0, 8]), (RUN, 2, [-16, 3])],
)
def test_what_fits_is_written(text: str, s: int, at: list[int]) -> None:
    """The last places too, those that count from the end, and positions that go back."""
    given, run = feeds(text, s, at), engine(text)
    want = given["k"].copy()
    if text is APPEND:
        want[np.array(at)] = given["x"]
    else:
        for b, first in enumerate(at):
            want[b, np.arange(first, first + s)] = given["x"][b]
    got = run.run(given)
    assert got["new"] is given["k"]
    np.testing.assert_array_equal(got["new"], want)


def test_an_index_that_is_computed_is_found_by_the_kernel() -> None:
    text = APPEND.replace("%places = Reshape(%at", "%twice = Mul(%at, %at)\n%places = Reshape(%twice")
    with pytest.raises(DeviceError, match="index 25 is out of range for an axis of 16 elements"):
        engine(text).run(feeds(APPEND, 2, [1, 5]))
