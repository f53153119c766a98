"""Inputs that a build draws for itself: sizes that leave no window empty, indices that exist."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from arcweld.compiler.errors import UsageError
from arcweld.driver import api
from arcweld.driver.samples import sample_inputs, sample_sizes


def test_classes_that_an_input_is_compared_with_bound_its_samples() -> None:
    nodes = [helper.make_node("Equal", ["x", "classes"], ["e"]), helper.make_node("Cast", ["e"], ["y"], to=1)]
    x = helper.make_tensor_value_info("x", TensorProto.INT32, [64, 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 100])
    classes = numpy_helper.from_array(np.arange(100, dtype=np.int32).reshape(1, 100), "classes")
    model = helper.make_model(
        helper.make_graph(nodes, "one_hot", [x], [y], [classes]),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    drawn = sample_inputs(api.import_model(model), {})["x"]
    assert drawn.min() >= 0
    assert 50 < drawn.max() < 100


def pooled(shape: list[int | str], pools: int, kernel: int = 4) -> api.Graph:
    """``pools`` poolings one after the other, each taking ``kernel`` steps of ``kernel``."""
    nodes = [
        helper.make_node("MaxPool", [f"x{i}"], [f"x{i + 1}"], kernel_shape=[kernel] * 2, strides=[kernel] * 2)
        for i in range(pools)
    ]
    x = helper.make_tensor_value_info("x0", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info(f"x{pools}", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "pooled", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return api.import_model(model)


@pytest.mark.parametrize(("pools", "size"), [(1, 32), (2, 32), (3, 64), (4, 256)])
def test_sizes_grow_until_no_value_is_empty(pools: int, size: int) -> None:
    assert sample_sizes(pooled(["n", 3, "h", "w"], pools)) == {"n": 1, "h": size, "w": size}


def test_given_sizes_stay() -> None:
    assert sample_sizes(pooled(["n", 3, "h", "w"], 3), {"h": 32})["h"] == 32


def test_a_multiple_is_about_as_large_as_a_plain_dimension() -> None:
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"])], "relu",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "h", "w"])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "h", "w"])],
        ),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    graph = api.import_model(model, inputs=[api.Input("x", ("n", "8*rows", "64*columns"))])
    assert sample_sizes(graph) == {"n": 1, "rows": 4, "columns": 1}
    with pytest.raises(UsageError, match="a name that the model does not use, such as h_n"):
        api.import_model(model, inputs=[api.Input("x", ("n", "8*h", "w"))])
