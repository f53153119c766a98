"""Deduces bounds of dimensions from what the model must satisfy to run at all.

A table of 512 positions sliced to the sequence length, then added to the tokens, works only for lengths up to 512:
where two dimensions have to agree and one is ``min(512, s)`` of the other, ``s`` is at most 512. In the same way
``max(0, s // 10 - 1)``, where that has to be ``s // 10 - 1``, says that ``s`` is at least 10; and a reshape that
drops the rows of an image, of which ``(h + 15) // 48`` are left, says that ``h`` is 33 to 80.

A network that halves its image and doubles it again, then adds the two, works for multiples of the strides' product.
Sizes between them may happen to work too, but no expression tells which: they are left out, and that is said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from arcweld.compiler import dims
from arcweld.compiler.dims import Call, Dim, IntExpr, Sym
from arcweld.compiler.ops import registry


class Bounds(NamedTuple):
    """What a model allows a dimension to be, as far as it is known."""

    low: int = 0
    high: int | None = None
    multiple: int = 1

    def __str__(self) -> str:
        steps = f", multiples of {self.multiple}" if self.multiple > 1 else ""
        return f"from {self.low}" + ("" if self.high is None else f" to {self.high}") + steps

    def within(self, other: Bounds) -> Bounds:
        """What satisfies both."""
        highs = [h for h in (self.high, other.high) if h is not None]
        return Bounds(max(self.low, other.low), min(highs, default=None), math.lcm(self.multiple, other.multiple))


class Requirement(NamedTuple):
    """What a model demands of an input's dimension: ``symbol`` lies inside ``bounds``; ``node`` says what asks."""

    symbol: str
    bounds: Bounds
    node: str = ""

    def __str__(self) -> str:
        return f"{self.symbol} {self.bounds}"


def to_agree(demanded: Sequence[tuple[Dim, Dim]], node: str) -> Requirement | None:
    """What makes all these pairs agree (be equal, or one of them 1), as ``node`` demands; None if nothing does."""
    for a, b in demanded:
        found = to_be_equal(a, b)
        if found is not None:
            return found
    return to_be_multiples(demanded, node)


def to_be_equal(a: Dim, b: Dim) -> Requirement | None:
    """The bound of a symbol that makes ``a`` and ``b`` equal, where without it they are neither equal nor is one 1.

    They may be equal on one side of a ``min`` or ``max`` that they hold; on the other side they must then be neither
    equal nor 1.
    """
    for atom in sorted(dims.atoms(a) | dims.atoms(b), key=str):
        if not isinstance(atom, Call) or atom.fn not in ("min", "max"):
            continue
        for limit, inner in ((atom.a, atom.b), (atom.b, atom.a)):
            if not isinstance(limit, int):
                continue
            for value, other in ((inner, limit), (limit, inner)):
                if dims.substitute(a, {atom: value}) != dims.substitute(b, {atom: value}):
                    continue
                found = (_least if (atom.fn == "max") == (value is inner) else _most)(inner, limit)
                if found is not None and not any(_may_be_one(d, atom, other, found) for d in (a, b)):
                    return found.requirement()
    return None


def to_have_equal_numbers(a: Dim, b: Dim) -> Requirement | None:
    """What makes ``a`` elements ``b``, where a symbol must have one value for that, or a quotient be 1."""
    for whole, part in ((a, b), (b, a)):
        exact = _only_value(whole, part)
        if exact is not None:
            return Requirement(exact[0].name, Bounds(exact[1], exact[1]))
    for whole, part in ((a, b), (b, a)):
        quotient = dims.divides_exactly(whole, part)
        atom, factor, offset = _affine(quotient) if quotient is not None else (None, 1, 0)
        if not isinstance(atom, Call) or atom.fn != "floordiv" or (factor, offset) != (1, 0):
            continue
        if isinstance(atom.b, int):
            for bound in (_least(atom.a, atom.b), _most(atom.a, 2 * atom.b - 1)):
                if bound is not None and _narrows(bound):
                    return bound.requirement()
    return None


def _only_value(a: Dim, b: Dim) -> tuple[Sym, int] | None:
    """The symbol and its value that make ``a``, one product, equal to ``b``, the same without that symbol."""
    if not isinstance(a, IntExpr) or len(a.terms) != 1:
        return None
    ((factors, coefficient),) = a.terms
    for atom, power in factors:
        value = dims.divides_exactly(b, dims.substitute(a, {atom: 1})) if power == 1 and coefficient > 0 else None
        if isinstance(atom, Sym) and isinstance(value, int) and value >= 1:
            return atom, value
    return None


def _narrows(found: _Found) -> bool:
    low, high = found.bounds.low, found.bounds.high
    hi = found.symbol.hi
    return low > found.symbol.lo or (high is not None and not (isinstance(hi, int) and hi <= high))


