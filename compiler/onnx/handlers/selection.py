"""Handlers of operators that choose elements by their values, so that the size of the result depends on data.

What is chosen is counted and moved to the front on the device; the host reads the count.
"""

from __future__ import annotations

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import TensorType, Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.deduce import to_agree
from arcweld.compiler.onnx.handlers.base import Result, handles
from arcweld.compiler.onnx.host import agreeing, beginnings, call_on_host
from arcweld.compiler.onnx.operands import born, text
from arcweld.compiler.ops.suppress import suppressed


def chosen_places(c: NodeContext, flags: Value) -> Value:
    """The places of those flags that are set, in order: [count], where ``flags`` is a bool vector.

    Places move stably: set ones to the front, the others behind them, so that no two go to one place.
    """
    (size,) = flags.shape
    ones = c.cast(flags, DType.I64)
    ahead = c.emit("CumSum", ones, axis=0)
    some = dims.is_nonneg(size - 1)
    count = c.slice(ahead, 0, size - 1, 1) if some else c.emit("ReduceSum", ones, axes=(0,), keepdims=1)
    own = c.emit("Range", start=0, step=1, length=size, dtype=DType.I64)
    one = c.const(1, DType.I64)
    behind = c.emit("Sub", c.emit("Add", count, own), ahead)
    target = c.emit("Where", flags, c.emit("Sub", ahead, one), behind)
    empty = c.emit("ConstantOfShape", shape=(size,), value=0, dtype=DType.I64)
    places = c.emit("ScatterElements", empty, target, own, axis=0)
    return beginnings(c, count, [places], f"{c.hint}_count")[0]


def _flags(c: NodeContext, x: Value) -> Value:
    """Whether elements are not 0, as a vector."""
    flat = c.reshape(x, (product(x.shape),))
    return flat if x.dtype is DType.BOOL else c.emit("Not", c.emit("Equal", flat, c.const(0, x.dtype)))


@handles("NonZero")
def _non_zero(c: NodeContext) -> Result:
    x = c.value(0)
    shape: tuple[Dim, ...] = x.shape or (1,)
    if 0 in shape:
        return c.emit("ConstantOfShape", shape=(len(shape), 0), value=0, dtype=DType.I64)
    places = c.builder.places.get(x.name) or chosen_places(c, _flags(c, x))
    if not c.builder.depth:  # a body's nodes are not there outside of it
        c.builder.places[x.name] = places
    (found,) = places.shape
    rows = []
    for axis, size in enumerate(shape):
        stride = product(shape[axis + 1 :])
        row = places if stride == 1 else c.emit("Div", places, c.dim_value(stride))
        rows.append(c.reshape(row if axis == 0 else c.emit("Mod", row, c.dim_value(size)), (1, found)))
    return rows[0] if len(rows) == 1 else c.concat(rows, 0)


@handles("Compress")
def _compress(c: NodeContext) -> Result:
    x, condition = c.value(0), c.value(1)
    c.needs_rank(1, 1, 1)
    if not c.has_attr("axis"):
        x, axis = c.reshape(x, (product(x.shape),)), 0
    else:
        axis = c.axis(c.int_attr("axis"), c.needs_rank(0, 1))
    c.at_least(x.shape[axis], condition.shape[0])
    return c.emit("Gather", x, chosen_places(c, condition), axis=axis)


