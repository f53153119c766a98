"""GroupedMatMul: rows in groups, each times the matrix of its group, as the experts of a mixture compute them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.few_rows import is_few_rows
from arcweld.compiler.ir import TensorType, Value
from arcweld.compiler.ops.elementwise import widen
from arcweld.compiler.ops.emit import Emitter
from arcweld.compiler.ops.movement import operand
from arcweld.compiler.ops.registry import Case, Kind, OpDef, register
from arcweld.compiler.ops.shapes import FLOATS, check_dtype, check_equal, check_rank, present, same_dtype, show

Attrs = Mapping[str, Any]
Types = Sequence[TensorType | None]
Arrays = Sequence[np.ndarray | None]
OP = "GroupedMatMul"


def _infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    a, b, ends = present(OP, types, 3)
    check_dtype(OP, a, FLOATS)
    same_dtype(OP, [a, b])
    check_dtype(OP, ends, (DType.I32, DType.I64))
    for t, rank in ((a, 2), (b, 3), (ends, 1)):
        check_rank(OP, t, rank, rank)
    check_equal(OP, f"inner dimensions of {show(a.shape)} and {show(b.shape)}", a.shape[1], b.shape[1])
    check_equal(OP, "groups of matrices and of rows", b.shape[0], ends.shape[0])
    return (a.with_shape((a.shape[0], b.shape[2])),)


def _reference(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    a, b, ends = (operand(arrays, k) for k in range(3))
    wide, matrices = widen(a), widen(b)
    y = np.zeros((a.shape[0], b.shape[2]), wide.dtype)
    start = 0
    for matrix, end in zip(matrices, ends.tolist(), strict=True):
        stop = min(max(end, start), len(a))
        y[start:stop] = wide[start:stop] @ matrix
        start = stop
    return (y.astype(a.dtype),)


def _ends(*values: int, dtype: type = np.int32) -> np.ndarray:
    return np.array(values, dtype)


register(
    OpDef(
        OP, Kind.CONTRACT, ("a", "b", "ends"), _infer, _reference, tolerance=1e-5, cost=64,
        cases=(
            Case(((7, 6), (3, 6, 5), _ends(2, 2, 7)), {}, ("f32", "f16", "bf16")),
            Case(((9, 8), (4, 8, 16), _ends(0, 5, 6, 8, dtype=np.int64)), {}, ("f32", "f16")),
            Case(((6, 4), (2, 4, 3), _ends(6, 6)), {}, ("f64",)),
            Case(((5, 4), (3, 4, 3), _ends(4, -1, 99)), {}, ("f32",)),
        ),
        doc="row r of ``a`` [rows, k] times the matrix, of ``b`` [groups, k, n], of its group: the first one with "
        "``ends`` > r. Rows that belong to none give 0",
    )
)  # fmt: skip


def grouped_product(e: Emitter, a: Value, b: Value, ends: Value) -> Value:
    """GroupedMatMul; of few rows a product for each, of the matrix of its group: reading that is all that they cost."""
    if not is_few_rows(a):
        return e.emit(OP, a, b, ends)
    rows, groups = a.shape[0], b.shape[0]
    numbers = e.emit("Range", start=0, step=1, length=rows, dtype=ends.dtype)
    ended = e.emit("LessOrEqual", e.reshape(ends, (1, groups)), e.reshape(numbers, (rows, 1)))
    group = e.emit("ReduceSum", e.cast(ended, DType.I64), axes=(1,), keepdims=0)
    own = e.emit("Gather", b, e.emit("Min", group, e.dim_value(groups - 1)), axis=0)
    y = e.reshape(e.emit("MatMul", e.reshape(a, (rows, 1, a.shape[1])), own), (rows, b.shape[2]))
    inside = e.reshape(e.emit("Less", numbers, e.slice(ends, 0, groups - 1, 1)), (rows, 1))
    return e.emit("Where", inside, y, e.cast(e.dim_value(0), y.dtype))  # as the operator, where a row is of no group
