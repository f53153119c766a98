"""Clean-up: drops nodes that change nothing, and joins chains of movements.

    Reshape(Reshape(x * 1))  ->  Reshape(x)

Requires: nothing. Ensures that there is none of these:
* Identity, unless it makes an input the graph's output; Cast to the same type;
* Reshape, Transpose, Slice, Pad, Expand, Tile, Concat or Resize that returns its operand;
* arithmetic with a neutral constant (x + 0, x * 1);
* Reshape of a Reshape, Transpose of a Transpose, Cast of a lossless Cast;
* a Cast back to 16-bit floats of what a DequantizeLinear makes of them by the scale 1;
* Gather of an activation at indices in equal steps, known from constants or ranges (a Slice instead);
* a node other than ConstantOfShape whose results have no elements.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from arcweld.compiler.dims import Dim, coefficient, free_symbols, is_nonneg, substitute
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.options import Options
from arcweld.compiler.records import sources
from arcweld.passes.common import Tracker, rewrite
from arcweld.passes.elements import coordinates, elements_of

MOST_COMPARED = 1 << 16  # the most elements of a constant that is compared with the neutral value


def cleanup(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` without movements and arithmetic that have no effect."""
    edge = graph.output_names()
    return rewrite(graph, lambda rw, node: _visit(rw, node, edge))


def _visit(rw: Tracker, node: Node, edge: set[str]) -> bool:
    if node.op != "ConstantOfShape" and all(0 in o.shape for o in node.outputs):
        for o in node.outputs:
            shape, dtype = o.shape, o.dtype
            rw.alias(o, rw.make("ConstantOfShape", [], node.origin, o.name, shape=shape, dtype=dtype, value=0.0))
        return True
    if len(node.outputs) != 1 or not node.inputs or node.inputs[0] is None:
        return False
    same = _unchanged(rw, node)
    if same is not None and same.type == node.output.type:
        # an engine's outputs are written by kernels: one that is just an input or a weight keeps its Identity
        if node.output.name in edge and rw.producer(same) is None:
            return False
        rw.redirect(node, same)
        return True
    join = _JOIN.get(node.op)
    joined = join(rw, node) if join is not None else None
    if joined is None:
        return False
    rw.redirect(node, joined)
    return True


def _unchanged(rw: Tracker, node: Node) -> Value | None:
    """The operand that ``node`` returns as it is, if there is one."""
    operands = rw.inputs_of(node)
    x = operands[0]
    assert x is not None
    test = _NEUTRAL.get(node.op)
    if test is not None:
        return x if test(node, x) else None
    if node.op in _ARITHMETIC and len(operands) == 2:
        neutral, commutes = _ARITHMETIC[node.op]
        if _is_constant(rw, operands[1], neutral):
            return x
        if commutes and _is_constant(rw, x, neutral):
            return operands[1]
    return None


def _is_constant(rw: Tracker, v: Value | None, value: float) -> bool:
    """True if ``v`` is a constant with the given value in every element.

    Tensors of the model's own, such as a bias of zeros, don't count: their data may be replaced later.
    """
    array = rw.array(v)
    if v is None or array is None or (array.ndim > 0 and sources(rw.weights[v.name])):
        return False
    return array.dtype != np.bool_ and 0 < array.size <= MOST_COMPARED and bool(np.all(array == value))


def _resize_is_neutral(node: Node, x: Value) -> bool:
    scales = node.attrs["scales"]
    plain = node.attrs["coordinate_transformation_mode"] != "tf_crop_and_resize"
    return plain and (scales is None or all(s == 1 for s in scales)) and node.attrs["sizes"] == x.shape


_NEUTRAL: dict[str, Callable[[Node, Value], bool]] = {
    "Identity": lambda node, x: True,
    "Cast": lambda node, x: node.attrs["to"] is x.dtype,
    "Reshape": lambda node, x: node.attrs["shape"] == x.shape,
    "Expand": lambda node, x: node.output.shape == x.shape,
    "Transpose": lambda node, x: node.attrs["perm"] == tuple(range(x.type.rank)),
    "Slice": lambda node, x: node.attrs["sizes"] == x.shape and all(s == 1 for s in node.attrs["steps"]),
    "Pad": lambda node, x: all(p == 0 for p in node.attrs["pads"]),
    "Tile": lambda node, x: all(r == 1 for r in node.attrs["repeats"]),
    "Concat": lambda node, x: len(node.inputs) == 1,
    "Sum": lambda node, x: len(node.inputs) == 1,
    "Mean": lambda node, x: len(node.inputs) == 1,
    "Max": lambda node, x: len(node.inputs) == 1,
    "Min": lambda node, x: len(node.inputs) == 1,
    "Resize": _resize_is_neutral,
}