@handles("NonMaxSuppression")
def _non_max_suppression(c: NodeContext) -> Result:
    """The batch, the class and the place of each box that stays: by batch and class, the best first."""
    c.needs_rank(0, 3, 3)
    c.needs_rank(1, 3, 3)
    boxes, scores = _of_equal_number(c, c.value(0), c.value(1))
    batch, classes, n = scores.shape
    most, overlap, least = (
        c.reshape(v, ()) if v is not None and v.shape else v for v in (c.optional(k) for k in (2, 3, 4))
    )
    if most is None:  # the default is none
        return c.emit("ConstantOfShape", shape=(0, 3), value=0, dtype=DType.I64)
    corners = c.reshape(_corners(c, boxes, bool(c.int_attr("center_point_box"))), (batch, 1, n, 4))
    overlap = c.const(0, DType.F32) if overlap is None else overlap
    stays, order = suppressed(c, corners, scores, overlap, most, least)
    every = product(scores.shape)
    places = chosen_places(c, c.reshape(stays, (every,)))
    (found,) = places.shape
    row = c.emit("Div", places, c.dim_value(n))
    columns = (
        c.emit("Div", row, c.dim_value(classes)), c.emit("Mod", row, c.dim_value(classes)),
        c.emit("Gather", c.reshape(order, (every,)), places, axis=0),
    )  # fmt: skip
    return c.concat([c.reshape(v, (found, 1)) for v in columns], 1)


def _of_equal_number(c: NodeContext, boxes: Value, scores: Value) -> tuple[Value, Value]:
    """Boxes [batch, n, 4] and scores [batch, classes, n]: the host checks sizes that depend on data."""
    demanded = [(boxes.shape[0], scores.shape[0]), (boxes.shape[1], scores.shape[2])]
    if any(a != b for a, b in demanded):
        equal = agreeing(c, [boxes, scores], demanded)
        if equal is not None:
            boxes, scores = (v for v in equal if v is not None)
            demanded = [(boxes.shape[0], scores.shape[0]), (boxes.shape[1], scores.shape[2])]
    if any(a != b for a, b in demanded) or boxes.shape[2] != 4:
        c.narrow(to_agree(demanded, c.name))
        c.broken(f"boxes {text(boxes.shape)} and scores {text(scores.shape)}")
    return boxes, scores


def _corners(c: NodeContext, boxes: Value, centred: bool) -> Value:
    """Lower and upper corners of boxes that are any two corners, or the centre and the extents."""
    first, second = c.slice(boxes, 2, 0, 2), c.slice(boxes, 2, 2, 2)
    if not centred:
        return c.concat([c.emit("Min", first, second), c.emit("Max", first, second)], 2)
    half = c.emit("Div", second, c.const(2, boxes.dtype))
    return c.concat([c.emit("Sub", first, half), c.emit("Add", first, half)], 2)


@handles("Unique")
def _unique(c: NodeContext) -> Result:
    x, attrs = c.value(0), {"sorted": c.int_attr("sorted", 1)}
    axis = c.axis(c.int_attr("axis"), c.needs_rank(0, 1)) if c.has_attr("axis") else None
    if axis is None or x.type.rank == 1:
        return _unique_elements(c, c.reshape(x, (product(x.shape),)), bool(attrs["sorted"]))
    size = x.shape[axis]
    count = born(c.builder, f"{c.hint}_count", 0, size)
    attrs["axis"] = axis
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    each = TensorType(DType.I64, (count,))
    types = [TensorType(x.dtype, shape), each, TensorType(DType.I64, (size,)), each]
    return call_on_host(c, "Unique", [x], types, [count], attrs)


def _unique_elements(c: NodeContext, x: Value, ordered: bool) -> Result:
    """The different elements of a vector, where each is first, which of them each element is, and how often each is.

    Equal elements are neighbours once they are sorted, stably: the first of them has the first place in the vector.
    NaNs are equal. All of it is two launches; the host reads how many differ.
    """
    keys = c.cast(x, DType.U8) if x.dtype is DType.BOOL else x
    order = c.emit("TopKIndices", keys, k=x.shape[0], axis=0, largest=0)
    c.emit("EqualRuns", keys, order, by_place=int(not ordered))
    values, first, inverse, counts, number = c.rw.nodes[-1].outputs
    wanted = {0: c.cast(values, x.dtype), 1: first, 3: counts}
    shown = [k for k in wanted if k == 0 or (k < len(c.used) and c.used[k])]
    found = dict(zip(shown, beginnings(c, number, [wanted[k] for k in shown], f"{c.hint}_count")))
    return found[0], found.get(1), inverse, found.get(3)
