"""Parts of ONNX models: what ONNX Runtime computes with them is what it computes in the whole model."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from arcweld.compiler.dims import symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import TensorType, Value
from arcweld.compiler.onnx.extract import extract, tensor_names

N = symbol("N", 1)


def model() -> onnx.ModelProto:
    """A chain with a branch that captures ``b``, and a shape that is computed."""
    info = helper.make_tensor_value_info
    branch = [
        helper.make_graph([helper.make_node(op, ["b", "w"], [f"{op}.r"], name=op)], op, [],
                          [info(f"{op}.r", TensorProto.FLOAT, None)])
        for op in ("Add", "Sub")
    ]  # fmt: skip
    nodes = [
        helper.make_node("Relu", ["x"], ["a:0"], name="relu"),
        helper.make_node("Neg", ["a:0"], ["b"], name="neg"),
        helper.make_node("If", ["which"], ["c"], name="if", then_branch=branch[0], else_branch=branch[1]),
        helper.make_node("Shape", ["b"], ["s"], name="shape"),
        helper.make_node("Reshape", ["c", "s"], ["d"], name="reshape"),
        helper.make_node("Exp", ["d"], ["y"], name="exp"),
    ]
    graph = helper.make_graph(
        nodes, "m", [info("x", TensorProto.FLOAT, ["N", 4]), info("which", TensorProto.BOOL, [])],
        [info("y", TensorProto.FLOAT, ["N", 4])], [numpy_helper.from_array(np.float32([1, 2, 3, 4]), "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def value(name: str, *shape: object) -> Value:
    return Value(name, TensorType(DType.F32, shape))  # type: ignore[arg-type]


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], *names: str) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(list(names), feeds))


@pytest.mark.parametrize("which", [True, False])
def test_a_part_with_a_branch(which: bool) -> None:
    whole = model()
    whole.graph.output.append(helper.make_tensor_value_info("a:0", TensorProto.FLOAT, ["N", 4]))
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    y, a = run(whole, {"x": x, "which": np.array(which)}, "y", "a:0")
    names = tensor_names(whole)
    cut = next(n for n, tensor in names.items() if tensor == "a:0")
    constants = {"which": np.array(which)}
    part = extract(whole, [value(cut, N, 4)], [value("y", N, 4)], {"N": 3}, constants)
    onnx.checker.check_model(part, full_check=True)
    assert [n.name for n in part.graph.node] == ["neg", "if", "shape", "reshape", "exp"]
    assert [i.name for i in part.graph.input] == ["a:0"]
    assert [d.dim_param or d.dim_value for d in part.graph.input[0].type.tensor_type.shape.dim] == ["N", 4]
    np.testing.assert_array_equal(run(part, {"a:0": a}, "y")[0], y)


def test_an_expression_is_a_number() -> None:
    part = extract(model(), [value("b", 2 * N, 4)], [value("s")], {"N": 3}, {})
    assert [d.dim_value for d in part.graph.input[0].type.tensor_type.shape.dim] == [6, 4]
    assert [n.name for n in part.graph.node] == ["shape"]


def test_what_cannot_be_cut() -> None:
    with pytest.raises(ModelError, match="has no tensor inner"):
        extract(model(), [value("inner", 2)], [value("y", 2)], {}, {})
    with pytest.raises(ModelError, match="nothing makes the tensor which"):
        extract(model(), [value("b", 2, 4)], [value("y", 2, 4)], {}, {})
