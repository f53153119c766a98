"""Complex tensors: absolute value, angle, and the elementary functions, by their formulas in real parts."""

from __future__ import annotations

import math

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.torch.context import AtenContext, Handler, Pair, Result, complex_aten
from arcweld.compiler.torch.handlers.complex_arithmetic import (
    Operand,
    conjugate,
    operand,
    over,
    pair_of,
    result,
    times,
)

_MOST_MULTIPLICATIONS = 16  # of an integer power; beyond it the logarithm's formula


# ---------------------------------------------------------------------------------------------------- real results


def size(c: AtenContext, x: Pair) -> Value:
    """The absolute value, which overflows only where the result does."""
    return c.call("hypot", x.re.type, self=x.re, other=x.im)


def angle_of(c: AtenContext, x: Pair) -> Value:
    """The argument, from -pi to pi."""
    return c.call("atan2", x.re.type, self=x.im, other=x.re)


@complex_aten("abs")
def absolute(c: AtenContext) -> Result:
    return size(c, c["self"])


@complex_aten("angle")
def angle(c: AtenContext) -> Result:
    return angle_of(c, c["self"])


def _of_both(op: str, join: str) -> Handler:
    def handler(c: AtenContext) -> Result:
        found = [c.call(op, c.out, self=p) for p in c["self"].parts]
        return c.emit(join, *found)

    return handler


complex_aten("isnan")(_of_both("isnan", "Or"))
complex_aten("isinf")(_of_both("isinf", "Or"))
complex_aten("isfinite")(_of_both("isfinite", "And"))


@complex_aten("sgn")
def sgn(c: AtenContext) -> Result:
    """``x / |x|``, and 0 for 0."""
    x: Pair = c["self"]
    r = size(c, x)
    zero = c.emit("Equal", r, _number(c, 0.0, x))
    safe = c.emit("Where", zero, _number(c, 1.0, x), r)
    return Pair(c.emit("Div", x.re, safe), c.emit("Div", x.im, safe))


def _number(c: AtenContext, value: float, x: Operand) -> Value:
    return c.scalar(value, x.dtype)


# ---------------------------------------------------------------------------------- exponentials, logarithms, powers


def exponential(c: AtenContext, x: Pair) -> Pair:
    """``exp(re) (cos im + i sin im)``."""
    r = c.emit("Exp", x.re)
    return Pair(c.emit("Mul", r, c.emit("Cos", x.im)), c.emit("Mul", r, c.emit("Sin", x.im)))


def logarithm(c: AtenContext, x: Pair) -> Pair:
    """``log |x| + i angle``; near the unit circle ``log |x|`` is ``log1p(|x|^2 - 1) / 2``, which does not cancel."""
    half, one = _number(c, 0.5, x), _number(c, 1.0, x)
    a, b = (c.emit("Abs", p) for p in x.parts)
    low, high = c.emit("Min", a, b), c.emit("Max", a, b)
    excess = c.emit("Mul", c.emit("Sub", high, one), c.emit("Add", high, one))
    excess = c.emit("Add", excess, c.emit("Mul", low, low))
    near = c.emit("And", c.emit("Greater", high, half), c.emit("Less", high, _number(c, 2.0, x)))
    fine = c.call("log1p", x.re.type, self=c.emit("Where", near, excess, _number(c, 0.0, x)))
    r = c.emit("Where", near, c.emit("Mul", half, fine), c.emit("Log", size(c, x)))
    return Pair(r, angle_of(c, x))


@complex_aten("exp")
def exp(c: AtenContext) -> Result:
    return exponential(c, c["self"])


@complex_aten("exp2")
def exp2(c: AtenContext) -> Result:
    return exponential(c, _pair(times(c, c["self"], _number(c, math.log(2), c["self"]))))


@complex_aten("log")
def log(c: AtenContext) -> Result:
    return logarithm(c, c["self"])


@complex_aten("log2")
def log2(c: AtenContext) -> Result:
    return times(c, logarithm(c, c["self"]), _number(c, 1 / math.log(2), c["self"]))


