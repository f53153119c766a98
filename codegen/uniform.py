"""Tests of indices as sign tests: what lets a vector of lanes share one comparison."""

from __future__ import annotations

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, IntExpr
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, binary, const, index


def below_zero(e: Expr) -> Dim | None:
    """The index expression that is negative exactly where the test ``e`` holds; None for other expressions."""
    if e.op not in ("lt", "le", "gt", "ge") or any(a.op not in ("index", "const") or a.dtype.is_float for a in e.args):
        return None
    a, b = (int(x.attr) if x.op == "const" else x.attr for x in e.args)
    less = a - b if e.op in ("lt", "le") else b - a
    result: Dim = less - 1 if e.op in ("le", "ge") else less
    return None if dims.dynamic_atoms(result) else result


def is_negative(d: Dim) -> Expr:
    """The test ``d < 0``, with the constant on its own side."""
    constant = dict(d.terms).get((), 0) if isinstance(d, IntExpr) else d
    rest = d - constant
    if isinstance(rest, IntExpr) and rest.terms[0][1] < 0:
        return binary("lt", const(constant, DType.I64), index(-rest))
    return binary("lt", index(rest), const(-constant, DType.I64))
