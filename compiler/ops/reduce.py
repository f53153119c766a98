"""Reductions over axes: sum, product, max, min, and the indices of the extremes.

Sums of 16-bit floats accumulate in f32. Means and norms are decomposed into these (``composite_reduce.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import TensorType
from arcweld.compiler.ops.elementwise import widen
from arcweld.compiler.ops.movement import operand
from arcweld.compiler.ops.registry import Attr, Case, Infer, Kind, OpDef, Reference, register
from arcweld.compiler.ops.shapes import ANY, NUMERIC, check_axis, check_dtype, check_elements, present

Attrs = Mapping[str, Any]

REDUCE_ATTRS = {"axes": Attr("ints", required=True), "keepdims": Attr("int", 1)}
REDUCE_CASES = (
    Case(((2, 3, 4),), {"axes": (2,), "keepdims": 1}, ("f32", "f16", "bf16")),
    Case(((2, 3, 4),), {"axes": (0, 2), "keepdims": 0}, ("f32",)),
    Case(((2, 3, 4),), {"axes": (0, 1, 2), "keepdims": 0}, ("f32",)),
    Case(((5, 3),), {"axes": (0,), "keepdims": 1}, ("f32",)),
)


def reduced_shape(op: str, shape: Sequence[Dim], axes: Sequence[int], keepdims: int) -> tuple[Dim, ...]:
    """The shape after a reduction over ``axes``. Raises ModelError for repeated axes and axes out of range."""
    for axis in axes:
        check_axis(op, axis, len(shape))
    if len(set(axes)) != len(axes):
        raise ModelError(f"{op}: axes {tuple(axes)} name one axis twice")
    return tuple(1 if k in axes else d for k, d in enumerate(shape) if keepdims or k not in axes)


def infer_reduce(op: str, dtypes: Sequence[DType]) -> Infer:
    """The type rule of a reduction with ``axes`` and ``keepdims``."""

    def infer(types: Sequence[TensorType | None], attrs: Attrs) -> tuple[TensorType, ...]:
        (x,) = present(op, types, 1)
        check_dtype(op, x, dtypes)
        return (x.with_shape(reduced_shape(op, x.shape, attrs["axes"], attrs["keepdims"])),)

    return infer


def _reference(fn: Callable[..., np.ndarray]) -> Reference:
    def reference(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> tuple[np.ndarray, ...]:
        x = operand(arrays)
        y = fn(widen(x), axis=tuple(attrs["axes"]), keepdims=bool(attrs["keepdims"]))
        return (np.asarray(y).astype(x.dtype),)

    return reference


def _sum(x: np.ndarray, axis: tuple[int, ...], keepdims: bool) -> np.ndarray:
    wide = np.float64 if x.dtype == np.float32 else x.dtype
    return np.asarray(np.sum(x, axis=axis, keepdims=keepdims, dtype=wide))


def _extreme(fn: Callable[..., np.ndarray], sign: int) -> Callable[..., np.ndarray]:
    """``np.max`` (``sign`` 1) or ``np.min`` (-1), with a result for no elements: the type's least or greatest value."""

    def reference(x: np.ndarray, axis: tuple[int, ...], keepdims: bool) -> np.ndarray:
        if x.dtype.kind in "iu":
            bounds = np.iinfo(x.dtype)
            none: Any = bounds.min if sign > 0 else bounds.max
        else:
            none = sign < 0 if x.dtype.kind == "b" else -sign * np.inf
        return fn(x, axis=axis, keepdims=keepdims, initial=none)

    return reference


def _reduce(
    name: str, combine: str, fn: Callable[..., np.ndarray], dtypes: Sequence[DType], more: Sequence[Case] = (),
    doc: str = "",
) -> None:  # fmt: skip
    register(
        OpDef(
            name, Kind.REDUCE, ("x",), infer_reduce(name, dtypes), _reference(fn), REDUCE_ATTRS, combine=combine,
            cases=(*REDUCE_CASES, *more), doc=doc,
        )
    )  # fmt: skip


_INTS = Case(((2, 3, 4),), {"axes": (1,), "keepdims": 0}, ("i32", "i64"), -9.0, 9.0)
_reduce("ReduceSum", "sum", _sum, NUMERIC, [_INTS, Case(((2, 0, 3),), {"axes": (1,), "keepdims": 1}, ("f32",))])
_BOOLS = Case(((2, 3),), {"axes": (1,)}, ("bool",))
_NONE = Case(((2, 0, 3),), {"axes": (1,), "keepdims": 1}, ("f32", "i32"))
_reduce("ReduceMax", "max", _extreme(np.max, 1), ANY, [_INTS, _BOOLS, _NONE], "of bools: any")
_reduce("ReduceMin", "min", _extreme(np.min, -1), ANY, [_INTS, _BOOLS, _NONE], "of bools: all")
_reduce("ReduceProd", "prod", np.prod, NUMERIC, [_INTS, Case(((2, 0, 3),), {"axes": (1,)}, ("f32",))])


# ---------------------------------------------------------------------------------------------- ArgMax, ArgMin


def _infer_arg(op: str) -> Infer:
    def infer(types: Sequence[TensorType | None], attrs: Attrs) -> tuple[TensorType, ...]:
        (x,) = present(op, types, 1)
        check_dtype(op, x, NUMERIC)
        out = reduced_shape(op, x.shape, (attrs["axis"],), attrs["keepdims"])
        check_elements(op, x, [attrs["axis"]], out)
        return (TensorType(DType.I64, out),)

    return infer


def _arg(pick: Callable[..., np.ndarray]) -> Reference:
    def reference(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> tuple[np.ndarray, ...]:
        x, axis = widen(operand(arrays)), attrs["axis"]
        if attrs["select_last_index"]:
            found = x.shape[axis] - 1 - pick(np.flip(x, axis), axis=axis)
        else:
            found = pick(x, axis=axis)
        out = np.asarray(found, np.int64)
        return (np.expand_dims(out, axis) if attrs["keepdims"] else out,)

    return reference


_TIES = np.array([[3, 1, 3, 0, 0], [2, 2, 2, 2, 2]], np.int32)
for _name, _combine, _pick in (("ArgMax", "argmax", np.argmax), ("ArgMin", "argmin", np.argmin)):
    register(
        OpDef(
            _name, Kind.REDUCE, ("x",), _infer_arg(_name), _arg(_pick),
            {
                "axis": Attr("int", required=True),
                "keepdims": Attr("int", 1),
                "select_last_index": Attr("int", 0),
            },
            combine=_combine, needs=lambda node: [node.operands()[0].shape[node.attrs["axis"]]],
            cases=(
                Case(((2, 3, 4),), {"axis": 2}, ("f32", "f16", "i32")),
                Case(((2, 3, 4),), {"axis": 1, "keepdims": 0}, ("f32",)),
                Case((_TIES,), {"axis": 1, "keepdims": 0}),
                Case((_TIES,), {"axis": 1, "select_last_index": 1}),
            ),
        )
    )  # fmt: skip