@complex_aten("log10")
def log10(c: AtenContext) -> Result:
    return times(c, logarithm(c, c["self"]), _number(c, 1 / math.log(10), c["self"]))


@complex_aten("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")
def power(c: AtenContext) -> Result:
    """Small integer powers by multiplication, a root by its formula, all others as ``exp(w log z)``.

    That exponent is computed in f64: its absolute error is the relative error of the power.
    """
    w = c["exponent"]
    if isinstance(w, complex) and not w.imag:
        w = w.real
    base = operand(c, c["self"])
    if isinstance(w, int | float) and float(w).is_integer() and abs(w) <= _MOST_MULTIPLICATIONS:
        return result(c, _integer_power(c, base, int(w)))
    if w == 0.5 and isinstance(base, Pair):
        return root(c, base)
    z = _wide(c, pair_of(c, base))
    exponent = _wide(c, pair_of(c, operand(c, w)))
    found = exponential(c, _pair(times(c, logarithm(c, z), exponent)))
    is_zero = c.emit("And", *(c.emit("Equal", p, _number(c, 0.0, z)) for p in z.parts))
    limit = _power_of_zero(c, exponent)
    return result(c, Pair(*(c.emit("Where", is_zero, a, b) for a, b in zip(limit.parts, found.parts))))


def _wide(c: AtenContext, x: Pair) -> Pair:
    return Pair(c.cast(x.re, DType.F64), c.cast(x.im, DType.F64))


def _power_of_zero(c: AtenContext, w: Pair) -> Pair:
    """0 where the exponent's real part is positive, infinite where it is negative, 1 for the exponent 0."""
    zero, one, nan = (_number(c, v, w) for v in (0.0, 1.0, math.nan))
    positive, negative = c.emit("Greater", w.re, zero), c.emit("Less", w.re, zero)
    none = c.emit("And", c.emit("Equal", w.re, zero), c.emit("Equal", w.im, zero))
    re = c.emit("Where", negative, _number(c, math.inf, w), c.emit("Where", none, one, nan))
    im = c.emit("Where", c.emit("Or", positive, none), zero, nan)
    return Pair(c.emit("Where", positive, zero, re), im)


def _integer_power(c: AtenContext, x: Operand, n: int) -> Operand:
    found: Operand = c.scalar(1.0, x.dtype)
    square: Operand = x
    for bit in reversed(f"{abs(n):b}"):
        if bit == "1":
            found = square if isinstance(found, Value) else times(c, found, square)
        square = times(c, square, square)
    return over(c, c.scalar(1.0, x.dtype), found) if n < 0 else found


def root(c: AtenContext, x: Pair) -> Pair:
    """The square root in the right half-plane: one part is ``t = sqrt((|x| + |re|) / 2)``, the other ``im / 2t``."""
    half, zero = _number(c, 0.5, x), _number(c, 0.0, x)
    t = c.emit("Sqrt", c.emit("Mul", half, c.emit("Add", size(c, x), c.emit("Abs", x.re))))
    none = c.emit("Equal", t, zero)
    small = c.emit("Div", c.emit("Mul", half, x.im), c.emit("Where", none, _number(c, 1.0, x), t))
    right = c.emit("GreaterOrEqual", x.re, zero)
    upright = c.call("copysign.Tensor", x.re.type, self=t, other=x.im)
    return Pair(c.emit("Where", right, t, c.emit("Abs", small)), c.emit("Where", right, small, upright))


@complex_aten("sqrt")
def sqrt(c: AtenContext) -> Result:
    return root(c, c["self"])


@complex_aten("rsqrt")
def rsqrt(c: AtenContext) -> Result:
    return result(c, over(c, _number(c, 1.0, c["self"]), root(c, c["self"])))


def _pair(x: Operand) -> Pair:
    assert isinstance(x, Pair)
    return x


# ------------------------------------------------------------------------------- circular and hyperbolic functions


