"""Handlers of reductions: Reduce*, ArgMax and ArgMin, global pools, CumSum and CumProd."""

from __future__ import annotations

import math

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.arguments import axes_argument
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.base import Result, handles
from arcweld.compiler.ops.shapes import ANY, check_dtype

# since which operator set the axes are an input
_AXES_INPUT = {"ReduceSum": 13}


@handles(
    "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSum", "ReduceLogSumExp",
)  # fmt: skip
def _reduce(c: NodeContext) -> Result:
    x = c.value(0)
    axes = axes_argument(c, 1, x.type.rank, _AXES_INPUT.get(c.op, 18))
    if not axes and c.int_attr("noop_with_empty_axes"):
        return _elementwise(c, x)
    axes = sorted(axes) if axes else list(range(x.type.rank))
    keepdims = int(bool(c.int_attr("keepdims", 1)))
    if c.op in ("ReduceMax", "ReduceMin") and any(x.shape[a] == 0 for a in axes):
        return _empty(c, x, axes, keepdims)
    if x.dtype is DType.BOOL and c.op in ("ReduceMax", "ReduceMin"):
        return c.cast(reduce(c, c.op, c.cast(x, DType.U8), axes, keepdims), DType.BOOL)
    return reduce(c, c.op, x, axes, keepdims)


def _empty(c: NodeContext, x: Value, axes: list[int], keepdims: int) -> Value:
    """The maximum or minimum of no elements: the type's least or greatest value."""
    check_dtype(c.op, x.type, ANY)
    shape = tuple(1 if i in axes else d for i, d in enumerate(x.shape) if keepdims or i not in axes)
    lowest = c.op == "ReduceMax"
    value: float | int
    if x.dtype.is_float:
        value = -math.inf if lowest else math.inf
    elif x.dtype is DType.BOOL:
        value = 0 if lowest else 1
    else:
        value = int(np.iinfo(x.dtype.numpy).min if lowest else np.iinfo(x.dtype.numpy).max)
    return c.emit("ConstantOfShape", shape=shape, value=value, dtype=x.dtype)


def _elementwise(c: NodeContext, x: Value) -> Value:
    """A reduction over no axes still applies its per-element function."""
    if c.op in ("ReduceL1", "ReduceL2"):
        return c.emit("Abs", x)
    if c.op == "ReduceSumSquare":
        return c.emit("Mul", x, x)
    return c.emit("Log", x) if c.op == "ReduceLogSum" else x


def reduce(c: NodeContext, op: str, x: Value, axes: list[int], keepdims: int = 1) -> Value:
    """A reduction over ``axes`` (all of them distinct and counted from the front)."""
    return c.emit(op, x, axes=tuple(axes), keepdims=keepdims) if axes else _elementwise(c, x)


@handles("ArgMax", "ArgMin")
def _arg(c: NodeContext) -> Result:
    return c.emit(
        c.op,
        c.value(0),
        axis=c.axis(c.int_attr("axis"), c.needs_rank(0, 1)),
        keepdims=int(bool(c.int_attr("keepdims", 1))),
        select_last_index=int(bool(c.int_attr("select_last_index"))),
    )


@handles("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def _global_pool(c: NodeContext) -> Result:
    rank = c.needs_rank(0, 3)
    axes = list(range(2, rank))
    if c.op != "GlobalLpPool":
        return reduce(c, "ReduceMean" if c.op == "GlobalAveragePool" else "ReduceMax", c.value(0), axes)
    p = c.int_attr("p", 2)
    if p not in (1, 2):
        c.unsupported(f"GlobalLpPool with p = {p}")
    return reduce(c, f"ReduceL{p}", c.value(0), axes)


@handles("CumSum", "CumProd")
def _scan(c: NodeContext) -> Result:
    rank = c.needs_rank(0, 1)
    return c.emit(
        c.op,
        c.value(0),
        axis=c.axis(c.integer(1), rank),
        exclusive=int(bool(c.int_attr("exclusive"))),
        reverse=int(bool(c.int_attr("reverse"))),
    )
