"""ScatterND and ScatterElements: a copy of the data with some elements replaced or combined.

Where several updates write one element and there is no reduction, it is undefined which of them remains (as in ONNX).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import TensorType
from arcweld.compiler.ops.elementwise import widen
from arcweld.compiler.ops.gather import STRICT
from arcweld.compiler.ops.movement import operand
from arcweld.compiler.ops.registry import Attr, Case, Kind, OpDef, register
from arcweld.compiler.ops.shapes import (
    ElementTypeError,
    check_axis,
    check_dtype,
    check_equal,
    check_rank,
    check_within,
    present,
    same_dtype,
)

Attrs = Mapping[str, Any]
Types = Sequence[TensorType | None]
Arrays = Sequence[np.ndarray | None]
REDUCTIONS = ("none", "add", "mul", "max", "min")


def _check(op: str, types: Types, attrs: Attrs) -> list[TensorType]:
    data, indices, updates = present(op, types, 3)
    check_dtype(op, indices, (DType.I64, DType.I32))
    same_dtype(op, [data, updates])
    if data.dtype.is_packed:
        raise ElementTypeError(f"{op} stores no single {data.dtype.value}", hint="convert it to 8 bits before")
    if attrs["reduction"] not in REDUCTIONS:
        raise ModelError(f"{op}: unknown reduction {attrs['reduction']}", hint=", ".join(REDUCTIONS))
    if attrs["reduction"] != "none" and data.dtype is DType.BOOL:
        raise ModelError(f"{op}: reduction {attrs['reduction']} of bools")
    return [data, indices, updates]


def _infer_nd(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    data, indices, updates = _check("ScatterND", types, attrs)
    check_rank("ScatterND", indices, 1)
    depth = indices.shape[-1]
    if not isinstance(depth, int) or depth > data.rank:
        raise ModelError(f"ScatterND: indices {indices} into {data}")
    wanted = (*indices.shape[:-1], *data.shape[depth:])
    check_rank("ScatterND updates", updates, len(wanted), len(wanted))
    for k, (a, b) in enumerate(zip(updates.shape, wanted)):
        check_equal("ScatterND", f"axis {k} of the updates", a, b)
    return (data,)


def _infer_elements(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    data, indices, updates = _check("ScatterElements", types, attrs)
    check_axis("ScatterElements", attrs["axis"], data.rank)
    for t in (indices, updates):
        check_rank("ScatterElements", t, data.rank, data.rank)
    check_within("ScatterElements", indices.shape, data.shape, attrs["axis"])
    for k, (a, b) in enumerate(zip(indices.shape, updates.shape)):
        check_equal("ScatterElements", f"axis {k} of indices and updates", a, b)
    return (data,)


def _combine(
    data: np.ndarray, at: tuple[np.ndarray, ...], updates: np.ndarray, reduction: str
) -> tuple[np.ndarray, ...]:
    out = widen(data).copy()
    new = widen(updates)
    if reduction == "none":
        out[at] = new
    else:
        rules = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}
        rules[reduction].at(out, at, new)
    return (out.astype(data.dtype, copy=False),)


def _scatter_nd(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    data, indices, updates = operand(arrays), operand(arrays, 1), operand(arrays, 2)
    if attrs["padding"]:
        kept = (indices >= 0).all(axis=-1)
        indices, updates = indices[kept], updates[kept]
    at = tuple(indices[..., k] for k in range(indices.shape[-1]))
    return _combine(data, at, updates, attrs["reduction"])


def _scatter_elements(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    data, indices, updates = operand(arrays), operand(arrays, 1), operand(arrays, 2)
    at: list[np.ndarray] = list(np.indices(indices.shape))
    at[attrs["axis"]] = indices
    return _combine(data, tuple(at), updates, attrs["reduction"])


_ND = np.array([[0], [3], [-1]])
_ROWS = np.array([[0, 1, 2], [3, 0, -1]])
register(
    OpDef(
        "ScatterND", Kind.SCATTER, ("data", "indices", "updates"), _infer_nd, _scatter_nd,
        {"reduction": Attr("str", "none"), "padding": Attr("int", 0), **STRICT},
        cases=(
            Case(((5, 3), _ND, (3, 3)), {}, ("f32", "f16", "i64")),
            Case(((4, 3), np.array([[0, 1], [3, 2]]), (2,)), {}, ("f32",)),
            *(
                Case(((5, 3), np.array([[0], [0], [2]]), (3, 3)), {"reduction": r}, ("f32", "i32"))
                for r in REDUCTIONS[1:]
            ),
            Case(((5, 3), _ND, (3, 3)), {"padding": 1}, ("f32", "f16")),
            Case(((4, 3), np.array([[0, -1], [-1, 2], [3, 2]]), (3,)), {"padding": 1}, ("f32",)),
            Case(((90, 2), np.arange(-3, 77)[:, None], (80, 2)), {"padding": 1}, ("f32",)),
        ),
        doc="padding = 1: an update with a negative index is padding, and changes nothing",
    )
)  # fmt: skip
register(
    OpDef(
        "ScatterElements", Kind.SCATTER, ("data", "indices", "updates"), _infer_elements, _scatter_elements,
        {"axis": Attr("int", 0), "reduction": Attr("str", "none"), **STRICT},
        cases=(
            Case(((4, 3), _ROWS, (2, 3)), {"axis": 0}, ("f32", "f16", "i64")),
            Case(((2, 4), np.array([[1, -1], [0, 2]], np.int32), (2, 2)), {"axis": 1}, ("f32",)),
            *(
                Case(((4, 3), _ROWS * 0, (2, 3)), {"axis": 0, "reduction": r}, ("f32", "i32"))
                for r in REDUCTIONS[1:]
            ),
        ),
    )
)  # fmt: skip
