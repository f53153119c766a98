"""Half precision on models that it breaks: only what needs f32 stays in f32, and the result is accurate."""

from __future__ import annotations

import numpy as np
import pytest

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node, TensorType, Value, Weight
from arcweld.compiler.text import parse_graph
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


def test_only_what_overflows_of_many_nodes_stays_in_f32() -> None:
    """Three of forty normalised layers have sums of squares beyond f16; the rest is harmless."""
    width, rng = 32, np.random.default_rng(3)
    lines, weights = [f"graph 'g'\ninput %x: f32[8, {width}]\nweight %two: f32[] data=2.0\n%h0 = Identity(%x)"], {}
    for i in range(40):
        gain = 3000.0 if i in (5, 17, 30) else 1.0
        weights[f"w{i}"] = Weight((rng.standard_normal((width, width)) / np.sqrt(width) * gain).astype(np.float32))
        lines.append(f"""weight %w{i}: f32[{width}, {width}] source='w{i}'
%a{i} = MatMul(%h{i}, %w{i}) @ 'product{i}'
%s{i} = Mul(%a{i}, %a{i}) @ 'square{i}'
%m{i} = ReduceMean(%s{i}, axes=(1,), keepdims=True) @ 'mean{i}'
%r{i} = Sqrt(%m{i}) @ 'root{i}'
%h{i + 1} = Div(%a{i}, %r{i}) @ 'norm{i}'""")
    graph = parse_graph("\n".join([*lines, "output %h40"]))
    graph = graph.replace(weights={n: weights.get(n, w) for n, w in graph.weights.items()})
    x = rng.standard_normal((8, width)).astype(np.float32)
    _, engine = api.build_engine(graph, precision="fp16", device="sim", feeds={"x": x}, disable=["rowwise"])
    found = set(engine.data.verify["promotion"]["f32"])
    assert {"square5", "square17", "square30"} <= found
    assert not any(f"{kind}{i}" in found for i in (0, 10, 20, 39) for kind in ("product", "norm"))
    want = x.astype(np.float64)
    for i in range(40):
        a = want @ weights[f"w{i}"].data.astype(np.float64)
        want = a / np.sqrt(np.mean(a * a, 1, keepdims=True))
    assert np.linalg.norm(engine(x) - want) / np.linalg.norm(want) < 2e-2


def test_a_tolerance_that_leaves_nothing_in_half_warns_with_the_share() -> None:
    graph, x, _ = overflowing()
    with pytest.warns(RuntimeWarning, match=r"a tolerance of 1e-06 leaves 0 % of the operations in fp16: all 6 nodes"):
        api.build_engine(graph, precision="fp16", device="sim", feeds={"x": x}, tolerance=1e-6)


def test_without_verification_the_lack_of_promotion_is_said() -> None:
    graph, _, _ = overflowing(layers=1)
    with pytest.warns(RuntimeWarning, match="without verification no node is kept in f32"):
        api.build_data(graph, precision="fp16", device="sim", verify="off")
