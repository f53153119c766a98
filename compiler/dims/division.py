"""Quotients, remainders, maxima and minima of dimension expressions, simplified as far as their bounds allow.

Index expressions that mean the same element should become the same polynomial. Codegen compares polynomials to prove
that a reshape moves nothing, that threads access neighbouring elements, and that an epilogue reads its own kernel's
result.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TypeAlias

from arcweld.compiler.dims.poly import (
    DIVISION,
    Call,
    Dim,
    IntExpr,
    Monomial,
    Sym,
    Terms,
    add,
    atoms,
    make,
    mono_div,
    mono_key,
    mono_mul,
    mul,
    sub,
    terms_of,
    var,
)
from arcweld.compiler.dims.ranges import bounds, is_nonneg

_Trade: TypeAlias = tuple[Terms, Terms]  # terms of a sum to remove, and terms of the same value to add instead


@lru_cache(maxsize=1 << 16)
def floordiv(e: Dim, d: Dim) -> Dim:
    """``e // d``, rounded towards minus infinity; a symbolic ``d`` must be positive.

    Raises ZeroDivisionError for the constant divisor 0.
    """
    if isinstance(e, int) and isinstance(d, int):
        return e // d
    if isinstance(d, int) and d <= 1:
        if d == 0:
            raise ZeroDivisionError("division of a dimension by zero")
        return e if d == 1 else floordiv(mul(e, -1), -d)
    q, r = _split(e, d)
    if _in_range(r, d):
        return q
    g = _common(r, d)
    if g > 1:
        r, d = _reduced(r, g), floordiv(d, g)
        if isinstance(d, int) and d == 1:
            return add(q, r)
    digits = _single_call(r, "mod")
    if digits is not None and (rest := divides_exactly(digits.b, d)) is not None and is_nonneg(rest):
        # (a % (d*k)) // d is (a // d) % k: both are the digits of a between d and d*k
        return add(q, mod(floordiv(digits.a, d), rest))
    nested = _nested_quotient(r)
    if nested is not None:
        inner, rest = nested
        return add(q, floordiv(add(inner.a, mul(inner.b, rest)), mul(inner.b, d)))
    parts = _low_part(r, d)
    if parts is not None:
        return add(q, floordiv(parts[1], floordiv(d, parts[0])))
    if _is_negative(r, d):
        return sub(q, ceildiv(mul(r, -1), d))
    return add(q, var(Call("floordiv", r, d)))


@lru_cache(maxsize=1 << 16)
def mod(e: Dim, d: Dim) -> Dim:
    """``e % d`` with the divisor's sign, so in ``[0, d)`` for a positive ``d``; a symbolic ``d`` must be positive.

    Raises ZeroDivisionError for the constant divisor 0.
    """
    if isinstance(e, int) and isinstance(d, int):
        return e % d
    if isinstance(d, int) and d <= 1:
        if d == 0:
            raise ZeroDivisionError("remainder of a dimension by zero")
        return 0 if d == 1 else mul(mod(mul(e, -1), -d), -1)
    _, r = _split(e, d)
    if _in_range(r, d):
        return r
    sign, atom = _signed_call(r, "mod")
    if atom is not None and divides_exactly(atom.b, d) is not None:
        return mod(mul(atom.a, sign), d)
    g = _common(r, d, exact=True)
    if g > 1:
        return mul(mod(_reduced(r, g), floordiv(d, g)), g)
    parts = _low_part(r, d)
    if parts is not None:
        return add(mul(mod(parts[1], floordiv(d, parts[0])), parts[0]), parts[2])
    if _is_negative(r, d):
        # (-x) % d is the padding of x to a multiple of d. Written as d*ceil(x/d) - x, x and its padding add up.
        return add(mul(ceildiv(mul(r, -1), d), d), r)
    return var(Call("mod", r, d))


def ceildiv(e: Dim, d: Dim) -> Dim:
    """``e / d`` rounded towards plus infinity, for a positive ``d``."""
    return floordiv(add(add(e, d), -1), d)


def divides_exactly(e: Dim, d: Dim) -> Dim | None:
    """``e / d`` where the polynomial division leaves no remainder, else None."""
    if isinstance(d, int) and d == 0:
        return None
    q, r = _divide(e, d)
    return q if isinstance(r, int) and r == 0 else None


def maximum(a: Dim, b: Dim) -> Dim:
    """The larger of two expressions: one of them where bounds prove which, else a call of ``max``."""
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    if is_nonneg(sub(a, b)):
        return a
    if is_nonneg(sub(b, a)):
        return b
    return var(Call("max", *sorted((a, b), key=str)))


def minimum(a: Dim, b: Dim) -> Dim:
    """The smaller of two expressions: one of them where bounds prove which, else a call of ``min``."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    if is_nonneg(sub(a, b)):
        return b
    if is_nonneg(sub(b, a)):
        return a
    return var(Call("min", *sorted((a, b), key=str)))


