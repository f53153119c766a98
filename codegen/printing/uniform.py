"""Comparisons of indices: as tests of a sign, which all lanes of a vector may share, and as C text."""

from __future__ import annotations

import math

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, IntExpr
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import COMPARE, Expr, binary, const, index

_C_TEXT = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_SWAPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


def index_difference(e: Expr) -> Dim | None:
    """Left side minus right side of a comparison of integer indices; None for any other expression."""
    if e.op not in COMPARE or any(a.op not in ("index", "const") or a.dtype.is_float for a in e.args):
        return None
    a, b = (int(x.attr) if x.op == "const" else x.attr for x in e.args)
    difference: Dim = a - b
    return difference


def two_sides(difference: Dim, op: str) -> tuple[Dim, str, Dim]:
    """``difference op 0`` as (left, C operator, right).

    Neither side has a minus sign, their common factor is divided out, and a constant side is the right one.
    """
    terms = dict(dims.terms_of(difference))
    common = math.gcd(*terms.values()) or 1
    left = dims.make({m: c // common for m, c in terms.items() if c > 0})
    right = dims.make({m: -c // common for m, c in terms.items() if c < 0})
    text = _C_TEXT[op]
    if isinstance(left, int) and not isinstance(right, int):
        return right, _SWAPPED.get(text, text), left
    return left, text, right


def below_zero(e: Expr) -> Dim | None:
    """The index expression that is negative exactly where the comparison ``e`` holds.

    None for ``eq``, ``ne``, indices read at run time, and expressions that are no comparison of indices.
    """
    difference = index_difference(e) if e.op in ("lt", "le", "gt", "ge") else None
    if difference is None or dims.dynamic_atoms(difference):
        return None
    less = difference if e.op in ("lt", "le") else -difference
    return less - 1 if e.op in ("le", "ge") else less


def is_negative(d: Dim) -> Expr:
    """The comparison ``d < 0``, with the constant of ``d`` on a side of its own."""
    constant = dict(d.terms).get((), 0) if isinstance(d, IntExpr) else d
    rest = d - constant
    if isinstance(rest, IntExpr) and rest.terms[0][1] < 0:
        return binary("lt", const(constant, DType.I64), index(-rest))
    return binary("lt", index(rest), const(-constant, DType.I64))
