"""Engines that attend to long caches: kernels with a workspace and counters, from the graph to a verified engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace as with_parts

from arcweld.compiler.ir import Graph
from arcweld.compiler.options import Options
from arcweld.compiler.reference import run_reference
from arcweld.compiler.text import parse_graph
from arcweld.driver.build import build_graph
from arcweld.driver.remake import difference
from arcweld.runtime.engine import Engine
from arcweld.runtime.engine_file import read_engine, write_engine
from arcweld.runtime.sim.device import SimDevice

TWO_LAYERS = """graph 'steps'
symbol t(lo=1, hi=2048)
input %q: f32[1, 4, 1, 32]
input %k: f32[1, 2, t, 32]
input %v: f32[1, 2, t, 32]
input %m: bool[1, 1, 1, t]
%a: f32[1, 4, 1, 32] = Attention(%q, %k, %v, %m, scale=0.25, is_causal=0, fill=float(-inf), softcap=0.0) @ 'a'
%y: f32[1, 4, 1, 32] = Attention(%a, %v, %k, %m, scale=0.25, is_causal=0, fill=float(-inf), softcap=0.0) @ 'a.partial'
output %y
"""


def feeds(t: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(t)
    shapes = {"q": (1, 4, 1, 32), "k": (1, 2, t, 32), "v": (1, 2, t, 32)}
    found = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    found["m"] = np.arange(t)[None, None, None] <= t // 2
    return found


@pytest.fixture(scope="module")
def graph() -> Graph:
    return parse_graph(TWO_LAYERS)


def test_two_layers_share_a_kernel_but_no_counters(graph: Graph, tmp_path: Path) -> None:
    data = build_graph(graph, Options(arch=("sm_90a",)), compile_kernels=False).data
    first, second = (x.variants[0] for x in data.program.launches)
    assert first.entry == second.entry
    names = [t.name for v in (first, second) for t in v.own()]
    assert len(names) == len(set(names)) == 6
    write_engine(tmp_path / "m.engine", data)
    assert difference(read_engine(tmp_path / "m.engine")) == ""
    engine = Engine(data, SimDevice(checked=True))
    for t in (1, 31, 1000, 2048, 31):
        given = feeds(t)
        (want,) = run_reference(graph, given).values()
        np.testing.assert_allclose(engine.run(given)["y"], want, rtol=1e-4, atol=1e-5)


def test_another_workspace_is_not_what_this_version_makes(graph: Graph) -> None:
    data = build_graph(graph, Options(arch=("sm_90a",)), compile_kernels=False).data
    launch, *others = data.program.launches
    (variant,) = launch.variants
    for kind in ("workspace", "counters"):
        small = tuple(with_parts(array, shape=("1",)) for array in getattr(variant, kind))
        changed = with_parts(launch, variants=(with_parts(variant, **{kind: small}),))
        program = with_parts(data.program, launches=(changed, *others))
        assert difference(replace(data, program=program)) == f"launch {launch.name} is another"
