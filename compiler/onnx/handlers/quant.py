"""Handlers of quantised operators. Products of 8-bit integers are exact, in i32, before they are scaled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from arcweld.compiler.dims import Dim, ceildiv
from arcweld.compiler.dtypes import FLOATS8, DType
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.base import MICROSOFT, Result, handles
from arcweld.compiler.onnx.handlers.matmul import matmul
from arcweld.compiler.onnx.handlers.window import conv_attrs
from arcweld.compiler.onnx.proto import element_type
from arcweld.compiler.ops import integer_products as products
from arcweld.compiler.ops.quantize import QUANTIZED
from arcweld.compiler.ops.shapes import check_dtype
from arcweld.compiler.weights import derive

_INT8 = (DType.I8, DType.U8)


@handles("QuantizeLinear")
@handles("QuantizeLinear", domain=MICROSOFT)
def _quantize(c: NodeContext) -> Result:
    x, scale, zero = c.value(0), c.value(1), c.optional(2)
    if zero is not None:
        dtype = zero.dtype
    else:
        dtype = element_type(c.int_attr("output_dtype")) if c.int_attr("output_dtype") else DType.U8
    axis, block = _places(c, x, scale)
    scale, zero = one_or_along(c, c.cast(scale, x.dtype), zero)
    if dtype.is_float:
        if zero is not None and not _is_zero(c, 2):
            c.unsupported(f"a zero point of {dtype.value} other than 0")
        if dtype in FLOATS8 and not c.int_attr("saturate", 1):
            one = c.const(1.0, x.dtype)
            ratio = c.emit("DequantizeLinear", x, one) if x.dtype is DType.I32 else x
            return c.cast(c.emit("Div", ratio, _spread(c, scale, x, axis, block)), dtype)
        zero = None
    return c.emit("QuantizeLinear", x, scale, zero, axis=axis, block=block, dtype=dtype)


@handles("DequantizeLinear")
@handles("DequantizeLinear", domain=MICROSOFT)
def _dequantize(c: NodeContext) -> Result:
    x, scale, zero = c.value(0), c.value(1), c.optional(2)
    axis, block = _places(c, x, scale)
    scale, zero = one_or_along(c, scale, zero)
    dtype = element_type(c.int_attr("output_dtype")) if c.int_attr("output_dtype") else None
    check_dtype("DequantizeLinear", x.type, (*QUANTIZED, DType.I32))
    return c.emit("DequantizeLinear", x, scale, zero, axis=axis, block=block, dtype=dtype)


def _is_zero(c: NodeContext, i: int) -> bool:
    known = c.known(i).known
    return known is not None and not known.astype(np.float32).any()


def _places(c: NodeContext, x: Value, scale: Value) -> tuple[int, int]:
    """The attributes ``axis`` and ``block`` of a node that quantises."""
    block = c.int_attr("block_size")
    if not block:
        return _quantised_axis(c, x, scale), 0
    axis = c.axis(c.int_attr("axis", 1), x.type.rank)
    if block < 0 or scale.type.rank != x.type.rank or scale.shape[axis] != ceildiv(x.shape[axis], block):
        c.broken(f"scales of shape {list(scale.shape)} for blocks of {block} along axis {axis} of {list(x.shape)}")
    return axis, block


def _spread(c: NodeContext, scale: Value, x: Value, axis: int, block: int) -> Value:
    """Scales in a shape that broadcasts to that of ``x``."""
    if not block:
        along = tuple(x.shape[axis] if k == axis else 1 for k in range(x.type.rank))
        return c.reshape(scale, along) if scale.type.rank else scale
    lead, rest = scale.shape[: axis + 1], scale.shape[axis + 1 :]
    wide = c.expand(c.reshape(scale, (*lead, 1, *rest)), (*lead, block, *rest))
    return c.slice(c.reshape(wide, (*scale.shape[:axis], scale.shape[axis] * block, *rest)), axis, 0, x.shape[axis])


def _quantised_axis(c: NodeContext, x: Value, scale: Value) -> int:
    if scale.type.rank == 0 or (scale.type.rank == 1 and scale.shape[0] == 1):
        return 0
    return c.axis(c.int_attr("axis", 1), x.type.rank)


def one_or_along(c: NodeContext, scale: Value, zero: Value | None) -> tuple[Value, Value | None]:
    """A scale and its zero point; one element becomes a scalar, as files write it with shape ``[]`` or ``[1]``."""
    return scalar(c, scale), None if zero is None else scalar(c, zero)


@handles("DynamicQuantizeLinear")
def _dynamic(c: NodeContext) -> Result:
    return list(dynamic_quantize(c, c.value(0)))


def dynamic_quantize(c: NodeContext, x: Value) -> tuple[Value, Value, Value]:
    """Quantises ``x`` to u8 by its own range: the quantised tensor, the scale, the zero point."""
    axes = tuple(range(x.type.rank))
    zero = c.const(0.0, DType.F32)
    low = c.emit("Min", c.emit("ReduceMin", x, axes=axes, keepdims=0), zero)
    high = c.emit("Max", c.emit("ReduceMax", x, axes=axes, keepdims=0), zero)
    scale = c.emit("Div", c.emit("Sub", high, low), c.const(255.0, DType.F32))
    # an all-zero tensor has no range; any scale represents it
    scale = c.emit("Where", c.emit("Equal", scale, zero), c.const(1.0, DType.F32), scale)
    point = c.emit("Round", c.emit("Clip", c.emit("Div", c.emit("Neg", low), scale), min=0.0, max=255.0))
    point = c.cast(point, DType.U8)
    return c.emit("QuantizeLinear", x, scale, point, axis=0, dtype=DType.U8), scale, point


# ------------------------------------------------------------------------------------------------ integer products


def _zero(c: NodeContext, zero: Value | None, shape: Sequence[Dim]) -> Value | None:
    """A zero point; a vector takes ``shape``, and one of one element becomes a scalar."""
    if zero is None or zero.type.rank != 1:
        return zero
    return scalar(c, zero) if zero.shape == (1,) else c.reshape(zero, shape)


def _check_bytes(c: NodeContext, left: Value, right: Value) -> None:
    if left.dtype not in _INT8 or right.dtype not in _INT8:
        c.broken("the operands should be 8-bit integers")


def integer_matmul(c: NodeContext, a: Value, b: Value, a_zero: Value | None, b_zero: Value | None) -> Value:
    """The product of two 8-bit matrices less their zero points, in i32."""
    _check_bytes(c, a, b)
    left = _zero(c, a_zero, (a.shape[-2] if a.type.rank > 1 else 1, 1))
    right = _zero(c, b_zero, (b.shape[-1] if b.type.rank else 1,))
    return matmul(c, a, b, lambda x, y: products.integer_matmul(c, x, y, left, right))


def integer_conv(c: NodeContext, x: Value, w: Value, x_zero: Value | None, w_zero: Value | None) -> Value:
    """The convolution of 8-bit tensors less their zero points, in i32, with the node's attributes."""
    rank = x.type.rank
    if not 3 <= rank <= 5 or w.type.rank != rank:
        c.broken(f"operands of rank {rank} and {w.type.rank}")
    _check_bytes(c, x, w)
    x_point, w_point = _zero(c, x_zero, ()), _zero(c, w_zero, (w.shape[0],))
    return products.integer_conv(c, x, w, x_point, w_point, **conv_attrs(c, x, w))


