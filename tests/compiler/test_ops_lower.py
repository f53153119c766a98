"""Every lowering against the numpy reference: the expression, interpreted at every output element, gives the output.

This proves index maps, masks and formulas without any code generation. The interpreter refuses unmasked reads outside
their buffer, so an index map that strays fails here too. Row programs and decompositions are checked the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from op_sweep import Loads, Sweep, assert_close, grid, label, sweeps, symbolic

from arcweld.compiler.dims import evaluate
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, variable
from arcweld.compiler.interpret import interpret
from arcweld.compiler.ir import Graph, Node, Rewriter, TensorType, Value
from arcweld.compiler.ops.registry import OpDef, make, must_decompose, opdef
from arcweld.compiler.ops.resize import MODES, TRANSFORMS
from arcweld.compiler.reference import run_reference


def run_lowering(op: OpDef, node: Node, feeds: Mapping[str, np.ndarray], symbols: Mapping[str, int]) -> np.ndarray:
    """The output of a node according to its lowering."""
    assert op.lower is not None
    sizes = [evaluate(d, symbols) for d in node.output.shape]
    coords, values = grid(node.output.shape, sizes)
    expr = op.lower(Loads(), node, coords)
    assert expr.dtype is node.output.dtype.compute
    if 0 in sizes:
        return np.zeros(sizes, node.output.dtype.numpy)
    result = interpret(expr, feeds, {**values, **symbols})
    return np.broadcast_to(result, sizes).astype(node.output.dtype.numpy)


@pytest.mark.parametrize("sweep", sweeps(lower=True), ids=label)
def test_lowering_agrees_with_the_reference(sweep: Sweep) -> None:
    graph, feeds = sweep.build()
    want = run_reference(graph, feeds)[graph.outputs[0].name]
    assert_close(run_lowering(sweep.op, graph.nodes[0], feeds, {}), want, sweep.dtype)


@pytest.mark.parametrize("sweep", [s for s in sweeps(lower=True) if s.dtype is DType.F32], ids=label)
def test_lowering_with_a_symbolic_dimension_agrees_with_the_reference(sweep: Sweep) -> None:
    for node, graph, feeds, extent in symbolic(sweep):
        want = run_reference(graph, feeds)[graph.outputs[0].name]
        assert_close(run_lowering(sweep.op, node, feeds, {"S": extent}), want, sweep.dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transform", TRANSFORMS[:5])
@pytest.mark.parametrize("scales", [None, (1.0, 1.0, 0.1, 2.0)])
def test_resizing_to_nothing_has_a_lowering(mode: str, transform: str, scales: tuple[float, ...] | None) -> None:
    """A scale of 0 has no inverse."""
    for rows in (0, 4):
        x = Value("x", TensorType(DType.F32, (1, 2, rows, 4)))
        rw = Rewriter(Graph("g", (x,), (), ()))
        attrs = {"sizes": (1, 2, 0, 8), "scales": scales, "mode": mode, "coordinate_transformation_mode": transform}
        make(rw, "Resize", [x], attrs)
        (node,) = rw.nodes
        feeds = {"x": np.zeros((1, 2, rows, 4), np.float32)}
        assert run_lowering(opdef("Resize"), node, feeds, {}).shape == (1, 2, 0, 8)
        assert opdef("Resize").reference([feeds["x"]], node.attrs)[0].shape == (1, 2, 0, 8)


# ------------------------------------------------------------------------------------------------- row programs

COMBINE = {"sum": np.sum, "max": np.max, "min": np.min}


def run_rows(op: OpDef, node: Node, feeds: Mapping[str, np.ndarray], symbols: Mapping[str, int]) -> np.ndarray:
    """The output of a node according to its row program."""
    assert op.row is not None
    program = op.row(node)
    x = node.operands()[0]
    dtype = x.dtype.compute
    values: dict[str, np.ndarray] = {"x": feeds[x.name].astype(dtype.numpy)}
    axes = tuple(range(x.type.rank - program.axes, x.type.rank))
    scalars: dict[str, Expr] = {}
    element = variable("x", dtype)

    def run(e: Expr, at: Mapping[str, Any]) -> np.ndarray:
        return interpret(e, feeds, {**at, **symbols}, values)

    for stage in program.stages:
        mapped = np.broadcast_to(run(stage.value(element, scalars), {}), values["x"].shape)
        values[stage.name] = COMBINE[stage.combine](mapped, axis=axes, keepdims=True)
        scalars[stage.name] = variable(stage.name, dtype)
        if stage.finish is not None:
            values[stage.name] = run(stage.finish(scalars[stage.name], scalars), {})
    shape = values["x"].shape[: x.type.rank - program.axes] if program.per_row else values["x"].shape
    coords, indices = grid(node.output.shape, shape)
    result = run(program.result(Loads(), node, element, scalars, coords), indices)
    return np.broadcast_to(result.reshape(shape) if program.per_row else result, shape).astype(node.output.dtype.numpy)


def rowwise() -> list[Sweep]:
    """The cases that are row programs: those along the last axes."""
    return [s for s in sweeps(row=True) if not must_decompose(s.build()[0].nodes[0])]


@pytest.mark.parametrize("sweep", rowwise(), ids=label)
def test_row_program_agrees_with_the_reference(sweep: Sweep) -> None:
    graph, feeds = sweep.build()
    want = run_reference(graph, feeds)[graph.outputs[0].name]
    assert_close(run_rows(sweep.op, graph.nodes[0], feeds, {}), want, sweep.dtype)


@pytest.mark.parametrize("sweep", [s for s in rowwise() if s.dtype is DType.F32], ids=label)
def test_row_program_with_a_symbolic_dimension_agrees_with_the_reference(sweep: Sweep) -> None:
    for node, graph, feeds, extent in symbolic(sweep):
        want = run_reference(graph, feeds)[graph.outputs[0].name]
        assert_close(run_rows(sweep.op, node, feeds, {"S": extent}), want, sweep.dtype)


# ------------------------------------------------------------------------------------------------ decompositions


def decomposed(op: OpDef, graph: Graph, node: Node) -> Graph:
    """The graph of ``node``'s decomposition alone, not decomposed further."""
    assert op.decompose is not None
    inputs = tuple(v for v in node.inputs if v is not None)
    rw = Rewriter(graph.replace(inputs=inputs, outputs=node.outputs, nodes=()))
    for old, new in zip(node.outputs, op.decompose(rw, node), strict=True):
        assert new.type == old.type
        rw.alias(old, new)
    return rw.finish()


