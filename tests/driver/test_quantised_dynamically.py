"""DynamicQuantizeLinear as an engine on the simulator: one kernel or two, equal to its reference and ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from arcweld.driver.api import compile as compile_model
from arcweld.driver.inputs import Input
from arcweld.runtime.engine import Engine

FLOAT, BYTE = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8
RESULTS = ("y", "scale", "zero")


def model(shape: tuple[int | str, ...], before: str = "") -> onnx.ModelProto:
    """The operator on an input, or on what the operator ``before`` makes of it; all results are outputs."""
    nodes = [helper.make_node(before, ["x"], ["h"])] if before else []
    nodes.append(helper.make_node("DynamicQuantizeLinear", ["h" if before else "x"], RESULTS))
    info = helper.make_tensor_value_info
    outputs = [info("y", BYTE, shape), info("scale", FLOAT, []), info("zero", BYTE, [])]
    graph = helper.make_graph(nodes, "dynamic", [info("x", FLOAT, shape)], outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def by_onnxruntime(proto: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(r) for r in session.run(None, {"x": x})]


def check(engine: Engine, proto: onnx.ModelProto, x: np.ndarray) -> None:
    got = engine.run({"x": x})
    for want in (ReferenceEvaluator(proto).run(None, {"x": x}), by_onnxruntime(proto, x)):
        for name, w in zip(RESULTS, want):
            np.testing.assert_array_equal(got[name], w)


def floats(*shape: int, low: float, high: float) -> np.ndarray:
    return np.random.default_rng(5).uniform(low, high, shape).astype(np.float32)


RANGES = [(-2.0, 3.0), (0.5, 3.0), (-3.0, -0.5), (-1e-9, 1e-9), (-3e30, 2e30)]


@pytest.mark.parametrize("shape", [(1, 512), (3, 50), (2, 3, 7, 9), (1,), (70, 333)], ids=str)
def test_it_is_one_kernel(shape: tuple[int, ...]) -> None:
    proto = model(shape)
    engine = compile_model(proto, device="sim")
    assert len(engine.data.program.launches) == 1
    for low, high in RANGES:
        check(engine, proto, floats(*shape, low=low, high=high))
    nothing = engine.run({"x": np.zeros(shape, np.float32)})  # any scale will do
    assert not nothing["y"].any()
    assert nothing["zero"] == 0
    assert nothing["scale"] > 0


def test_what_makes_the_tensor_is_part_of_the_kernel() -> None:
    proto = model((3, 50), before="Neg")
    engine = compile_model(proto, device="sim")
    assert len(engine.data.program.launches) == 1
    check(engine, proto, floats(3, 50, low=-2.0, high=3.0))


def test_an_open_size() -> None:
    proto = model(("n", 50))
    engine = compile_model(proto, device="sim", inputs=Input("x", [("n", 1, 64), 50]))
    assert len(engine.data.program.launches) == 1
    for n in (1, 5, 64):
        check(engine, proto, floats(n, 50, low=-2.0, high=3.0))


@pytest.mark.parametrize("before", ["", "Neg"])
def test_a_large_tensor_takes_two_kernels(before: str) -> None:
    proto = model((3, 50_000), before)
    engine = compile_model(proto, device="sim", verify="off")
    assert len(engine.data.program.launches) == 2
    for low, high in RANGES:
        check(engine, proto, floats(3, 50_000, low=low, high=high))


def test_so_does_one_of_any_size() -> None:
    proto = model(("n", 50))
    engine = compile_model(proto, device="sim")
    assert len(engine.data.program.launches) == 2
    for n in (1, 7, 200):
        check(engine, proto, floats(n, 50, low=-2.0, high=3.0))


def test_in_half_precision_a_small_range_keeps_its_scale() -> None:
    proto = model((3, 50), before="Neg")
    engine = compile_model(proto, device="sim", precision="fp16")
    x = np.float16(floats(3, 50, low=-4e-6, high=4e-6)).astype(np.float32)
    check(engine, proto, x)
