"""Scheduling: sorts regions so that every value is written before it is read, near the model's own order."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from arcweld.compiler.errors import VerifyError
from arcweld.compiler.region import FusedGraph

if TYPE_CHECKING:
    import networkx as nx


def schedule(fused: FusedGraph) -> FusedGraph:
    """The regions in topological order; of those that are ready, the one whose last node is first in the graph.

    Raises VerifyError if regions depend on each other in a circle, or read what none stores (defects of fusion).
    """
    import networkx as nx  # importing it takes 0.1 s, which only builds need

    position = {o.name: i for i, n in enumerate(fused.graph.nodes) for o in n.outputs}
    rank = [max(position[o.name] for n in r.nodes for o in n.outputs) for r in fused.regions]
    waits = dependences(fused)
    try:
        order = [fused.regions[i] for i in nx.lexicographical_topological_sort(waits, key=rank.__getitem__)]
    except nx.NetworkXUnfeasible:
        stuck = [fused.regions[i].name for i, _ in nx.find_cycle(waits)]
        raise VerifyError(
            f"regions depend on each other in a circle: {', '.join(stuck[:5])}",
            hint="disable the pass fusion",
        ) from None
    _check_inputs(fused, {o.name for r in fused.regions for o in r.outputs})
    return replace(fused, regions=tuple(order))


def dependences(fused: FusedGraph) -> nx.DiGraph[int]:
    """An edge from each region to those that wait for it: readers of its results, and writers over what it reads."""
    import networkx as nx

    writer = {o.name: i for i, r in enumerate(fused.regions) for o in r.outputs}
    over = {state: i for i, r in enumerate(fused.regions) for state in r.in_place.values()}
    waits: nx.DiGraph[int] = nx.DiGraph()
    waits.add_nodes_from(range(len(fused.regions)))
    for i, r in enumerate(fused.regions):
        waits.add_edges_from((writer[v.name], i) for v in r.inputs if v.name in writer)
        waits.add_edges_from((i, over[v.name]) for v in r.inputs if over.get(v.name, i) != i)
    return waits


def _check_inputs(fused: FusedGraph, written: set[str]) -> None:
    available = {v.name for v in fused.graph.inputs} | set(fused.graph.weights) | written
    for r in fused.regions:
        for v in r.inputs:
            if v.name not in available:
                raise VerifyError(
                    f"region {r.name} reads {v.name}, which no region stores", hint="disable the pass fusion"
                )
