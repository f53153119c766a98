"""Excludes sizes for which a model cannot run: those that leave a Resize, a Gather or an ArgMax no element to read.

A symbol's range then begins where every such extent is at least 1, and engines refuse smaller sizes.
"""

from __future__ import annotations

from typing import Any

from arcweld.compiler.dims import Dim, IntExpr, Sym, bounds, evaluate, free_symbols, substitute, symbol
from arcweld.compiler.ir import Graph
from arcweld.compiler.ops.registry import opdef
from arcweld.compiler.options import Options
from arcweld.compiler.size_ranges import with_dims

_MOST = 4096  # the greatest lower bound that is looked for


def ranges(graph: Graph, options: Options) -> Graph:
    """The graph with symbols whose ranges exclude what some node cannot compute."""
    needed = {d for n in graph.nodes if (needs := opdef(n.op).needs) for d in needs(n) if isinstance(d, IntExpr)}
    least: dict[Sym, int] = {}
    for d in needed:
        found = _least(d)
        if found is not None:
            least[found[0]] = max(found[1], least.get(found[0], 0))
    table: dict[Any, Dim] = {s: _from(s, lo) for s, lo in least.items() if lo > s.lo}
    return with_dims(graph, lambda d: substitute(d, table)) if table else graph


def _least(d: Dim) -> tuple[Sym, int] | None:
    """The only symbol of ``d`` and its least value from which on ``d`` is at least 1; None where none is found."""
    symbols = free_symbols(d)
    if len(symbols) != 1:
        return None
    s = next(iter(symbols))
    first = -(-s.lo // s.multiple_of) * s.multiple_of
    last = s.hi if isinstance(s.hi, int) else _MOST
    for v in range(first, min(last, _MOST) + 1, s.multiple_of):
        if evaluate(d, {s.name: v}) >= 1:
            low = bounds(substitute(d, {s: _from(s, v)}))[0]
            return (s, v) if low is not None and low >= 1 else None
    return None


def _from(s: Sym, lo: int) -> IntExpr:
    return symbol(s.name, lo, s.hi, s.multiple_of)
