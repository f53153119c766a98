"""ATen's divisions and remainders, rounded as eager rounds: quotients near an integer, 16-bit floats, numbers."""

from __future__ import annotations

from arcweld.compiler.dims import IntExpr
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.torch.context import AtenContext, Result, aten
from arcweld.compiler.torch.handlers.pointwise import truncated


@aten("div.Tensor", "div.Scalar", "true_divide.Tensor")
def div(c: AtenContext) -> Result:
    return c.apply("Div", c["self"], c["other"])


@aten("div.Tensor_mode", "div.Scalar_mode")
def div_mode(c: AtenContext) -> Result:
    mode = c["rounding_mode"]
    if mode == "floor":
        return floor_divide(c)
    if mode == "trunc":
        a, b = _divided(c)
        quotient = c.emit("Div", a, b)
        if isinstance(c["other"], Value):  # rounded to 16 bits first, as eager's loop over tensors does
            quotient = c.result(quotient)
        return c.result(truncated(c, quotient))
    return c.apply("Div", c["self"], c["other"])


def _divided(c: AtenContext) -> tuple[Value, Value]:
    """Dividend and divisor in the type in which eager divides: f32 for 16-bit floats, with an unrounded divisor.

    Raises UnsupportedError for the integer divisor 0, for which eager raises.
    """
    _refuse_zero(c)
    dtype = DType.F32 if c.out.dtype.is_half else c.out.dtype
    a, b = c["self"], c["other"]
    # a number is rounded to the type of the tensor that it is divided by
    a = a if isinstance(a, Value) else c.scalar(a, c.out.dtype)
    return c.cast(a, dtype), _divisor(c, c.tensor(b, dtype))


def _divisor(c: AtenContext, b: Value) -> Value:
    """``b``, an integer 0 in which is an error, as in eager."""
    return b if b.dtype.is_float or not isinstance(c["other"], Value) else c.emit("Divisor", b)


def _refuse_zero(c: AtenContext) -> None:
    if not c.out.dtype.is_float and not isinstance(c["other"], Value | IntExpr) and c["other"] == 0:
        raise c.fail("an integer division by zero")


@aten("floor_divide", "floor_divide.Scalar")
def floor_divide(c: AtenContext) -> Result:
    """The quotient rounded down, as Python does it: a float quotient may have been rounded up to an integer.

    ``(a - fmod(a, b)) / b`` is an integer up to rounding, less 1 where the remainder's sign isn't the divisor's.
    """
    a, b = _divided(c)
    zero, one = c.scalar(0, a.dtype), c.scalar(1, a.dtype)
    r = c.emit("Mod", a, b, fmod=1)
    down = c.emit("And", c.emit("Not", c.emit("Equal", r, zero)), _differ_in_sign(c, r, b))
    if not a.dtype.is_float:
        return c.emit("Sub", c.emit("Div", a, b), c.cast(down, a.dtype))
    q = c.emit("Div", c.emit("Sub", a, r), b)
    q = c.emit("Where", down, c.emit("Sub", q, one), q)
    whole = c.emit("Floor", q)
    up = c.emit("Greater", c.emit("Sub", q, whole), c.scalar(0.5, a.dtype))
    whole = c.emit("Where", up, c.emit("Add", whole, one), whole)
    ratio = c.emit("Div", a, b)
    signed = c.emit("Mul", zero, c.emit("Sign", ratio))
    whole = c.emit("Where", c.emit("Equal", q, zero), signed, whole)
    return c.result(c.emit("Where", c.emit("Equal", b, zero), ratio, whole))


@aten("remainder.Tensor", "remainder.Scalar")
def remainder(c: AtenContext) -> Result:
    """The remainder with the divisor's sign."""
    a, b = _rounded_operands(c)
    if not a.dtype.is_float:
        return c.emit("Mod", a, b, fmod=0)
    r = c.emit("Mod", a, b, fmod=1)
    zero = c.scalar(0.0, a.dtype)
    wrong = c.emit("And", c.emit("Not", c.emit("Equal", r, zero)), _differ_in_sign(c, r, b))
    return c.result(c.emit("Where", wrong, c.emit("Add", r, b), r))


def _rounded_operands(c: AtenContext) -> tuple[Value, Value]:
    """``self`` and ``other``, numbers rounded to the result's type, in the type in which eager takes remainders."""
    _refuse_zero(c)
    dtype = DType.F32 if c.out.dtype.is_half else c.out.dtype
    a, b = (c.cast(c.tensor(c[name], c.out.dtype), dtype) for name in ("self", "other"))
    return a, _divisor(c, b)


def _differ_in_sign(c: AtenContext, a: Value, b: Value) -> Value:
    zero = c.scalar(0.0, a.dtype)
    return c.emit("Xor", c.emit("Less", a, zero), c.emit("Less", b, zero))


@aten("fmod.Tensor", "fmod.Scalar")
def fmod(c: AtenContext) -> Result:
    a, b = _rounded_operands(c)
    return c.result(c.emit("Mod", a, b, fmod=1))
