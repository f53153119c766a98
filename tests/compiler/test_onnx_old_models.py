"""Models of operator sets before 7, which ONNX's version converter makes newer first, and Scan before 9."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import evaluate, floats

from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.onnx.importer import import_onnx

F = floats


def old(
    nodes: list[onnx.NodeProto], shape: list[int | str], weights: dict[str, np.ndarray], opset: int, out: list[int]
) -> onnx.ModelProto:
    """A model of IR version 3, whose initializers are inputs too."""
    tensor = helper.make_tensor_value_info
    inputs = [tensor("x", TensorProto.FLOAT, shape)]
    inputs += [tensor(k, TensorProto.FLOAT, w.shape) for k, w in weights.items()]
    constants = [numpy_helper.from_array(w, k) for k, w in weights.items()]
    graph = helper.make_graph(nodes, "old", inputs, [tensor("y", TensorProto.FLOAT, out)], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3)


def N(op: str, inputs: list[str], output: str, **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], **attrs)


WEIGHTS = {"w": F(12, 5, seed=1), "b": F(5, seed=2)}


def layers() -> list[onnx.NodeProto]:
    """What changed since: broadcasting by an attribute, shapes as attributes, flags of training."""
    return [
        N("Gemm", ["x", "w", "b"], "g", broadcast=1), N("Relu", ["g"], "r"),
        N("Dropout", ["r"], "d", is_test=1, ratio=0.3), N("Reshape", ["d"], "flat", shape=[2, 10]),
        N("Concat", ["flat", "flat"], "y", axis=1),
    ]  # fmt: skip


@pytest.mark.parametrize("opset", [1, 3])
def test_a_model_of_an_old_operator_set(opset: int) -> None:
    x = F(4, 12)
    (ours,) = evaluate(import_onnx(old(layers(), [4, 12], WEIGHTS, opset, [2, 20])), {"x": x})
    flat = np.maximum(x @ WEIGHTS["w"] + WEIGHTS["b"], 0).reshape(2, 10)
    np.testing.assert_allclose(ours, np.concatenate([flat, flat], 1), atol=1e-5)


def test_weights_of_an_old_file_are_read(tmp_path: Path) -> None:
    """Weights are cut out of a file before it is decoded: the converter sees their places only."""
    weights = {"w": F(300, 200)}
    path = tmp_path / "old.onnx"
    onnx.save(old([N("MatMul", ["x", "w"], "y")], [2, 300], weights, 1, [2, 200]), path)
    (ours,) = evaluate(import_onnx(path), {"x": F(2, 300)})
    np.testing.assert_allclose(ours, F(2, 300) @ weights["w"], rtol=1e-4, atol=1e-4)


def test_what_cannot_be_converted_says_why() -> None:
    with pytest.raises(UnsupportedError, match=r"operator set 1, and ONNX cannot convert it to 7: .*Pad") as caught:
        import_onnx(old([N("Pad", ["x"], "y", paddings=[1, 1])], [3], {}, 1, [5]))
    assert caught.value.hint == "export it again with operator set 7 or newer"
    with pytest.raises(UnsupportedError, match="Unrecognized attribute: alpha"):
        import_onnx(old([N("Relu", ["x"], "y", alpha=1.0)], [3], {}, 1, [5]))
    external = old([N("MatMul", ["x", "w"], "y")], [2, 12], WEIGHTS, 1, [2, 5])
    external.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(UnsupportedError, match="external data"):
        import_onnx(external)


# ------------------------------------------------------------------------------------------------------------- Scan 8


def scan(lengths: bool = False, **attrs: Any) -> onnx.ModelProto:
    """A running sum over the steps of each sequence, and its squares."""
    tensor = helper.make_tensor_value_info
    body = helper.make_graph(
        [N("Add", ["acc", "item"], "next"), N("Mul", ["next", "next"], "square")], "body",
        [tensor("acc", TensorProto.FLOAT, [3]), tensor("item", TensorProto.FLOAT, [3])],
        [tensor("next", TensorProto.FLOAT, [3]), tensor("square", TensorProto.FLOAT, [3])],
    )  # fmt: skip
    node = helper.make_node(
        "Scan", ["n" if lengths else "", "x0", "x"], ["last", "all"], body=body, num_scan_inputs=1, **attrs
    )
    inputs = [tensor("x0", TensorProto.FLOAT, [2, 3]), tensor("x", TensorProto.FLOAT, [2, 4, 3])]
    inputs += [tensor("n", TensorProto.INT64, [2])] if lengths else []
    outputs = [tensor("last", TensorProto.FLOAT, [2, 3]), tensor("all", TensorProto.FLOAT, [2, 4, 3])]
    graph = helper.make_graph([node], "scan", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 8)], ir_version=3)


@pytest.mark.parametrize("back", [0, 1])
def test_a_scan_of_a_batch(back: int) -> None:
    feeds = {"x0": F(2, 3), "x": F(2, 4, 3, seed=1)}
    last, every = evaluate(import_onnx(scan(directions=[back])), feeds)
    steps = feeds["x"][:, ::-1] if back else feeds["x"]
    sums = feeds["x0"][:, None] + np.cumsum(steps, 1)
    np.testing.assert_allclose(last, sums[:, -1], atol=1e-5)
    np.testing.assert_allclose(every, sums**2, rtol=1e-5, atol=1e-5)


def test_lengths_of_sequences_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="lengths of sequences"):
        import_onnx(scan(lengths=True))