@pytest.mark.parametrize("sweep", sweeps(decompose=True), ids=label)
def test_decomposition_agrees_with_the_reference(sweep: Sweep) -> None:
    graph, feeds = sweep.build()
    want = run_reference(graph, feeds)
    parts = decomposed(sweep.op, graph, graph.nodes[0])
    got = run_reference(parts, feeds)
    for new, old in zip(parts.outputs, graph.outputs, strict=True):
        assert_close(got[new.name], want[old.name], sweep.dtype)


@pytest.mark.parametrize("sweep", [s for s in sweeps(decompose=True) if s.dtype is DType.F32], ids=label)
def test_decomposition_with_a_symbolic_dimension_agrees_with_the_reference(sweep: Sweep) -> None:
    for node, graph, feeds, _ in symbolic(sweep):
        want = run_reference(graph, feeds)
        parts = decomposed(sweep.op, graph, node)
        got = run_reference(parts, feeds)
        for new, old in zip(parts.outputs, graph.outputs, strict=True):
            assert_close(got[new.name], want[old.name], sweep.dtype)


@pytest.mark.parametrize("sweep", sweeps(decompose=True), ids=label)
def test_decomposition_keeps_the_origin_of_the_node(sweep: Sweep) -> None:
    graph, _ = sweep.build()
    for node in decomposed(sweep.op, graph, graph.nodes[0]).nodes:
        assert node.origin == graph.nodes[0].origin
