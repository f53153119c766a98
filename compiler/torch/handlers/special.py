"""ATen's rarer elementwise operators: bit shifts, signs, angles, rounding to decimals."""

from __future__ import annotations

import math

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.torch.context import AtenContext, Result, aten

# ------------------------------------------------------------------------------------------------- shifts of bits

_SHIFTS = ("Tensor", "Tensor_Scalar", "Scalar_Tensor")


@aten("__lshift__.Scalar", "__lshift__.Tensor", *(f"bitwise_left_shift.{s}" for s in _SHIFTS))
def left_shift(c: AtenContext) -> Result:
    return c.apply("Mul", c["self"], _power(c))


@aten("__rshift__.Scalar", "__rshift__.Tensor", *(f"bitwise_right_shift.{s}" for s in _SHIFTS))
def right_shift(c: AtenContext) -> Result:
    """The quotient rounded down, as shifting a negative number rounds."""
    x, power = c.arithmetic(c["self"], _power(c))[1]
    return c.emit("Div", c.emit("Sub", x, c.emit("Mod", x, power, fmod=0)), power)


def _power(c: AtenContext) -> int:
    """Two to the number of bits, where it is a constant that fits the type."""
    bits = c["other"]
    if not isinstance(bits, int) or c.out.dtype.is_float:
        raise c.fail("a shift by bits that are not a constant integer")
    if not 0 <= bits < 8 * c.out.dtype.numpy.itemsize - 1:
        raise c.fail(f"a shift of {c.out.dtype.value} by {bits} bits")
    return 1 << bits


# -------------------------------------------------------------------------------------------------- signs, angles


def negative(c: AtenContext, x: Value) -> Value:
    """Whether the sign bit of ``x`` is set. Zeros are told apart by their reciprocals; a NaN counts as positive."""
    zero = c.scalar(0.0 if x.dtype.is_float else 0, x.dtype)
    less = c.emit("Less", x, zero)
    if not x.dtype.is_float:
        return less
    return c.emit("Or", less, c.emit("Less", c.emit("Reciprocal", x), zero))


@aten("signbit")
def signbit(c: AtenContext) -> Result:
    x: Value = c["self"]
    return c.full(False, x.shape, DType.BOOL) if x.dtype is DType.BOOL else negative(c, x)


@aten("copysign.Tensor", "copysign.Scalar")
def copysign(c: AtenContext) -> Result:
    x, sign = c.arithmetic(c["self"], c["other"])[1]
    size = c.emit("Abs", x)
    return c.result(c.emit("Where", negative(c, sign), c.emit("Neg", size), size))


@aten("atan2")
def atan2(c: AtenContext) -> Result:
    """The angle of the point (other, self): an arc tangent below 45 degrees, moved to where the point lies."""
    y, x = _wide(c)
    dtype = x.dtype
    height, width = c.emit("Abs", y), c.emit("Abs", x)
    low, high = c.emit("Min", height, width), c.emit("Max", height, width)
    one, zero = c.scalar(1.0, dtype), c.scalar(0.0, dtype)
    equal = c.emit("And", c.emit("Equal", low, high), c.emit("Greater", high, zero))  # infinite ones too
    ratio = c.emit("Div", low, c.emit("Where", c.emit("Equal", high, zero), one, high))
    angle = c.emit("Atan", c.emit("Where", equal, one, ratio))
    steep = c.emit("Sub", c.scalar(math.pi / 2, dtype), angle)
    angle = c.emit("Where", c.emit("Greater", height, width), steep, angle)
    angle = c.emit("Where", negative(c, x), c.emit("Sub", c.scalar(math.pi, dtype), angle), angle)
    return c.result(c.emit("Where", negative(c, y), c.emit("Neg", angle), angle))


@aten("hypot")
def hypot(c: AtenContext) -> Result:
    """``high * sqrt(1 + (low / high)^2)``, which overflows only where the result does."""
    a, b = (c.emit("Abs", v) for v in _wide(c))
    dtype = a.dtype
    low, high = c.emit("Min", a, b), c.emit("Max", a, b)
    one = c.scalar(1.0, dtype)
    plain = c.emit("Or", c.emit("Equal", high, c.scalar(0.0, dtype)), c.emit("IsInf", high))
    ratio = c.emit("Where", plain, c.scalar(0.0, dtype), c.emit("Div", low, c.emit("Where", plain, one, high)))
    root = c.emit("Sqrt", c.emit("Add", one, c.emit("Mul", ratio, ratio)))
    return c.result(c.emit("Mul", high, root))


def _wide(c: AtenContext) -> list[Value]:
    """Both operands in the type that the result's is computed in."""
    return [c.tensor(c[k], c.out.dtype.compute) for k in ("self", "other")]


# ---------------------------------------------------------------------------------------------- extrema, rounding


@aten("fmax")
def fmax(c: AtenContext) -> Result:
    return _without_nan(c, "Max")


@aten("fmin")
def fmin(c: AtenContext) -> Result:
    return _without_nan(c, "Min")


def _without_nan(c: AtenContext, op: str) -> Value:
    """Max or Min (``op``) of both operands; where one is NaN, the other."""
    dtype, (a, b) = c.arithmetic(c["self"], c["other"])
    if not dtype.is_float:
        return c.emit(op, a, b)
    both = c.emit("Where", c.emit("IsNaN", a), b, c.emit("Where", c.emit("IsNaN", b), a, c.emit(op, a, b)))
    return c.result(both)


@aten("round.decimals")
def round_decimals(c: AtenContext) -> Result:
    x: Value = c["self"]
    if not x.dtype.is_float:
        raise c.fail("rounding integers to decimals")
    dtype = x.dtype.compute
    factor = c.scalar(10.0 ** abs(c["decimals"]), dtype)
    ahead, back = ("Mul", "Div") if c["decimals"] >= 0 else ("Div", "Mul")
    rounded = c.emit("Round", c.emit(ahead, c.cast(x, dtype), factor))
    return c.result(c.emit(back, rounded, factor))
