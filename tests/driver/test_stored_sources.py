"""The comment above a stored kernel: which nodes and tensors it is for, whatever they are called."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from arcweld.driver.api import compile as compile_model


def model(node_name: str) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])
    w = numpy_helper.from_array(np.arange(8, dtype=np.float32), "shift")
    graph = helper.make_graph([helper.make_node("Add", ["x", "shift"], ["y"], name=node_name)], "g", [x], [y], [w])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def test_it_names_nodes_and_tensors() -> None:
    (source,) = compile_model(model("add_shift"), device="sim").data.sources.values()
    title = [line for line in source.splitlines() if line.startswith("//")]
    assert any("add_shift" in line for line in title)
    for buffer in ("in0 = x: f32[n, 8]", "in1 = shift: f32[8]", "out0 = y: f32[n, 8]"):
        assert any(line.strip("/ ") == buffer for line in title)


@pytest.mark.parametrize("name", ["a\n#error injected", "b\r#error injected", "c\u2028#error injected", "ends in \\"])
def test_a_name_never_leaves_its_comment(name: str) -> None:
    engine = compile_model(model(name), device="sim")
    (source,) = engine.data.sources.values()
    assert not any(line.startswith("#error") for line in source.splitlines())
    x = np.ones((2, 8), np.float32)
    np.testing.assert_array_equal(engine(x), x + np.arange(8, dtype=np.float32))
