"""Products and convolutions of 8-bit integers less their zero points.

    sum (a - za)(b - zb) = sum a (b - zb) - za * (sum b - K * zb)

All of it is i32, which wraps: the result is exact wherever i32 holds it. The operators themselves take ``zb``; the sums
of constant weights are weights. A convolution pads with the zero point, so that its corrections are the same at the
borders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.ops.emit import Emitter

HALF_RANGE = 128  # the zero point of u8 weights without a sign of their own


def integer_matmul(e: Emitter, a: Value, b: Value, a_zero: Value | None, b_zero: Value | None) -> Value:
    """``(a - a_zero) @ (b - b_zero)`` of matrices, in i32. Zero points broadcast with their operands."""
    a_zero, b_zero = _unless_zero(e, a_zero), _unless_zero(e, b_zero)
    b, b_zero = _signed(e, b, b_zero)
    y = e.emit("MatMulInteger", a, b, *([b_zero] if b_zero is not None else []))
    if a_zero is not None:
        sums = _less(e, _sum(e, b, (b.type.rank - 2,)), b_zero, a.shape[-1])
        y = e.emit("Sub", y, e.emit("Mul", _i32(e, a_zero), sums))
    return y


def integer_conv(
    e: Emitter, x: Value, w: Value, x_zero: Value | None, w_zero: Value | None, **attrs: Any
) -> Value:
    """The convolution of ``x - x_zero`` with ``w - w_zero``, channels first, in i32.

    ``x_zero`` is a scalar, ``w_zero`` a scalar or a vector of one for each output channel; ``attrs`` are Conv's.
    """
    x_zero, w_zero = _unless_zero(e, x_zero), _unless_zero(e, w_zero)
    w, w_zero = _signed(e, w, w_zero)
    fill = x_zero if any(p != 0 for p in attrs["pads"]) else None
    optional = [fill, w_zero] if w_zero is not None else [fill] if fill is not None else []
    y = e.emit("ConvInteger", x, w, *optional, **attrs)
    if x_zero is not None:
        sums = e.reshape(_sum(e, w, range(1, w.type.rank)), w.shape[:1])
        filters = e.reshape(_less(e, sums, w_zero, product(w.shape[1:])), (w.shape[0], *(1,) * (x.type.rank - 2)))
        y = e.emit("Sub", y, e.emit("Mul", _i32(e, x_zero), filters))
    return y


def _less(e: Emitter, sums: Value, zero: Value | None, terms: Dim) -> Value:
    """Sums of ``terms`` elements each, less their zero point."""
    if zero is None:
        return sums
    return e.emit("Sub", sums, e.emit("Mul", _i32(e, zero), e.dim_value(terms, DType.I32)))


def _i32(e: Emitter, x: Value) -> Value:
    return e.cast(x, DType.I32)


def _sum(e: Emitter, x: Value, axes: Sequence[int]) -> Value:
    """Sums over axes, which stay with extent 1."""
    return e.emit("ReduceSum", _i32(e, x), axes=tuple(axes), keepdims=1)


def _constant(e: Emitter, value: Value | None) -> np.ndarray | None:
    weight = e.rw.weights.get(value.name) if value is not None else None
    return None if weight is None else weight.data


def _unless_zero(e: Emitter, zero: Value | None) -> Value | None:
    """The zero point, or None for one that is known to be 0."""
    known = _constant(e, zero)
    return None if known is not None and not known.any() else zero


def _signed(e: Emitter, w: Value, zero: Value | None) -> tuple[Value, Value | None]:
    """Constant u8 weights with the zero point 128, as i8 without one: no sums of activations are needed then."""
    known = _constant(e, zero)
    if known is None or w.dtype is not DType.U8 or w.name not in e.rw.weights or np.any(known != HALF_RANGE):
        return w, zero
    return e.cast(e.emit("Sub", _i32(e, w), e.const(HALF_RANGE, DType.I32)), DType.I8), None
