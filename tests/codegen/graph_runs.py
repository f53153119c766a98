"""Runs a graph's lowered kernels, by numpy or on the checked simulator, and compares with the registry's references."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from kernel_numpy import run_numpy

from arcweld.compiler.dims import evaluate
from arcweld.compiler.ir import Graph
from arcweld.compiler.options import Options
from arcweld.compiler.reference import run_reference
from arcweld.driver.build import Build, build_graph
from arcweld.driver.object_code import in_order
from arcweld.runtime.engine import Engine
from arcweld.runtime.sim.device import SimDevice

Arrays = Mapping[str, np.ndarray]


def built(graph: Graph, disable: frozenset[str] = frozenset()) -> Build:
    """The build for the simulator, every pass verified."""
    return build_graph(graph, Options(arch=("sm_80",), disable=disable), compile_kernels=False, verify_each=True)


def by_numpy(build: Build, feeds: Arrays, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The model's outputs by label, every launch evaluated by numpy."""
    graph = build.fused.graph
    types = {v.name: v.type for v in graph.values()}
    memory = {**feeds, **{n: w.data for n, w in graph.weights.items()}}
    for p in in_order(build.planned):
        for b in p.bound.kernel.buffers:
            t = p.bound.tensors[b.name]
            if b.written and t not in memory:
                memory[t] = np.full([evaluate(d, sizes) for d in types[t].shape], 99, b.dtype.numpy)
        kernel = p.bound.kernel
        run_numpy(kernel, {b.name: memory[p.bound.tensors[b.name]] for b in kernel.buffers}, sizes)
    made = {label: memory[o.name] for label, o in zip(graph.labels(), graph.outputs)}
    # an output that is an input is no kernel's business: the runtime copies it
    return {label: made[label] if label in made else feeds[label] for label in build.imported.labels()}


def on_simulator(build: Build, feeds: Arrays, seed: int = 0) -> dict[str, np.ndarray]:
    """The model's outputs by label, from the engine on the checked simulator."""
    return Engine(build.data, SimDevice(checked=True, seed=seed)).run_tensors(dict(feeds))


def expected(graph: Graph, feeds: Arrays, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The references' outputs by label."""
    want = run_reference(graph, feeds, bind=sizes)
    return {label: want[o.name] for label, o in zip(graph.labels(), graph.outputs)}


def assert_same(graph: Graph, got: Arrays, want: Arrays) -> None:
    """Equal types and shapes, equal integers, floats within the rounding of the graph's coarsest type."""
    half = any(v.dtype.is_half for v in graph.values())
    tolerance = 2e-2 if half else 1e-3
    for label, w in want.items():
        g = got[label]
        assert g.dtype == w.dtype, label
        assert g.shape == w.shape, label
        if w.dtype.kind in "iub":
            np.testing.assert_array_equal(g, w, err_msg=label)
            continue
        scale = float(np.abs(w[np.isfinite(w)]).max(initial=1.0))
        np.testing.assert_allclose(
            g.astype(np.float64), w.astype(np.float64), rtol=tolerance, atol=tolerance * scale, err_msg=label
        )