class _Found(NamedTuple):
    """A bound of a symbol, and the symbol beyond that bound."""

    symbol: Sym
    bounds: Bounds
    beyond: Dim

    def requirement(self) -> Requirement:
        return Requirement(self.symbol.name, self.bounds)


def _may_be_one(d: Dim, atom: Call, value: Dim, found: _Found) -> bool:
    """Whether ``d`` can be 1 beyond the bound, where ``atom`` is ``value``."""
    there = dims.substitute(dims.substitute(d, {atom: value}), {found.symbol: found.beyond})
    return there == 1 if isinstance(there, int) else not (dims.is_nonneg(there - 2) or dims.is_nonneg(-there))


def to_be_at_least(e: Dim, limit: int) -> Requirement | None:
    """What the symbol of ``e`` has to be, if it grows with it alone, so that ``e`` is at least ``limit``."""
    found = _least(e, limit)
    return None if found is None else found.requirement()


def _least(e: Dim, limit: int) -> _Found | None:
    """What makes ``e`` at least ``limit``, where it grows with one symbol alone."""
    atom, factor, offset = _affine(e)
    least = -((offset - limit) // factor)
    if isinstance(atom, Sym):
        return _Found(atom, Bounds(low=least), dims.symbol(atom.name, atom.lo, max(least - 1, atom.lo)))
    if isinstance(atom, Call) and atom.fn == "floordiv" and isinstance(atom.b, int):
        return _least(atom.a, least * atom.b)
    return None


def _most(e: Dim, limit: int) -> _Found | None:
    """What makes ``e`` at most ``limit``, where it grows with one symbol alone and starts below."""
    atom, factor, offset = _affine(e)
    most = (limit - offset) // factor
    if isinstance(atom, Sym) and most > 0:
        return _Found(atom, Bounds(high=most), dims.symbol(atom.name, max(most + 1, atom.lo), atom.hi))
    if isinstance(atom, Call) and atom.fn == "floordiv" and isinstance(atom.b, int):
        return _most(atom.a, most * atom.b + atom.b - 1)
    return None


def _affine(e: Dim) -> tuple[dims.Atom | None, int, int]:
    """``(atom, factor, offset)`` of ``factor * atom + offset`` with a positive factor; no atom for anything else."""
    offset, factor, atom = 0, 1, None
    for factors, coefficient in e.terms if isinstance(e, IntExpr) else ():
        if not factors:
            offset = coefficient
        elif atom is None and len(factors) == 1 and factors[0][1] == 1 and coefficient > 0:
            atom, factor = factors[0][0], coefficient
        else:
            return None, 1, 0
    return atom, factor, offset


def pairs(op: str, shapes: Sequence[Sequence[Dim] | None], attrs: Mapping[str, Any]) -> list[tuple[Dim, Dim]]:
    """The dimensions of an operator's operands that have to agree (be equal, or one of them 1)."""
    given = [s for s in shapes if s is not None]
    if op == "Concat":
        axis = attrs["axis"]
        return [(x, y) for s in given[1:] for i, (x, y) in enumerate(zip(given[0], s)) if i != axis]
    if op == "MatMul" and all(len(s) >= 2 for s in given):
        return [(given[0][-1], given[1][-2]), *_aligned([s[:-2] for s in given])]
    return _aligned(given) if registry.opdef(op).kind is registry.Kind.POINTWISE else []


def _aligned(shapes: Sequence[Sequence[Dim]]) -> list[tuple[Dim, Dim]]:
    return [
        pair
        for i, a in enumerate(shapes)
        for b in shapes[i + 1 :]
        for pair in zip(reversed(a), reversed(b))
        if pair[0] != pair[1] and 1 not in pair
    ]


def to_be_multiples(demanded: Sequence[tuple[Dim, Dim]], node: str) -> Requirement | None:
    """The power of two of which a symbol has to be a multiple for a pair to agree, as ``node`` demands.

    Where several symbols have to be, it is the first of them; the others follow in later passes.
    """
    for a, b in demanded:
        symbols = sorted(dims.free_symbols(a) | dims.free_symbols(b), key=Sym.key) if a != b else []
        for chosen in (*([s] for s in symbols), *([symbols] if len(symbols) > 1 else [])):
            for k in (2, 4, 8, 16, 32, 64):
                table: dict[dims.Atom, Dim] = {s: m for s in chosen if (m := _multiples(s, k)) is not None}
                if len(table) == len(chosen) and dims.substitute(a, table) == dims.substitute(b, table):
                    return Requirement(chosen[0].name, Bounds(multiple=k), node)
    return None


def _multiples(s: Sym, k: int) -> Dim | None:
    """``s`` as a multiple of ``k``; None where none is in its range."""
    low, high = -(-s.lo // k), None if s.hi is None else s.hi // k
    return None if isinstance(high, int) and high < low else k * dims.symbol(s.name, low, high)