def turned(c: AtenContext, x: Pair) -> Pair:
    """``i x``."""
    return Pair(c.emit("Neg", x.im), x.re)


def turned_back(c: AtenContext, x: Pair) -> Pair:
    """``-i x``."""
    return Pair(x.im, c.emit("Neg", x.re))


def _sinh(c: AtenContext, x: Pair) -> Pair:
    re = c.emit("Mul", c.emit("Sinh", x.re), c.emit("Cos", x.im))
    return Pair(re, c.emit("Mul", c.emit("Cosh", x.re), c.emit("Sin", x.im)))


def _cosh(c: AtenContext, x: Pair) -> Pair:
    re = c.emit("Mul", c.emit("Cosh", x.re), c.emit("Cos", x.im))
    return Pair(re, c.emit("Mul", c.emit("Sinh", x.re), c.emit("Sin", x.im)))


def _tanh(c: AtenContext, x: Pair) -> Pair:
    """``(sinh 2a + i sin 2b) / (cosh 2a + cos 2b)``; beyond 20 the result no longer depends on ``a``.

    The denominator is ``2 (sinh^2 a + cos^2 b)``, which does not cancel.
    """
    a = c.emit("Clip", x.re, min=-20.0, max=20.0)
    sinh, cosh, cos, sin = c.emit("Sinh", a), c.emit("Cosh", a), c.emit("Cos", x.im), c.emit("Sin", x.im)
    below = c.emit("Add", c.emit("Mul", sinh, sinh), c.emit("Mul", cos, cos))
    return Pair(c.emit("Div", c.emit("Mul", sinh, cosh), below), c.emit("Div", c.emit("Mul", sin, cos), below))


@complex_aten("sinh")
def sinh(c: AtenContext) -> Result:
    return _sinh(c, c["self"])


@complex_aten("cosh")
def cosh(c: AtenContext) -> Result:
    return _cosh(c, c["self"])


@complex_aten("tanh")
def tanh(c: AtenContext) -> Result:
    return _tanh(c, c["self"])


@complex_aten("sin")
def sin(c: AtenContext) -> Result:
    return turned_back(c, _sinh(c, turned(c, c["self"])))


@complex_aten("cos")
def cos(c: AtenContext) -> Result:
    return _cosh(c, turned(c, c["self"]))


@complex_aten("tan")
def tan(c: AtenContext) -> Result:
    return turned_back(c, _tanh(c, turned(c, c["self"])))


@complex_aten("sigmoid")
def sigmoid(c: AtenContext) -> Result:
    return result(c, _sigmoid(c, c["self"]))


@complex_aten("silu")
def silu(c: AtenContext) -> Result:
    return result(c, times(c, c["self"], _sigmoid(c, c["self"])))


def _sigmoid(c: AtenContext, x: Pair) -> Operand:
    """``1 / (1 + exp(-x))``."""
    e = exponential(c, Pair(c.emit("Neg", x.re), c.emit("Neg", x.im)))
    one = _number(c, 1.0, x)
    return over(c, one, Pair(c.emit("Add", one, e.re), e.im))


# ------------------------------------------------------- inverse functions (W. Kahan, "Branch cuts for complex
# elementary functions, or much ado about nothing's sign bit", 1987)


def _shifted(c: AtenContext, x: Pair, by: float, sign: float = 1.0) -> Pair:
    """``by + sign * x``."""
    number = _number(c, by, x)
    if sign < 0:
        return Pair(c.emit("Sub", number, x.re), c.emit("Neg", x.im))
    return Pair(c.emit("Add", x.re, number), x.im)


def _asin(c: AtenContext, x: Pair) -> Pair:
    below, above = root(c, _shifted(c, x, 1.0, -1.0)), root(c, _shifted(c, x, 1.0))
    re = c.call("atan2", x.re.type, self=x.re, other=_pair(times(c, below, above)).re)
    return Pair(re, c.emit("Asinh", _pair(times(c, _pair(conjugate(c, below)), above)).im))


@complex_aten("asin")
def asin(c: AtenContext) -> Result:
    return _asin(c, c["self"])