# -------------------------------------------------------------------------------------------- polynomial division


def _divide(e: Dim, d: Dim) -> tuple[Dim, Dim]:
    """Polynomial division: ``e == q*d + r`` where no term of ``r`` is divisible by the leading term of ``d``."""
    lead_m, lead_c = terms_of(d)[0]
    quotient: dict[Monomial, int] = {}
    rest = dict(terms_of(e))
    remainder: dict[Monomial, int] = {}
    while rest:
        m = max(rest, key=mono_key)
        c = rest.pop(m)
        if not c:
            continue
        qm = mono_div(m, lead_m)
        if qm is None or c % lead_c:
            remainder[m] = remainder.get(m, 0) + c
            continue
        q = c // lead_c
        quotient[qm] = quotient.get(qm, 0) + q
        for dm, dc in terms_of(d)[1:]:
            pm = mono_mul(qm, dm)
            rest[pm] = rest.get(pm, 0) - q * dc
    return make(quotient), make(remainder)


def _split(e: Dim, d: Dim) -> tuple[Dim, Dim]:
    """``(q, r)`` with ``e == q*d + r``.

    For an int ``d``, multiples of ``d`` move from ``r`` to ``q``: all of ``r``'s range is brought into ``[0, d)`` where
    it fits, else at least its constant term. For a symbolic one, ``r`` is brought there from ``[-d, 0)``.
    """
    q, r = _divide(e, d)
    if isinstance(d, int) and isinstance(r, IntExpr):
        low, high = bounds(r)
        same = low is not None and high is not None and low // d == high // d
        k = low // d if same and low is not None else dict(r.terms).get((), 0) // d
        if k:
            q, r = add(q, k), add(r, -k * d)
    elif isinstance(d, int) and isinstance(r, int):
        q, r = add(q, r // d), r % d
    elif not isinstance(d, int) and _is_below_zero(r) and _in_range(add(r, d), d):
        q, r = sub(q, 1), add(r, d)
    return q, r


def _is_below_zero(r: Dim) -> bool:
    """True if the bounds of ``r`` alone say that it is negative."""
    high = bounds(r)[1]
    return high is not None and high < 0


def _in_range(r: Dim, d: Dim) -> bool:
    """True if ``0 <= r < d`` is proved."""
    return is_nonneg(r) and is_nonneg(sub(sub(d, r), 1))


def _common(r: Dim, d: Dim, exact: bool = False) -> int:
    """The greatest common divisor of ``d`` and ``r``'s coefficients, its constant term among them only if ``exact``.

    1 where ``d`` is symbolic or ``r`` constant.
    """
    if not isinstance(d, int) or not isinstance(r, IntExpr):
        return 1
    g = d
    for m, c in r.terms:
        if m or exact:
            g = math.gcd(g, c)
    return g


def _reduced(r: Dim, g: int) -> Dim:
    """``r`` with every coefficient divided by ``g``, rounded down."""
    return make({m: c // g for m, c in terms_of(r)})


# ----------------------------------------------------------------------------------------------- nested functions


def _single_call(e: Dim, fn: str) -> Call | None:
    """``e`` as a call of ``fn``, if it is nothing else."""
    if isinstance(e, IntExpr) and len(e.terms) == 1:
        (m, c) = e.terms[0]
        if c == 1 and len(m) == 1 and m[0][1] == 1:
            atom = m[0][0]
            if isinstance(atom, Call) and atom.fn == fn:
                return atom
    return None


def _signed_call(e: Dim, fn: str) -> tuple[int, Call | None]:
    """``(1, call)`` if ``e`` is a call of ``fn``, ``(-1, call)`` if ``-e`` is; the call is None if neither is."""
    call = _single_call(e, fn)
    return (1, call) if call is not None else (-1, _single_call(mul(e, -1), fn))


def _is_negative(e: Dim, d: Dim) -> bool:
    """Whether ``d`` is an int and ``e`` a polynomial of symbols alone that is proved to be below 0.

    Dividends with loop indices fail the proof, as indices start at 0: their quotients keep their form.
    """
    if not isinstance(e, IntExpr) or not isinstance(d, int):
        return False
    return all(isinstance(a, Sym) for a in atoms(e)) and is_nonneg(sub(mul(e, -1), 1))


def _nested_quotient(r: Dim) -> tuple[Call, Dim] | None:
    """``r`` as ``a // b + c``: the quotient and ``c``, for the rule ``(a // b + c) // d == (a + b*c) // (b*d)``.

    None unless ``r`` holds exactly one quotient and ``c`` holds no call.
    """
    found = [m[0][0] for m, c in terms_of(r) if c == 1 and len(m) == 1 and m[0][1] == 1 and isinstance(m[0][0], Call)]
    quotients = [a for a in found if isinstance(a, Call) and a.fn == "floordiv"]
    if len(quotients) != 1:
        return None
    rest = sub(r, var(quotients[0]))
    return None if any(isinstance(a, Call) for a in atoms(rest)) else (quotients[0], rest)


def _low_part(r: Dim, d: Dim) -> tuple[int, Dim, Dim] | None:
    """``(g, a, s)`` with ``r == g*a + s``, where ``g`` divides ``d`` and ``0 <= s < g``; None without such a ``g``.

    Then ``r // d == a // (d/g)``.
    """
    if not isinstance(r, IntExpr):
        return None
    whole = math.gcd(*(c for _, c in terms_of(d)))
    for g in sorted({math.gcd(whole, c) for _, c in r.terms}, reverse=True):
        if g <= 1:
            continue
        high = make({m: c // g for m, c in r.terms if c % g == 0})
        low = make({m: c for m, c in r.terms if c % g})
        if not (isinstance(high, int) and high == 0) and _in_range(low, g):
            return g, high, low
    return None


# --------------------------------------------------------------------------------------------------- recombination


def recombine(acc: dict[Monomial, int]) -> None:
    """Rewrites a sum (coefficients by monomial) in place: ``k*d*(x // d) + k*(x % d)`` becomes ``k*x``.

    Indices that were split for one shape and joined for another so become the original index again.
    """
    while _recombine_one(acc):
        pass


def _recombine_one(acc: dict[Monomial, int]) -> bool:
    for m, c in list(acc.items()):
        for atom, power in m if c else ():
            if not (isinstance(atom, Call) and atom.fn == "mod" and power == 1):
                continue
            factor = make({tuple(p for p in m if p[0] is not atom): c})
            trade = _quotient_partner(acc, atom, factor) or _join_digits(acc, atom, factor)
            if trade is not None:
                gone, new = trade
                for tm, tc in ((m, c), *gone):
                    acc[tm] = acc.get(tm, 0) - tc
                for tm, tc in new:
                    acc[tm] = acc.get(tm, 0) + tc
                return True
    return False


def _has(acc: dict[Monomial, int], terms: Terms) -> bool:
    return bool(terms) and all(acc.get(m, 0) == c for m, c in terms)


def _quotient_partner(acc: dict[Monomial, int], low: Call, factor: Dim) -> _Trade | None:
    """``k*d*(x // d) + k*(x % d)`` is ``k*x``: the terms to remove beside the remainder ``low``, and those to add."""
    candidates = [low.a]
    candidates += [
        high.a
        for m, c in acc.items()
        for high, p in m
        if c and p == 1 and isinstance(high, Call) and high.fn == "floordiv" and high.b == low.b
    ]
    for x in candidates:
        if x is not low.a and mod(x, low.b) != var(low):
            continue
        gone = terms_of(mul(mul(floordiv(x, low.b), low.b), factor))
        if _has(acc, gone):
            return gone, terms_of(mul(x, factor))
    return None


def _join_digits(acc: dict[Monomial, int], low: Call, factor: Dim) -> _Trade | None:
    """``k*(x % d) + k*d*((x // d) % e)`` is ``k*(x % (d*e))``: the terms to remove beside ``low``, and those to add."""
    quotient = floordiv(low.a, low.b)
    for m, c in acc.items():
        for high, power in m if c else ():
            if power != 1 or not (isinstance(high, Call) and high.fn == "mod") or high is low or high.a != quotient:
                continue
            gone = terms_of(mul(mul(var(high), low.b), factor))
            if _has(acc, gone):
                return gone, terms_of(mul(mod(low.a, mul(low.b, high.b)), factor))
    return None


DIVISION.floordiv, DIVISION.mod, DIVISION.recombine = floordiv, mod, recombine
