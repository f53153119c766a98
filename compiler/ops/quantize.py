"""QuantizeLinear and DequantizeLinear: pointwise, with one scale, or one for each index along an axis.

Blocked quantization, whose scale has the input's rank, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType, from_numpy
from arcweld.compiler.errors import ModelError
from arcweld.compiler.expr import Expr, binary, cast, const, unary
from arcweld.compiler.ir import Node, TensorType, Value
from arcweld.compiler.ops.elementwise import widen
from arcweld.compiler.ops.registry import Attr, Case, Kind, OpDef, Reader, register
from arcweld.compiler.ops.shapes import FLOATS, check_axis, check_dtype, check_equal, check_rank, split_optional

QUANTIZED = (DType.I8, DType.U8, DType.I16, DType.U16)


def _check_scale(op: str, x: TensorType, scale: TensorType, zero: TensorType | None, axis: int) -> None:
    check_dtype(op, scale, FLOATS)
    check_rank(op, scale, 0, 1)
    if scale.rank == 1 and scale.shape != (1,):
        check_axis(op, axis, x.rank)
        check_equal(op, f"scale and axis {axis}", scale.shape[0], x.shape[axis])
    if zero is not None and zero.shape != scale.shape:
        raise ModelError(f"{op}: scale {scale} and zero point {zero} differ in shape")


def _infer_quantize(types: Sequence[TensorType | None], attrs: Mapping[str, Any]) -> tuple[TensorType, ...]:
    (x, scale), (zero,) = split_optional("QuantizeLinear", types, 2, 3)
    check_dtype("QuantizeLinear", x, (*FLOATS, DType.I32))
    _check_scale("QuantizeLinear", x, scale, zero, attrs["axis"])
    out = zero.dtype if zero is not None else attrs["dtype"]
    check_dtype("QuantizeLinear", TensorType(out, ()), QUANTIZED)
    return (TensorType(out, x.shape),)


def _infer_dequantize(types: Sequence[TensorType | None], attrs: Mapping[str, Any]) -> tuple[TensorType, ...]:
    (x, scale), (zero,) = split_optional("DequantizeLinear", types, 2, 3)
    check_dtype("DequantizeLinear", x, (*QUANTIZED, DType.I32))
    _check_scale("DequantizeLinear", x, scale, zero, attrs["axis"])
    return (TensorType(scale.dtype, x.shape),)


def _along(a: np.ndarray, axis: int, rank: int) -> np.ndarray:
    if a.size == 1:
        return a.reshape(())
    return a.reshape([-1 if k == axis else 1 for k in range(rank)])


def _quantize(arrays: Sequence[np.ndarray | None], attrs: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
    x, scale, zero = [*arrays, None][:3]
    assert x is not None
    assert scale is not None
    dtype = from_numpy(zero.dtype) if zero is not None else attrs["dtype"]
    info = np.iinfo(dtype.numpy)
    y = np.rint(widen(x) / _along(widen(scale), attrs["axis"], x.ndim))
    if zero is not None:
        y = y + _along(zero, attrs["axis"], x.ndim).astype(y.dtype)
    return (np.clip(y, info.min, info.max).astype(dtype.numpy),)


def _dequantize(arrays: Sequence[np.ndarray | None], attrs: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
    x, scale, zero = [*arrays, None][:3]
    assert x is not None
    assert scale is not None
    steps = x.astype(np.int32)
    if zero is not None:
        steps = steps - _along(zero, attrs["axis"], x.ndim).astype(np.int32)
    wide = _along(widen(scale), attrs["axis"], x.ndim)
    return ((steps.astype(wide.dtype) * wide).astype(scale.dtype),)


def _parameter(reader: Reader, node: Node, value: Value, coords: tuple[Dim, ...]) -> Expr:
    at = coords[node.attrs["axis"]] if value.type.rank and value.shape != (1,) else 0
    return reader.read(value, (at,) * value.type.rank)


def _lower_quantize(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    x, scale, zero = [*node.inputs, None][:3]
    assert x is not None
    assert scale is not None
    step = _parameter(reader, node, scale, coords)
    y = unary("round", cast(reader.read(x, coords), step.dtype) / step)
    if zero is not None:
        y = y + cast(_parameter(reader, node, zero, coords), y.dtype)
    out = node.output.dtype
    info = np.iinfo(out.numpy)
    y = binary("min", binary("max", y, const(int(info.min), y.dtype)), const(int(info.max), y.dtype))
    return cast(y, out)


def _lower_dequantize(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    x, scale, zero = [*node.inputs, None][:3]
    assert x is not None
    assert scale is not None
    steps = cast(reader.read(x, coords), DType.I32)
    if zero is not None:
        steps = steps - cast(_parameter(reader, node, zero, coords), DType.I32)
    step = _parameter(reader, node, scale, coords)
    return cast(steps, step.dtype) * step


_SCALE = np.array([0.1, 0.02, 0.3], np.float32)
_ZERO = np.array([3, -5, 0], np.int8)

register(
    OpDef(
        "QuantizeLinear", Kind.POINTWISE, ("x", "scale", "zero_point?"), _infer_quantize, _quantize,
        attrs={"axis": Attr("int", 1), "dtype": Attr("dtype", DType.U8)}, lower=_lower_quantize, cost=8,
        cases=(
            Case(((2, 3, 4), np.array(0.02, np.float32)), dtypes=("f32",), low=-1.0, high=9.0),
            Case(((2, 3, 4), _SCALE, _ZERO), dtypes=("f32",), low=-9.0, high=9.0),
            Case(((2, 3), _SCALE, _ZERO.astype(np.uint8) // 16), {"axis": 1}, ("f32",), -9.0, 9.0),
        ),
        doc="saturate(round_half_even(x / scale) + zero_point); of the zero point's type, or else ``dtype``",
    )
)  # fmt: skip
register(
    OpDef(
        "DequantizeLinear", Kind.POINTWISE, ("x", "scale", "zero_point?"), _infer_dequantize, _dequantize,
        attrs={"axis": Attr("int", 1)}, lower=_lower_dequantize, cost=3,
        cases=(
            Case(((2, 3, 4), np.array(0.02, np.float32)), dtypes=("u8", "i32"), low=0.0, high=99.0),
            Case(((2, 3, 4), _SCALE, _ZERO), dtypes=("i8",), low=-99.0, high=99.0),
            Case(((2, 3), _SCALE.astype(np.float16)), {"axis": 1}, dtypes=("i8",), low=-99.0, high=99.0),
        ),
        doc="(x - zero_point) * scale, in the scale's type",
    )
)  # fmt: skip
