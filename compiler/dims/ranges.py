"""Facts about dimension expressions that follow from their symbols' ranges: bounds, signs, divisibility.

All of it is sound but incomplete. What is claimed holds for all values in range; what is not claimed may hold too.
"""

from __future__ import annotations

import math
from functools import lru_cache

from arcweld.compiler.dims.poly import Atom, Call, Dim, IntExpr, Sym, add, atoms, mul, sub, terms_of, var

_DEPTH = 6  # nested steps of one proof
_EFFORT = 512  # terms that one proof looks at. Those of published models take up to 7 where they succeed, 200 where not
_ROUNDS = 8  # times that atoms are replaced by bounds, as bounds may contain other atoms
_Interval = tuple[float, float]


@lru_cache(maxsize=1 << 16)
def bounds(e: Dim) -> tuple[int | None, int | None]:
    """An interval ``(lo, hi)``, both inclusive, that contains every value of ``e``; None for an unknown end."""
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
    # infinity times 0 is 0 here: an unbounded value is still finite
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
    # a quotient is farthest from zero for the least divisor, and closest for the greatest
    return _quotient(a[0], most if a[0] >= 0 else least), _quotient(a[1], least if a[1] >= 0 else most)


def _quotient(a: float, b: float) -> float:
    if math.isinf(a):
        return a
    if math.isinf(b):
        return 0 if a >= 0 else -1
    return int(a) // int(b)


@lru_cache(maxsize=1 << 16)
def is_nonneg(e: Dim) -> bool:
    """True if ``e >= 0`` is proved from the ranges of its symbols. False means that no proof was found."""
    return _proved(e, _DEPTH, _Effort())


class _Effort:
    """What is left of ``_EFFORT`` for one proof."""

    def __init__(self) -> None:
        self.left = _EFFORT

    def suffices(self, e: IntExpr) -> bool:
        """Takes the effort of looking at ``e``; False if none is left."""
        self.left -= len(e.terms)
        return self.left >= 0


def _proved(e: Dim, depth: int, effort: _Effort) -> bool:
    if _interval(e)[0] >= 0:
        return True
    if not isinstance(e, IntExpr) or depth == 0 or not effort.suffices(e):
        return False
    low = _lower(e)
    if low is not None and _all_positive(low):
        return True
    subtracted = _replaced(e, negative=True) if _is_monotonic(e) else e
    if subtracted != e and _proved(subtracted, depth - 1, effort):
        return True
    if any(_proved(x, depth - 1, effort) for x in _cleared(e)):
        return True
    return _by_cases(e, depth, effort)


def _all_positive(e: Dim) -> bool:
    """Whether ``e``, which holds no call, has no negative coefficient when each symbol is replaced by symbol + ``lo``.

    What is left of each symbol is then at least 0, so ``e`` is too.
    """
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
    """``e`` with symbols replaced by their upper bounds in terms with a negative coefficient, where those are ints."""
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
    """A lower bound of ``e`` without calls and without loop indices below symbolic extents; None if none is found.

    Atoms of negative terms are replaced by their upper bounds first, because these may cancel with other terms. Then
    those of positive terms are replaced by their lower bounds.
    """
    current: Dim = e
    for _ in range(_ROUNDS):
        if not _is_monotonic(current):
            return None
        if any(c < 0 and _most(a) is not None for m, c in terms_of(current) for a, _ in m):
            current = _replaced(current, negative=True)
        elif any(_is_index(a) for a in atoms(current)):
            current = _replaced(current, negative=False)
        else:
            return current
    return None


def _is_monotonic(e: Dim) -> bool:
    """True if no atom of ``e`` can be negative: then each monomial is a monotonic function of each atom."""
    return all(_interval(var(a))[0] >= 0 for a in atoms(e))


def _is_index(a: Atom) -> bool:
    return isinstance(a, Call) or isinstance(a.hi, IntExpr)


def _replaced(e: Dim, negative: bool) -> Dim:
    """A lower bound of ``e``, whose atoms are not negative.

    ``negative`` replaces atoms of negative terms by symbolic upper bounds, else calls and loop indices of all terms are
    replaced by numbers.
    """
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
    """The upper bound of ``a`` as an expression of other atoms; None where it has none but a number."""
    if not isinstance(a, Call):
        return a.hi if isinstance(a.hi, IntExpr) else None
    if a.fn == "mod":
        return sub(a.b, 1) if isinstance(a.b, IntExpr) else None
    return None


# ---------------------------------------------------------------------------------------------------- by cases


def _cleared(e: IntExpr) -> list[Dim]:
    """For each quotient ``a // b`` of ``e``, an expression without it: if that is at least 0, ``e`` is too.

    * ``e = rest - c*(a // b)``: as ``a // b <= a/b``, take ``b*rest - c*a``. For ``c = 1`` add ``b - 1``, because the
      integer ``a // b`` is at most ``rest`` up to ``a = b*rest + b - 1``.
    * ``e = rest + c*(a // b)``: as ``a // b >= (a - b + 1)/b``, take ``b*rest + c*(a - b + 1)``.
    """
    out: list[Dim] = []
    for m, c in e.terms:
        atom, power = m[0] if len(m) == 1 else (None, 0)
        # a divisor is positive wherever its quotient is used, so it is enough that it can't be negative
        if power == 1 and isinstance(atom, Call) and atom.fn == "floordiv" and is_nonneg(atom.b):
            rest = add(e, mul(var(atom), -c))
            slack = sub(atom.b, 1) if c == -1 else 0
            least = atom.a if c < 0 else sub(add(atom.a, 1), atom.b)
            out.append(add(add(mul(rest, atom.b), mul(least, c)), slack))
    return out


def _by_cases(e: IntExpr, depth: int, effort: _Effort) -> bool:
    """Proves ``e >= 0`` by replacing a ``max`` or ``min`` by its two arguments.

    One argument suffices for an added ``max`` or a subtracted ``min``: ``e`` is at least what either gives. For the
    others both must do.
    """
    for m, c in e.terms:
        atom, power = m[0] if len(m) == 1 else (None, 0)
        if power == 1 and isinstance(atom, Call) and atom.fn in ("max", "min"):
            rest = add(e, mul(var(atom), -c))
            sides = (_proved(add(rest, mul(x, c)), depth - 1, effort) for x in (atom.a, atom.b))
            return any(sides) if (atom.fn == "max") == (c > 0) else all(sides)
    return False


def is_multiple(e: Dim, n: int) -> bool:
    """True if every term of ``e`` is divisible by ``n``, as its coefficient and its symbols' ``multiple_of`` prove."""
    for m, c in terms_of(e):
        k = abs(c)
        for a, p in m:
            if isinstance(a, Sym):
                k *= a.multiple_of**p
        if k % n:
            return False
    return True
