"""Polynomials with integer coefficients over atoms: the canonical form of dimensions, with sums and products.

Other packages import from ``arcweld.compiler.dims``. Division is in ``division``, bounds in ``ranges``, parsing in
``text``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias, Union

from arcweld.compiler.errors import UnsupportedError

Dim: TypeAlias = Union[int, "IntExpr"]

# Bounds of one expression, far beyond what networks need. A few nodes that square a size, or add its half to it, would
# otherwise make expressions of any length.
MAX_DEGREE = 64  # factors of a monomial
MAX_TERMS = 1024  # monomials of a product
MAX_SIZE = 1 << 14  # numbers, symbols and functions inside a function, written out


@dataclass(frozen=True, slots=True)
class Sym:
    """A symbol: a named integer with a range, which is a symbolic dimension or a loop index.

    Its values are the multiples of ``multiple_of`` from ``lo`` to ``hi``, both inclusive. ``hi`` is an int, an
    expression (for a loop index below a symbolic extent), or None for no upper bound.
    """

    name: str
    lo: int = 0
    hi: Dim | None = None
    multiple_of: int = 1

    def key(self) -> str:
        """Text by which atoms are sorted."""
        return self.name


@dataclass(frozen=True, slots=True)
class Call:
    """A function of two expressions that polynomials treat as opaque: ``fn`` is floordiv, mod, max or min."""

    fn: str
    a: Dim
    b: Dim

    def key(self) -> str:
        """Text by which atoms are sorted."""
        return _call_text(self)


@dataclass(frozen=True, slots=True)
class Dyn:
    """A run-time index: an integer that a kernel computes from tensor elements, from ``lo`` to ``hi`` inclusive.

    ``payload`` is the scalar expression (``expr.Expr``) that computes it; nothing in ``dims`` looks into it.
    """

    name: str
    payload: object
    lo: int = 0
    hi: Dim | None = None

    def key(self) -> str:
        """Text by which atoms are sorted."""
        return f"dyn:{self.name}"


Atom: TypeAlias = Sym | Call | Dyn
Monomial: TypeAlias = tuple[tuple[Atom, int], ...]
Terms: TypeAlias = tuple[tuple[Monomial, int], ...]


class _Division:
    """The functions of ``division``, for the operators of ``IntExpr``.

    ``division`` imports this module, so it sets them here when it is imported.
    """

    floordiv: Callable[[Dim, Dim], Dim]
    mod: Callable[[Dim, Dim], Dim]
    recombine: Callable[[dict[Monomial, int]], None]


DIVISION = _Division()


@dataclass(frozen=True, slots=True, eq=False)
class IntExpr:
    """A polynomial with integer coefficients over atoms. Build one with ``var`` and arithmetic, never directly.

    ``terms`` are (monomial, coefficient) pairs in canonical order. ``//`` rounds towards minus infinity; symbolic
    divisors must be positive.
    """

    terms: Terms
    _hash: int = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntExpr) and self._hash == other._hash and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __add__(self, o: Dim) -> Dim:
        return add(self, o)

    def __radd__(self, o: Dim) -> Dim:
        return add(self, o)

    def __sub__(self, o: Dim) -> Dim:
        return add(self, mul(o, -1))

    def __rsub__(self, o: Dim) -> Dim:
        return add(mul(self, -1), o)

    def __neg__(self) -> Dim:
        return mul(self, -1)

    def __mul__(self, o: Dim) -> Dim:
        return mul(self, o)

    def __rmul__(self, o: Dim) -> Dim:
        return mul(self, o)

    def __floordiv__(self, o: Dim) -> Dim:
        return DIVISION.floordiv(self, o)

    def __rfloordiv__(self, o: Dim) -> Dim:
        return DIVISION.floordiv(o, self)

    def __mod__(self, o: Dim) -> Dim:
        return DIVISION.mod(self, o)

    def __rmod__(self, o: Dim) -> Dim:
        return DIVISION.mod(o, self)

    def __str__(self) -> str:
        return to_text(self)

    def __repr__(self) -> str:
        return f"IntExpr({self})"


# ------------------------------------------------------------------------------------------------ construction


def var(atom: Atom) -> IntExpr:
    """The expression that is just ``atom``. Raises UnsupportedError for a call of more than ``MAX_SIZE`` parts."""
    if isinstance(atom, Call) and _call_size(atom) > MAX_SIZE:
        raise UnsupportedError(f"a size is an expression of more than {MAX_SIZE} parts")
    return _make_poly({((atom, 1),): 1})


def symbol(name: str, lo: int = 0, hi: Dim | None = None, multiple_of: int = 1) -> IntExpr:
    """A symbol as an expression. Symbols with the same name and range are equal."""
    return var(Sym(name, lo, hi, multiple_of))


def mono_key(m: Monomial) -> tuple[int, tuple[tuple[str, int], ...]]:
    """The sort key of monomials: the degree, then the names."""
    return (sum(p for _, p in m), tuple((a.key(), p) for a, p in m))


def _term_key(term: tuple[Monomial, int]) -> tuple[int, tuple[tuple[str, int], ...]]:
    return mono_key(term[0])


def _make_poly(terms: Mapping[Monomial, int]) -> IntExpr:
    ordered = tuple(sorted(terms.items(), key=_term_key, reverse=True)) if len(terms) > 1 else tuple(terms.items())
    return IntExpr(ordered, hash(ordered))


def make(terms: Mapping[Monomial, int]) -> Dim:
    """The expression with these coefficients; an int if it is constant."""
    live = {m: c for m, c in terms.items() if c}
    if not live:
        return 0
    if len(live) == 1 and () in live:
        return live[()]
    return _make_poly(live)


def terms_of(e: Dim) -> Terms:
    """The monomials of ``e`` with their coefficients; none for 0."""
    if isinstance(e, IntExpr):
        return e.terms
    return (((), int(e)),) if e else ()


# -------------------------------------------------------------------------------------------------- arithmetic


def add(a: Dim, b: Dim) -> Dim:
    """``a + b``; matching quotients and remainders are combined: ``d*(x // d) + x % d`` gives ``x``."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    acc = dict(terms_of(a))
    for m, c in terms_of(b):
        acc[m] = acc.get(m, 0) + c
    if any(isinstance(atom, Call) and atom.fn == "mod" for m in acc for atom, _ in m):
        DIVISION.recombine(acc)
    return make(acc)


def sub(a: Dim, b: Dim) -> Dim:
    """``a - b``."""
    return add(a, mul(b, -1))


def mul(a: Dim, b: Dim) -> Dim:
    """``a * b``, expanded into monomials. Raises UnsupportedError for a product that is too large."""
    if isinstance(a, int):
        if isinstance(b, int):
            return a * b
        a, b = b, a
    if isinstance(b, int):
        if b == 1:
            return a
        # scaling keeps the order of the terms
        scaled = tuple((m, c * b) for m, c in a.terms) if b else ()
        return IntExpr(scaled, hash(scaled)) if scaled else 0
    if _degree(a) + _degree(b) > MAX_DEGREE:
        raise UnsupportedError(f"a size is a product of more than {MAX_DEGREE} dimensions")
    acc: dict[Monomial, int] = {}
    for ma, ca in a.terms:
        for mb, cb in b.terms:
            m = mono_mul(ma, mb)
            acc[m] = acc.get(m, 0) + ca * cb
        if len(acc) > MAX_TERMS:
            raise UnsupportedError(f"a size is a sum of more than {MAX_TERMS} products")
    return make(acc)


def _degree(e: IntExpr) -> int:
    """The number of factors of the largest monomial, which comes first."""
    return sum(p for _, p in e.terms[0][0])


def mono_mul(a: Monomial, b: Monomial) -> Monomial:
    """Product of monomials."""
    if not a:
        return b
    if not b:
        return a
    powers: dict[Atom, int] = dict(a)
    for atom, p in b:
        powers[atom] = powers.get(atom, 0) + p
    return _mono(powers)


def mono_div(a: Monomial, b: Monomial) -> Monomial | None:
    """Quotient of monomials; None where ``b`` does not divide ``a``."""
    powers = dict(a)
    for atom, p in b:
        have = powers.get(atom, 0)
        if have < p:
            return None
        if have == p:
            del powers[atom]
        else:
            powers[atom] = have - p
    return _mono(powers)


def _mono(powers: Mapping[Atom, int]) -> Monomial:
    return tuple(sorted(powers.items(), key=lambda t: t[0].key()))


def product(items: Iterable[Dim]) -> Dim:
    """Product of all items; 1 for none."""
    out: Dim = 1
    for i in items:
        out = mul(out, i)
    return out


# ------------------------------------------------------------------------------------------------------- atoms


def atoms(e: Dim) -> set[Atom]:
    """The atoms of ``e``'s monomials, without those inside calls."""
    return {a for m, _ in terms_of(e) for a, _p in m}


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


def mentions(e: Dim, atom: Atom) -> bool:
    """True if ``atom`` occurs anywhere in ``e``."""
    return any(a == atom or (isinstance(a, Call) and (mentions(a.a, atom) or mentions(a.b, atom))) for a in atoms(e))


def _size(e: Dim) -> int:
    """The numbers, atoms and functions of ``e`` as text."""
    if isinstance(e, int):
        return 1
    parts = (p * (_call_size(a) if isinstance(a, Call) else 1) for m, _ in e.terms for a, p in m)
    return len(e.terms) + sum(parts)


@lru_cache(maxsize=1 << 16)
def _call_size(call: Call) -> int:
    return 1 + _size(call.a) + _size(call.b)


# -------------------------------------------------------------------------------------------------------- text


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


@lru_cache(maxsize=1 << 16)
def _call_text(call: Call) -> str:
    return f"{call.fn}({call.a}, {call.b})"
