"""ATen's less usual elementwise operators: shifts of bits, signs, angles, rounding to decimals."""

from __future__ import annotations

import math

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.torch.context import Call, Result, aten

# ------------------------------------------------------------------------------------------------- shifts of bits

_SHIFTS = ("Tensor", "Tensor_Scalar", "Scalar_Tensor")


@aten("__lshift__.Scalar", "__lshift__.Tensor", *(f"bitwise_left_shift.{s}" for s in _SHIFTS))
def left_shift(c: Call) -> Result:
    return c.apply("Mul", c["self"], _power(c))


@aten("__rshift__.Scalar", "__rshift__.Tensor", *(f"bitwise_right_shift.{s}" for s in _SHIFTS))
def right_shift(c: Call) -> Result:
    """The quotient rounded down, as shifting a negative number rounds."""
    x, power = c.arithmetic(c["self"], _power(c))[1]
    return c.make("Div", c.make("Sub", x, c.make("Mod", x, power, fmod=0)), power)


def _power(c: Call) -> int:
    """Two to the number of bits, where it is a constant that fits the type."""
    bits = c["other"]
    if not isinstance(bits, int) or c.out.dtype.is_float:
        raise c.fail("a shift by bits that are not a constant integer")
    if not 0 <= bits < 8 * c.out.dtype.numpy.itemsize - 1:
        raise c.fail(f"a shift of {c.out.dtype.value} by {bits} bits")
    return 1 << bits


# -------------------------------------------------------------------------------------------------- signs, angles


def negative(c: Call, x: Value) -> Value:
    """Whether the sign bit is set, zeros included, which their reciprocals tell apart. A NaN counts as positive."""
    zero = c.scalar(0.0 if x.dtype.is_float else 0, x.dtype)
    less = c.make("Less", x, zero)
    if not x.dtype.is_float:
        return less
    return c.make("Or", less, c.make("Less", c.make("Reciprocal", x), zero))


@aten("signbit")
def signbit(c: Call) -> Result:
    x: Value = c["self"]
    return c.full(False, x.shape, DType.BOOL) if x.dtype is DType.BOOL else negative(c, x)


@aten("copysign.Tensor", "copysign.Scalar")
def copysign(c: Call) -> Result:
    x, sign = c.arithmetic(c["self"], c["other"])[1]
    size = c.make("Abs", x)
    return c.result(c.make("Where", negative(c, sign), c.make("Neg", size), size))


@aten("atan2")
def atan2(c: Call) -> Result:
    """The angle of the point (other, self): an arc tangent below 45 degrees, moved to where the point lies."""
    y, x = _wide(c)
    dtype = x.dtype
    height, width = c.make("Abs", y), c.make("Abs", x)
    low, high = c.make("Min", height, width), c.make("Max", height, width)
    one, zero = c.scalar(1.0, dtype), c.scalar(0.0, dtype)
    equal = c.make("And", c.make("Equal", low, high), c.make("Greater", high, zero))  # infinite ones too
    ratio = c.make("Div", low, c.make("Where", c.make("Equal", high, zero), one, high))
    angle = c.make("Atan", c.make("Where", equal, one, ratio))
    steep = c.make("Sub", c.scalar(math.pi / 2, dtype), angle)
    angle = c.make("Where", c.make("Greater", height, width), steep, angle)
    angle = c.make("Where", negative(c, x), c.make("Sub", c.scalar(math.pi, dtype), angle), angle)
    return c.result(c.make("Where", negative(c, y), c.make("Neg", angle), angle))


@aten("hypot")
def hypot(c: Call) -> Result:
    """``high * sqrt(1 + (low / high)^2)``, which overflows only where the result does."""
    a, b = (c.make("Abs", v) for v in _wide(c))
    dtype = a.dtype
    low, high = c.make("Min", a, b), c.make("Max", a, b)
    one = c.scalar(1.0, dtype)
    plain = c.make("Or", c.make("Equal", high, c.scalar(0.0, dtype)), c.make("IsInf", high))
    ratio = c.make("Where", plain, c.scalar(0.0, dtype), c.make("Div", low, c.make("Where", plain, one, high)))
    root = c.make("Sqrt", c.make("Add", one, c.make("Mul", ratio, ratio)))
    return c.result(c.make("Mul", high, root))


def _wide(c: Call) -> list[Value]:
    """Both operands in the type that the result's is computed in."""
    return [c.tensor(c[k], c.out.dtype.compute) for k in ("self", "other")]


# ---------------------------------------------------------------------------------------------- extrema, rounding


@aten("fmax")
def fmax(c: Call) -> Result:
    return _without_nan(c, "Max")


@aten("fmin")
def fmin(c: Call) -> Result:
    return _without_nan(c, "Min")


def _without_nan(c: Call, op: str) -> Value:
    """An extremum in which a NaN gives way to a number."""
    dtype, (a, b) = c.arithmetic(c["self"], c["other"])
    if not dtype.is_float:
        return c.make(op, a, b)
    both = c.make("Where", c.make("IsNaN", a), b, c.make("Where", c.make("IsNaN", b), a, c.make(op, a, b)))
    return c.result(both)


@aten("round.decimals")
def round_decimals(c: Call) -> Result:
    x: Value = c["self"]
    if not x.dtype.is_float:
        raise c.fail("rounding integers to decimals")
    dtype = x.dtype.compute
    factor = c.scalar(10.0 ** abs(c["decimals"]), dtype)
    ahead, back = ("Mul", "Div") if c["decimals"] >= 0 else ("Div", "Mul")
    rounded = c.make("Round", c.make(ahead, c.cast(x, dtype), factor))
    return c.result(c.make(back, rounded, factor))
