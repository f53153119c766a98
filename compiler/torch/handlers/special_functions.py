"""ATen's special functions of one and two operands, as the IR's operators or as formulas of them."""

from __future__ import annotations

import math
from typing import Any

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.torch.context import AtenContext, Result, aten

UNARY = {
    "erfc": "Erfc", "special_erfcx": "Erfcx", "erfinv": "Erfinv", "special_ndtri": "Ndtri", "lgamma": "Lgamma",
    "digamma": "Digamma", "i0": "BesselI0", "special_modified_bessel_i0": "BesselI0", "special_i0e": "BesselI0e",
    "special_i1": "BesselI1", "special_modified_bessel_i1": "BesselI1", "special_i1e": "BesselI1e",
    "special_bessel_j0": "BesselJ0", "special_bessel_j1": "BesselJ1", "special_bessel_y0": "BesselY0",
    "special_bessel_y1": "BesselY1", "special_modified_bessel_k0": "BesselK0",
    "special_modified_bessel_k1": "BesselK1", "special_scaled_modified_bessel_k0": "BesselK0e",
    "special_scaled_modified_bessel_k1": "BesselK1e", "special_airy_ai": "AiryAi",
}  # fmt: skip
POLYNOMIALS = {
    "chebyshev_polynomial_t": "ChebyshevT", "chebyshev_polynomial_u": "ChebyshevU",
    "chebyshev_polynomial_v": "ChebyshevV", "chebyshev_polynomial_w": "ChebyshevW",
    "hermite_polynomial_h": "HermiteH", "hermite_polynomial_he": "HermiteHe", "laguerre_polynomial_l": "LaguerreL",
    "legendre_polynomial_p": "LegendreP",
}  # fmt: skip


def _unary(op: str) -> Any:
    return lambda c: c.emit(op, _operand(c))


def _operand(c: AtenContext) -> Value:
    """The operand, whose name differs, in the result's type."""
    return c.cast(c["self"] if "self" in c.args else c["x"], c.out.dtype)


for _name, _op in UNARY.items():
    aten(_name)(_unary(_op))


def _polynomial(op: str, shifted: bool = False) -> Any:
    def handler(c: AtenContext) -> Result:
        dtype = c.out.dtype.compute
        x, n = c.tensor(c["x"], dtype), c.tensor(c["n"], dtype)
        if shifted:
            x = c.emit("Sub", c.emit("Add", x, x), c.scalar(1.0, dtype))
        return c.result(c.emit(op, x, n))

    return handler


for _name, _op in POLYNOMIALS.items():
    aten(*(f"special_{_name}{overload}" for overload in ("", ".x_scalar", ".n_scalar")))(_polynomial(_op))
    if _name.startswith("chebyshev"):
        aten(*(f"special_shifted_{_name}{overload}" for overload in ("", ".x_scalar", ".n_scalar")))(
            _polynomial(_op, shifted=True)
        )


def _pair(op: str) -> Any:
    return lambda c: c.apply(op, c["self"], c["other"])


aten("special_zeta", "special_zeta.self_scalar", "special_zeta.other_scalar")(_pair("Zeta"))
aten("igamma", "special_gammainc")(_pair("Igamma"))
aten("igammac", "special_gammaincc")(_pair("Igammac"))
aten("gcd")(_pair("Gcd"))


@aten("polygamma", "special_polygamma")
def polygamma(c: AtenContext) -> Result:
    """The derivative of the order ``n`` of digamma."""
    x = c.cast(c["self"], c.out.dtype)
    return c.emit("Digamma", x) if c["n"] == 0 else c.apply("Polygamma", float(c["n"]), x)


@aten("lcm")
def lcm(c: AtenContext) -> Result:
    """``|a / gcd * b|``, and 0 for two zeros."""
    dtype, (a, b) = c.arithmetic(c["self"], c["other"])
    divisor = c.emit("Gcd", a, b)
    zero = c.emit("Equal", divisor, c.scalar(0, dtype))
    whole = c.emit("Mul", c.emit("Div", a, c.emit("Where", zero, c.scalar(1, dtype), divisor)), b)
    return c.emit("Abs", whole)


