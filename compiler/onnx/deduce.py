"""Deduces requirements of open dimensions: the values of symbols for which a model's nodes can run at all.

* An upper bound: a table of 512 positions, cut to the sequence length ``s``, is added to tokens of length ``s``. That
  needs ``min(512, s) == s``, so ``s`` is at most 512.
* A lower bound: where ``max(0, s // 10 - 1)`` has to be ``s // 10 - 1``, ``s`` is at least 10.
* Both: a Reshape that drops an axis of ``(h + 15) // 48`` rows needs one row, so ``h`` is 33 to 80.
* Multiples: a network halves its image, doubles the result, and adds both. That needs a multiple of the strides'
  product. Some other sizes may work too, but no expression tells which, so they are refused and a warning says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from arcweld.compiler import dims
from arcweld.compiler.dims import Call, Dim, IntExpr, Sym
from arcweld.compiler.ops import registry


class Bounds(NamedTuple):
    """The values that a symbol may have: the multiples of ``multiple`` from ``low`` to ``high``, both inclusive."""

    low: int = 0
    high: int | None = None
    multiple: int = 1

    def __str__(self) -> str:
        steps = f", multiples of {self.multiple}" if self.multiple > 1 else ""
        return f"from {self.low}" + ("" if self.high is None else f" to {self.high}") + steps

    def within(self, other: Bounds) -> Bounds:
        """The values that both allow."""
        highs = [h for h in (self.high, other.high) if h is not None]
        return Bounds(max(self.low, other.low), min(highs, default=None), math.lcm(self.multiple, other.multiple))


class Requirement(NamedTuple):
    """What a model requires of an input's dimension: that ``symbol`` has a value in ``bounds``.

    ``node`` is the name of the node that requires it, or empty.
    """

    symbol: str
    bounds: Bounds
    node: str = ""

    def __str__(self) -> str:
        return f"{self.symbol} {self.bounds}"


def to_agree(demanded: Sequence[tuple[Dim, Dim]], node: str) -> Requirement | None:
    """A requirement that lets a pair in ``demanded`` broadcast (be equal, or one of them 1), as ``node`` demands.

    None where none is found.
    """
    for a, b in demanded:
        found = to_be_equal(a, b)
        if found is not None:
            return found
    return to_be_multiples(demanded, node)


def to_be_equal(a: Dim, b: Dim) -> Requirement | None:
    """The bound of a symbol with which ``a`` and ``b`` are equal, and without which they cannot broadcast.

    ``a`` or ``b`` holds a ``min`` or ``max``. The two are equal where it is one of its arguments. Where it is the other
    one, they must differ, and neither may be 1: then the model cannot run there, and the bound loses nothing.
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
    """The requirement that makes the numbers of elements ``a`` and ``b`` equal.

    It is found where one of them is the other with a symbol instead of a number, or times a quotient that must be 1.
    """
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
    """The symbol of the product ``a``, and its value, for which ``a`` is ``b``; None where that is no positive int."""
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
    """A bound of a symbol; ``beyond`` is the symbol with the range that the bound excludes."""

    symbol: Sym
    bounds: Bounds
    beyond: Dim

    def requirement(self) -> Requirement:
        return Requirement(self.symbol.name, self.bounds)


def _may_be_one(d: Dim, atom: Call, value: Dim, found: _Found) -> bool:
    """Whether ``d`` can be 1 in the range that the bound excludes, where ``atom`` is ``value``."""
    there = dims.substitute(dims.substitute(d, {atom: value}), {found.symbol: found.beyond})
    return there == 1 if isinstance(there, int) else not (dims.is_nonneg(there - 2) or dims.is_nonneg(-there))


def to_be_at_least(e: Dim, limit: int) -> Requirement | None:
    """The requirement that ``e`` is at least ``limit``; None unless ``e`` grows with one symbol alone."""
    found = _least(e, limit)
    return None if found is None else found.requirement()


def to_be_at_most(e: Dim, limit: int) -> Requirement | None:
    """The requirement that ``e`` is at most ``limit``; None unless ``e`` grows with one symbol alone."""
    found = _most(e, limit)
    return None if found is None else found.requirement()


def _least(e: Dim, limit: int) -> _Found | None:
    """The lower bound of a symbol for which ``e >= limit``; None unless ``e`` grows with that symbol alone."""
    atom, factor, offset = _affine(e)
    least = -((offset - limit) // factor)
    if isinstance(atom, Sym):
        return _Found(atom, Bounds(low=least), dims.symbol(atom.name, atom.lo, max(least - 1, atom.lo)))
    if isinstance(atom, Call) and atom.fn == "floordiv" and isinstance(atom.b, int):
        return _least(atom.a, least * atom.b)
    return None


def _most(e: Dim, limit: int) -> _Found | None:
    """The upper bound of a symbol for which ``e <= limit``; None unless ``e`` grows with that symbol alone."""
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
    """The pairs of dimensions of an operator's operands that must be equal, or of which one must be 1."""
    given = [s for s in shapes if s is not None]
    if op == "Concat":
        axis = attrs["axis"]
        return [(x, y) for s in given[1:] for i, (x, y) in enumerate(zip(given[0], s)) if i != axis]
    if op in ("MatMul", "MatMulInteger") and all(len(s) >= 2 for s in given):
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
    """The power of two up to 64 of which a symbol must be a multiple so that a pair is equal, as ``node`` demands.

    The least one is taken. If several symbols must be multiples, the requirement is of the first; the others follow in
    later rounds.
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
