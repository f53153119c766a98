"""Integer arithmetic on quantized tensors: MatMulInteger, ConvInteger, DynamicQuantizeLinear.

They are decomposed into floating-point products that are exact: in f32 where no partial sum can exceed 2^24 in
magnitude, else in f64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import Node, Rewriter, TensorType, Value
from arcweld.compiler.ops import reference_nn as nn
from arcweld.compiler.ops.composite import composite
from arcweld.compiler.ops.emit import Emit
from arcweld.compiler.ops.movement import operand
from arcweld.compiler.ops.registry import Attr, Case, infer_types
from arcweld.compiler.ops.shapes import broadcast, check_dtype, check_rank, present, split_optional

Attrs = Mapping[str, Any]
Types = Sequence[TensorType | None]
Arrays = Sequence[np.ndarray | None]
BYTES = (DType.I8, DType.U8)
F32_EXACT = 1 << 24


def _check_zero(op: str, x: TensorType, zero: TensorType | None) -> None:
    check_dtype(op, x, BYTES)
    if zero is not None and zero.dtype is not x.dtype:
        raise ModelError(f"{op}: zero point {zero} of {x}")


def _span(value: Value, zero: Value | None) -> int:
    """The largest magnitude of ``value - zero``."""
    return 255 if zero is not None or value.dtype is DType.U8 else 128


def _exact_type(terms: Dim, a: int, b: int) -> DType:
    return DType.F32 if isinstance(terms, int) and terms * a * b <= F32_EXACT else DType.F64


def _centred(e: Emit, x: Value, zero: Value | None, shape: Sequence[Dim], dtype: DType) -> Value:
    """``x - zero`` in ``dtype``; ``zero`` is reshaped to ``shape`` first."""
    wide = e.cast(x, dtype)
    return wide if zero is None else e("Sub", wide, e.cast(e.reshape(zero, shape), dtype))


# ------------------------------------------------------------------------------------------------ MatMulInteger


def _row_shape(zero: TensorType) -> tuple[Dim, ...]:
    """The shape in which the left operand's zero point broadcasts: one for each row becomes a column."""
    return (*zero.shape, 1) if zero.rank == 1 else zero.shape


