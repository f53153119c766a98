"""Exact integer expressions over symbolic dimensions and loop indices, in canonical polynomial form.

A dimension is an ``int`` or an ``IntExpr``; every operation returns an ``int`` as soon as the result is constant.
Division
rounds towards minus infinity (Python's ``//``). Two expressions that normalise to the same polynomial compare equal.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias, Union

from arcweld.compiler.errors import ModelError

Dim: TypeAlias = Union[int, "IntExpr"]


@dataclass(frozen=True, slots=True)
class Sym:
    """A named non-negative integer: a symbolic dimension, or a loop index.

    ``hi`` is the inclusive upper bound: an int, an expression (a loop index below a symbolic extent), or None
    (unbounded).
    """

    name: str
    lo: int = 0
    hi: Dim | None = None
    multiple_of: int = 1

    def key(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Call:
    """An opaque integer function: ``floordiv``, ``mod``, ``max`` or ``min`` of two expressions."""

    fn: str
    a: Dim
    b: Dim

    def key(self) -> str:
        return _call_key(self)


@lru_cache(maxsize=1 << 16)
def _call_key(call: Call) -> str:
    return f"{call.fn}({call.a}, {call.b})"


@dataclass(frozen=True, slots=True)
class Dyn:
    """An index known only at run time (read from a tensor). ``payload`` is whatever the reader needs to print it."""

    name: str
    payload: object
    lo: int = 0
    hi: Dim | None = None

    def key(self) -> str:
        return f"dyn:{self.name}"


Atom: TypeAlias = Sym | Call | Dyn
Monomial: TypeAlias = tuple[tuple[Atom, int], ...]
# terms that go, and those that come for them
_Trade: TypeAlias = tuple[tuple[tuple[Monomial, int], ...], tuple[tuple[Monomial, int], ...]]


def _mono_key(m: Monomial) -> tuple[int, tuple[tuple[str, int], ...]]:
    return (sum(p for _, p in m), tuple((a.key(), p) for a, p in m))


@dataclass(frozen=True, slots=True, eq=False)
class IntExpr:
    """A polynomial with integer coefficients over atoms. Build one with ``var`` and arithmetic, never directly."""

    terms: tuple[tuple[Monomial, int], ...]
    _hash: int = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntExpr) and self._hash == other._hash and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, o: Dim) -> Dim:
        return _add(self, o)

    def __radd__(self, o: Dim) -> Dim:
        return _add(self, o)

    def __sub__(self, o: Dim) -> Dim:
        return _add(self, mul(o, -1))

    def __rsub__(self, o: Dim) -> Dim:
        return _add(mul(self, -1), o)

    def __neg__(self) -> Dim:
        return mul(self, -1)

    def __mul__(self, o: Dim) -> Dim:
        return mul(self, o)

    def __rmul__(self, o: Dim) -> Dim:
        return mul(self, o)

    def __floordiv__(self, o: Dim) -> Dim:
        return floordiv(self, o)

    def __rfloordiv__(self, o: Dim) -> Dim:
        return floordiv(o, self)

    def __mod__(self, o: Dim) -> Dim:
        return mod(self, o)

    def __rmod__(self, o: Dim) -> Dim:
        return mod(o, self)

    def __str__(self) -> str:
        return to_text(self)

    def __repr__(self) -> str:
        return f"IntExpr({self})"


# ------------------------------------------------------------------------------------------------ construction


def var(atom: Atom) -> IntExpr:
    """The expression that is just ``atom``."""
    return _make_poly({((atom, 1),): 1})


def symbol(name: str, lo: int = 0, hi: Dim | None = None, multiple_of: int = 1) -> IntExpr:
    """A fresh named dimension or index as an expression."""
    return var(Sym(name, lo, hi, multiple_of))


def _make_poly(terms: dict[Monomial, int]) -> IntExpr:
    ordered = tuple(sorted(terms.items(), key=lambda t: _mono_key(t[0]), reverse=True))
    return IntExpr(ordered, hash(ordered))


def _make(terms: dict[Monomial, int]) -> Dim:
    live = {m: c for m, c in terms.items() if c}
    if not live:
        return 0
    if len(live) == 1 and () in live:
        return live[()]
    return _make_poly(live)


def _terms(e: Dim) -> tuple[tuple[Monomial, int], ...]:
    if isinstance(e, IntExpr):
        return e.terms
    return (((), int(e)),) if e else ()


def _add(a: Dim, b: Dim) -> Dim:
    acc = dict(_terms(a))
    for m, c in _terms(b):
        acc[m] = acc.get(m, 0) + c
    _recombine(acc)
    return _make(acc)


def _recombine(acc: dict[Monomial, int]) -> None:
    """Rewrites ``k*d*(x // d) + k*(x % d)`` to ``k*x``: the identity that makes collapsed loops readable again."""
    changed = any(isinstance(a, Call) and a.fn == "mod" for m in acc for a, _ in m)
    while changed:
        changed = False
        for m, c in list(acc.items()):
            if not c:
                continue
            for atom, power in m:
                if not (isinstance(atom, Call) and atom.fn == "mod" and power == 1):
                    continue
                rest = tuple(p for p in m if p[0] is not atom)
                factor = _make({rest: c})
                whole = _quotient_partner(acc, atom, factor)
                if whole is not None:
                    _exchange(acc, m, *whole)
                    changed = True
                    break
                joined = _join_digits(acc, atom, factor)
                if joined is not None:
                    _exchange(acc, m, *joined)
                    changed = True
                    break
            if changed:
                break


def _quotient_partner(acc: dict[Monomial, int], low: Call, factor: Dim) -> _Trade | None:
    """``k*d*(x // d) + k*(x % d)`` is ``k*x``: the terms that go beside the remainder, and those that come."""
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
        gone = _terms(mul(mul(floordiv(x, low.b), low.b), factor))
        if gone and all(acc.get(pm, 0) == pc for pm, pc in gone):
            return gone, _terms(mul(x, factor))
    return None


def _exchange(
    acc: dict[Monomial, int], m: Monomial, gone: tuple[tuple[Monomial, int], ...], new: tuple[tuple[Monomial, int], ...]
) -> None:
    acc[m] = 0
    for pm, pc in gone:
        acc[pm] = acc.get(pm, 0) - pc
    for xm, xc in new:
        acc[xm] = acc.get(xm, 0) + xc


def _join_digits(acc: dict[Monomial, int], low: Call, factor: Dim) -> _Trade | None:
    """``k*(x % d) + k*d*((x // d) % e)`` is ``k*(x % (d*e))``: the terms that go, and those that come."""
    if not isinstance(low.b, int):
        return None
    quotient = floordiv(low.a, low.b)
    for m, c in acc.items():
        for high, power in m:
            if (
                c
                and power == 1
                and isinstance(high, Call)
                and high.fn == "mod"
                and high is not low
                and high.a == quotient
            ):
                gone = _terms(mul(mul(var(high), low.b), factor))
                if all(acc.get(pm, 0) == pc for pm, pc in gone):
                    return gone, _terms(mul(mod(low.a, mul(low.b, high.b)), factor))
    return None


def mul(a: Dim, b: Dim) -> Dim:
    """Product, expanded."""
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    acc: dict[Monomial, int] = {}
    for ma, ca in _terms(a):
        for mb, cb in _terms(b):
            m = _mono_mul(ma, mb)
            acc[m] = acc.get(m, 0) + ca * cb
    return _make(acc)


def _mono_mul(a: Monomial, b: Monomial) -> Monomial:
    if not a:
        return b
    if not b:
        return a
    powers: dict[Atom, int] = dict(a)
    for atom, p in b:
        powers[atom] = powers.get(atom, 0) + p
    return tuple(sorted(powers.items(), key=lambda t: t[0].key()))


def product(items: Iterable[Dim]) -> Dim:
    """Product of all items; 1 for none."""
    out: Dim = 1
    for i in items:
        out = mul(out, i)
    return out


# ---------------------------------------------------------------------------------------------------- division


def _mono_div(a: Monomial, b: Monomial) -> Monomial | None:
    powers = dict(a)
    for atom, p in b:
        have = powers.get(atom, 0)
        if have < p:
            return None
        if have == p:
            del powers[atom]
        else:
            powers[atom] = have - p
    return tuple(sorted(powers.items(), key=lambda t: t[0].key()))


def _divide(e: Dim, d: Dim) -> tuple[Dim, Dim]:
    """Polynomial division: ``e == q*d + r`` where no term of ``r`` is divisible by the leading term of ``d``."""
    lead_m, lead_c = _terms(d)[0]
    quotient: dict[Monomial, int] = {}
    rest = dict(_terms(e))
    remainder: dict[Monomial, int] = {}
    while rest:
        m = max(rest, key=_mono_key)
        c = rest.pop(m)
        if not c:
            continue
        qm = _mono_div(m, lead_m)
        if qm is None or c % lead_c:
            remainder[m] = remainder.get(m, 0) + c
            continue
        q = c // lead_c
        quotient[qm] = quotient.get(qm, 0) + q
        for dm, dc in _terms(d)[1:]:
            pm = _mono_mul(qm, dm)
            rest[pm] = rest.get(pm, 0) - q * dc
    return _make(quotient), _make(remainder)


def divides_exactly(e: Dim, d: Dim) -> Dim | None:
    """``e / d`` when the polynomial division leaves nothing, else None."""
    if isinstance(d, int) and d == 0:
        return None
    q, r = _divide(e, d)
    return q if isinstance(r, int) and r == 0 else None


@lru_cache(maxsize=1 << 16)
def floordiv(e: Dim, d: Dim) -> Dim:
    """``e // d`` for a positive ``d``. Raises ZeroDivisionError for a constant zero divisor."""
    if isinstance(e, int) and isinstance(d, int):
        return e // d
    if isinstance(d, int) and d == 1:
        return e
    if isinstance(d, int) and d <= 0:
        if d == 0:
            raise ZeroDivisionError("division of a dimension by zero")
        return floordiv(mul(e, -1), -d)
    q, r = _split(e, d)
    if _in_range(r, d):
        return q
    g = _common(r, d)
    if g > 1:
        r, d = _reduce(r, g), floordiv(d, g)
        if isinstance(d, int) and d == 1:
            return _add(q, r)
    digits = _single_call(r, "mod")
    if digits is not None and (rest := divides_exactly(digits.b, d)) is not None and is_nonneg(rest):
        # the upper digits of the lower ones are the lower ones of the upper: (a % (d*k)) // d is (a // d) % k
        return _add(q, mod(floordiv(digits.a, d), rest))
    nested = _nested_quotient(r)
    if nested is not None:
        inner, rest = nested
        return _add(q, floordiv(_add(inner.a, mul(inner.b, rest)), mul(inner.b, d)))
    parts = _low_part(r, d)
    if parts is not None:
        return _add(q, floordiv(parts[1], d // parts[0]))
    return _add(q, var(Call("floordiv", r, d)))


@lru_cache(maxsize=1 << 16)
def mod(e: Dim, d: Dim) -> Dim:
    """``e % d`` for a positive ``d``, in ``[0, d)``."""
    if isinstance(e, int) and isinstance(d, int):
        return e % d
    if isinstance(d, int) and d == 1:
        return 0
    _, r = _split(e, d)
    if _in_range(r, d):
        return r
    atom = _single_call(r, "mod")
    if atom is not None and divides_exactly(atom.b, d) is not None:
        return mod(atom.a, d)
    g = _common(r, d, exact=True)
    if g > 1:
        return mul(mod(_reduce(r, g), floordiv(d, g)), g)
    parts = _low_part(r, d)
    if parts is not None:
        return _add(mul(mod(parts[1], d // parts[0]), parts[0]), parts[2])
    return var(Call("mod", r, d))


def _nested_quotient(r: Dim) -> tuple[Call, Dim] | None:
    """``r`` as one quotient plus the rest: ``(a // b + c) // d`` is ``(a + b*c) // (b*d)``."""
    found = [m[0][0] for m, c in _terms(r) if c == 1 and len(m) == 1 and m[0][1] == 1 and isinstance(m[0][0], Call)]
    quotients = [a for a in found if isinstance(a, Call) and a.fn == "floordiv"]
    if len(quotients) != 1:
        return None
    rest = _add(r, mul(var(quotients[0]), -1))
    return None if any(isinstance(a, Call) for a in atoms(rest)) else (quotients[0], rest)


def _low_part(r: Dim, d: Dim) -> tuple[int, Dim, Dim] | None:
    """``(g, a, s)`` with ``r == g*a + s``, ``g`` dividing ``d`` and ``0 <= s < g``: ``s`` can't reach a carry."""
    if not isinstance(d, int) or not isinstance(r, IntExpr):
        return None
    for g in sorted({math.gcd(d, c) for _, c in r.terms}, reverse=True):
        if g <= 1:
            continue
        high = _make({m: c // g for m, c in r.terms if c % g == 0})
        low = _make({m: c for m, c in r.terms if c % g})
        if not (isinstance(high, int) and high == 0) and _in_range(low, g):
            return g, high, low
    return None


def _split(e: Dim, d: Dim) -> tuple[Dim, Dim]:
    """``e == q*d + r`` with the constant part of r brought into ``[0, d)`` when d is an int."""
    q, r = _divide(e, d)
    if isinstance(d, int) and isinstance(r, IntExpr):
        const = dict(r.terms).get((), 0)
        if not 0 <= const < d:
            k = const // d
            q, r = _add(q, k), _add(r, -k * d)
    elif isinstance(d, int) and isinstance(r, int):
        q, r = _add(q, r // d), r % d
    return q, r


def _in_range(r: Dim, d: Dim) -> bool:
    return is_nonneg(r) and is_nonneg(_add(_add(d, mul(r, -1)), -1))


def _common(r: Dim, d: Dim, exact: bool = False) -> int:
    if not isinstance(d, int) or not isinstance(r, IntExpr):
        return 1
    g = d
    for m, c in r.terms:
        if m or exact:
            g = math.gcd(g, c)
    return g


def _reduce(r: Dim, g: int) -> Dim:
    return _make({m: c // g for m, c in _terms(r)})


def _single_call(e: Dim, fn: str) -> Call | None:
    if isinstance(e, IntExpr) and len(e.terms) == 1:
        (m, c) = e.terms[0]
        if c == 1 and len(m) == 1 and m[0][1] == 1:
            atom = m[0][0]
            if isinstance(atom, Call) and atom.fn == fn:
                return atom
    return None


def ceildiv(e: Dim, d: Dim) -> Dim:
    """Smallest integer not below ``e / d``."""
    return floordiv(_add(_add(e, d), -1), d)


def maximum(a: Dim, b: Dim) -> Dim:
    """The larger of two expressions; decided at once where the ranges allow it."""
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    if is_nonneg(_add(a, mul(b, -1))):
        return a
    if is_nonneg(_add(b, mul(a, -1))):
        return b
    return var(Call("max", *sorted((a, b), key=str)))


def minimum(a: Dim, b: Dim) -> Dim:
    """The smaller of two expressions; decided at once where the ranges allow it."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    if is_nonneg(_add(a, mul(b, -1))):
        return b
    if is_nonneg(_add(b, mul(a, -1))):
        return a
    return var(Call("min", *sorted((a, b), key=str)))


# ------------------------------------------------------------------------------------------------------ ranges


@lru_cache(maxsize=1 << 16)
def bounds(e: Dim) -> tuple[int | None, int | None]:
    """Numeric interval ``(lo, hi)`` that holds ``e``; None means unbounded on that side."""
    if not isinstance(e, IntExpr):
        return int(e), int(e)
    lo: int | None = 0
    hi: int | None = 0
    for m, c in e.terms:
        tlo: int | None = 1
        thi: int | None = 1
        for atom, p in m:
            alo, ahi = _atom_bounds(atom)
            if alo is None or alo < 0:
                return None, None
            for _ in range(p):
                tlo = None if tlo is None else tlo * alo
                thi = None if thi is None or ahi is None else thi * ahi
        if c < 0:
            tlo, thi = thi, tlo
        lo = None if lo is None or tlo is None else lo + c * tlo
        hi = None if hi is None or thi is None else hi + c * thi
    return lo, hi


def _atom_bounds(atom: Atom) -> tuple[int | None, int | None]:
    if isinstance(atom, Call):
        alo, ahi = bounds(atom.a)
        blo, bhi = bounds(atom.b)
        if atom.fn == "mod":
            top = None if bhi is None else bhi - 1
            return 0, ahi if top is None else (top if ahi is None or (alo or 0) < 0 else min(top, ahi))
        if atom.fn == "floordiv":
            lo = (
                None
                if alo is None or not blo
                else (alo // (bhi or blo) if alo >= 0 and bhi else (0 if alo >= 0 else None))
            )
            return lo, (None if ahi is None or not blo else ahi // blo)
        pick = max if atom.fn == "max" else min
        los = [x for x in (alo, blo) if x is not None]
        his = [x for x in (ahi, bhi) if x is not None]
        if atom.fn == "max":
            return (max(los) if los else None), (pick(his) if len(his) == 2 else None)
        return (pick(los) if len(los) == 2 else None), (min(his) if his else None)
    return atom.lo, (atom.hi if isinstance(atom.hi, int) or atom.hi is None else bounds(atom.hi)[1])


@lru_cache(maxsize=1 << 16)
def is_nonneg(e: Dim) -> bool:
    """True if ``e >= 0`` is provable from the ranges of its symbols; False means unknown, not negative."""
    if not isinstance(e, IntExpr):
        return int(e) >= 0
    lo, _ = bounds(e)
    if lo is not None and lo >= 0:
        return True
    low = _lower(e)
    if low is None:
        cleared = _clear_quotient(e)
        return cleared is not None and is_nonneg(cleared)
    if all(c >= 0 for _, c in _terms(_shift_to_lo(low))):
        return True
    return all(c >= 0 for _, c in _terms(_shift_to_lo(_cap_negative(low))))


def _clear_quotient(e: IntExpr) -> Dim | None:
    """``b*(e + c*(a // b)) - c*a`` where ``e`` subtracts ``c*(a // b)``: at most ``b*e``, as a // b <= a/b.

    For c = 1 the integer ``a // b`` is at most ``k`` even if ``a`` is ``b*k + b - 1``: the result may then be ``b - 1``
    larger.
    """
    for m, c in e.terms:
        atom, power = m[0] if len(m) == 1 else (None, 0)
        if c < 0 and power == 1 and isinstance(atom, Call) and atom.fn == "floordiv" and isinstance(atom.b, int):
            slack = atom.b - 1 if c == -1 else 0
            return _add(_add(mul(_add(e, mul(var(atom), -c)), atom.b), mul(atom.a, c)), slack)
    return None


def _cap_negative(e: Dim) -> Dim:
    """Replaces symbols that have a numeric upper bound by it wherever they are subtracted."""
    total: Dim = 0
    for m, c in _terms(e):
        term: Dim = c
        for atom, p in m:
            cap = isinstance(atom, Sym) and c < 0 and isinstance(atom.hi, int)
            for _ in range(p):
                term = mul(term, atom.hi if cap else var(atom))  # type: ignore[union-attr,arg-type]
        total = _add(total, term)
    return total


def _lower(e: IntExpr) -> Dim | None:
    """A lower bound free of loop indices: indices in negative terms are replaced by their upper bound."""
    for _ in range(8):
        if not any(_has_symbolic_hi(a) for m, _ in e.terms for a, _p in m):
            return e
        total: Dim = 0
        for m, c in e.terms:
            term: Dim = c
            for atom, p in m:
                repl: Dim = var(atom)
                if isinstance(atom, Call):
                    if atom.fn == "mod" and c < 0 and is_nonneg(atom.a):
                        repl = _add(atom.b, -1)
                    elif (atom.fn == "floordiv" or atom.fn == "mod") and c > 0 and is_nonneg(atom.a):
                        repl = 0
                    else:
                        return None
                elif _has_symbolic_hi(atom):
                    if c < 0 and atom.hi is None:
                        return None
                    repl = (atom.hi if atom.hi is not None else 0) if c < 0 else atom.lo
                for _i in range(p):
                    term = mul(term, repl)
            total = _add(total, term)
        if not isinstance(total, IntExpr):
            return total
        e = total
    return None


def _has_symbolic_hi(atom: Atom) -> bool:
    return isinstance(atom, Call | Dyn) or isinstance(atom.hi, IntExpr)


def _shift_to_lo(e: Dim) -> Dim:
    """Substitutes ``sym -> sym + lo`` so that every symbol's least value is 0."""
    if not isinstance(e, IntExpr):
        return e
    table: dict[Atom, Dim] = {a: _add(var(Sym(a.name + "'", 0)), a.lo) for a in atoms(e) if isinstance(a, Sym) and a.lo}
    return substitute(e, table) if table else e


# ------------------------------------------------------------------------------------------ traversal and text


def atoms(e: Dim) -> set[Atom]:
    """The atoms that occur at the top level of ``e`` (arguments of calls are not entered)."""
    return {a for m, _ in _terms(e) for a, _p in m}


def free_symbols(e: Dim) -> set[Sym]:
    """All symbols in ``e``, those inside calls included."""
    out: set[Sym] = set()
    for a in atoms(e):
        if isinstance(a, Sym):
            out.add(a)
        elif isinstance(a, Call):
            out |= free_symbols(a.a) | free_symbols(a.b)
    return out


def dynamic_atoms(e: Dim) -> set[Dyn]:
    """All run-time indices in ``e``, those inside calls included."""
    out: set[Dyn] = set()
    for a in atoms(e):
        if isinstance(a, Dyn):
            out.add(a)
        elif isinstance(a, Call):
            out |= dynamic_atoms(a.a) | dynamic_atoms(a.b)
    return out


_CALLS: dict[str, Callable[[Dim, Dim], Dim]] = {
    "floordiv": floordiv,
    "mod": mod,
    "max": maximum,
    "min": minimum,
}


def substitute(e: Dim, table: Mapping[Atom, Dim]) -> Dim:
    """Replaces atoms (also inside calls) and normalises again."""
    if not isinstance(e, IntExpr) or not table:
        return e
    total: Dim = 0
    for m, c in e.terms:
        term: Dim = c
        for atom, p in m:
            repl = table.get(atom)
            if repl is None:
                if isinstance(atom, Call):
                    a, b = substitute(atom.a, table), substitute(atom.b, table)
                    repl = var(atom) if a is atom.a and b is atom.b else _CALLS[atom.fn](a, b)
                else:
                    repl = var(atom)
            for _ in range(p):
                term = mul(term, repl)
        total = _add(total, term)
    return total


def coefficient(e: Dim, atom: Atom) -> Dim | None:
    """The factor of ``atom`` when ``e`` is affine in it; None when it occurs inside a call or with a power."""
    acc: dict[Monomial, int] = {}
    for m, c in _terms(e):
        powers = dict(m)
        if powers.get(atom, 0) == 1:
            acc[tuple(p for p in m if p[0] != atom)] = c
        elif powers.get(atom, 0) > 1:
            return None
        for a in powers:
            if isinstance(a, Call) and (_mentions(a.a, atom) or _mentions(a.b, atom)):
                return None
    return _make(acc)


def _mentions(e: Dim, atom: Atom) -> bool:
    return any(
        a == atom or (isinstance(a, Call) and (_mentions(a.a, atom) or _mentions(a.b, atom))) for a in atoms(e)
    )


def mentions(e: Dim, atom: Atom) -> bool:
    """True if ``atom`` occurs anywhere in ``e``."""
    return _mentions(e, atom)


def is_multiple(e: Dim, n: int) -> bool:
    """True if ``e`` is provably divisible by ``n`` (uses the symbols' ``multiple_of``)."""
    for m, c in _terms(e):
        k = abs(c)
        for a, p in m:
            if isinstance(a, Sym):
                k *= a.multiple_of**p
        if k % n:
            return False
    return True


def evaluate(e: Dim, env: Mapping[str, int]) -> int:
    """The value of ``e`` with every symbol looked up by name. Raises KeyError for a missing symbol."""
    if not isinstance(e, IntExpr):
        return int(e)
    total = 0
    for m, c in e.terms:
        term = c
        for atom, p in m:
            term *= _evaluate_atom(atom, env) ** p
        total += term
    return total


def _evaluate_atom(atom: Atom, env: Mapping[str, int]) -> int:
    if isinstance(atom, Call):
        a, b = evaluate(atom.a, env), evaluate(atom.b, env)
        if atom.fn == "floordiv":
            return a // b
        if atom.fn == "mod":
            return a % b
        return max(a, b) if atom.fn == "max" else min(a, b)
    return env[atom.name]


def to_text(e: Dim) -> str:
    """Text that ``parse`` reads back: ``2*n + floordiv(h - 1, 2)``."""
    if not isinstance(e, IntExpr):
        return str(int(e))
    out = ""
    for m, c in e.terms:
        factors = [_atom_text(a) for a, p in m for _ in range(p)]
        if abs(c) != 1 or not factors:
            factors.insert(0, str(abs(c)))
        sign = "-" if c < 0 else "+"
        out += f" {sign} {'*'.join(factors)}" if out else ("-" if c < 0 else "") + "*".join(factors)
    return out


def _atom_text(a: Atom) -> str:
    return a.key() if isinstance(a, Call) else a.name


def parse(text: str, symbols: Mapping[str, Dim] | None = None) -> Dim:
    """Reads the text of ``to_text``. Unknown names become symbols with no bounds. Raises ModelError for anything
    else."""
    if len(text) > 4096:
        raise ModelError("dimension expression is longer than 4096 characters")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return _from_ast(tree.body, symbols or {}, 0)
    except (SyntaxError, ValueError, RecursionError, MemoryError, ZeroDivisionError, OverflowError) as error:
        raise ModelError(f"not a dimension expression: {text[:80]!r} ({error})") from None


def _from_ast(node: ast.expr, symbols: Mapping[str, Dim], depth: int) -> Dim:
    if depth > 64:
        raise ValueError("nested too deeply")
    if isinstance(node, ast.Constant) and type(node.value) is int and abs(node.value) < 1 << 62:
        return node.value
    if isinstance(node, ast.Name):
        return symbols[node.id] if node.id in symbols else symbol(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return mul(_from_ast(node.operand, symbols, depth + 1), -1)
    if isinstance(node, ast.BinOp):
        a, b = _from_ast(node.left, symbols, depth + 1), _from_ast(node.right, symbols, depth + 1)
        if isinstance(node.op, ast.Add):
            return _add(a, b)
        if isinstance(node.op, ast.Sub):
            return _add(a, mul(b, -1))
        if isinstance(node.op, ast.Mult):
            return mul(a, b)
        if isinstance(node.op, ast.FloorDiv):
            return floordiv(a, b)
        if isinstance(node.op, ast.Mod):
            return mod(a, b)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 2 and not node.keywords:
        fn = _CALLS.get(node.func.id)
        if fn is not None:
            return fn(*(_from_ast(a, symbols, depth + 1) for a in node.args))
    raise ValueError(f"unexpected {type(node).__name__}")
