"""Alters ONNX models by their structure: fields of messages, how nodes are joined, and what they are nested in."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import onnx
from alter import NUMBERS, WORDS, flipped
from google.protobuf.descriptor import FieldDescriptor
from onnx import GraphProto, ModelProto, NodeProto, helper

OPERATORS = tuple(sorted({s.name for s in onnx.defs.get_all_schemas()})) + ("", "Nothing", "FusedMatMul")
# raised for what an earlier alteration took away, and for values that a field or an array cannot hold
UNFIT = (IndexError, ValueError, TypeError, KeyError, OverflowError, NotImplementedError)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, float("inf"), float("nan"))
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64,
    FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_ENUM, FieldDescriptor.CPPTYPE_BOOL,
}  # fmt: skip


def altered_model(original: bytes, rng: random.Random) -> bytes:
    """The model with one to three things altered; of one in ten only bytes."""
    if rng.random() < 0.1:
        return flipped(original, rng)
    model = ModelProto.FromString(original)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        with contextlib.suppress(*UNFIT):
            rng.choice(ALTERATIONS)(model, rng)
    return bytes(model.SerializeToString())


# -------------------------------------------------------------------------------------------------------- one field


def messages(root: Any) -> Iterator[Any]:
    """``root`` and every message inside it."""
    waiting = [root]
    while waiting:
        message = waiting.pop()
        yield message
        for field, value in message.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                waiting += list(value) if field.is_repeated else [value]


def any_field(model: ModelProto, rng: random.Random) -> None:
    """Changes one field of one message: its value, or how many values there are, or whether it is set."""
    message = rng.choice(list(messages(model)))
    _change(message, rng.choice([f for f, _ in message.ListFields()]), rng)


def unset_field(model: ModelProto, rng: random.Random) -> None:
    """Sets a field that a message does not have."""
    message = rng.choice(list(messages(model)))
    field = rng.choice(message.DESCRIPTOR.fields)
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        (getattr(message, field.name).add if field.is_repeated else getattr(message, field.name).SetInParent)()
    elif field.is_repeated:
        getattr(message, field.name).append(_scalar(field, None, rng))
    else:
        setattr(message, field.name, _scalar(field, None, rng))


def _change(message: Any, field: Any, rng: random.Random) -> None:
    if rng.random() < 0.1:
        message.ClearField(field.name)
    elif field.is_repeated:
        _change_list(getattr(message, field.name), field, rng)
    elif field.type != FieldDescriptor.TYPE_MESSAGE:
        setattr(message, field.name, _scalar(field, getattr(message, field.name), rng))


def _change_list(values: Any, field: Any, rng: random.Random) -> None:
    k, other = rng.randrange(len(values)), rng.randrange(len(values))
    items = list(values)
    match rng.randrange(5):
        case 0:
            del items[k]
        case 1:
            items.insert(other, items[k])
        case 2:
            items[k], items[other] = items[other], items[k]
        case 3:
            items.reverse()
        case _:
            if field.type != FieldDescriptor.TYPE_MESSAGE:
                items[k] = _scalar(field, items[k], rng)
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        copies = [type(m).FromString(m.SerializeToString()) for m in items]
        del values[:]
        values.extend(copies)
    else:
        values[:] = items


def _scalar(field: Any, old: Any, rng: random.Random) -> Any:
    if field.cpp_type in _INTEGERS:
        near = [] if old is None else [int(old) - 1, int(old) + 1, -int(old), 2 * int(old)]
        return rng.choice([*near, *NUMBERS])
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice(FLOATS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        data = old or b"\0" * rng.randrange(9)
        return rng.choice((b"", data[:-1], data + b"\0", data * 2, flipped(data or b"x", rng)))
    return rng.choice((*WORDS, "", "a//b", (old or "x") + "'"))


# -------------------------------------------------------------------------------------------------------- structure


def graphs(model: ModelProto) -> list[Any]:
    """Everything that holds nodes: the graph, subgraphs, functions."""
    return [m for m in messages(model) if hasattr(m, "node") and len(m.node)]


def rewire(model: ModelProto, rng: random.Random) -> None:
    """Lets a node read or write another value."""
    graph = rng.choice(graphs(model))
    node = rng.choice(graph.node)
    names = [n for m in graph.node for n in (*m.input, *m.output)]
    names += [v.name if isinstance(graph, GraphProto) else v for v in (*graph.input, *graph.output)]
    side = node.input if rng.random() < 0.8 else node.output
    match rng.randrange(4):
        case 0:
            side.append(rng.choice(names))
        case 1:
            del side[rng.randrange(len(side))]
        case _:
            side[rng.randrange(len(side))] = rng.choice([*names, ""])


def operator(model: ModelProto, rng: random.Random) -> None:
    """Gives a node another operator, with its attributes as they are."""
    rng.choice(rng.choice(graphs(model)).node).op_type = rng.choice(OPERATORS)


def numbers(model: ModelProto, rng: random.Random) -> None:
    """Replaces a small constant by others: shapes, axes, pads, indices."""
    constants = [m for m in messages(model) if isinstance(m, onnx.TensorProto)]
    tensor = rng.choice(constants)
    data = onnx.numpy_helper.to_array(tensor).copy()
    match rng.randrange(4):
        case 0:
            data = data.reshape(-1)[: rng.randrange(data.size + 1)]
        case 1:
            data = data[None]
        case 2:
            data = data.astype(rng.choice(("f2", "f4", "f8", "i1", "i4", "i8", "u1", "?")))
        case _:
            data.reshape(-1)[rng.randrange(data.size)] = rng.choice(NUMBERS)
    tensor.CopyFrom(onnx.numpy_helper.from_array(data, tensor.name))


def open_dimension(model: ModelProto, rng: random.Random) -> None:
    """Makes a dimension of an input symbolic, or another number."""
    shapes = [i.type.tensor_type.shape.dim for i in model.graph.input]
    dim = rng.choice(rng.choice(shapes))
    if rng.random() < 0.6:
        dim.dim_param = rng.choice(("N", "M", "batch", "N + 1", "", "1x"))
    else:
        dim.dim_value = rng.choice(NUMBERS)


def nested(model: ModelProto, rng: random.Random) -> None:
    """Moves a node into a branch of an If, the body of a Loop, or a function."""
    graph = rng.choice(graphs(model))
    k = rng.randrange(len(graph.node))
    node = NodeProto.FromString(graph.node[k].SerializeToString())
    value = lambda name: onnx.ValueInfoProto(name=name)
    inner = [f"inner_{o}" for o in node.output]
    body = NodeProto.FromString(node.SerializeToString())
    body.output[:] = inner
    constants = [helper.make_node("Constant", [], [f"how_often{k}"], value_int=rng.choice((0, 1, 2, 3, 400)))]
    match rng.randrange(3):
        case 0:
            branch = helper.make_graph([body], "branch", [], [value(n) for n in inner])
            outer = helper.make_node("If", [f"how_often{k}"], list(node.output), then_branch=branch, else_branch=branch)
        case 1:
            going = helper.make_node("Identity", ["go"], ["go_on"])
            outputs = [value("go_on"), *(value(n) for n in inner)]
            loop = helper.make_graph([body, going], "body", [value("i"), value("go")], outputs)
            outer = helper.make_node("Loop", [f"how_often{k}", ""], list(node.output), body=loop)
        case _:
            names = [n for n in dict.fromkeys(node.input) if n]
            opsets = [onnx.OperatorSetIdProto(domain=o.domain, version=o.version) for o in model.opset_import]
            calls = [body] * rng.choice((1, 1, 2))
            model.functions.append(helper.make_function("own", f"F{k}", names, inner, calls, opsets))
            model.opset_import.append(helper.make_opsetid("own", 1))
            outer = helper.make_node(f"F{k}", names, list(node.output), domain="own")
            constants = []
    kept = [NodeProto.FromString(n.SerializeToString()) for n in graph.node]
    del graph.node[:]
    graph.node.extend([*kept[:k], *constants, outer, *kept[k + 1 :]])


Alteration = Callable[[ModelProto, random.Random], None]
ALTERATIONS: tuple[Alteration, ...] = (
    any_field, any_field, any_field, unset_field, rewire, rewire, operator, numbers, numbers, open_dimension, nested,
)  # fmt: skip
