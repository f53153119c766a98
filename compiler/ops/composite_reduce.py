"""The reductions that are decomposed into ReduceSum and ReduceMax: means, norms, logarithms of sums.

16-bit floats are cast to f32 before they are summed; fusion keeps these f32 values inside the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from arcweld.compiler.dims import product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Node, Rewriter, Value
from arcweld.compiler.ops.composite import composite
from arcweld.compiler.ops.elementwise import widen
from arcweld.compiler.ops.emit import Emit
from arcweld.compiler.ops.movement import operand
from arcweld.compiler.ops.reduce import REDUCE_ATTRS, REDUCE_CASES, infer_reduce
from arcweld.compiler.ops.registry import Case
from arcweld.compiler.ops.shapes import FLOATS, NUMERIC

Attrs = Mapping[str, Any]
Fold = Callable[[Emit, Value, Mapping[str, Any]], Value]  # (emit, wide operand, axes and keepdims) -> result


def _reduction(
    name: str, numpy: Callable[..., np.ndarray], fold: Fold, dtypes: Sequence[DType], more: Sequence[Case] = (),
    low: float = -2.0,
) -> None:  # fmt: skip
    def reference(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> tuple[np.ndarray, ...]:
        x = operand(arrays)
        wide = x.astype(np.float64) if x.dtype == np.float32 else widen(x)
        y = numpy(wide, axis=tuple(attrs["axes"]), keepdims=bool(attrs["keepdims"]))
        return (np.asarray(y).astype(x.dtype),)

    def decompose(rw: Rewriter, node: Node) -> tuple[Value, ...]:
        (x,), e = node.operands(), Emit(rw, node)
        y = fold(e, e.wide(x), {"axes": node.attrs["axes"], "keepdims": node.attrs["keepdims"]})
        return (e.cast(y, x.dtype),)

    cases = (*(replace(c, low=low) for c in REDUCE_CASES), *more)
    composite(name, "x", infer_reduce(name, dtypes), reference, decompose, REDUCE_ATTRS, cases)


def _mean(e: Emit, x: Value, p: Attrs) -> Value:
    total, n = e("ReduceSum", x, **p), product(x.shape[a] for a in p["axes"])
    if isinstance(n, int) and n and x.dtype.is_float:
        return e("Mul", total, e.const(1 / n, x.dtype))
    return e("Div", total, e.dim_value(n, x.dtype))


def _sum_square(e: Emit, x: Value, p: Attrs) -> Value:
    return e("ReduceSum", e("Mul", x, x), **p)


def _log_sum_exp(e: Emit, x: Value, p: Attrs) -> Value:
    top = e("ReduceMax", x, axes=p["axes"], keepdims=1)
    # with an infinite maximum, x - top would be inf - inf
    top = e("Where", e("IsInf", top), e.const(0, x.dtype), top)
    total = e("ReduceSum", e("Exp", e("Sub", x, top)), axes=p["axes"], keepdims=1)
    y = e("Add", e("Log", total), top)
    if p["keepdims"]:
        return y
    return e.reshape(y, [d for k, d in enumerate(y.shape) if k not in p["axes"]])


def _np_log_sum_exp(x: np.ndarray, axis: tuple[int, ...], keepdims: bool) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.asarray(np.logaddexp.reduce(x, axis=axis, keepdims=keepdims))  # type: ignore[call-overload]


def _np_mean(x: np.ndarray, axis: tuple[int, ...], keepdims: bool) -> np.ndarray:
    mean = np.mean(x, axis=axis, keepdims=keepdims)
    if np.issubdtype(x.dtype, np.integer):
        return np.asarray(np.trunc(np.nan_to_num(mean)))  # of no integers: 0, as there is no NaN among them
    return np.asarray(mean)


_INTS = (Case(((2, 3, 4),), {"axes": (1,), "keepdims": 0}, ("i32", "i64"), -9.0, 9.0),)
_reduction("ReduceMean", _np_mean, _mean, NUMERIC, _INTS)
_reduction(
    "ReduceL1", lambda x, **p: np.abs(x).sum(**p), lambda e, x, p: e("ReduceSum", e("Abs", x), **p), NUMERIC, _INTS
)
_reduction(
    "ReduceL2", lambda x, **p: np.sqrt(np.square(x).sum(**p)), lambda e, x, p: e("Sqrt", _sum_square(e, x, p)), FLOATS
)
_reduction("ReduceSumSquare", lambda x, **p: np.square(x).sum(**p), _sum_square, NUMERIC, _INTS)
_reduction("ReduceLogSumExp", _np_log_sum_exp, _log_sum_exp, FLOATS)


def _np_log_sum(x: np.ndarray, axis: tuple[int, ...], keepdims: bool) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(np.log(x.sum(axis=axis, keepdims=keepdims)))


_reduction("ReduceLogSum", _np_log_sum, lambda e, x, p: e("Log", e("ReduceSum", x, **p)), FLOATS, low=0.1)