@complex_aten("asinh")
def asinh(c: AtenContext) -> Result:
    return turned_back(c, _asin(c, turned(c, c["self"])))


@complex_aten("acos")
def acos(c: AtenContext) -> Result:
    x: Pair = c["self"]
    below, above = root(c, _shifted(c, x, 1.0, -1.0)), root(c, _shifted(c, x, 1.0))
    half = c.call("atan2", x.re.type, self=below.re, other=above.re)
    return Pair(c.emit("Add", half, half), c.emit("Asinh", _pair(times(c, _pair(conjugate(c, above)), below)).im))


@complex_aten("acosh")
def acosh(c: AtenContext) -> Result:
    x: Pair = c["self"]
    below, above = root(c, _shifted(c, x, -1.0)), root(c, _shifted(c, x, 1.0))
    half = c.call("atan2", x.re.type, self=below.im, other=above.re)
    return Pair(c.emit("Asinh", _pair(times(c, _pair(conjugate(c, below)), above)).re), c.emit("Add", half, half))


def _atanh(c: AtenContext, x: Pair) -> Pair:
    """``log1p(4 |a| / ((1 - |a|)^2 + b^2)) / 4`` with the sign of a, and half the angle of ``1 - |z|^2 + 2 i b``."""
    a, one = c.emit("Abs", x.re), _number(c, 1.0, x)
    rest, sum_, square = c.emit("Sub", one, a), c.emit("Add", one, a), c.emit("Mul", x.im, x.im)
    far = c.emit("Add", c.emit("Mul", rest, rest), square)
    ratio = c.emit("Div", c.emit("Mul", _number(c, 4.0, x), a), far)
    size_ = c.emit("Mul", _number(c, 0.25, x), c.call("log1p", x.re.type, self=ratio))
    across = c.emit("Sub", c.emit("Mul", rest, sum_), square)
    angle_ = c.call("atan2", x.re.type, self=c.emit("Add", x.im, x.im), other=across)
    return Pair(
        c.call("copysign.Tensor", x.re.type, self=size_, other=x.re), c.emit("Mul", _number(c, 0.5, x), angle_)
    )  # fmt: skip


@complex_aten("atanh")
def atanh(c: AtenContext) -> Result:
    return _atanh(c, c["self"])


@complex_aten("atan")
def atan(c: AtenContext) -> Result:
    return turned_back(c, _atanh(c, turned(c, c["self"])))


# ------------------------------------------------------------------------------------------------ near 0 and near 1


@complex_aten("expm1")
def expm1(c: AtenContext) -> Result:
    """``expm1(a) cos b - 2 sin^2(b / 2) + i exp(a) sin b``, which does not cancel near 0."""
    x: Pair = c["self"]
    half = c.emit("Sin", c.emit("Mul", _number(c, 0.5, x), x.im))
    lost = c.emit("Mul", _number(c, 2.0, x), c.emit("Mul", half, half))
    grown = c.emit("Mul", c.call("expm1", x.re.type, self=x.re), c.emit("Cos", x.im))
    return Pair(c.emit("Sub", grown, lost), c.emit("Mul", c.emit("Exp", x.re), c.emit("Sin", x.im)))


@complex_aten("log1p")
def log1p(c: AtenContext) -> Result:
    """The logarithm of ``1 + x``; of a small x from ``|1 + x|^2 - 1 = a (2 + a) + b^2``."""
    x: Pair = c["self"]
    whole = logarithm(c, _shifted(c, x, 1.0))
    small = c.emit("Less", size(c, x), _number(c, 0.5, x))
    excess = c.emit("Add", c.emit("Mul", x.re, c.emit("Add", _number(c, 2.0, x), x.re)), c.emit("Mul", x.im, x.im))
    fine = c.call("log1p", x.re.type, self=c.emit("Where", small, excess, _number(c, 0.0, x)))
    return Pair(c.emit("Where", small, c.emit("Mul", _number(c, 0.5, x), fine), whole.re), whole.im)