_ARITHMETIC: dict[str, tuple[float, bool]] = {
    "Add": (0.0, True),
    "Sub": (0.0, False),
    "Mul": (1.0, True),
    "Div": (1.0, False),
    "Pow": (1.0, False),
}


def _join_reshape(rw: Tracker, node: Node) -> Value | None:
    x = rw.get(node.operands()[0])
    first = rw.producer(x, "Reshape")
    if first is None:
        return None
    source = first.operands()[0]
    if source.shape == node.output.shape:
        return source
    return rw.make("Reshape", [source], node.origin, node.output.name, shape=node.attrs["shape"])


def _join_transpose(rw: Tracker, node: Node) -> Value | None:
    x, perm = rw.get(node.operands()[0]), node.attrs["perm"]
    first = rw.producer(x, "Transpose")
    if first is not None:
        perm = tuple(first.attrs["perm"][p] for p in perm)
        x = first.operands()[0]
    moved = [p for p in perm if x.shape[p] != 1]
    if perm == tuple(range(len(perm))):
        return x
    if moved == sorted(moved):  # only axes of extent 1 move: the elements keep their order
        return rw.make("Reshape", [x], node.origin, node.output.name, shape=node.output.shape)
    return rw.make("Transpose", [x], node.origin, node.output.name, perm=perm) if first is not None else None


def _join_cast(rw: Tracker, node: Node) -> Value | None:
    given = rw.get(node.operands()[0])
    own = _stored_half(rw, given)
    if own is not None and own.dtype is node.output.dtype:
        return own
    first = rw.producer(given, "Cast")
    if first is None:
        return None
    source = first.operands()[0]
    if not lossless(source.dtype, first.output.dtype):
        return None
    if source.dtype is node.output.dtype:
        return source
    return rw.make("Cast", [source], node.origin, node.output.name, to=node.attrs["to"])


def _stored_half(rw: Tracker, v: Value) -> Value | None:
    """The 16-bit floats that ``v`` is by the scale 1; None for anything else."""
    node = rw.producer(v, "DequantizeLinear")
    if node is None or len(node.inputs) != 2 or not node.operands()[0].dtype.is_half:
        return None
    x, scale = node.operands()
    return x if _is_constant(rw, scale, 1) else None


def _gather_as_slice(rw: Tracker, node: Node) -> Value | None:
    x, places = (rw.get(v) for v in node.operands())
    axis, line = node.attrs["axis"], [k for k, d in enumerate(places.shape) if d != 1]
    if x.name in rw.weights or len(line) > 1:
        return None
    at = elements_of(rw).closed_form(places)
    if at is None or isinstance(at, frozenset):
        return None
    counter = coordinates(places)[line[0]] if line else 0
    (symbol,) = free_symbols(counter) or (None,)
    step = 1 if symbol is None else coefficient(at, symbol)
    start = at if symbol is None else substitute(at, {symbol: 0})
    size = places.type.numel
    if not isinstance(step, int) or step < 1 or at != start + counter * step:
        return None
    if isinstance(start, int) and start < 0:
        start += x.shape[axis]
    if not (is_nonneg(start) and is_nonneg(x.shape[axis] - 1 - start - (size - 1) * step)):
        return None
    starts: list[Dim] = [0] * x.type.rank
    sizes, steps = list(x.shape), [1] * x.type.rank
    starts[axis], sizes[axis], steps[axis] = start, size, step
    cut = rw.make("Slice", [x], node.origin, starts=tuple(starts), sizes=tuple(sizes), steps=tuple(steps))
    if cut.shape == node.output.shape:
        return cut
    return rw.make("Reshape", [cut], node.origin, node.output.name, shape=node.output.shape)


_JOIN: dict[str, Callable[[Tracker, Node], Value | None]] = {
    "Reshape": _join_reshape,
    "Transpose": _join_transpose,
    "Cast": _join_cast,
    "Gather": _gather_as_slice,
}


def lossless(source: DType, target: DType) -> bool:
    """True if ``target`` holds every value of ``source``, so that a cast from there equals one from ``source``."""
    if source.is_int and source.size == 8 and target.is_float:
        return False  # numpy calls i64 to f64 safe
    return source is target or np.can_cast(source.numpy, target.numpy, "safe")
