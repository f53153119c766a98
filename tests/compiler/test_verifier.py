"""The verifier: one broken graph for each rule, with a message that names pass, node and remedy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from arcweld.compiler.dims import symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import VerifyError
from arcweld.compiler.ir import Graph, Node, TensorType, Value, Weight
from arcweld.compiler.text import parse_graph
from arcweld.compiler.verifier import verify

GOOD = """
graph 'g'
symbol n(lo=1)
input %x: f32[n, 3]
weight %w: f32[3, 4]
weight %b: f32[4]
%m = MatMul(%x, %w) @ 'linear'
%a = Add(%m, %b) @ 'linear'
%y = Softmax(%a, axis=1) @ 'head'
output %y 'scores'
"""


def graph() -> Graph:
    return parse_graph(GOOD)


def test_a_good_graph_passes() -> None:
    verify(graph())


def change(index: int, **fields: object) -> Callable[[Graph], Graph]:
    """Replaces fields of one node."""

    def apply(g: Graph) -> Graph:
        nodes = list(g.nodes)
        nodes[index] = dataclasses.replace(nodes[index], **fields)  # type: ignore[arg-type]
        return g.replace(nodes=tuple(nodes))

    return apply


X = Value("x", TensorType(DType.F32, (symbol("n", 1), 3)))
M = Value("m", TensorType(DType.F32, (symbol("n", 1), 4)))
NARROW = Value("m", TensorType(DType.F16, (symbol("n", 1), 4)))
W = Value("w", TensorType(DType.F32, (3, 4)))
OTHER = Value("other", TensorType(DType.F32, (symbol("n", 2), 3)))

BROKEN: dict[str, tuple[Callable[[Graph], Graph], str]] = {
    "written twice": (change(1, outputs=(M,)), "%m is written twice"),
    "an input is written": (change(0, outputs=(Value("x", M.type),)), "%x is written twice"),
    "a weight is written": (change(0, outputs=(Value("w", M.type),)), "%w is written twice"),
    "read before written": (lambda g: g.replace(nodes=g.nodes[::-1]), "%a is read before it is written"),
    "never written": (lambda g: g.replace(nodes=g.nodes[1:]), "%m is read before it is written"),
    "read with another type": (
        change(1, inputs=(NARROW, NARROW)), "%m is read as f16[n, 4], but was written as f32[n, 4]",
    ),
    "unknown operator": (change(2, op="Softmin"), "Softmin is not a registered operator"),
    "no outputs": (change(2, outputs=()), "a node without outputs"),
    "missing attribute": (change(2, attrs={}), "the attributes ['axis'] are missing or unknown"),
    "unknown attribute": (change(2, attrs={"axis": 1, "mode": 0}), "the attributes ['mode'] are missing or unknown"),
    "numpy attribute": (change(2, attrs={"axis": np.int64(1)}), "is not of kind int"),
    "attribute of another kind": (change(2, attrs={"axis": "last"}), "the attribute axis='last' is not of kind int"),
    "attribute out of range": (change(2, attrs={"axis": 7}), "the operands do not fit"),
    "too few operands": (change(0, inputs=(X,)), "1 operands given for (a, b)"),
    "too many operands": (change(0, inputs=(X, W, W)), "3 operands given for (a, b)"),
    "a needed operand is missing": (change(0, inputs=(X, None)), "2 operands given for (a, b)"),
    "wrong result type": (
        change(2, outputs=(Value("y", TensorType(DType.F32, (3,))),)), "declared f32[3], but inferred f32[n, 4]",
    ),
    "weight of another shape": (
        lambda g: g.replace(weights={**g.weights, "w": Weight(np.zeros((4, 3), np.float32))}),
        "%w is read as f32[3, 4], but the weight is f32[4, 3]",
    ),
    "weight of another type": (
        lambda g: g.replace(weights={**g.weights, "w": Weight(np.zeros((3, 4), np.float16))}),
        "%w is read as f32[3, 4], but the weight is f16[3, 4]",
    ),
    "input and weight": (
        lambda g: g.replace(weights={**g.weights, "x": Weight(np.zeros(1))}), "%x is written twice",
    ),
    "no such output": (lambda g: g.replace(outputs=(OTHER,)), "%other is read before it is written"),
    "labels": (lambda g: g.replace(output_labels=("a", "b")), "the output labels do not fit"),
    "two symbols of one name": (
        lambda g: g.replace(inputs=(*g.inputs, OTHER)), "two different symbols are both called n",
    ),
    "a name that text cannot hold": (
        lambda g: g.replace(inputs=(*g.inputs, Value("a b", X.type))), "the name 'a b' cannot be written in IR text",
    ),
    "a negative dimension": (
        lambda g: g.replace(inputs=(*g.inputs, Value("neg", TensorType(DType.F32, (-1,))))), "negative dimension -1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_each_rule(case: str) -> None:
    breaks, message = BROKEN[case]
    with pytest.raises(VerifyError) as error:
        verify(breaks(graph()), after="some-pass")
    assert error.value.message.startswith("after some-pass: ")
    assert message in error.value.message
    assert error.value.node
    assert error.value.hint


def test_the_node_is_named_by_its_origin() -> None:
    with pytest.raises(VerifyError) as error:
        verify(change(2, attrs={})(graph()))
    assert error.value.node == "Softmax head"


def test_an_output_may_be_an_input_or_a_weight() -> None:
    g = graph()
    verify(g.replace(outputs=(g.inputs[0], W), output_labels=()))


def test_nodes_of_operators_with_optional_and_variadic_operands_pass() -> None:
    text = """
        graph 'g'
        input %x: f32[2, 3]
        weight %b: f32[3]
        %l = LayerNormalization(%x, _, %b, axis=1)
        %c = Concat(%x, %l, %x, axis=0)
        output %c
    """
    verify(parse_graph(text))
    assert Node("Relu", (X,), (M,)).attrs == {}
