"""Small pointwise kernels that become one, what stays apart, and what every kernel computes for itself."""

from __future__ import annotations

import numpy as np
import pytest

from arcweld.compiler.options import Options
from arcweld.compiler.reference import run_reference
from arcweld.compiler.text import parse_graph
from arcweld.driver.build import build_graph
from arcweld.runtime.engine import Engine
from arcweld.runtime.sim.device import SimDevice

X = "input %x: f32[4, 8]\n"
# graph -> the templates of its regions
CASES = {
    "of one input": (X + "%a = Cos(%x)\n%b = Sin(%x)\noutput %a\noutput %b\n", ["pointwise"]),
    "of several": (
        X + "input %z: f32[4, 8]\n%a = Cos(%x)\n%b = Sqrt(%z)\noutput %a\noutput %b\n", ["pointwise"]
    ),
    "one after another": (X + "%a = Cos(%x)\n%b = Exp(%a)\noutput %a\noutput %b\n", ["pointwise"]),
    "counters": (
        "input %n: i64[1]\ninput %m: i64[1]\nweight %one: i64[] data=(1,)\n%a = Add(%n, %one)\n%b = Identity(%a)\n"
        "output %a 'a' in %n\noutput %b 'b' in %m\n",
        ["pointwise"],
    ),
    "of other shapes": (
        X + "%a = Cos(%x)\n%p: f32[4, 4] = Slice(%x, starts=(0, 0), sizes=(4, 4), steps=(1, 1))\n%b = Sin(%p)\n"
        "output %a\noutput %b\n",
        ["pointwise", "pointwise"],
    ),
    "by way of a sum": (
        X + "%a = Cos(%x)\n%s = ReduceSum(%a, axes=(1,), keepdims=1)\n%t: f32[4, 8] = Expand(%s, shape=(4, 8))\n"
        "%b = Mul(%x, %t)\noutput %a\noutput %b\n",
        ["pointwise", "pointwise", "reduce"],
    ),
    "at other elements": (
        X + "%a = Cos(%x)\n%r: f32[4, 8] = Slice(%a, starts=(0, 7), sizes=(4, 8), steps=(1, -1))\n%b = Exp(%r)\n"
        "output %a\noutput %b\n",
        ["pointwise", "pointwise"],
    ),
    "the old values of what the other writes": (
        X.replace("%x", "%n") + "%a = Cos(%n)\n%r: f32[4, 8] = Slice(%n, starts=(0, 7), sizes=(4, 8), steps=(1, -1))\n"
        "%b = Exp(%r)\noutput %a 'a' in %n\noutput %b\n",
        ["pointwise", "pointwise"],
    ),
    "large ones": (
        X.replace("[4, 8]", "[513, 8]") + "%a = Cos(%x)\n%b = Sin(%x)\noutput %a\noutput %b\n",
        ["pointwise", "pointwise"],
    ),
    "a mask by a position": (
        "input %q: f32[1, 2, 1, 8]\ninput %k: f32[1, 2, 16, 8]\ninput %at: i64[1]\n"
        "weight %places: i64[1, 1, 1, 16] data=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)\n"
        "%m = LessOrEqual(%places, %at)\n"
        "%a = Attention(%q, %k, %k, %m, scale=0.5, is_causal=0)\n"
        "%b = Attention(%k, %k, %k, %m, scale=0.5, is_causal=0)\noutput %a\noutput %b\n",
        ["attention", "attention"],
    ),
    "a mask that takes more": (
        "input %q: f32[1, 2, 1, 8]\ninput %k: f32[1, 2, 16, 8]\ninput %at: f32[1]\n"
        "weight %places: f32[1, 1, 1, 16] data=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)\n"
        "%p = Sin(%places)\n%o = Mul(%p, %at)\n%m = Sin(%o)\n"
        "%a = Attention(%q, %k, %k, %m, scale=0.5, is_causal=0)\n"
        "%b = Attention(%k, %k, %k, %m, scale=0.5, is_causal=0)\noutput %a\noutput %b\n",
        ["attention", "attention", "pointwise"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_kernels_and_their_results(name: str) -> None:
    text, templates = CASES[name]
    graph = parse_graph("graph 'g'\n" + text)
    build = build_graph(graph, Options(arch=("sm_80",)), compile_kernels=False, verify_each=True)
    assert sorted(r.template for r in build.fused.regions) == templates
    rng = np.random.default_rng(2)
    shapes = {v.name: (tuple(int(d) for d in v.shape if isinstance(d, int)), v.dtype.numpy) for v in graph.inputs}
    given = {k: (np.abs(rng.standard_normal(s)) * 4).astype(t) for k, (s, t) in shapes.items()}
    want = run_reference(graph, given)
    got = Engine(build.data, SimDevice(checked=True)).run({k: v.copy() for k, v in given.items()})
    for label, o in zip(graph.labels(), graph.outputs):
        np.testing.assert_allclose(got[label], want[o.name], rtol=1e-5, atol=1e-6)
