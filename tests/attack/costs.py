"""Small files that would take much time or memory if nothing bounded them, by what they multiply."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

N = helper.make_node
Constants = dict[str, Any]


def model(
    nodes: Sequence[NodeProto], outputs: Sequence[str], constants: Constants | None = None, *,
    shape: Sequence[int | str] = (2, 3), functions: Sequence[FunctionProto] = (),
) -> bytes:  # fmt: skip
    """A model of the input ``x`` (f32)."""
    graph = helper.make_graph(
        list(nodes), "costs", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name=n) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8).SerializeToString())


def chain(count: int, step: Callable[[str, str], list[NodeProto]], start: str = "x") -> tuple[list[NodeProto], str]:
    """``step(a, b)`` gives the nodes that compute b from a, ``count`` times over; and the last name."""
    nodes: list[NodeProto] = []
    for i in range(count):
        nodes += step(start if i == 0 else f"v{i}", f"v{i + 1}")
    return nodes, f"v{count}"


def doubled(count: int, op: str, constants: Constants | None = None, start: str = "x", **attrs: Any) -> bytes:
    """A chain in which each node reads the one before twice."""
    nodes, last = chain(count, lambda a, b: [N(op, [a, a], [b], **attrs)], start)
    if start != "x":
        nodes.append(N("Add", ["x", last], ["y"]) if op == "Add" else N("Identity", [last], ["y"]))
        last = "y"
    return model(nodes, [last], constants)


def shifted(count: int) -> bytes:
    """Each value is the sum of two parts of the one before: 2 ** count reads, written out."""
    constants = {"zero": [0], "one": [1], "last": [-1], "end": [1 << 40], "axis": [1]}

    def step(a: str, b: str) -> list[NodeProto]:
        parts = [
            N("Slice", [a, "zero", "last", "axis"], [f"{b}l"]),
            N("Slice", [a, "one", "end", "axis"], [f"{b}r"]),
        ]
        return [*parts, N("Add", [f"{b}l", f"{b}r"], [b])]

    nodes, last = chain(count, step)
    return model(nodes, [last], {k: np.int64(v) for k, v in constants.items()}, shape=(2, count + 3))


def outer(count: int) -> bytes:
    """Each value is added to its transpose."""
    nodes, last = chain(count, lambda a, b: [N("Transpose", [a], [f"{b}t"]), N("Add", [a, f"{b}t"], [b])])
    return model(nodes, [last], shape=(3, 3))


def tiled(count: int) -> bytes:
    """A constant that each node makes four times as large."""
    nodes, last = chain(count, lambda a, b: [N("Tile", [a, "twice"], [b])], "c")
    constants = {"c": np.ones((4, 4), np.float32), "twice": np.int64([2, 2])}
    return model([*nodes, N("ReduceMax", [last], ["m"], keepdims=0), N("Add", ["x", "m"], ["y"])], ["y"], constants)


def many_constants(count: int) -> bytes:
    """Many results of constants, each of them small."""
    nodes = [N("Expand", [f"c{i}", "wide"], [f"e{i}"]) for i in range(count)]
    nodes += [N("ReduceSum", [f"e{i}"], [f"s{i}"], keepdims=0) for i in range(count)]
    constants: Constants = {f"c{i}": np.float32([i]) for i in range(count)} | {"wide": np.int64([16_000])}
    return model([*nodes, N("Sum", ["x", *(f"s{i}" for i in range(count))], ["y"])], ["y"], constants)


def filled(op: str) -> bytes:
    """A generated tensor of 2 ** 30 elements, of which one number is used."""
    constants: Constants = {"shape": np.int64([1 << 15, 1 << 15]), "a": np.int64(0), "b": np.int64(1 << 30)}
    if op == "Range":
        nodes = [N("Range", ["a", "b", "one"], ["r"]), N("Cast", ["r"], ["f"], to=TensorProto.FLOAT)]
    else:
        nodes = [N("ConstantOfShape", ["shape"], ["f"], value=numpy_helper.from_array(np.float32([2])))]
    constants["one"] = np.int64(1)
    return model([*nodes, N("ReduceMax", ["f"], ["m"], keepdims=0), N("Add", ["x", "m"], ["y"])], ["y"], constants)


def split(count: int) -> bytes:
    """Many outputs of one node."""
    outputs = [f"y{i}" for i in range(count)]
    return model([N("Split", ["x"], outputs, axis=0)], outputs, shape=(count, 3))


def functions(depth: int, calls: int = 2) -> bytes:
    """Functions that call the next one several times: ``calls ** depth`` nodes."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    made = [helper.make_function("own", "f0", ["a"], ["b"], [N("Relu", ["a"], ["b"])], opsets)]
    for i in range(1, depth):
        names = ["a", *(f"t{k}" for k in range(calls - 1)), "b"]
        body = [N(f"f{i - 1}", [a], [b], domain="own") for a, b in itertools.pairwise(names)]
        made.append(helper.make_function("own", f"f{i}", ["a"], ["b"], body, opsets))
    return model([N(f"f{depth - 1}", ["x"], ["y"], domain="own")], ["y"], functions=made)