@handles("MatMulInteger")
def _matmul_integer(c: NodeContext) -> Result:
    return integer_matmul(c, c.value(0), c.value(1), c.optional(2), c.optional(3))


@handles("ConvInteger")
def _conv_integer(c: NodeContext) -> Result:
    return integer_conv(c, c.value(0), c.value(1), c.optional(2), c.optional(3))


@handles("QLinearMatMul")
def _qlinear_matmul(c: NodeContext) -> Result:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (c.value(i) for i in range(8))
    exact = integer_matmul(c, a, b, a_zero, b_zero)
    scale = c.emit("Mul", _row(c, a_scale, a), scalar(c, b_scale))
    return requantise(c, c.emit("Mul", c.cast(exact, DType.F32), c.cast(scale, DType.F32)), y_scale, y_zero)


@handles("QLinearConv")
def _qlinear_conv(c: NodeContext) -> Result:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (c.value(i) for i in range(8))
    exact = integer_conv(c, x, w, x_zero, w_zero)
    channels = (w.shape[0], *[1] * (x.type.rank - 2))
    if c.has(8):
        exact = c.emit("Add", exact, c.reshape(c.value(8), channels))
    scale = scalar(c, w_scale)
    if scale.type.rank == 1:
        scale = c.reshape(scale, channels)
    scale = c.emit("Mul", scale, scalar(c, x_scale))
    return requantise(c, c.emit("Mul", c.cast(exact, DType.F32), scale), y_scale, y_zero)


