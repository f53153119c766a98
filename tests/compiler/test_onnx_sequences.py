"""Sequences and optional values that are settled while importing, against ONNX Runtime.

As inputs and outputs of a model: ``tests/driver/test_sequences.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper
from onnx_models import compare, floats, ints, model

from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.onnx.importer import import_onnx

N = helper.make_node
X: dict[str, tuple[Any, list[Any]]] = {"x": (np.float32, ["N", 6, 4])}
CONSTANTS = {"one": np.int64(1), "last": np.int64(-1), "zero": np.int64(0), "two": np.int64(2), "sizes": ints(1, 3, 2)}


def _proto(*nodes: NodeProto, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    return model(list(nodes), X, list(outputs), CONSTANTS)


SPLITS = {
    "single": ({"axis": 1, "keepdims": 0}, []),
    "kept": ({"axis": 1}, []),
    "by two": ({"axis": -1}, ["two"]),
    "by sizes": ({"axis": 1}, ["sizes"]),
}


@pytest.mark.parametrize("split", SPLITS)
def test_parts_of_a_tensor(split: str) -> None:
    attrs, sizes = SPLITS[split]
    proto = _proto(
        N("SplitToSequence", ["x", *sizes], ["s"], **attrs), N("SequenceAt", ["s", "last"], ["y"]),
        N("SequenceLength", ["s"], ["n"]), outputs=("y", "n"),
    )  # fmt: skip
    compare(proto, {"x": floats(2, 6, 4)})


@pytest.mark.parametrize("new_axis", [0, 1])
def test_lists_are_built_changed_and_joined(new_axis: int) -> None:
    proto = _proto(
        N("Relu", ["x"], ["a"]), N("Neg", ["x"], ["b"]), N("SequenceEmpty", [], ["e"]),
        N("SequenceInsert", ["e", "a"], ["s1"]), N("SequenceInsert", ["s1", "b", "zero"], ["s2"]),
        N("SequenceInsert", ["s2", "x"], ["s3"]), N("SequenceErase", ["s3", "one"], ["s4"]),
        N("Identity", ["s4"], ["s5"]), N("ConcatFromSequence", ["s5"], ["y"], axis=1, new_axis=new_axis),
        N("SequenceConstruct", ["a", "y"], ["t"]), N("SequenceAt", ["t", "one"], ["z"]), outputs=("y", "z"),
    )  # fmt: skip
    compare(proto, {"x": floats(2, 6, 4)})


def test_a_loop_appends_to_a_list() -> None:
    """What a scripted loop over a list becomes."""
    sequence = helper.make_tensor_sequence_value_info
    body = helper.make_graph(
        [
            N("Identity", ["go"], ["still"]), N("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
            N("Mul", ["x", "f"], ["m"]), N("SequenceInsert", ["list", "m"], ["longer"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []), sequence("list", TensorProto.FLOAT, None),
        ],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []), sequence("longer", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        N("SequenceEmpty", [], ["e"]), N("Loop", ["trips", "", "e"], ["s"], body=body),
        N("ConcatFromSequence", ["s"], ["y"], axis=1),
    ]  # fmt: skip
    compare(model(nodes, X, ["y"], {"trips": np.int64(3)}), {"x": floats(2, 6, 4)})


def test_optional_values() -> None:
    proto = _proto(
        N("Optional", ["x"], ["o"]), N("OptionalHasElement", ["o"], ["h"]), N("OptionalGetElement", ["o"], ["v"]),
        N("Relu", ["v"], ["y"]), outputs=("y", "h"),
    )  # fmt: skip
    compare(proto, {"x": floats(2, 6, 4)})


_FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, None)


def _identity() -> onnx.GraphProto:
    return helper.make_graph([N("Identity", ["a"], ["b"])], "body", [onnx.ValueInfoProto(name="a")],
                             [onnx.ValueInfoProto(name="b")])  # fmt: skip


def _pair() -> onnx.GraphProto:
    return helper.make_graph([N("SequenceConstruct", ["a"], ["b"])], "body", [onnx.ValueInfoProto(name="a")],
                             [onnx.ValueInfoProto(name="b")])  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "error", "text"),
    [
        ([N("SequenceEmpty", [], ["y"])], UnsupportedError, "there is nothing to compute"),
        ([N("SequenceMap", ["x"], ["y"], body=_identity())], ModelError, "maps sequences of"),
        ([N("SequenceConstruct", ["x"], ["s"]), N("SequenceMap", ["s"], ["y"], body=_pair())], ModelError, "gives a s"),
        ([N("OptionalGetElement", [""], ["y"])], ModelError, "the optional value is empty"),
        ([N("Optional", [], ["o"], type=_FLOATS), N("Relu", ["o"], ["y"])], ModelError, "an empty optional value"),
        ([N("SequenceConstruct", ["x"], ["s"]), N("Relu", ["s"], ["y"])], ModelError, "an operand is a sequence"),
        ([N("SequenceConstruct", ["x"], ["s"]), N("SequenceAt", ["s", "two"], ["y"])], ModelError, "place 2"),
        ([N("SequenceAt", ["x", "one"], ["y"])], ModelError, "should be a sequence"),
        ([N("SequenceEmpty", [], ["s"]), N("ConcatFromSequence", ["s"], ["y"], axis=0)], ModelError, "empty"),
        ([N("SplitToSequence", ["x"], ["s"]), N("SequenceAt", ["s", "one"], ["y"])], UnsupportedError, "depends on"),
    ],
)
def test_what_cannot_be_followed_is_refused(nodes: list[NodeProto], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        import_onnx(_proto(*nodes))


@pytest.mark.parametrize("what", ["a scanned output is a sequence", "the body's condition is a sequence"])
def test_sequences_where_a_loop_wants_tensors(what: str) -> None:
    value = lambda name: onnx.ValueInfoProto(name=name)
    outputs = ["go", "empty"] if "scanned" in what else ["empty", "go"]
    body = helper.make_graph(
        [N("SequenceEmpty", [], ["empty"])], "body", [value("i"), value("go")], [value(n) for n in outputs]
    )
    nodes = [N("Loop", ["trips", ""], ["items"], body=body), N("Identity", ["x"], ["y"])]
    with pytest.raises(ModelError, match=what):
        import_onnx(model(nodes, {"x": (np.float32, [2])}, ["y"], {"trips": np.int64(2)}))
