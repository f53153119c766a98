"""Handlers of operators that choose elements by their values, so that the size of the result depends on data.

What is chosen is counted and moved to the front on the device; the host reads the count.
"""

from __future__ import annotations

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import TensorType, Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.base import Result, handles
from arcweld.compiler.onnx.host import beginning, call_on_host
from arcweld.compiler.onnx.operands import born


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
    return beginning(c, count, places, f"{c.hint}_count")


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
    c.needs_rank(0, 3, 3)
    c.needs_rank(1, 3, 3)
    boxes, scores, *rest = (c.optional(k) for k in range(5))
    assert boxes is not None
    assert scores is not None
    count = born(c.builder, f"{c.hint}_count", 0, product(scores.shape))
    given = [boxes, scores, *rest]
    while given[-1] is None:
        given.pop()
    attrs = {"center_point_box": c.int_attr("center_point_box")}
    (found,) = call_on_host(
        c, "NonMaxSuppression", given, [TensorType(DType.I64, (count, 3))], [count], attrs
    )  # fmt: skip
    return found


@handles("Unique")
def _unique(c: NodeContext) -> Result:
    x, attrs = c.value(0), {"sorted": c.int_attr("sorted", 1)}
    axis = c.axis(c.int_attr("axis"), c.needs_rank(0, 1)) if c.has_attr("axis") else None
    size = product(x.shape) if axis is None else x.shape[axis]
    count = born(c.builder, f"{c.hint}_count", 0, size)
    if axis is None:
        shape: tuple[Dim, ...] = (count,)
    else:
        attrs["axis"] = axis
        shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    each = TensorType(DType.I64, (count,))
    types = [TensorType(x.dtype, shape), each, TensorType(DType.I64, (size,)), each]
    return call_on_host(c, "Unique", [x], types, [count], attrs)
