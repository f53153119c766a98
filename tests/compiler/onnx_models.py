"""Small ONNX models for the importer's tests, and the comparison with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from arcweld.compiler.ir import Graph
from arcweld.compiler.onnx.importer import import_onnx
from arcweld.compiler.reference import run_reference
from arcweld.compiler.verifier import verify

onnxruntime.set_default_logger_severity(4)
Array = np.ndarray
IR_VERSIONS = {7: 3, 8: 3, 9: 4, 10: 5}


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[Any, Sequence[int | str | None]]],
    outputs: Sequence[str],
    constants: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
    **options: Any,
) -> onnx.ModelProto:
    """A model from nodes. ``inputs`` maps names to (numpy dtype, shape); output types are left open."""
    code = helper.np_dtype_to_tensor_dtype
    infos = [helper.make_tensor_value_info(n, code(np.dtype(d)), s) for n, (d, s) in inputs.items()]
    graph = helper.make_graph(
        list(nodes),
        "test",
        infos,
        [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )
    for info in graph.output:
        info.ClearField("type")
    opsets = [helper.make_opsetid("", opset), *options.pop("opsets", [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSIONS.get(opset, 8), **options)


def evaluate(graph: Graph, feeds: Mapping[str, Array]) -> list[Array]:
    """The graph's outputs by the registry's references, after verifying it."""
    verify(graph, after="import")
    found = run_reference(graph, {v.name: feeds[v.name] for v in graph.inputs})
    return [found[o.name] for o in graph.outputs]


def runtime(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """ONNX Runtime's outputs."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def compare(proto: onnx.ModelProto, feeds: Mapping[str, Array], tolerance: float = 2e-5, **options: Any) -> Graph:
    """Asserts that the imported model and ONNX Runtime agree; returns the imported graph."""
    graph = import_onnx(proto, **options)
    ours, theirs = evaluate(graph, feeds), runtime(proto, feeds)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        b = np.asarray(b)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        if a.dtype.kind == "f":
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(a, b)
    return graph


def one_node(
    op: str,
    opset: int,
    feeds: Sequence[Array | None],
    attrs: Mapping[str, Any] | None = None,
    constants: Mapping[int, Array] | None = None,
    *,
    outputs: int = 1,
    domain: str = "",
    open_dims: bool = False,
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model of one node and its feeds. ``constants`` gives further inputs by position as initializers."""
    fixed = dict(constants or {})
    count = max(len(feeds), max(fixed, default=-1) + 1)
    given = {f"x{i}": f for i, f in enumerate(feeds) if f is not None}
    names = [f"x{i}" if f"x{i}" in given or i in fixed else "" for i in range(count)]
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, results, name=f"the_{op}", domain=domain, **(attrs or {}))
    inputs = {n: (a.dtype, [f"d{d}" if open_dims else d for d in a.shape]) for n, a in given.items()}
    extra = [helper.make_opsetid(domain, 1)] if domain else []
    proto = model([node], inputs, results, {f"x{i}": a for i, a in fixed.items()}, opset=opset, opsets=extra)
    return proto, given


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: Any) -> Array:
    return np.array(values, np.int64)