def loops(depth: int, trips: int) -> bytes:
    """Loops inside loops."""
    value = lambda name: onnx.ValueInfoProto(name=name)
    inner: GraphProto | None = None
    for level in range(depth):
        nodes = [N("Identity", [f"go{level}"], [f"on{level}"])]
        if inner is None:
            nodes.append(N("Relu", [f"c{level}"], [f"d{level}"]))
        else:
            nodes.append(N("Loop", ["trips", "", f"c{level}"], [f"d{level}"], body=inner))
        formal = [value(f"i{level}"), value(f"go{level}"), value(f"c{level}")]
        inner = helper.make_graph(nodes, f"level{level}", formal, [value(f"on{level}"), value(f"d{level}")])
    return model([N("Loop", ["trips", "", "x"], ["y"], body=inner)], ["y"], {"trips": np.int64(trips)})


def branches(depth: int) -> bytes:
    """Ifs inside Ifs, written byte by byte: protobuf's own writer refuses deep ones."""
    graph = helper.make_graph([N("Relu", ["x"], ["y"])], "b", [], [onnx.ValueInfoProto(name="y")]).SerializeToString()
    rest = helper.make_graph([], "b", [], [onnx.ValueInfoProto(name="y")]).SerializeToString()
    for _ in range(depth):
        branch = AttributeProto(name="then_branch", type=AttributeProto.GRAPH).SerializeToString()
        branch += _field(AttributeProto.G_FIELD_NUMBER, graph)
        node = NodeProto(op_type="If", input=["yes"], output=["y"]).SerializeToString()
        graph = _field(GraphProto.NODE_FIELD_NUMBER, node + _field(NodeProto.ATTRIBUTE_FIELD_NUMBER, branch)) + rest
    whole = onnx.ModelProto.FromString(model([], ["y"], {"yes": np.bool_(True)}))
    whole.graph.ClearField("output")
    head = whole.graph.SerializeToString()
    whole.ClearField("graph")
    return bytes(whole.SerializeToString() + _field(onnx.ModelProto.GRAPH_FIELD_NUMBER, head + graph))


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes in protobuf's wire format."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def einsum(letters: str) -> bytes:
    """A constant product over many indices, which sums to one number."""
    constants = {f"c{k}": np.ones(64, np.float32) for k in letters}
    equation = ",".join(letters) + "->"
    nodes = [N("Einsum", list(constants), ["s"], equation=equation), N("Add", ["x", "s"], ["y"])]
    return model(nodes, ["y"], constants)


def sizes(count: int, step: Callable[[str, str], list[NodeProto]]) -> bytes:
    """A shape that is computed from the open dimensions a and b of the input, and a tensor of that shape."""
    nodes, last = chain(count, step, "s")
    nodes = [N("Shape", ["x"], ["s"]), *nodes, N("Expand", ["z", last], ["y"])]
    return model(nodes, ["y"], {"z": np.float32(1), "c": np.int64([3, 5])}, shape=("a", "b"))


def squared(a: str, b: str) -> list[NodeProto]:
    return [N("Add", [a, "c"], [f"{b}c"]), N("Mul", [a, f"{b}c"], [b])]


def halved(a: str, b: str) -> list[NodeProto]:
    return [N("Div", [a, "c"], [f"{b}d"]), N("Add", [a, f"{b}d"], [b])]


def tables(count: int) -> bytes:
    """Arithmetic with integer constants, which the import computes itself while they are small."""
    nodes, last = chain(count, lambda a, b: [N("Add", [a, "c"], [b])], "c")
    nodes += [N("Cast", [last], ["f"], to=TensorProto.FLOAT), N("ReduceSum", ["f"], ["r"], keepdims=0)]
    return model([*nodes, N("Add", ["x", "r"], ["y"])], ["y"], {"c": np.arange(4096)})


def summed(size: int) -> bytes:
    """A cumulative sum along many elements."""
    return model([N("CumSum", ["x", "axis"], ["y"])], ["y"], {"axis": np.int64(0)}, shape=(size,))


FILES: dict[str, Callable[[], bytes]] = {
    "Concat(x, x)": lambda: doubled(12, "Concat", axis=0),
    "Concat(x, x) forty times": lambda: doubled(40, "Concat", axis=0),
    "Add(x, x)": lambda: doubled(2000, "Add"),
    "parts of parts": lambda: shifted(60),
    "transposes": lambda: outer(60),
    "Concat(c, c)": lambda: doubled(30, "Concat", {"c": np.ones(64, np.float32)}, "c", axis=0),
    "Add(c, c)": lambda: doubled(60, "Add", {"c": np.ones((2, 3), np.float32)}, "c"),
    "Tile(c)": lambda: tiled(14),
    "many constants": lambda: many_constants(2000),
    "ConstantOfShape": lambda: filled("ConstantOfShape"),
    "Range": lambda: filled("Range"),
    "Split": lambda: split(10_000),
    "functions": lambda: functions(12),
    "functions, a million": lambda: functions(20),
    "functions without end": lambda: functions(31, 9),
    "loops": lambda: loops(4, 200),
    "branches": lambda: branches(20),
    "deep branches": lambda: branches(10_000),
    "sizes": lambda: sizes(12, lambda a, b: [N("Mul", [a, a], [b])]),
    "sizes, sums": lambda: sizes(8, squared),
    "sizes, quotients": lambda: sizes(24, halved),
    "tables": lambda: tables(2000),
    "Einsum": lambda: einsum("abcdef"),
    "CumSum": lambda: summed(1 << 16),
}
