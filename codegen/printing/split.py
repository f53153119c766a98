"""Splits expressions by the axes that they depend on, so that a loop nest computes each part where it changes.

In an epilogue over rows and columns, a bias depends on the column, a scale on the row, and a residual on both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from arcweld.compiler import dims
from arcweld.compiler.dims import Sym
from arcweld.compiler.expr import Expr, coordinates, rebuild, variable, walk


@dataclass(frozen=True, slots=True)
class Split:
    """An expression in three parts.

    columns  variable -> a part that depends on no row: one value for each column
    rows     variable -> a part that depends on rows, but on no column: one value for each row
    body     the expression in terms of these variables, of the template's own, and of what depends on both
    """

    columns: Mapping[str, Expr]
    rows: Mapping[str, Expr]
    body: Expr


def dependence(roots: Sequence[Expr]) -> dict[Expr, frozenset[Sym | str]]:
    """The symbols and the template variables (by name) that each sub-expression's value depends on."""
    found: dict[Expr, frozenset[Sym | str]] = {}
    for e in walk(roots):
        below: set[Sym | str] = {e.attr} if e.op == "var" else set()
        below.update(*(found[a] for a in e.args))
        for d in coordinates(e):
            below |= dims.free_symbols(d)
            for a in dims.dynamic_atoms(d):
                assert isinstance(a.payload, Expr)
                below |= found[a.payload]
        found[e] = frozenset(below)
    return found


def split_by_axes(expr: Expr, *, rows: Collection[Sym], columns: Collection[Sym]) -> Split:
    """``expr`` with its largest sub-expressions that depend on columns only, or on rows only, as variables.

    What depends on neither counts as a column's; constants stay where they are. Template variables (the sums) depend
    on both. The new variables are ``column0, column1, …`` and ``row0, row1, …``; equal sub-expressions share one.
    Substituting the parts for the variables gives ``expr`` again.
    """
    depends = dependence([expr])

    def fixed(e: Expr, axes: Collection[Sym]) -> bool:
        return not any(isinstance(s, str) or s in axes for s in depends[e])

    parts: tuple[dict[Expr, Expr], dict[Expr, Expr]] = {}, {}
    names = ("column", "row")

    def piece(e: Expr) -> Expr:
        """What stands for ``e`` in the body."""
        if e.op == "const":
            return e
        for other_axes, part, name in zip((rows, columns), parts, names, strict=True):
            if fixed(e, other_axes):
                return part.setdefault(e, variable(f"{name}{len(part)}", e.dtype))
        return mixed[e]

    inside, todo = set[Expr](), [expr]
    while todo:
        e = todo.pop()
        if e not in inside and not fixed(e, rows) and not fixed(e, columns):
            inside.add(e)
            todo += e.args
    mixed: dict[Expr, Expr] = {}
    for e in walk([expr]):  # operands first
        if e in inside:
            mixed[e] = rebuild(e, [piece(a) for a in e.args])
    body = piece(expr)
    by_column, by_row = ({v.attr: e for e, v in part.items()} for part in parts)
    return Split(by_column, by_row, body)