def _infer_matmul(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (a, b), (az, bz) = split_optional("MatMulInteger", types, 2, 4)
    _check_zero("MatMulInteger", a, az)
    _check_zero("MatMulInteger", b, bz)
    if az is not None:
        broadcast("MatMulInteger", [a.shape, _row_shape(az)])
    if bz is not None:
        broadcast("MatMulInteger", [b.shape, bz.shape])
    return infer_types("MatMul", [a.with_dtype(DType.I32), b.with_dtype(DType.I32)], {})


def _matmul(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    a, b, az, bz = [*arrays, None, None][:4]
    assert a is not None
    assert b is not None
    wide_a, wide_b = a.astype(np.int32), b.astype(np.int32)
    if az is not None:
        wide_a = wide_a - (az.astype(np.int32)[:, None] if az.ndim == 1 else az.astype(np.int32))
    if bz is not None:
        wide_b = wide_b - bz.astype(np.int32)
    return (np.matmul(wide_a, wide_b),)


def _decompose_matmul(rw: Rewriter, node: Node) -> tuple[Value, ...]:
    e = Emit(rw, node)
    a, b, az, bz = [*node.inputs, None, None][:4]
    assert a is not None
    assert b is not None
    dtype = _exact_type(a.shape[-1], _span(a, az), _span(b, bz))
    left = _centred(e, a, az, _row_shape(az.type) if az else (), dtype)
    right = _centred(e, b, bz, bz.shape if bz else (), dtype)
    return (e.cast(e("MatMul", left, right), DType.I32),)


_SCALAR_ZERO = np.array(3, np.uint8)
_ROW_ZERO, _COLUMN_ZERO = np.array([1, 0, 7], np.uint8), np.array([4, 3, 2, 1], np.uint8)
composite(
    "MatMulInteger", "a b a_zero? b_zero?", _infer_matmul, _matmul, _decompose_matmul, {},
    [
        Case(((3, 6), (6, 4)), {}, ("u8", "i8"), -99.0, 99.0),
        Case(((3, 6), (6, 4), _SCALAR_ZERO, _SCALAR_ZERO), {}, ("u8",), 0.0, 255.0),
        Case(((3, 6), (6, 4), _ROW_ZERO, _COLUMN_ZERO), {}, ("u8",), 0.0, 255.0),
        Case(((2, 300), (300, 2)), {}, ("u8",), 200.0, 255.0),
    ],
)  # fmt: skip

# -------------------------------------------------------------------------------------------------- ConvInteger

_CONV_ATTRS = {
    "strides": Attr("ints", required=True),
    "dilations": Attr("ints", required=True),
    "pads": Attr("dims", required=True),
    "group": Attr("int", 1),
}


def _infer_conv(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x, w), (xz, wz) = split_optional("ConvInteger", types, 2, 4)
    _check_zero("ConvInteger", x, xz)
    _check_zero("ConvInteger", w, wz)
    if xz is not None:
        check_rank("ConvInteger zero point", xz, 0, 1)
    full = {**attrs, "layout": "NCHW"}
    (y,) = infer_types("Conv", [x.with_dtype(DType.F32), w.with_dtype(DType.F32)], full)
    return (y.with_dtype(DType.I32),)


def _conv(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, w, xz, wz = [*arrays, None, None][:4]
    assert x is not None
    assert w is not None
    wide_x, wide_w = x.astype(np.float64), w.astype(np.float64)
    if xz is not None:
        wide_x -= float(xz.reshape(()))
    if wz is not None:
        wide_w -= wz.reshape(-1, *[1] * (w.ndim - 1))
    y = nn.conv(wide_x, wide_w, attrs["strides"], attrs["dilations"], attrs["pads"], attrs["group"])
    return (y.astype(np.int32),)


def _decompose_conv(rw: Rewriter, node: Node) -> tuple[Value, ...]:
    e = Emit(rw, node)
    x, w, xz, wz = [*node.inputs, None, None][:4]
    assert x is not None
    assert w is not None
    dtype = _exact_type(product(w.shape[1:]), _span(x, xz), _span(w, wz))
    left = _centred(e, x, xz, (), dtype)
    per_channel: tuple[Dim, ...] = ()
    if wz is not None and wz.type.numel != 1:
        per_channel = (wz.shape[0], *[1] * (w.type.rank - 1))
    right = _centred(e, w, wz, per_channel, dtype)
    return (e.cast(e("Conv", left, right, **node.attrs), DType.I32),)


composite(
    "ConvInteger", "x w x_zero? w_zero?", _infer_conv, _conv, _decompose_conv, _CONV_ATTRS,
    [
        Case(
            ((1, 2, 5, 5), (3, 2, 3, 3), _SCALAR_ZERO, np.array([1, 2, 0], np.uint8)),
            {"strides": (1, 1), "dilations": (1, 1), "pads": (1, 1, 1, 1)}, ("u8",), 0.0, 255.0,
        ),
        Case(
            ((1, 2, 5, 5), (2, 1, 2, 2)),
            {"strides": (2, 2), "dilations": (1, 1), "pads": (0, 0, 0, 0), "group": 2}, ("u8",), 0.0, 255.0,
        ),
    ],
)  # fmt: skip

# ---------------------------------------------------------------------------------------- DynamicQuantizeLinear


def _infer_dynamic(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = present("DynamicQuantizeLinear", types, 1)
    check_dtype("DynamicQuantizeLinear", x, (DType.F32,))
    return (x.with_dtype(DType.U8), TensorType(DType.F32, ()), TensorType(DType.U8, ()))


def _dynamic(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = operand(arrays)
    top, low = max(x.max(initial=0), np.float32(0)), min(x.min(initial=0), np.float32(0))
    scale = np.float32((top - low) / np.float32(255)) if top > low else np.float32(1)
    zero = np.uint8(np.clip(np.rint(-low / scale), 0, 255))
    y = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.uint8)
    return y, np.asarray(scale, np.float32), np.asarray(zero)


def _decompose_dynamic(rw: Rewriter, node: Node) -> tuple[Value, ...]:
    (x,), e = node.operands(), Emit(rw, node)
    zero, axes = e.const(0, DType.F32), tuple(range(x.type.rank))
    top = e("Max", e("ReduceMax", x, axes=axes, keepdims=0), zero)
    low = e("Min", e("ReduceMin", x, axes=axes, keepdims=0), zero)
    scale = e("Div", e("Sub", top, low), e.const(255, DType.F32))
    # a tensor of zeros: any scale will do
    scale = e("Where", e("Equal", scale, zero), e.const(1, DType.F32), scale)
    steps = e("Clip", e("Round", e("Div", e("Neg", low), scale)), min=0.0, max=255.0)
    point = e.cast(steps, DType.U8)
    return e("QuantizeLinear", x, scale, point, axis=0), scale, point


composite(
    "DynamicQuantizeLinear", "x", _infer_dynamic, _dynamic, _decompose_dynamic, {},
    [Case(((3, 4),), {}, ("f32",), -1.0, 3.0), Case((np.zeros((2, 2), np.float32),))],
    doc="outputs y (u8), scale (f32) and zero point (u8)",
)  # fmt: skip
