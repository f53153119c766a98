"""What the importer says is true: of counts, of hints, and of what a model lacks inside its subgraphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_models import ints, model

from arcweld.compiler import host_nodes
from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.onnx.importer import import_onnx, support_report

N = helper.make_node


def refusal(proto: onnx.ModelProto) -> UnsupportedError:
    with pytest.raises(UnsupportedError) as caught:
        import_onnx(proto)
    return caught.value


def loop(trips: int) -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [N("Add", ["a", "a"], ["b"]), N("Identity", ["go"], ["on"])], "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("a", TensorProto.FLOAT, [2])],
        [info("on", TensorProto.BOOL, []), info("b", TensorProto.FLOAT, [2])],
    )  # fmt: skip
    nodes = [N("Loop", ["trips", "", "x"], ["y"], name="loop", body=body)]
    return model(nodes, {"x": (np.float32, [2])}, ["y"], {"trips": np.array(trips, np.int64)})


def test_a_long_loop_is_not_unrolled() -> None:
    (node,) = [n for n in import_onnx(loop(300)).nodes if n.op == host_nodes.REPEAT]
    assert node.attrs["most"] == 300
    assert host_nodes.REPEAT not in {n.op for n in import_onnx(loop(3)).nodes}


def branch(op: str = "Relu", **attrs: Any) -> onnx.GraphProto:
    out = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    return helper.make_graph([N(op, ["x"], ["b"], name=op.lower(), **attrs)], op, [], [out])


def test_data_is_no_input_to_make_a_constant() -> None:
    """An axis that depends on an image's mean; and one that depends on a mode."""
    reduced = [N("ReduceMean", ["x"], ["m"], keepdims=0), N("Cast", ["m"], ["a"], to=TensorProto.INT64)]
    summed = N("CumSum", ["x", "a"], ["y"], name="summed")
    error = refusal(model([*reduced, summed], {"x": (np.float32, [1, 3, 8, 8])}, ["y"]))
    assert "depend on the data of input x" in error.message
    assert error.hint is None
    inputs: dict[str, Any] = {"x": (np.float32, [4]), "mode": (np.int64, [])}
    error = refusal(model([N("Add", ["mode", "one"], ["a"]), summed], inputs, ["y"], {"one": np.int64(1)}))
    assert "--values mode:VALUE" in str(error.hint)


def test_what_a_branch_lacks_is_listed_with_the_rest() -> None:
    """Operators that there are not, inside an If whose condition is data, in a Loop inside that, and beside them."""
    info = helper.make_tensor_value_info
    nms = N("Suppress", ["boxes", "scores"], ["kept"], name="nms")
    out = [info("kept", TensorProto.INT64, None)]
    loop_body = helper.make_graph(
        [N("Single", ["x"], ["u"], name="unique"), N("Identity", ["go"], ["on"])], "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, [])], [info("on", TensorProto.BOOL, [])],
    )  # fmt: skip
    then = helper.make_graph([N("Loop", ["three", ""], [], name="again", body=loop_body), nms], "then", [], out)
    other = helper.make_graph([N("Gelu", ["x"], ["g"], name="gelu"), nms], "else", [], out)
    nodes = [
        N("ReduceMean", ["x"], ["m"], keepdims=0), N("Greater", ["m", "zero"], ["c"]),
        N("If", ["c"], ["kept"], name="choice", then_branch=then, else_branch=other),
        N("Places", ["x"], ["where"], name="nonzero"),
    ]  # fmt: skip
    inputs: dict[str, Any] = {
        "x": (np.float32, [6]), "boxes": (np.float32, [1, 9, 4]), "scores": (np.float32, [1, 2, 9]),
    }  # fmt: skip
    proto = model(nodes, inputs, ["kept", "where"], {"zero": np.float32(0), "three": ints(3).reshape(())})
    found = [(row.node, row.op) for row in support_report(proto) if not row.supported]
    assert sorted(found) == [
        ("choice/else/nms", "Suppress"), ("choice/then/again/0/unique", "Single"), ("choice/then/nms", "Suppress"),
        ("nonzero", "Places"),
    ]  # fmt: skip
    message = str(refusal(proto))
    for _, op in found:
        assert f"  {op} [" in message


def test_a_type_that_onnx_allows_is_unsupported_and_not_the_models_fault() -> None:
    nodes = [N("QuantizeLinear", ["x", "scale"], ["y"], name="steps")]
    scale = {"scale": np.float32(0.5)}
    error = refusal(model(nodes, {"x": (np.int32, [4])}, ["y"], scale, opset=21))
    assert "QuantizeLinear [steps]: QuantizeLinear does not take i32 operands" in error.message
    with pytest.raises(ModelError, match="does not take i64"):
        import_onnx(model(nodes, {"x": (np.int64, [4])}, ["y"], scale, opset=21))
