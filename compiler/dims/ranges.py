"""Ranges of dimension expressions: intervals, proofs that an expression is not negative, divisibility.

Everything here is sound and incomplete: what it claims holds for all values that the symbols' ranges allow.
"""

from __future__ import annotations

import math
from functools import lru_cache

from arcweld.compiler.dims.poly import Atom, Call, Dim, IntExpr, Sym, add, atoms, mul, sub, terms_of, var

_DEPTH = 6  # of case distinctions in one proof
_ROUNDS = 8  # of replacing indices by bounds that contain other indices
_Interval = tuple[float, float]


@lru_cache(maxsize=1 << 16)
def bounds(e: Dim) -> tuple[int | None, int | None]:
    """Numeric interval ``(lo, hi)`` that holds ``e``; None means unbounded on that side."""
    lo, hi = _interval(e)
    return (None if lo == -math.inf else int(lo)), (None if hi == math.inf else int(hi))


def _interval(e: Dim) -> _Interval:
    if not isinstance(e, IntExpr):
        return int(e), int(e)
    lo: float = 0
    hi: float = 0
    for m, c in e.terms:
        term: _Interval = (c, c)
        for atom, p in m:
            for _ in range(p):
                term = _times(term, _atom_interval(atom))
        lo, hi = lo + term[0], hi + term[1]
    return lo, hi


def _times(a: _Interval, b: _Interval) -> _Interval:
    # an infinite bound times 0 is 0: the values themselves are finite
    ends = [x * y if x and y else 0 for x in a for y in b]
    return min(ends), max(ends)


def _atom_interval(atom: Atom) -> _Interval:
    if isinstance(atom, Call):
        return _call_interval(atom.fn, _optional(bounds(atom.a)), _optional(bounds(atom.b)))
    if atom.hi is None:
        return atom.lo, math.inf
    return atom.lo, _optional(bounds(atom.hi))[1]


def _optional(b: tuple[int | None, int | None]) -> _Interval:
    return (-math.inf if b[0] is None else b[0]), (math.inf if b[1] is None else b[1])


def _call_interval(fn: str, a: _Interval, b: _Interval) -> _Interval:
    if fn == "max":
        return max(a[0], b[0]), max(a[1], b[1])
    if fn == "min":
        return min(a[0], b[0]), min(a[1], b[1])
    least, most = max(b[0], 1), max(b[1], 1)  # divisors are positive
    if fn == "mod":
        return 0, (min(a[1], most - 1) if a[0] >= 0 else most - 1)
    # quotients: far from zero with the least divisor, close to it with the most
    return _quotient(a[0], most if a[0] >= 0 else least), _quotient(a[1], least if a[1] >= 0 else most)


def _quotient(a: float, b: float) -> float:
    if math.isinf(a):
        return a
    if math.isinf(b):
        return 0 if a >= 0 else -1
    return int(a) // int(b)


@lru_cache(maxsize=1 << 16)
def is_nonneg(e: Dim) -> bool:
    """True if ``e >= 0`` is provable from the ranges of its symbols; False means unknown, not negative."""
    return _proved(e, _DEPTH)


def _proved(e: Dim, depth: int) -> bool:
    if _interval(e)[0] >= 0:
        return True
    if not isinstance(e, IntExpr) or depth == 0:
        return False
    low = _lower(e)
    if low is not None and _all_positive(low):
        return True
    subtracted = _replaced(e, negative=True) if _is_monotonous(e) else e
    if subtracted != e and _proved(subtracted, depth - 1):
        return True
    if any(_proved(x, depth - 1) for x in _cleared(e)):
        return True
    return _by_cases(e, depth)


def _all_positive(e: Dim) -> bool:
    """True if ``e``, free of calls, has no negative coefficient once every symbol counts from its least value."""
    return any(all(c >= 0 for _, c in terms_of(_from_least(x))) for x in (e, _capped(e)))


def _from_least(e: Dim) -> Dim:
    total: Dim = 0
    for m, c in terms_of(e):
        term: Dim = c
        for atom, p in m:
            lo = 0 if isinstance(atom, Call) else atom.lo
            for _ in range(p):
                term = mul(term, add(var(atom), lo))
        total = add(total, term)
    return total


