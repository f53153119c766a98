"""Joining regions that fusion left apart: which may be one, and the order among them while they change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from arcweld.compiler.ir import Node, Value
from arcweld.compiler.region import FusedGraph, Region
from arcweld.passes.schedule import dependences

if TYPE_CHECKING:
    import networkx as nx


class Joiner:
    """A graph's regions by number.

    waits     an edge from each region to those that wait for it
    readers   name of a value -> the regions that read it
    outputs   names of the graph's outputs
    position  name of a value -> the place of its node in the graph
    """

    def __init__(self, fused: FusedGraph) -> None:
        self.fused = fused
        self.regions = dict(enumerate(fused.regions))
        self.waits: nx.DiGraph[int] = dependences(fused)
        self.position = {o.name: i for i, n in enumerate(fused.graph.nodes) for o in n.outputs}
        self.outputs = fused.graph.output_names()
        self.readers: dict[str, set[int]] = {}
        for i, r in self.regions.items():
            for v in r.inputs:
                self.readers.setdefault(v.name, set()).add(i)

    def result(self) -> FusedGraph:
        """The graph with the regions as they are now, in no particular order."""
        return replace(self.fused, regions=tuple(self.regions.values()))

    def joined(self, i: int, k: int, stored: Sequence[Value] | None = None) -> Region:
        """``i`` with the nodes of ``k``. It stores ``stored``; by default what others read and what is an output."""
        a, b = self.regions[i], self.regions[k]
        if stored is None:
            stored = [o for o in a.outputs if o.name in self.outputs or self.readers[o.name] - {i, k}]
            stored = [*stored, *(o for o in b.outputs if o.name in self.outputs or self.readers[o.name] - {i, k})]
        nodes = self._in_order((*a.nodes, *b.nodes))
        made = {o.name for n in nodes for o in n.outputs}
        inputs = {v.name: v for n in nodes for v in n.operands() if v.name not in made}
        in_place = {**a.in_place, **b.in_place}
        return replace(a, nodes=nodes, inputs=tuple(inputs.values()), outputs=tuple(stored), in_place=in_place)

    def conflict(self, a: Region, b: Region) -> bool:
        """True if one of them writes over what the other one reads: in one kernel nothing would order the two."""
        return any(set(x.in_place.values()) & {v.name for v in y.inputs} for x, y in ((a, b), (b, a)))

    def detour(self, first: int, second: int) -> bool:
        """True if ``second`` waits for ``first`` by way of a third region."""
        import networkx as nx

        return any(nx.has_path(self.waits, s, second) for s in self.waits.successors(first) if s != second)

    def operands(self, r: Region) -> int:
        """The tensors that the region reads, weights aside."""
        return sum(v.name not in self.fused.graph.weights for v in r.inputs)

    def replace(self, i: int, k: int, joined: Region) -> None:
        """Makes ``joined`` the region ``i``, which then does the work of ``k`` too."""
        for v in self.regions[i].inputs:
            self.readers[v.name].discard(i)
        for v in joined.inputs:
            self.readers.setdefault(v.name, set()).add(i)
        self.regions[i] = joined
        self.waits.add_edges_from((p, i) for p in self.waits.predecessors(k) if p != i)
        self.waits.add_edges_from((i, s) for s in self.waits.successors(k) if s != i)

    def remove(self, k: int) -> None:
        """Drops a region whose work others do."""
        for v in self.regions.pop(k).inputs:
            self.readers[v.name].discard(k)
        self.waits.remove_node(k)

    def _in_order(self, nodes: Iterable[Node]) -> tuple[Node, ...]:
        unique = {n.output.name: n for n in nodes}
        return tuple(sorted(unique.values(), key=lambda n: self.position[n.output.name]))
