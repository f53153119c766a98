"""A limit of optimising: every limit gives a right build, each fusion counts once, and no limit changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graph_runs import assert_same, by_numpy, expected

from arcweld.compiler.ir import Graph
from arcweld.compiler.options import Limit, Options
from arcweld.compiler.text import parse_graph, print_graph
from arcweld.driver.build import build_graph
from arcweld.passes.dce import remove_dead
from arcweld.passes.fusion import Fuser
from arcweld.passes.pipeline import PASSES, REGION_PASSES, applications, beyond, run_passes

TEXT = """graph 'g'
symbol N(lo=1)
input %x: f32[N, 3, 6, 6]
weight %w: f32[4, 3, 3, 3] source='w'
weight %v: f32[16, 5] source='v'
weight %s: f32[4] source='s'
%c = Conv(%x, %w, strides=(2, 2), pads=(1, 1, 1, 1), dilations=(1, 1), group=1) @ 'conv'
%n = BatchNormalization(%c, %s, %s, %s, %s, epsilon=1e-05) @ 'norm'
%r = Relu(%n) @ 'relu'
%m = ReduceMean(%r, axes=(3,), keepdims=0) @ 'mean'
%t = Transpose(%m, perm=(0, 2, 1)) @ 'turn'
%p = Softmax(%t, axis=2) @ 'softmax'
output %p
"""
SIZES = {"N": 3}


@pytest.fixture(scope="module")
def graph() -> Graph:
    found = parse_graph(TEXT)
    rng = np.random.default_rng(0)
    data = {n: rng.uniform(0.5, 1.0, w.data.shape).astype(np.float32) for n, w in found.weights.items()}
    return found.replace(weights={n: replace(w, data=data[n]) for n, w in found.weights.items()})


def feeds() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((3, 3, 6, 6)).astype(np.float32)}


def assert_right(graph: Graph, limit: Limit | None) -> int:
    """Builds with a limit and compares; returns the number of regions."""
    options = Options(arch=("sm_80",), limit=limit)
    build = build_graph(graph, options, compile_kernels=False, verify_each=True)
    assert_same(graph, by_numpy(build, feeds(), SIZES), expected(graph, feeds(), SIZES))
    return len(build.fused.regions)


@pytest.mark.parametrize("passes", range(0, len(applications()) + 1, 3))
def test_every_limit_gives_a_right_build(passes: int, graph: Graph) -> None:
    assert_right(graph, Limit(passes))


def test_fusions_are_counted(graph: Graph) -> None:
    number = 1 + applications().index("fusion")
    optimised = run_passes(graph, Options(arch=("sm_80",)))
    fuser = Fuser(remove_dead(optimised), Limit(number, 1 << 30))
    fuser.run()
    assert {("conv", "relu"), ("mean", "mean")} <= {*fuser.joined}
    counts = [assert_right(graph, Limit(number, k)) for k in range(len(fuser.joined) + 1)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] == assert_right(graph, Limit(number))


def test_a_limit_behind_everything_is_none(graph: Graph) -> None:
    without, all_of_them = (Options(arch=("sm_80",), limit=x) for x in (None, Limit(len(applications()))))
    assert print_graph(run_passes(graph, without)) == print_graph(run_passes(graph, all_of_them))
    assert beyond(None) == beyond(Limit(len(applications()))) == frozenset()


def test_what_a_limit_leaves_out(graph: Graph) -> None:
    seen: list[str] = []
    limit = Limit(2)
    run_passes(graph, Options(limit=limit), observer=lambda p, before, after: seen.append(p.name))
    assert seen == ["ranges", "cleanup", "decompose", "decompose"]  # those that are needed run
    assert beyond(limit) >= set(REGION_PASSES)
    assert beyond(Limit(len(PASSES) + 2)) == {"chain", "siblings"}
