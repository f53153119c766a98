"""Row programs: Softmax, LogSoftmax, LayerNormalization, RMSNormalization.

A row program reduces the last axes in stages and then computes each element, so one kernel reads each row from memory
once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, product
from arcweld.compiler.expr import Expr, binary, unary
from arcweld.compiler.ir import Node, Rewriter, TensorType, Value
from arcweld.compiler.ops.elementwise import widen
from arcweld.compiler.ops.emit import Emit
from arcweld.compiler.ops.movement import operand
from arcweld.compiler.ops.registry import Attr, Case, Infer, Kind, OpDef, Reader, RowProgram, RowStage, register
from arcweld.compiler.ops.shapes import (
    FLOATS,
    check_axis,
    check_broadcast_to,
    check_dtype,
    dim_expr,
    present,
    read,
    same_dtype,
    split_optional,
)

Attrs = Mapping[str, Any]
Types = Sequence[TensorType | None]
Arrays = Sequence[np.ndarray | None]
Scalars = Mapping[str, Expr]

# ----------------------------------------------------------------------------------------- Softmax, LogSoftmax


def _infer_softmax(op: str) -> Infer:
    def infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        (x,) = present(op, types, 1)
        check_dtype(op, x, FLOATS)
        check_axis(op, attrs["axis"], x.rank)
        return (x,)

    return infer


def _softmax(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, axis = operand(arrays), attrs["axis"]
    wide = widen(x)
    with np.errstate(invalid="ignore"):  # a row of minus infinities gives NaN, as specified
        e = np.exp(wide - wide.max(axis=axis, keepdims=True, initial=-np.inf))
    return ((e / e.sum(axis=axis, keepdims=True)).astype(x.dtype),)


def _log_softmax(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, axis = operand(arrays), attrs["axis"]
    wide = widen(x)
    shifted = wide - wide.max(axis=axis, keepdims=True, initial=-np.inf)
    return ((shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))).astype(x.dtype),)


_EXP_SUM = (
    RowStage("max", "max", lambda x, s: x),
    RowStage("sum", "sum", lambda x, s: unary("exp", x - s["max"])),
)


def _row_softmax(node: Node) -> RowProgram:
    def result(reader: Reader, node: Node, x: Expr, s: Scalars, coords: tuple[Dim, ...]) -> Expr:
        return unary("exp", x - s["max"]) / s["sum"]

    return RowProgram(1, _EXP_SUM, result)


def _row_log_softmax(node: Node) -> RowProgram:
    def result(reader: Reader, node: Node, x: Expr, s: Scalars, coords: tuple[Dim, ...]) -> Expr:
        return x - s["max"] - unary("log", s["sum"])

    return RowProgram(1, _EXP_SUM, result)


def _last_axis(rw: Rewriter, node: Node) -> tuple[Value, ...]:
    """The same operator along the last axis, with a Transpose before and after."""
    (x,), axis, e = node.operands(), node.attrs["axis"], Emit(rw, node)
    last = x.type.rank - 1
    perm = tuple(k for k in range(last + 1) if k != axis) + (axis,)
    back = tuple(perm.index(k) for k in range(last + 1))
    return (e.transpose(e(node.op, e.transpose(x, perm), axis=last), back),)


_SOFTMAX_CASES = (
    Case(((3, 7),), {"axis": 1}, ("f32", "f16", "bf16"), -5.0, 5.0),
    Case(((2, 4, 3),), {"axis": 1}, ("f32",), -5.0, 5.0),
    Case(((2, 1),), {"axis": 1}, ("f32",)),
)
register(
    OpDef(
        "Softmax", Kind.ROWWISE, ("x",), _infer_softmax("Softmax"), _softmax, {"axis": Attr("int", required=True)},
        row=_row_softmax, decompose=_last_axis, cases=_SOFTMAX_CASES, cost=12,
    )
)  # fmt: skip
register(
    OpDef(
        "LogSoftmax", Kind.ROWWISE, ("x",), _infer_softmax("LogSoftmax"), _log_softmax,
        {"axis": Attr("int", required=True)}, row=_row_log_softmax, decompose=_last_axis, cases=_SOFTMAX_CASES, cost=12,
    )
)  # fmt: skip

# ----------------------------------------------------------------------------------------------- normalisations


def _infer_norm(op: str, operands: int) -> Infer:
    def infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        (x,), affine = split_optional(op, types, 1, operands)
        check_dtype(op, x, FLOATS)
        check_axis(op, attrs["axis"], x.rank)
        for name, t in zip(("scale", "bias"), affine):
            if t is not None:
                same_dtype(op, [x, t])
                check_broadcast_to(op, name, t.shape, x.shape)
        return (x,)

    return infer


def _affine(y: np.ndarray, arrays: Arrays, dtype: np.dtype) -> tuple[np.ndarray, ...]:
    scale, bias = [*arrays[1:], None, None][:2]
    y = y if scale is None else y * widen(scale)
    y = y if bias is None else y + widen(bias)
    return (y.astype(dtype),)


def _layer_norm(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = operand(arrays)
    wide, axes = widen(x), tuple(range(attrs["axis"], x.ndim))
    centred = wide - wide.mean(axis=axes, keepdims=True)
    variance = (centred * centred).mean(axis=axes, keepdims=True)
    return _affine(centred / np.sqrt(variance + attrs["epsilon"]), arrays, x.dtype)


def _rms_norm(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = operand(arrays)
    wide, axes = widen(x), tuple(range(attrs["axis"], x.ndim))
    power = (wide * wide).mean(axis=axes, keepdims=True)
    return _affine(wide / np.sqrt(power + attrs["epsilon"]), arrays, x.dtype)


def _with_affine(reader: Reader, node: Node, y: Expr, coords: tuple[Dim, ...]) -> Expr:
    scale, bias = [*node.inputs[1:], None, None][:2]
    y = y if scale is None else y * read(reader, scale, coords)
    return y if bias is None else y + read(reader, bias, coords)


def _row_count(node: Node, like: Expr) -> Expr:
    return dim_expr(product(node.output.shape[node.attrs["axis"] :]), like.dtype)


def _row_layer_norm(node: Node) -> RowProgram:
    eps = float(node.attrs["epsilon"])

    def square(x: Expr, s: Scalars) -> Expr:
        d = x - s["mean"]
        return d * d

    def result(reader: Reader, node: Node, x: Expr, s: Scalars, coords: tuple[Dim, ...]) -> Expr:
        return _with_affine(reader, node, (x - s["mean"]) * s["rstd"], coords)

    stages = (
        RowStage("mean", "sum", lambda x, s: x, lambda total, s: total / _row_count(node, total)),
        RowStage("rstd", "sum", square, lambda total, s: unary("rsqrt", total / _row_count(node, total) + eps)),
    )
    return RowProgram(node.output.type.rank - node.attrs["axis"], stages, result)


def _row_rms_norm(node: Node) -> RowProgram:
    eps = float(node.attrs["epsilon"])

    def result(reader: Reader, node: Node, x: Expr, s: Scalars, coords: tuple[Dim, ...]) -> Expr:
        return _with_affine(reader, node, x * s["rstd"], coords)

    stage = RowStage(
        "rstd", "sum", lambda x, s: binary("mul", x, x),
        lambda total, s: unary("rsqrt", total / _row_count(node, total) + eps),
    )  # fmt: skip
    return RowProgram(node.output.type.rank - node.attrs["axis"], (stage,), result)


register(
    OpDef(
        "LayerNormalization", Kind.ROWWISE, ("x", "scale?", "bias?"), _infer_norm("LayerNormalization", 3), _layer_norm,
        {"axis": Attr("int", required=True), "epsilon": Attr("float", 1e-5)}, row=_row_layer_norm, cost=6,
        cases=(
            Case(((3, 8), (8,), (8,)), {"axis": 1}, ("f32", "f16", "bf16")),
            Case(((2, 3, 4), (3, 4), (3, 4)), {"axis": 1}, ("f32",)),
            Case(((2, 3, 4), (3, 1), (3, 1)), {"axis": 2, "epsilon": 1e-3}, ("f32",)),
            Case(((2, 3, 4), (4,)), {"axis": 2}, ("f32",)),
            Case(((2, 6),), {"axis": 1}, ("f32",)),
        ),
        doc="over the axes from ``axis`` on; scale and bias broadcast to x",
    )
)  # fmt: skip
register(
    OpDef(
        "RMSNormalization", Kind.ROWWISE, ("x", "scale?"), _infer_norm("RMSNormalization", 2), _rms_norm,
        {"axis": Attr("int", required=True), "epsilon": Attr("float", 1e-5)}, row=_row_rms_norm, cost=5,
        cases=(
            Case(((3, 8), (8,)), {"axis": 1}, ("f32", "f16")),
            Case(((2, 3, 4), (3, 4)), {"axis": 1}, ("f32",)),
            Case(((2, 6),), {"axis": 1}, ("f32",)),
        ),
        doc="x / sqrt(mean(x^2) + epsilon) * scale over the axes from ``axis`` on",
    )
)  # fmt: skip