def scalar(c: NodeContext, scale: Value) -> Value:
    """A scale; one of shape ``[1]`` becomes a scalar."""
    if scale.shape != (1,):
        return scale
    # a constant stays one: passes compare scales before constants are folded
    return derive(c.rw, "Reshape", [scale], {"shape": ()}, origin=c.origin, hint=f"{scale.name}.scalar")


def _row(c: NodeContext, scale: Value, a: Value) -> Value:
    scale = scalar(c, scale)
    return c.reshape(scale, (*scale.shape, 1)) if scale.type.rank == 1 and a.type.rank > 1 else scale


def requantise(c: NodeContext, y: Value, scale: Value, zero: Value) -> Value:
    """``y`` quantised with ``scale`` and ``zero``, in the zero point's type."""
    return c.emit("QuantizeLinear", y, c.cast(scalar(c, scale), DType.F32), scalar(c, zero), axis=0, dtype=zero.dtype)


@handles("MatMulIntegerToFloat", domain=MICROSOFT)
def _matmul_to_float(c: NodeContext) -> Result:
    a, b, a_scale, b_scale = (c.value(i) for i in range(4))
    exact = c.cast(integer_matmul(c, a, b, c.optional(4), c.optional(5)), a_scale.dtype)
    y = c.emit("Mul", exact, c.emit("Mul", _row(c, a_scale, a), scalar(c, b_scale)))
    return c.emit("Add", y, c.value(6)) if c.has(6) else y


@handles("DynamicQuantizeMatMul", domain=MICROSOFT)
def _dynamic_matmul(c: NodeContext) -> Result:
    quantised, scale, zero = dynamic_quantize(c, c.value(0))
    exact = integer_matmul(c, quantised, c.value(1), zero, c.optional(3))
    y = c.emit("Mul", c.cast(exact, DType.F32), c.emit("Mul", scale, scalar(c, c.value(2))))
    return c.emit("Add", y, c.value(4)) if c.has(4) else y


# -------------------------------------------------------------------------------------------------- packed weights


