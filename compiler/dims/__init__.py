"""Exact integer expressions over symbolic dimensions and loop indices, in canonical polynomial form.

A dimension (``Dim``) is an ``int`` or an ``IntExpr``; every operation returns an ``int`` where the result is constant.
Division rounds towards minus infinity, as Python's ``//`` does. Two expressions compare equal if
their polynomials are equal; different polynomials may still have the same values.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from arcweld.compiler.dims.division import ceildiv, divides_exactly, floordiv, maximum, minimum, mod
from arcweld.compiler.dims.poly import (
    Atom,
    Call,
    Dim,
    Dyn,
    IntExpr,
    Monomial,
    Sym,
    add,
    atoms,
    dynamic_atoms,
    free_symbols,
    make,
    mentions,
    mul,
    product,
    symbol,
    terms_of,
    to_text,
    var,
)
from arcweld.compiler.dims.ranges import bounds, is_multiple, is_nonneg
from arcweld.compiler.dims.text import CALLS, parse


def flat_index(coords: Iterable[Dim], shape: Iterable[Dim]) -> Dim:
    """The number of the element at ``coords`` of an array of that shape, in row-major order."""
    index: Dim = 0
    for c, d in zip(coords, shape):
        index = index * d + c
    return index


def substitute(e: Dim, table: Mapping[Atom, Dim]) -> Dim:
    """``e`` with the atoms in ``table`` replaced, those inside calls too, in canonical form again."""
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
                    repl = var(atom) if a is atom.a and b is atom.b else CALLS[atom.fn](a, b)
                else:
                    repl = var(atom)
            for _ in range(p):
                term = mul(term, repl)
        total = add(total, term)
    return total


def coefficient(e: Dim, atom: Atom) -> Dim | None:
    """The factor ``k`` of ``e = k * atom + rest``, where ``rest`` is free of ``atom``; 0 if ``e`` is too.

    None where ``e`` is not affine in ``atom``: it occurs inside a call, or with a power above 1.
    """
    acc: dict[Monomial, int] = {}
    for m, c in terms_of(e):
        powers = dict(m)
        if powers.get(atom, 0) == 1:
            acc[tuple(p for p in m if p[0] != atom)] = c
        elif powers.get(atom, 0) > 1:
            return None
        for a in powers:
            if isinstance(a, Call) and (mentions(a.a, atom) or mentions(a.b, atom)):
                return None
    return make(acc)


def evaluate(e: Dim, env: Mapping[str, int]) -> int:
    """The value of ``e`` with every symbol looked up by name. Raises KeyError for a missing symbol."""
    return int(evaluate_with(e, env, _INTEGERS))


_INTEGERS: Mapping[str, Callable[[int, int], int]] = {
    "floordiv": operator.floordiv, "mod": operator.mod, "max": max, "min": min,
}  # fmt: skip


def evaluate_with(e: Dim, env: Mapping[str, Any], calls: Mapping[str, Callable[[Any, Any], Any]]) -> Any:
    """The value of ``e`` with symbols and run-time indices looked up in ``env`` by name: numbers or numpy arrays.

    ``calls`` maps ``floordiv``, ``mod``, ``max`` and ``min`` to functions of two such values. Raises KeyError for a
    missing name.
    """
    if not isinstance(e, IntExpr):
        return e
    total: Any = 0
    for m, c in e.terms:
        term: Any = c
        for atom, p in m:
            if isinstance(atom, Call):
                value = calls[atom.fn](evaluate_with(atom.a, env, calls), evaluate_with(atom.b, env, calls))
            else:
                value = env[atom.name]
            for _ in range(p):
                term = term * value
        total = total + term
    return total


__all__ = [
    "Atom", "Call", "Dim", "Dyn", "IntExpr", "Monomial", "Sym", "add", "atoms", "bounds", "ceildiv", "coefficient",
    "divides_exactly", "dynamic_atoms", "evaluate", "evaluate_with", "floordiv", "free_symbols", "is_multiple",
    "is_nonneg", "make", "maximum", "mentions", "minimum", "mod", "mul", "parse", "product", "substitute", "symbol",
    "terms_of", "to_text", "var",
]  # fmt: skip