@aten("special_spherical_bessel_j0")
def spherical_bessel_j0(c: AtenContext) -> Result:
    """``sin(x) / x``, near 0 by its series, and 0 at infinity."""
    x = c.cast(c["x"], c.out.dtype.compute)
    square, one = c.emit("Mul", x, x), c.scalar(1.0, x.dtype)
    series = one
    for k in (7, 5, 3, 1):  # nested: 1 - x^2/6 (1 - x^2/20 (1 - x^2/42 (1 - x^2/72)))
        term = c.emit("Div", square, c.scalar((k + 1.0) * (k + 2), x.dtype))
        series = c.emit("Sub", one, c.emit("Mul", term, series))
    near = c.emit("Less", c.emit("Abs", x), c.scalar(0.5, x.dtype))
    far = c.emit("IsInf", x, detect_negative=1, detect_positive=1)
    plain = c.emit("Or", near, far)
    ratio = c.emit("Div", c.emit("Sin", x), c.emit("Where", plain, one, x))
    return c.result(c.emit("Where", near, series, c.emit("Where", far, c.scalar(0.0, x.dtype), ratio)))


# ---------------------------------------------------------------------------------------------- the parts of a float

_BITS = {DType.F32: (DType.I32, 23, 8), DType.F64: (DType.I64, 52, 11), DType.F16: (DType.I16, 10, 5)}


@aten("nextafter")
def nextafter(c: AtenContext) -> Result:
    """The neighbour of ``self`` towards ``other``: its bits as an integer, one more or one less."""
    x, y = (c.cast(c[k], c.out.dtype) for k in ("self", "other"))
    if x.dtype not in (DType.F32, DType.F64):
        raise c.fail(f"neighbours among {x.dtype.value}")
    integer = _BITS[x.dtype][0]
    bits, one, zero = c.emit("BitCast", x, to=integer), c.scalar(1, integer), c.scalar(0.0, x.dtype)
    away = c.emit("Equal", c.emit("Greater", y, x), c.emit("Greater", x, zero))
    moved = c.emit("BitCast", c.emit("Add", bits, c.emit("Where", away, one, c.scalar(-1, integer))), to=x.dtype)
    least = c.emit("BitCast", one, to=x.dtype)
    from_zero = c.emit("Where", c.emit("Greater", y, zero), least, c.emit("Neg", least))
    moved = c.emit("Where", c.emit("Equal", x, zero), from_zero, moved)
    moved = c.emit("Where", c.emit("Equal", x, y), y, moved)
    missing = c.emit("Or", c.emit("IsNaN", x), c.emit("IsNaN", y))
    return c.emit("Where", missing, c.emit("Add", x, y), moved)


@aten("frexp.Tensor")
def frexp(c: AtenContext) -> Result:
    """A mantissa in [0.5, 1) and an exponent, from the bits; numbers below the normal ones are scaled up first."""
    x: Value = c["self"]
    if x.dtype not in (DType.F32, DType.F64):
        raise c.fail(f"the exponents of {x.dtype.value}")
    integer, fraction, width = _BITS[x.dtype]
    bias = (1 << (width - 1)) - 2
    small = c.emit("Less", c.emit("Abs", x), c.scalar(2.0 ** (1 - bias), x.dtype))
    scaled = c.emit("Where", small, c.emit("Mul", x, c.scalar(2.0**fraction, x.dtype)), x)
    bits = c.emit("BitCast", scaled, to=integer)
    field = c.emit("BitwiseAnd", bits, c.scalar(((1 << width) - 1) << fraction, integer))
    exponent = c.emit("Sub", c.emit("Div", field, c.scalar(1 << fraction, integer)), c.scalar(bias, integer))
    lowered = c.emit("Sub", exponent, c.scalar(fraction, integer))
    exponent = c.emit("Where", small, lowered, exponent)
    kept = c.emit("BitwiseXor", bits, field)
    half = c.emit("BitwiseOr", kept, c.scalar(bias << fraction, integer))
    mantissa = c.emit("BitCast", half, to=x.dtype)
    unknown = c.emit("Or", c.emit("IsNaN", x), c.emit("IsInf", x, detect_negative=1, detect_positive=1))
    plain = c.emit("Or", unknown, c.emit("Equal", x, c.scalar(0.0, x.dtype)))
    exponent = c.emit("Where", plain, c.scalar(0, integer), exponent)
    return c.emit("Where", plain, x, mantissa), c.cast(exponent, DType.I32)


@aten("ldexp.Tensor")
def ldexp(c: AtenContext) -> Result:
    """``self * 2 ** other``, in two factors, as eager computes it."""
    return c.apply("Mul", c["self"], c.apply("Pow", 2.0, c["other"]))


@aten("angle")
def angle(c: AtenContext) -> Result:
    """Pi for negative numbers, 0 for others, NaN for NaN."""
    x = c.cast(c["self"], c.out.dtype)
    zero = c.scalar(0.0, x.dtype)
    below = c.emit("Where", c.emit("Less", x, zero), c.scalar(math.pi, x.dtype), zero)
    return c.emit("Where", c.emit("IsNaN", x), x, below)