def _capped(e: Dim) -> Dim:
    """Symbols that have a numeric upper bound, replaced by it wherever they are subtracted."""
    total: Dim = 0
    for m, c in terms_of(e):
        term: Dim = c
        for atom, p in m:
            cap = atom.hi if isinstance(atom, Sym) and c < 0 and isinstance(atom.hi, int) else None
            for _ in range(p):
                term = mul(term, var(atom) if cap is None else cap)
        total = add(total, term)
    return total


# ---------------------------------------------------------------------------------------------------- lower bounds


def _lower(e: IntExpr) -> Dim | None:
    """A lower bound in which no call and no loop index below a symbolic extent is left, or None.

    First what is subtracted is replaced by the most that it can be, which may cancel; then what is added by the least.
    """
    current: Dim = e
    for _ in range(_ROUNDS):
        if not _is_monotonous(current):
            return None
        if any(c < 0 and _most(a) is not None for m, c in terms_of(current) for a, _ in m):
            current = _replaced(current, negative=True)
        elif any(_is_index(a) for a in atoms(current)):
            current = _replaced(current, negative=False)
        else:
            return current
    return None


def _is_monotonous(e: Dim) -> bool:
    """True if no atom can be negative: then each product of them grows with each of them."""
    return all(_interval(var(a))[0] >= 0 for a in atoms(e))


def _is_index(a: Atom) -> bool:
    return isinstance(a, Call) or isinstance(a.hi, IntExpr)


def _replaced(e: Dim, negative: bool) -> Dim:
    total: Dim = 0
    for m, c in terms_of(e):
        term: Dim = c
        for atom, p in m:
            bound: Dim | None = None
            if negative and c < 0:
                bound = _most(atom)
            elif not negative and c > 0 and _is_index(atom):
                bound = bounds(var(atom))[0]
            elif not negative and _is_index(atom):
                bound = bounds(var(atom))[1]
            for _ in range(p):
                term = mul(term, var(atom) if bound is None else bound)
        total = add(total, term)
    return total


def _most(a: Atom) -> Dim | None:
    """An upper bound as an expression of other atoms, where it says more than a number."""
    if not isinstance(a, Call):
        return a.hi if isinstance(a.hi, IntExpr) else None
    if a.fn == "mod":
        return sub(a.b, 1) if isinstance(a.b, IntExpr) else None
    return None


# ---------------------------------------------------------------------------------------------------- by cases


def _cleared(e: IntExpr) -> list[Dim]:
    """For each quotient of ``e``, an expression that is not negative only if ``e`` is not.

    ``e = rest - c*(a // b)``: with a // b <= a/b that is ``b*rest - c*a``. For c = 1 the integer ``a // b`` stays at or
    below ``rest`` even where ``a`` is ``b*rest + b - 1``. ``e = rest + c*(a // b)``: with a // b >= (a - b + 1)/b that
    is ``b*rest + c*(a - b + 1)``.
    """
    out: list[Dim] = []
    for m, c in e.terms:
        atom, power = m[0] if len(m) == 1 else (None, 0)
        if power == 1 and isinstance(atom, Call) and atom.fn == "floordiv" and is_nonneg(sub(atom.b, 1)):
            rest = add(e, mul(var(atom), -c))
            slack = sub(atom.b, 1) if c == -1 else 0
            least = atom.a if c < 0 else sub(add(atom.a, 1), atom.b)
            out.append(add(add(mul(rest, atom.b), mul(least, c)), slack))
    return out


def _by_cases(e: IntExpr, depth: int) -> bool:
    """Proofs that take one side of a max or min: both sides, or either one, by which way it bounds ``e``."""
    for m, c in e.terms:
        atom, power = m[0] if len(m) == 1 else (None, 0)
        if power == 1 and isinstance(atom, Call) and atom.fn in ("max", "min"):
            rest = add(e, mul(var(atom), -c))
            sides = (_proved(add(rest, mul(x, c)), depth - 1) for x in (atom.a, atom.b))
            return any(sides) if (atom.fn == "max") == (c > 0) else all(sides)
    return False


def is_multiple(e: Dim, n: int) -> bool:
    """True if ``e`` is provably divisible by ``n`` (uses the symbols' ``multiple_of``)."""
    for m, c in terms_of(e):
        k = abs(c)
        for a, p in m:
            if isinstance(a, Sym):
                k *= a.multiple_of**p
        if k % n:
            return False
    return True
