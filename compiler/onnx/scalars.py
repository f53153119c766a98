"""Exact arithmetic on the elements of shape tensors while importing: numbers, symbolic dimensions and their ratios.

A function raises Undecided where its result depends on what the symbols' ranges leave open, or is no Scalar.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, IntExpr


class Undecided(Exception):
    """A result that the symbols' ranges do not decide. ``symbols`` are the names of those in ``about``."""

    def __init__(self, why: str, *about: Scalar) -> None:
        super().__init__(why)
        self.symbols = symbols_of(*about)


@dataclass(frozen=True, slots=True)
class Ratio:
    """The exact quotient ``num / den``, with a positive ``den``: a float in a shape computation, before rounding."""

    num: Dim
    den: Dim


Scalar: TypeAlias = int | float | bool | IntExpr | Ratio

_EXACT_DENOMINATOR = 2**24


def symbols_of(*xs: Scalar) -> frozenset[str]:
    """The names of the symbols in ``xs``."""
    exact = [d for x in xs for d in ((x.num, x.den) if isinstance(x, Ratio) else (x,))]
    return frozenset(s.name for d in exact if isinstance(d, IntExpr) for s in dims.free_symbols(d))


def is_symbolic(x: Scalar) -> bool:
    """True for a symbolic dimension or a ratio with one."""
    return isinstance(x, IntExpr | Ratio)


def as_ratio(x: Scalar) -> tuple[Dim, Dim]:
    """``x`` as (numerator, denominator). Raises Undecided for floats without a denominator up to 2^24."""
    if isinstance(x, Ratio):
        return x.num, x.den
    if isinstance(x, float):
        if not math.isfinite(x):
            raise Undecided(f"{x} cannot be combined with a symbolic dimension")
        f = Fraction(x)
        if f.denominator > _EXACT_DENOMINATOR:
            raise Undecided(f"{x} cannot be combined exactly with a symbolic dimension")
        return f.numerator, f.denominator
    return (int(x) if isinstance(x, bool) else x), 1


def ratio(num: Dim, den: Dim) -> Scalar:
    """``num / den`` for a positive ``den``: a dimension where there is no remainder, else a float or a Ratio."""
    if isinstance(den, int) and den == 0:
        raise Undecided("division by zero")
    if not dims.is_nonneg(den):
        raise Undecided(f"the sign of {den} is not known", den)
    exact = dims.divides_exactly(num, den)
    if exact is not None:
        return exact
    if isinstance(num, int) and isinstance(den, int):
        return num / den
    common = math.gcd(_content(num), _content(den))
    if common > 1:
        num, den = dims.floordiv(num, common), dims.floordiv(den, common)
    return Ratio(num, den)


def _content(e: Dim) -> int:
    return math.gcd(*(c for _, c in e.terms)) if isinstance(e, IntExpr) else abs(e)


# ------------------------------------------------------------------------------------------------------ arithmetic


def add(a: Scalar, b: Scalar) -> Scalar:
    """``a + b``."""
    if not is_symbolic(a) and not is_symbolic(b):
        return a + b  # type: ignore[operator]
    (an, ad), (bn, bd) = as_ratio(a), as_ratio(b)
    return ratio(an * bd + bn * ad, ad * bd)


def neg(a: Scalar) -> Scalar:
    """``-a``."""
    return mul(a, -1)


def sub(a: Scalar, b: Scalar) -> Scalar:
    """``a - b``."""
    return add(a, neg(b)) if is_symbolic(a) or is_symbolic(b) else a - b  # type: ignore[operator]


def mul(a: Scalar, b: Scalar) -> Scalar:
    """``a * b``."""
    if not is_symbolic(a) and not is_symbolic(b):
        return a * b  # type: ignore[operator]
    (an, ad), (bn, bd) = as_ratio(a), as_ratio(b)
    return ratio(an * bn, ad * bd)


def div_float(a: Scalar, b: Scalar) -> Scalar:
    """``a / b`` as floats divide: exact where either is symbolic."""
    if not is_symbolic(a) and not is_symbolic(b):
        if b == 0:
            raise Undecided("division by zero")
        return float(a) / float(b)  # type: ignore[arg-type]
    (an, ad), (bn, bd) = as_ratio(a), as_ratio(b)
    return ratio(an * bd, ad * bn)


def div_int(a: Scalar, b: Scalar) -> Scalar:
    """Integer division that rounds towards zero."""
    if isinstance(a, int) and isinstance(b, int):
        a, b = int(a), int(b)
        if b == 0:
            raise Undecided("division by zero")
        q = abs(a) // abs(b)
        return q if (a < 0) == (b < 0) else -q
    x, y = as_dim(a), as_dim(b)
    exact = dims.divides_exactly(x, y)
    if exact is not None:
        return exact
    if not dims.is_nonneg(x) or not dims.is_nonneg(y - 1):
        raise Undecided(f"the signs of {x} and {y} are not known", x, y)
    return dims.floordiv(x, y)


def mod(a: Scalar, b: Scalar) -> Scalar:
    """Remainder with the divisor's sign."""
    if not is_symbolic(a) and not is_symbolic(b):
        if b == 0:
            raise Undecided("division by zero")
        return a % b  # type: ignore[operator]
    x, y = as_dim(a), as_dim(b)
    if not dims.is_nonneg(y - 1):
        raise Undecided(f"the sign of {y} is not known", y)
    return dims.mod(x, y)


