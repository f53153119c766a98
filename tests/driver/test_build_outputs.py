"""Outputs that no kernel would have to compute: inputs, constants, and values with several names."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from arcweld.driver.api import compile as compile_model

node = helper.make_node


@pytest.mark.parametrize("disable", [(), ("constant-folding",)], ids=["folded", "not folded"])
@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ([node("Add", ["a", "a"], ["y"]), node("Relu", ["x"], ["z"])], {"y": [3, 4], "z": [2, 3]}),
        ([node("Relu", ["x"], ["z"])], {"a": [3, 4], "z": [2, 3]}),
        ([node("Relu", ["x"], ["z"])], {"z": [2, 3], "x": [2, 3]}),
        ([], {"x": [2, 3]}),
        ([node("Identity", ["x"], ["y"])], {"y": [2, 3]}),
        ([node("Mul", ["x", "b"], ["z"])], {"b": [2, 3], "z": [2, 3], "x": [2, 3]}),
        ([node("Relu", ["x"], ["z"]), node("Identity", ["z"], ["w"])], {"w": [2, 3], "z": [2, 3]}),
        ([node("Relu", ["x"], ["z"]), node("Neg", ["z"], ["w"])], {"w": [2, 3], "z": [2, 3]}),
    ],
    ids=["constant", "initializer", "input", "input alone", "renamed", "read initializer", "two names", "read output"],
)
def test_every_kind_of_output(
    nodes: list[onnx.NodeProto], outputs: dict[str, list[int]], disable: tuple[str, ...]
) -> None:
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        nodes,
        "outputs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(rng.random(s, np.float32), n) for n, s in (("a", (3, 4)), ("b", (2, 3)))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    x = rng.standard_normal((2, 3)).astype(np.float32)
    got = compile_model(model, device="sim", verify="full", disable=disable).run({"x": x})
    assert list(got) == list(outputs)
    for name, want in zip(outputs, ReferenceEvaluator(model).run(None, {"x": x})):
        np.testing.assert_array_equal(got[name], want)
    if "x" in got:
        assert not np.shares_memory(got["x"], x)
