"""Tests of indices: as sign tests, which let a vector of lanes share one comparison, and as they are printed."""

from __future__ import annotations

import math

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, IntExpr
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import COMPARE, Expr, binary, const, index

_C_TEXT = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_SWAPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


def index_difference(e: Expr) -> Dim | None:
    """The left side of a test of indices less the right side; None for other expressions."""
    if e.op not in COMPARE or any(a.op not in ("index", "const") or a.dtype.is_float for a in e.args):
        return None
    a, b = (int(x.attr) if x.op == "const" else x.attr for x in e.args)
    difference: Dim = a - b
    return difference


def two_sides(difference: Dim, op: str) -> tuple[Dim, str, Dim]:
    """``difference op 0`` as (left, C operator, right): no minus signs, no common factor, a constant on the right."""
    terms = dict(dims.terms_of(difference))
    common = math.gcd(*terms.values()) or 1
    left = dims.make({m: c // common for m, c in terms.items() if c > 0})
    right = dims.make({m: -c // common for m, c in terms.items() if c < 0})
    text = _C_TEXT[op]
    if isinstance(left, int) and not isinstance(right, int):
        return right, _SWAPPED.get(text, text), left
    return left, text, right


def below_zero(e: Expr) -> Dim | None:
    """The index expression that is negative exactly where the test ``e`` holds; None for other expressions."""
    difference = index_difference(e) if e.op in ("lt", "le", "gt", "ge") else None
    if difference is None or dims.dynamic_atoms(difference):
        return None
    less = difference if e.op in ("lt", "le") else -difference
    return less - 1 if e.op in ("le", "ge") else less


def is_negative(d: Dim) -> Expr:
    """The test ``d < 0``, with the constant on its own side."""
    constant = dict(d.terms).get((), 0) if isinstance(d, IntExpr) else d
    rest = d - constant
    if isinstance(rest, IntExpr) and rest.terms[0][1] < 0:
        return binary("lt", const(constant, DType.I64), index(-rest))
    return binary("lt", index(rest), const(-constant, DType.I64))