def fmod(a: Scalar, b: Scalar) -> Scalar:
    """Remainder with the dividend's sign."""
    if not is_symbolic(a) and not is_symbolic(b):
        if b == 0:
            raise Undecided("division by zero")
        r = math.fmod(a, b)  # type: ignore[arg-type]
        return int(r) if isinstance(a, int) and isinstance(b, int) else r
    if not dims.is_nonneg(as_dim(a)):
        raise Undecided(f"the sign of {a} is not known", a)
    return mod(a, b)


def power(a: Scalar, b: Scalar) -> Scalar:
    """``a ** b``; a symbolic ``a`` takes whole exponents from 0 to 8."""
    if isinstance(b, float) and b.is_integer():
        b = int(b)
    if not is_symbolic(a) and not is_symbolic(b):
        if abs(b) > 64 or (b < 0 and a == 0) or (a < 0 and not isinstance(b, int)):  # type: ignore[arg-type, operator]
            raise Undecided(f"{a} to the power of {b}", a, b)
        found: Scalar = a**b  # type: ignore[operator]
        return found
    if not isinstance(b, int) or not 0 <= b <= 8:
        raise Undecided(f"{a} to the power of {b}", a, b)
    out: Scalar = 1
    for _ in range(b):
        out = mul(out, a)
    return out


def floor(a: Scalar) -> Scalar:
    """The greatest integer not above ``a``."""
    if isinstance(a, Ratio):
        return dims.floordiv(a.num, a.den)
    return float(math.floor(a)) if isinstance(a, float) and math.isfinite(a) else a


def ceil(a: Scalar) -> Scalar:
    """The least integer not below ``a``."""
    if isinstance(a, Ratio):
        return dims.ceildiv(a.num, a.den)
    return float(math.ceil(a)) if isinstance(a, float) and math.isfinite(a) else a


def round_even(a: Scalar) -> Scalar:
    """``a`` rounded to the nearest integer, halves to the even one."""
    if isinstance(a, Ratio):
        raise Undecided(f"rounding of {a.num} / {a.den}", a)
    return float(round(a)) if isinstance(a, float) and math.isfinite(a) else a


def sqrt(a: Scalar) -> Scalar:
    """The square root of a number."""
    if is_symbolic(a):
        raise Undecided(f"the square root of {a}", a)
    return math.sqrt(a)  # type: ignore[arg-type]


def to_int(a: Scalar) -> Scalar:
    """``a`` as an integer, rounded towards zero."""
    if isinstance(a, Ratio):
        if not dims.is_nonneg(a.num):
            raise Undecided(f"the sign of {a.num} is not known", a.num)
        return dims.floordiv(a.num, a.den)
    if isinstance(a, IntExpr):
        return a
    if isinstance(a, float) and not math.isfinite(a):
        raise Undecided(f"{a} has no integer value")
    return int(a)


def to_float(a: Scalar) -> Scalar:
    """``a`` as a float; a symbolic one as it is."""
    return a if is_symbolic(a) else float(a)  # type: ignore[arg-type]


def to_bool(a: Scalar) -> Scalar:
    """Whether ``a`` is not 0."""
    return not equal(a, 0)


def as_dim(a: Scalar) -> Dim:
    """``a`` as a dimension. Raises Undecided where it is not an integer."""
    if isinstance(a, IntExpr):
        return a
    if isinstance(a, int):
        return int(a)
    if isinstance(a, float) and a.is_integer():
        return int(a)
    raise Undecided(f"{a} is not an integer", a)


# ----------------------------------------------------------------------------------------------------- comparisons


def _difference(a: Scalar, b: Scalar) -> Dim:
    (an, ad), (bn, bd) = as_ratio(a), as_ratio(b)
    return an * bd - bn * ad


def equal(a: Scalar, b: Scalar) -> bool:
    """Whether ``a == b``."""
    if not is_symbolic(a) and not is_symbolic(b):
        return bool(a == b)
    d = _difference(a, b)
    if isinstance(d, int):
        return d == 0
    if dims.is_nonneg(d - 1) or dims.is_nonneg(-d - 1):
        return False
    raise Undecided(f"whether {_text(a)} == {_text(b)} is not known", a, b)


def less(a: Scalar, b: Scalar) -> bool:
    """Whether ``a < b``."""
    if not is_symbolic(a) and not is_symbolic(b):
        return bool(a < b)  # type: ignore[operator]
    d = _difference(b, a)
    if dims.is_nonneg(d - 1):
        return True
    if dims.is_nonneg(-d):
        return False
    raise Undecided(f"whether {_text(a)} < {_text(b)} is not known", a, b)


def less_equal(a: Scalar, b: Scalar) -> bool:
    """Whether ``a <= b``."""
    return not less(b, a)


def maximum(a: Scalar, b: Scalar) -> Scalar:
    """The larger of two scalars."""
    if not is_symbolic(a) and not is_symbolic(b):
        return max(a, b)  # type: ignore[type-var]
    return dims.maximum(as_dim(a), as_dim(b))


def minimum(a: Scalar, b: Scalar) -> Scalar:
    """The smaller of two scalars."""
    if not is_symbolic(a) and not is_symbolic(b):
        return min(a, b)  # type: ignore[type-var]
    return dims.minimum(as_dim(a), as_dim(b))


def absolute(a: Scalar) -> Scalar:
    """The absolute value."""
    if not is_symbolic(a):
        return abs(a)  # type: ignore[arg-type]
    return a if less_equal(0, a) else neg(a)


def sign(a: Scalar) -> Scalar:
    """1, 0 or -1, as ``a`` is positive, zero or negative."""
    return 1 if less(0, a) else (0 if equal(a, 0) else -1)


def _text(a: Scalar) -> str:
    return f"({a.num}) / ({a.den})" if isinstance(a, Ratio) else str(a)
