"""Scans: each element of the result combines all elements of a row up to its own. CumSum is the only one.

Sums of 16-bit floats accumulate in f32, as those of reductions do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.ir import TensorType
from arcweld.compiler.ops.elementwise import widen
from arcweld.compiler.ops.movement import operand
from arcweld.compiler.ops.registry import Attr, Case, Kind, OpDef, register
from arcweld.compiler.ops.shapes import NUMERIC, check_axis, check_dtype, present

Attrs = Mapping[str, Any]


def _infer_cumsum(types: Sequence[TensorType | None], attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = present("CumSum", types, 1)
    check_dtype("CumSum", x, NUMERIC)
    check_axis("CumSum", attrs["axis"], x.rank)
    return (x,)


def _cumsum(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> tuple[np.ndarray, ...]:
    """The sums up to each element; ``exclusive`` leaves out the element itself, ``reverse`` starts at the end."""
    given, axis = operand(arrays), attrs["axis"]
    x = np.moveaxis(widen(given), axis, -1)
    x = np.flip(x, -1) if attrs["reverse"] else x
    y = np.cumsum(x, axis=-1, dtype=x.dtype)
    if attrs["exclusive"]:
        y = np.concatenate([np.zeros_like(y[..., :1]), y[..., :-1]], -1)
    y = np.flip(y, -1) if attrs["reverse"] else y
    return (np.moveaxis(y, -1, axis).astype(given.dtype),)


register(
    OpDef(
        "CumSum", Kind.SCAN, ("x",), _infer_cumsum, _cumsum,
        {"axis": Attr("int", required=True), "exclusive": Attr("int", 0), "reverse": Attr("int", 0)}, combine="sum",
        cases=(
            *(
                Case(((2, 5, 3),), {"axis": 1, "exclusive": x, "reverse": r}, ("f32", "i64"), -9.0, 9.0)
                for x in (0, 1)
                for r in (0, 1)
            ),
            Case(((2, 6),), {"axis": 1}, ("f16", "bf16", "i32", "f64")),
            Case(((1, 3),), {"axis": 0, "exclusive": 1}, ("f32",)),
            Case(((2, 0),), {"axis": 1, "exclusive": 1}, ("f32",)),
        ),
    )
)  # fmt: skip
