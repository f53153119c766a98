"""QuantizeLinear and DequantizeLinear: pointwise, with scales for all elements, for each index along an axis, or for
blocks of neighbours along it (ONNX opsets 10 to 24; MatMulNBits of com.microsoft has blocks too).

A scale and a zero point are a scalar, a vector along ``axis``, or have the rank of ``x``: then ``block`` elements along
``axis`` share one, the last ones perhaps fewer. One zero point may serve all scales. Quantised types are integers of 2
to 16 bits, and floats of 4 and 8; a DequantizeLinear has floats of 16 bits too, so that a graph in f32 can
keep them as they are stored. An offset in place of a zero point is what GGUF's Q4_1 and Q5_1 have. Integers of 5
and 6 bits are stored in two planes: ``x`` holds their lower four bits, ``high`` those above. So elements lie in whole
bytes and aligned words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import FLOATS8, INTS4, PLANES, DType, from_numpy, integer_range
from arcweld.compiler.errors import ModelError
from arcweld.compiler.expr import Expr, binary, cast, const, unary
from arcweld.compiler.ir import Node, TensorType, Value
from arcweld.compiler.ops.elementwise import widen
from arcweld.compiler.ops.registry import Attr, Case, Kind, OpDef, Reader, register
from arcweld.compiler.ops.shapes import FLOATS, check_axis, check_dtype, check_equal, check_rank, split_optional

INTEGERS = (DType.I8, DType.U8, DType.I16, DType.U16, *INTS4)
QUANTIZED = (*INTEGERS, *FLOATS8, DType.F4E2M1)
STORED = (*QUANTIZED, DType.I32, DType.F16, DType.BF16)  # what can be dequantised
SCALES = (*FLOATS, DType.F8E8M0, DType.F8E4M3FN)


def _check_scale(
    op: str, x: TensorType, scale: TensorType, others: Mapping[str, TensorType | None], attrs: Mapping[str, Any]
) -> None:
    axis, block = attrs["axis"], attrs["block"]
    if block < 0:
        raise ModelError(f"{op}: blocks of {block} elements")
    if block:
        check_axis(op, axis, x.rank)
        check_rank(op, scale, x.rank, x.rank)
        for k, (p, d) in enumerate(zip(scale.shape, x.shape)):
            check_equal(op, f"scale and axis {k} of {x}", p, dims.ceildiv(d, block) if k == axis else d)
    else:
        check_rank(op, scale, 0, 1)
        if scale.rank == 1 and scale.shape != (1,):
            check_axis(op, axis, x.rank)
            check_equal(op, f"scale and axis {axis}", scale.shape[0], x.shape[axis])
    for what, t in others.items():
        if t is not None and t.shape not in (scale.shape, ()):
            raise ModelError(f"{op}: scale {scale} and {what} {t} differ in shape")


def _infer_quantize(types: Sequence[TensorType | None], attrs: Mapping[str, Any]) -> tuple[TensorType, ...]:
    (x, scale), (zero,) = split_optional("QuantizeLinear", types, 2, 3)
    check_dtype("QuantizeLinear", x, (*FLOATS, DType.I32))
    check_dtype("QuantizeLinear", scale, FLOATS)
    _check_scale("QuantizeLinear", x, scale, {"zero point": zero}, attrs)
    out = zero.dtype if zero is not None else attrs["dtype"]
    check_dtype("QuantizeLinear", TensorType(out, ()), QUANTIZED)
    return (TensorType(out, x.shape),)


def _infer_dequantize(types: Sequence[TensorType | None], attrs: Mapping[str, Any]) -> tuple[TensorType, ...]:
    (x, scale), (zero, offset, high) = split_optional("DequantizeLinear", types, 2, 5)
    check_dtype("DequantizeLinear", x, STORED if high is None else (DType.U4,))
    check_dtype("DequantizeLinear", scale, SCALES)
    if high is not None:
        check_dtype("DequantizeLinear", high, PLANES)
        if high.shape != x.shape:
            raise ModelError(f"DequantizeLinear: lower bits {x} and upper bits {high} differ in shape")
    if zero is not None and zero.dtype is not (x.dtype if high is None else DType.U8):
        check_dtype("DequantizeLinear", zero, FLOATS)
    if offset is not None:
        check_dtype("DequantizeLinear", offset, FLOATS)
    _check_scale("DequantizeLinear", x, scale, {"zero point": zero, "offset": offset}, attrs)
    out = TensorType(attrs["dtype"] or scale.dtype, x.shape)
    check_dtype("DequantizeLinear", out, FLOATS)
    return (out,)


def _along(a: np.ndarray, attrs: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    """A scale or a zero point, broadcast to what numpy computes with elements of ``x``."""
    if attrs["block"] and a.ndim:
        wide = np.repeat(a, attrs["block"], axis=attrs["axis"])
        return wide[tuple(slice(d) for d in x.shape)]
    if a.size == 1:
        return a.reshape(())
    return a.reshape([-1 if k == attrs["axis"] else 1 for k in range(x.ndim)])


def _quantize(arrays: Sequence[np.ndarray | None], attrs: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
    x, scale, zero = [*arrays, None][:3]
    assert x is not None
    assert scale is not None
    dtype = from_numpy(zero.dtype) if zero is not None else attrs["dtype"]
    y = widen(x) / _along(widen(scale), attrs, x)
    if dtype.is_float:
        most = float(ml_dtypes.finfo(dtype.numpy).max)
        return (np.clip(y.astype(np.float32), -most, most).astype(dtype.numpy),)
    low, high = integer_range(dtype)
    y = np.rint(y)
    if zero is not None:
        y = y + _along(widen(zero), attrs, x).astype(y.dtype)
    return (np.clip(y, low, high).astype(dtype.compute.numpy).astype(dtype.numpy),)


def _dequantize(arrays: Sequence[np.ndarray | None], attrs: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
    x, scale, zero, offset, high = [*arrays, None, None, None][:5]
    assert x is not None
    assert scale is not None
    if high is not None:
        x = x.astype(np.uint8) + np.uint8(16) * high.astype(np.uint8)
    out = (attrs["dtype"] or from_numpy(scale.dtype)).numpy
    wide = np.result_type(widen(np.empty(0, out)).dtype, widen(scale).dtype)
    if from_numpy(x.dtype).is_float or (zero is not None and zero.dtype != x.dtype):
        steps = widen(x).astype(wide)
        if zero is not None:
            steps = steps - _along(widen(zero), attrs, x).astype(wide)
    else:
        steps = widen(x).astype(np.int32)
        if zero is not None:
            steps = steps - _along(widen(zero), attrs, x).astype(np.int32)
    y = steps.astype(wide) * _along(widen(scale), attrs, x).astype(wide)
    if offset is not None:
        y = y + _along(widen(offset), attrs, x).astype(wide)
    return (y.astype(out),)


def _parameter(reader: Reader, node: Node, value: Value, coords: tuple[Dim, ...]) -> Expr:
    axis, block = node.attrs["axis"], node.attrs["block"]
    if block and value.type.rank:
        return reader.read(value, tuple(dims.floordiv(c, block) if k == axis else c for k, c in enumerate(coords)))
    at = coords[axis] if value.type.rank and value.shape != (1,) else 0
    return reader.read(value, (at,) * value.type.rank)


def _lower_quantize(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    x, scale, zero = [*node.inputs, None][:3]
    assert x is not None
    assert scale is not None
    step = _parameter(reader, node, scale, coords)
    y = cast(reader.read(x, coords), step.dtype) / step
    out = node.output.dtype
    if out.is_float:
        most = float(ml_dtypes.finfo(out.numpy).max)
        y = cast(y, DType.F32)
        return cast(binary("min", binary("max", y, const(-most, y.dtype)), const(most, y.dtype)), out)
    y = unary("round", y)
    if zero is not None:
        y = y + cast(_parameter(reader, node, zero, coords), y.dtype)
    low, high = integer_range(out)
    y = binary("min", binary("max", y, const(low, y.dtype)), const(high, y.dtype))
    return cast(y, out)


def _lower_dequantize(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    x, scale, zero, offset, high = [*node.inputs, None, None, None][:5]
    assert x is not None
    assert scale is not None
    integer = DType.U8 if high is not None else x.dtype
    step = _parameter(reader, node, scale, coords)
    wide = DType.F64 if DType.F64 in (step.dtype, node.output.dtype) else DType.F32
    exact = DType.I32 if not x.dtype.is_float and (zero is None or zero.dtype is integer) else wide
    elements = reader.read(x, coords)
    if high is not None:
        elements = binary("bitor", elements, binary("shl", reader.read(high, coords), const(x.dtype.bits, DType.U8)))
    steps = cast(elements, exact)
    point = None if zero is None else cast(_parameter(reader, node, zero, coords), exact)
    if point is not None and not (point.op == "const" and point.attr == 0):
        steps = steps - point
    y = cast(steps, wide)
    if not (x.dtype.is_half and step.op == "const" and step.attr == 1):
        y = y * cast(step, wide)
    if offset is not None:
        moved = _parameter(reader, node, offset, coords)
        y = y if moved.op == "const" and moved.attr == 0 else y + cast(moved, wide)
    return cast(y, node.output.dtype)


_SCALE = np.array([0.1, 0.02, 0.3], np.float32)
_ZERO = np.array([3, -5, 0], np.int8)
_BLOCKS = np.array([[0.1, 0.5, 0.02], [0.3, 0.25, 0.75]], np.float32)
_LOW = np.arange(14).reshape(2, 7).astype(ml_dtypes.uint4)
_HIGH = np.array([[0, 1, 2, 3, 1, 0, 1], [1, 3, 0, 2, 0, 1, 1]], np.uint8)
_BLOCK_ZERO = np.array([[1, -2, 0], [-1, 3, 2]], ml_dtypes.int4)


def _stored(dtype: DType) -> np.ndarray:
    """Two rows of seven numbers of a quantised type."""
    values = np.array([[0, 1, 2, 3, 6, 4, 1.5], [-1, -2, -0.5, 1, -6, 3, 2]], np.float32)
    if not dtype.is_float:
        low, high = integer_range(dtype)
        values = np.clip(values, low, high).astype(dtype.compute.numpy)
    return values.astype(dtype.numpy)


register(
    OpDef(
        "QuantizeLinear", Kind.POINTWISE, ("x", "scale", "zero_point?"), _infer_quantize, _quantize,
        attrs={"axis": Attr("int", 1), "block": Attr("int", 0), "dtype": Attr("dtype", DType.U8)},
        lower=_lower_quantize, cost=8,
        cases=(
            Case(((2, 3, 4), np.array(0.02, np.float32)), dtypes=("f32",), low=-1.0, high=9.0),
            Case(((2, 3, 4), _SCALE, _ZERO), dtypes=("f32",), low=-9.0, high=9.0),
            Case(((2, 3), _SCALE, _ZERO.astype(np.uint8) // 16), {"axis": 1}, ("f32",), -9.0, 9.0),
            Case(((2, 7), _BLOCKS, _BLOCK_ZERO), {"axis": 1, "block": 3}, ("f32", "f16"), -2.0, 2.0),
            *(Case(((3, 5), np.array(0.3, np.float32)), {"dtype": d}, ("f32", "f16"), -3.0, 3.0) for d in QUANTIZED),
        ),
        doc="saturate(round_half_even(x / scale) + zero_point); of the zero point's type, or else ``dtype``; to floats "
        "of 4 and 8 bits it rounds without a zero point",
    )
)  # fmt: skip
register(
    OpDef(
        "DequantizeLinear", Kind.POINTWISE, ("x", "scale", "zero_point?", "offset?", "high?"), _infer_dequantize,
        _dequantize,
        attrs={"axis": Attr("int", 1), "block": Attr("int", 0), "dtype": Attr("dtype", None), "keep": Attr("int", 0)},
        lower=_lower_dequantize, cost=3,
        cases=(
            Case(((2, 3, 4), np.array(0.02, np.float32)), dtypes=("u8", "i32"), low=0.0, high=99.0),
            Case(((2, 3, 4), _SCALE, _ZERO), dtypes=("i8",), low=-99.0, high=99.0),
            Case(((2, 3), _SCALE.astype(np.float16)), {"axis": 1}, dtypes=("i8",), low=-99.0, high=99.0),
            *(Case((_stored(d), _BLOCKS), {"axis": 1, "block": 3}) for d in QUANTIZED),
            *(Case((_stored(d), _BLOCKS, _stored(d)[:, ::3]), {"axis": 1, "block": 3}) for d in INTEGERS),
            Case((_stored(DType.U4), _BLOCKS, 8 * _BLOCKS), {"axis": 1, "block": 3, "dtype": DType.F16}),
            Case((_stored(DType.U4), _BLOCKS, np.array(8, ml_dtypes.uint4)), {"axis": 1, "block": 3}),
            Case((_stored(DType.U4), _BLOCKS, np.array(0, ml_dtypes.uint4), -4 * _BLOCKS), {"axis": 1, "block": 3}),
            Case((_stored(DType.I8), _SCALE[:2], None, _SCALE[1:]), {"axis": 0}),
            *(Case((_stored(d), np.ones((), np.float32)), {"axis": 0}) for d in (DType.F16, DType.BF16)),
            Case((_stored(DType.F4E2M1), _BLOCKS.astype(ml_dtypes.float8_e8m0fnu)),
                 {"axis": 1, "block": 3, "dtype": DType.F32}),
            *(Case((_LOW, _BLOCKS, np.array(16, np.uint8), None, _HIGH.astype(d.numpy)), {"axis": 1, "block": 3})
              for d in PLANES),
            Case((_LOW, _BLOCKS, None, -4 * _BLOCKS, _HIGH.astype(ml_dtypes.uint2)), {"axis": 1, "block": 3}),
        ),
        doc="(x - zero_point) * scale + offset, in ``dtype`` or else the scale's type; the zero point has x's type or "
        "is a float. high: the bits above x's, elements are then x + 16 * high, of u8. keep: weights stay as they are "
        "stored, and nothing evaluates the node while compiling",
    )
)  # fmt: skip
