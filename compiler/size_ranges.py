"""A range of sizes: bounds of some symbols, narrower than their own, for which an engine has launches of its own.

    s = 1, b from 1 to 8     a decode step: products of few rows, attention over a cache by blocks for its keys
    everything else          a prompt: tiles of many rows
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from arcweld.compiler.dims import Atom, Dim, IntExpr, bounds, substitute, symbol
from arcweld.compiler.errors import UsageError
from arcweld.compiler.ir import Graph, TensorType, Value


@dataclass(frozen=True, slots=True)
class SizeRange:
    """The sizes at which each symbol of ``bounds`` (name, lowest, highest; sorted by name) lies within its bounds."""

    bounds: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, bounds: Mapping[str, int | tuple[int, int]]) -> SizeRange:
        """The range with these bounds by name: a size, or the lowest and the highest one."""
        both = {n: b if isinstance(b, tuple) else (b, b) for n, b in bounds.items()}
        return cls(tuple((n, *both[n]) for n in sorted(both)))

    @property
    def label(self) -> str:
        """``b=1..8,s=1``."""
        return ",".join(f"{n}={lo}" if lo == hi else f"{n}={lo}..{hi}" for n, lo, hi in self.bounds)

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """True if these sizes are in the range."""
        return all(lo <= sizes[n] <= hi for n, lo, hi in self.bounds)

    def narrowed(self, graph: Graph) -> Graph:
        """The graph for these sizes alone. A symbol of one size becomes that number.

        Raises UsageError for a symbol that the graph lacks, and for bounds that are not within the symbol's own.
        """
        return with_dims(graph, self.dims(graph))

    def dims(self, graph: Graph) -> Callable[[Dim], Dim]:
        """What a dimension of the graph becomes at these sizes. Raises as ``narrowed`` does."""
        known = {s.name: s for s in graph.symbols()}
        table: dict[Atom, Dim] = {}
        for name, lo, hi in self.bounds:
            s = known.get(name)
            if s is None:
                raise UsageError(f"no dimension is called {name!r}", hint=f"dimensions: {', '.join(known) or 'none'}")
            most = None if s.hi is None else bounds(s.hi)[1]
            if lo > hi or lo < s.lo or (most is not None and hi > most) or lo % s.multiple_of or hi % s.multiple_of:
                own = f"{s.lo} {'or more' if most is None else f'to {most}'}"
                steps = f", in multiples of {s.multiple_of}" if s.multiple_of > 1 else ""
                raise UsageError(f"the range {self.label} is not within that of {name}", hint=f"it is {own}{steps}")
            table[s] = lo if lo == hi else symbol(name, lo, hi, s.multiple_of)
        return lambda d: substitute(d, table)


def with_dims(graph: Graph, dim: Callable[[Dim], Dim]) -> Graph:
    """The graph with ``dim`` applied to every dimension of its types and attributes."""

    def value(v: Value) -> Value:
        return replace(v, type=TensorType(v.dtype, tuple(dim(d) for d in v.shape)))

    def attribute(a: Any) -> Any:
        if isinstance(a, tuple):
            return tuple(attribute(x) for x in a)
        return dim(a) if isinstance(a, IntExpr) else a

    nodes = tuple(
        replace(
            n,
            inputs=tuple(None if v is None else value(v) for v in n.inputs),
            outputs=tuple(value(v) for v in n.outputs),
            attrs={k: attribute(a) for k, a in n.attrs.items()},
        )
        for n in graph.nodes
    )
    return graph.replace(
        nodes=nodes, inputs=tuple(value(v) for v in graph.inputs), outputs=tuple(value(v) for v in graph.outputs)
    )