@handles("MatMulNBits", domain=MICROSOFT)
def _matmul_nbits(c: NodeContext) -> Result:
    """``A @ W^T`` with weights of 2, 4 or 8 bits in blocks along K: ``W = (q - zero) * scale``.

    A group index says which block each element of K belongs to: then the weights are stored block by block, and the
    activations are read in that order.
    """
    bits, block = c.int_attr("bits", 4), c.int_attr("block_size")
    k, n = c.int_attr("K"), c.int_attr("N")
    if bits not in (2, 4, 8) or block < 1 or k < 1 or n < 1:
        c.unsupported(f"{bits}-bit weights in blocks of {block}")
    blocks = -(-k // block)
    a, dtype = c.value(0), {2: DType.U2, 4: DType.U4, 8: DType.U8}[bits]
    weights = _bits(c, 1, dtype, (n, blocks * block), k)
    if c.has(4):
        order = _order_of_groups(c, k, block)
        weights, a = (c.emit("Gather", v, order, axis=v.type.rank - 1) for v in (weights, a))
    scales = c.reshape(c.value(2), (n, blocks))
    if not c.has(3):
        zero = c.const(1 << (bits - 1), dtype)
    elif c.operand(3).dtype is DType.U8:
        zero = _bits(c, 3, dtype, (n, blocks), blocks)
    else:
        zero = c.reshape(c.value(3), (n, blocks))
    w = c.emit("DequantizeLinear", weights, scales, zero, axis=1, block=block, dtype=a.dtype)
    y = matmul(c, a, c.transpose(w, (1, 0)))
    return c.emit("Add", y, c.value(5)) if c.has(5) else y


@handles("GatherBlockQuantized", domain=MICROSOFT)
def _gather_block_quantised(c: NodeContext) -> Result:
    """Rows of a table that is quantised in blocks. Bytes hold elements of ``bits`` bits, along the last axis."""
    data, scales, bits = c.value(0), c.value(2), c.int_attr("bits", 4)
    rank, block = data.type.rank, c.int_attr("block_size", 128)
    along, across = c.axis(c.int_attr("quantize_axis", 1), rank), c.axis(c.int_attr("gather_axis", 0), rank)
    zero = c.optional(3)
    if data.dtype is DType.U8 and bits != 8:
        if bits not in (2, 4):
            c.unsupported(f"elements of {bits} bits")
        dtype = {2: DType.U2, 4: DType.U4}[bits]
        data = c.emit("UnpackBits", data, dtype=dtype)
        if zero is not None:
            zero = c.slice(c.emit("UnpackBits", zero, dtype=dtype), rank - 1, 0, scales.shape[-1])
    if zero is None and c.operand(0).dtype is DType.U8:
        zero = c.const(1 << (bits - 1), data.dtype)
    if block == 0 or scales.type.rank != rank or scales.shape[along] != ceildiv(data.shape[along], block):
        c.unsupported(f"scales of shape {list(scales.shape)} for blocks of {block} along axis {along}")
    wide = c.emit("DequantizeLinear", data, scales, zero, axis=along, block=block, dtype=scales.dtype)
    return c.emit("Gather", wide, c.value(1), axis=across)


def _order_of_groups(c: NodeContext, k: int, block: int) -> Value:
    """The elements of K in the order of their groups, each of which has to fill its block."""
    groups = c.known(4).known
    if groups is None or groups.shape not in ((k,), (-(-k // block) * block,)) or groups.dtype.kind not in "iu":
        c.broken(f"the group index should hold {k} integers")
    counts = np.bincount(groups[:k].clip(0), minlength=-(-k // block))
    for g, count in enumerate(counts):
        own = min(block, max(0, k - g * block))
        if count != own:
            c.unsupported(f"group {g} has {count} elements, and blocks have {own}")
    return c.emit("TopKIndices", c.slice(c.value(4), 0, 0, k), k=k, axis=0, largest=0)


def _bits(c: NodeContext, i: int, dtype: DType, shape: tuple[int, int], columns: int) -> Value:
    """Input ``i``: bytes that hold rows of ``dtype``, each in whole bytes. Of each row, the first ``columns``."""
    operand = c.operand(i)
    if operand.dtype is not DType.U8:
        c.broken(f"input {i} should hold bytes")
    rows, width = shape[0], dtype.nbytes(shape[1])
    given = c.value(i)
    if given.type.numel != rows * width:
        c.broken(f"input {i} has {given.type.numel} bytes instead of {rows * width}")
    elements = c.reshape(given, (rows, width))
    if dtype is not DType.U8:
        elements = c.emit("UnpackBits", elements, dtype=dtype)
    return c.slice(elements, 1, 0, columns)
