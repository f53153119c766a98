"""Which symbolic sizes follow from the shapes of an engine's inputs; the others must be inputs themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx

from arcweld.compiler.dims import Dim, Sym, coefficient, free_symbols


def solvable(extents: Iterable[Dim]) -> set[Sym]:
    """The symbols that follow from the values of ``extents``, solved for one unknown at a time as engines do."""
    pending = [(d, free_symbols(d)) for d in extents]
    known: set[Sym] = set()
    progress = True
    while progress:
        progress = False
        for d, symbols in pending:
            unknown = symbols - known
            if len(unknown) == 1 and coefficient(d, (symbol := unknown.pop())) is not None:
                known.add(symbol)
                progress = True
    return known


def is_size(value: Any) -> bool:
    """True for a SymInt that is one symbol and cannot be negative; a function's integer arguments may be negative."""
    if not isinstance(value, torch.SymInt) or not value.node.expr.is_Symbol or value.node.shape_env is None:
        return False
    bounds = value.node.shape_env.var_to_range.get(value.node.expr)
    return bounds is not None and bool(bounds.lower >= 0)


def placeholder_symbols(graph: fx.Graph) -> dict[str, fx.Node]:
    """The placeholders whose value is a size, by the name of its symbol."""
    inputs = [n for n in graph.nodes if n.op == "placeholder" and is_size(n.meta.get("val"))]
    return {str(n.meta["val"].node.expr): n for n in inputs}


def symbols_in(nodes: Iterable[fx.Node]) -> set[str]:
    """The names of torch's symbols in the shapes of the nodes' results and operands."""
    read = {o for n in nodes for o in (n, *n.all_input_nodes)}
    return {str(s) for n in read for size in _sizes(n.meta.get("val")) for s in size.node.expr.free_symbols}


def _sizes(value: Any) -> Iterator[torch.SymInt]:
    if isinstance(value, torch.SymInt):
        yield value
    elif isinstance(value, torch.Tensor):
        yield from (d for d in value.shape if isinstance(d, torch.SymInt))
    elif isinstance(value, tuple | list):
        for v in value:
            yield from _sizes(v)
