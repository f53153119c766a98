"""State: which results are written over the input that they replace, in which order, and that the numbers are right."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from arcweld.compiler.reference import run_reference
from arcweld.compiler.region import FusedGraph
from arcweld.compiler.text import parse_graph
from arcweld.driver import api
from arcweld.driver.build import in_regions
from arcweld.runtime.arrays import aligned_empty

CACHE = """input %cache: f32[2, 16, 8]
input %at: i64[2, 1, 8]
input %new: f32[2, 1, 8]
"""
APPEND = "%next = ScatterElements(%cache, %at, %new, axis=1, reduction='none', strict=0)\n"
OUT = "output %next 'next' in %cache\n"

IN_PLACE = {
    "append": CACHE + APPEND + OUT,
    "append, then read": CACHE + APPEND + "%y = ReduceSum(%next, axes=(1,), keepdims=0)\noutput %y 'y'\n" + OUT,
    "the old values are read first": CACHE + APPEND + "%y = Mul(%cache, %cache)\noutput %y 'y'\n" + OUT,
    "many updates": CACHE.replace("[2, 1, 8]", "[2, 16, 8]") + APPEND + OUT,
    "nd": "input %cache: f16[6, 4]\ninput %at: i64[2, 1]\ninput %new: f16[2, 4]\n"
    "%next = ScatterND(%cache, %at, %new, reduction='none', strict=0)\n" + OUT,
    "added": CACHE + APPEND.replace("'none'", "'add'") + OUT,
    "elementwise": "input %cache: f32[5, 7]\ninput %new: f32[7]\n"
    "%a = Mul(%cache, %cache)\n%next = Sub(%a, %new)\n" + OUT,
    "counter": "input %cache: i64[1]\nweight %one: i64[] data=(1,)\n%next = Add(%cache, %one)\n" + OUT,
}
COPIED = {
    "other places": ("input %cache: f32[8, 8]\n%next = Transpose(%cache, perm=(1, 0))\n" + OUT, "other places"),
    "shifted": (
        "input %cache: f32[8]\ninput %new: f32[1]\n%s: f32[7] = Slice(%cache, starts=(1,), sizes=(7,), steps=(1,))\n"
        "%next = Concat(%s, %new, axis=0)\n" + OUT,
        "other places",
    ),
    "broadcast": ("input %cache: f32[1]\ninput %m: f32[1]\n%r = Expand(%cache, shape=(4,))\n"
                  "%next = ReduceSum(%r, axes=(0,), keepdims=1)\n" + OUT, "anew"),
    "a product": ("input %cache: f32[8, 8]\ninput %w: f32[8, 8]\n%next = MatMul(%cache, %w)\n" + OUT, "anew"),
    "updates from the old values": (
        "input %cache: f32[2, 16, 8]\ninput %at: i64[2, 1, 8]\n"
        "%new: f32[2, 1, 8] = Slice(%cache, starts=(0, 4, 0), sizes=(2, 1, 8), steps=(1, 1, 1))\n" + APPEND + OUT,
        "other places",
    ),
    "old and new values together": (CACHE + APPEND + "%y = Sub(%next, %cache)\noutput %y 'y'\n" + OUT, "old values"),
    "products combined": (CACHE.replace("f32", "f16") + APPEND.replace("'none'", "'mul'") + OUT, "anew"),
}  # fmt: skip


def regions(text: str) -> FusedGraph:
    return in_regions(parse_graph("graph 'g'\n" + text))


def arrays(text: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    made = {}
    for v in parse_graph("graph 'g'\n" + text).inputs:
        made[v.name] = aligned_empty(tuple(int(d) for d in v.shape), v.dtype.numpy)
        made[v.name][...] = rng.standard_normal(made[v.name].shape) if v.dtype.is_float else 0
    if "at" in made and made["at"].ndim == 3:
        made["at"][...] = rng.permutation(16)[: made["at"].shape[1], None]
    elif "at" in made:
        made["at"][...] = [[4], [1]]
    return made


def expected(name: str, given: Mapping[str, np.ndarray]) -> np.ndarray:
    """The new state by numpy."""
    old = given["cache"]
    if name in ("elementwise", "counter"):
        return old * old - given["new"] if name == "elementwise" else old + 1
    new = old.copy()
    if name == "nd":
        new[given["at"][:, 0]] = given["new"]
    elif name == "added":
        new[:, given["at"][0, :, 0]] += given["new"]
    else:
        new[:, given["at"][0, :, 0]] = given["new"]
    return new


@pytest.mark.parametrize("name", IN_PLACE)
def test_state_is_written_where_it_is(name: str) -> None:
    fused = regions(IN_PLACE[name])
    (writer,) = [r for r in fused.regions if r.in_place]
    assert list(writer.in_place.values()) == ["cache"]
    engine = api.compile_graph(parse_graph("graph 'g'\n" + IN_PLACE[name]), device="sim")
    assert not any("copy" in x.name for x in engine.program.launches)
    given = arrays(IN_PLACE[name])
    want, old = expected(name, given), given["cache"].copy()
    found = engine.run(given)
    assert found["next"] is given["cache"]
    np.testing.assert_allclose(found["next"].astype(np.float64), want.astype(np.float64), rtol=1e-6)
    if name == "append, then read":
        np.testing.assert_allclose(found["y"], want.sum(1), rtol=1e-5, atol=1e-5)
    if name == "the old values are read first":
        np.testing.assert_array_equal(found["y"], old * old)


@pytest.mark.parametrize("name", COPIED)
def test_state_that_cannot_be_is_copied_and_the_reason_said(name: str) -> None:
    text, reason = COPIED[name]
    fused = regions(text)
    assert not any(r.in_place for r in fused.regions)
    assert reason in fused.copied["cache"]
    given = arrays(text)
    graph = parse_graph("graph 'g'\n" + text)
    want = run_reference(graph, {k: v.copy() for k, v in given.items()})
    found = api.compile_graph(graph, device="sim").run(given)
    assert found["next"] is given["cache"]
    np.testing.assert_allclose(found["next"], want["next"], rtol=1e-5, atol=1e-5)


def test_two_writers_that_wait_for_each_others_readers() -> None:
    """Each sum needs an old state and the other's new one: one state can be in place, not both."""
    text = """input %a: f32[8]
input %b: f32[8]
input %at: i64[1]
input %new: f32[1]
%a1 = ScatterElements(%a, %at, %new, axis=0, reduction='none', strict=0)
%b1 = ScatterElements(%b, %at, %new, axis=0, reduction='none', strict=0)
%x = ReduceSum(%a, axes=(0,), keepdims=0)
%y = ReduceSum(%b, axes=(0,), keepdims=0)
%p = Sub(%a, %b1)
%q = Sub(%b, %a1)
output %a1 'a1' in %a
output %b1 'b1' in %b
output %x 'x'
output %y 'y'
output %p 'p'
output %q 'q'
"""
    fused = regions(text)
    assert sum(bool(r.in_place) for r in fused.regions) == 1
    rng = np.random.default_rng(0)
    a, b = (aligned_empty((8,), np.dtype(np.float32)) for _ in range(2))
    a[...], b[...] = rng.standard_normal((2, 8))
    new = np.array([7.0], np.float32)
    a1, b1 = a.copy(), b.copy()
    a1[2], b1[2] = 7, 7
    want = {"x": a.sum(), "y": b.sum(), "p": a - b1, "q": b - a1}
    found = api.compile_graph(parse_graph("graph 'g'\n" + text), device="sim").run(
        {"a": a, "b": b, "at": np.array([2]), "new": new}
    )
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)
    np.testing.assert_array_equal(a, a1)
    np.testing.assert_array_equal(b, b1)
