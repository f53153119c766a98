"""Scans: each element of the result combines all elements of a row up to its own; linear recurrences.

Sums and products of 16-bit floats accumulate in f32, as those of reductions do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.ir import TensorType
from arcweld.compiler.ops.elementwise import widen
from arcweld.compiler.ops.movement import operand
from arcweld.compiler.ops.registry import Attr, Case, Infer, Kind, OpDef, Reference, register
from arcweld.compiler.ops.shapes import FLOATS, NUMERIC, check_axis, check_dtype, check_equal, present, same_dtype

Attrs = Mapping[str, Any]



def _infer(op: str) -> Infer:
    def infer(types: Sequence[TensorType | None], attrs: Attrs) -> tuple[TensorType, ...]:
        (x,) = present(op, types, 1)
        check_dtype(op, x, NUMERIC)
        check_axis(op, attrs["axis"], x.rank)
        return (x,)

    return infer


def _reference(accumulate: Callable[..., np.ndarray], neutral: int) -> Reference:
    """What is combined up to each element, itself left out if ``exclusive``; ``reverse`` starts at the end."""

    def reference(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> tuple[np.ndarray, ...]:
        given, axis = operand(arrays), attrs["axis"]
        x = np.moveaxis(widen(given), axis, -1)
        x = np.flip(x, -1) if attrs["reverse"] else x
        y = accumulate(x, axis=-1, dtype=x.dtype)
        if attrs["exclusive"]:
            y = np.concatenate([np.full_like(y[..., :1], neutral), y[..., :-1]], -1)
        y = np.flip(y, -1) if attrs["reverse"] else y
        return (np.moveaxis(y, -1, axis).astype(given.dtype),)

    return reference


def _scan(name: str, combine: str, accumulate: Callable[..., np.ndarray], neutral: int, high: float) -> None:
    register(
        OpDef(
            name, Kind.SCAN, ("x",), _infer(name), _reference(accumulate, neutral),
            {"axis": Attr("int", required=True), "exclusive": Attr("int", 0), "reverse": Attr("int", 0)},
            combine=combine,
            cases=(
                *(
                    Case(((2, 5, 3),), {"axis": 1, "exclusive": x, "reverse": r}, ("f32", "i64"), -high, high)
                    for x in (0, 1)
                    for r in (0, 1)
                ),
                Case(((2, 6),), {"axis": 1}, ("f16", "bf16", "i32", "f64")),
                Case(((1, 3),), {"axis": 0, "exclusive": 1}, ("f32",)),
                Case(((2, 0),), {"axis": 1, "exclusive": 1}, ("f32",)),
            ),
        )
    )  # fmt: skip


_scan("CumSum", "sum", np.cumsum, 0, 9.0)
_scan("CumProd", "prod", np.cumprod, 1, 3.0)


def _extremum(name: str, combine: str, accumulate: Callable[..., np.ndarray]) -> None:
    """A running extremum, which has no exclusive form: integers have no neutral element that is not one of them."""

    def reference(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> tuple[np.ndarray, ...]:
        return (accumulate(operand(arrays), axis=attrs["axis"]),)

    register(
        OpDef(
            name, Kind.SCAN, ("x",), _infer(name), reference,
            {"axis": Attr("int", required=True), "exclusive": Attr("int", 0), "reverse": Attr("int", 0)},
            combine=combine,
            supports=lambda n: "an exclusive extremum" if n.attrs["exclusive"] or n.attrs["reverse"] else None,
            cases=(
                Case(((2, 5, 3),), {"axis": 1}, ("f32", "i64", "u8"), 0.0, 9.0),
                Case(((2, 6),), {"axis": 1}, ("f16", "bf16", "i32", "f64"), -9.0, 9.0),
                Case((np.array([[1, 3, np.nan, 5, 2], [-1, -np.inf, 2, 2, np.inf]], np.float32),), {"axis": 1}),
                Case(((2, 0),), {"axis": 1}, ("f32",)),
            ),
            doc="the largest or smallest of all elements up to each, of which NaN is one",
        )
    )  # fmt: skip


_extremum("CumMax", "max", np.maximum.accumulate)
_extremum("CumMin", "min", np.minimum.accumulate)


def _infer_linear(types: Sequence[TensorType | None], attrs: Attrs) -> tuple[TensorType, ...]:
    a, x = present("LinearScan", types, 2)
    same_dtype("LinearScan", [a, x])
    check_dtype("LinearScan", x, FLOATS)
    check_axis("LinearScan", attrs["axis"], x.rank)
    check_equal("LinearScan", f"ranks of {a} and {x}", a.rank, x.rank)
    for k in range(x.rank):
        check_equal("LinearScan", f"axis {k} of {a} and {x}", a.shape[k], x.shape[k])
    return (x,)


def _linear(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> tuple[np.ndarray, ...]:
    a, x = (np.moveaxis(widen(operand(arrays, k)), attrs["axis"], 0) for k in range(2))
    y = x.copy()
    for t in range(1, len(x)):
        y[t] += a[t] * y[t - 1]
    return (np.moveaxis(y, 0, attrs["axis"]).astype(operand(arrays, 1).dtype),)


_GROWING = np.full((2, 40), 1.5, np.float32)
register(
    OpDef(
        "LinearScan", Kind.SCAN, ("a", "x"), _infer_linear, _linear, {"axis": Attr("int", required=True)},
        combine="linear",
        cases=(
            Case(((2, 5, 3), (2, 5, 3)), {"axis": 1}, ("f32", "f16", "bf16", "f64"), -0.9, 0.9),
            Case(((3, 70), (3, 70)), {"axis": 1}, ("f32",), -1.0, 1.0),
            Case(((6, 2), (6, 2)), {"axis": 0}, ("f32",)),
            Case((np.array([[np.nan, 0, 2, -3]], np.float32), (1, 4)), {"axis": 1}, ("f32",)),
            Case((_GROWING, (2, 40)), {"axis": 1}, ("f32",)),
            Case(((2, 0), (2, 0)), {"axis": 1}, ("f32",)),
        ),
        doc="y[0] = x[0], and y[t] = a[t] * y[t - 1] + x[t] along the axis. Kernels multiply neighbouring factors "
        "first: where such a product overflows, the result may be NaN",
    )
)  # fmt: skip
