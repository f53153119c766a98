"""Small ONNX files for the tests of the command line and of bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save_model(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    outputs: dict[str, list[int | str]],
    weights: dict[str, np.ndarray] | None = None,
    *,
    check: bool = True,
    domains: tuple[str, ...] = (),
) -> Path:
    """Writes a float model; ``check`` by ONNX's own checker."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        path.stem,
        [info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(d, 1) for d in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if check:
        onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def mlp_weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"w1": (16, 32), "b1": (32,), "w2": (32, 10)}
    return {n: (rng.standard_normal(s) / 4).astype(np.float32) for n, s in shapes.items()}


def mlp(path: Path, weights: dict[str, np.ndarray] | None = None) -> Path:
    """``softmax(relu(x w1 + b1) w2)`` over x[N, 16]."""
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["a"], name="fc1"),
        helper.make_node("Relu", ["a"], ["c"], name="relu"),
        helper.make_node("MatMul", ["c", "w2"], ["d"], name="fc2"),
        helper.make_node("Softmax", ["d"], ["y"], name="softmax", axis=-1),
    ]
    return save_model(path, nodes, {"x": ["N", 16]}, {"y": ["N", 10]}, weights or mlp_weights())


def mlp_result(x: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """What ``mlp`` computes, in f64."""
    wide = {n: a.astype(np.float64) for n, a in weights.items()}
    z = np.maximum(x.astype(np.float64) @ wide["w1"] + wide["b1"], 0) @ wide["w2"]
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def unknown_operators(path: Path) -> Path:
    """A model with two operators that nobody has, around one that everybody has."""
    nodes = [
        helper.make_node("Foo", ["x"], ["a"], name="first", domain="nobody"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Bar", ["b"], ["y"], name="second", domain="nobody"),
    ]
    return save_model(path, nodes, {"x": [2, 16]}, {"y": [2, 16]}, check=False, domains=("nobody",))
