"""Half precision on models that it breaks: only what needs f32 stays in f32, and the result is accurate."""

from __future__ import annotations

import numpy as np
import pytest

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node, TensorType, Value, Weight
from arcweld.driver import api

F32 = DType.F32
RNG = np.random.default_rng(7)


def overflowing(layers: int = 6) -> tuple[Graph, np.ndarray, np.ndarray]:
    """Products whose middle layer reaches 1e6, far beyond f16, and comes back; and what numpy makes of it."""
    x = RNG.standard_normal((4, 16)).astype(np.float32)
    nodes, weights = [], {}
    value, y = Value("x", TensorType(F32, (4, 16))), x.astype(np.float64)
    for i in range(layers):
        w = RNG.standard_normal((16, 16)) / 4 * {layers // 2: 1e6, layers // 2 + 1: 1e-6}.get(i, 1.0)
        w = w.astype(np.float32)
        weights[f"w{i}"] = Weight(w)
        out = Value(f"y{i}", TensorType(F32, (4, 16)))
        nodes.append(Node("MatMul", (value, Value(f"w{i}", TensorType(F32, (16, 16)))), (out,), {}, (f"layer{i}",)))
        value, y = out, y @ w
    graph = Graph("overflow", (Value("x", TensorType(F32, (4, 16))),), (value,), tuple(nodes), weights, ("y",))
    return graph, x, y


def test_overflow_is_promoted_and_nothing_else() -> None:
    graph, x, want = overflowing()
    _, engine = api.build_engine(graph, precision="fp16", device="sim", feeds={"x": x})
    evidence = engine.data.verify
    assert "layer3" in evidence["promotion"]["f32"]
    assert not {"layer0", "layer1", "layer5"} & set(evidence["promotion"]["f32"])
    got = engine(x)
    assert np.linalg.norm(got - want) / np.linalg.norm(want) < 2e-2


def test_harmless_models_stay_in_half() -> None:
    graph, x, _ = overflowing(layers=1)
    graph = graph.replace(weights={"w0": Weight(np.eye(16, dtype=np.float32))})
    _, engine = api.build_engine(graph, precision="fp16", device="sim", feeds={"x": x})
    assert engine.data.verify["promotion"]["f32"] == []
    assert any(w.dtype == "f16" for w in engine.program.weights)


@pytest.mark.parametrize("tolerance", [1e-5, 1e-6])
def test_a_strict_tolerance_ends_in_f32(tolerance: float) -> None:
    graph, x, want = overflowing()
    _, engine = api.build_engine(graph, precision="bf16", device="sim", feeds={"x": x}, tolerance=tolerance)
    assert all(w.dtype == "f32" for w in engine.program.weights)
    assert np.linalg.norm(engine(x) - want) / np.linalg.norm(want) < tolerance
