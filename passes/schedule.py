"""Scheduling: puts regions in an order in which every value is written before it is read, keeping the
model's own order.
"""

from __future__ import annotations

import heapq

from arcweld.compiler.errors import VerifyError
from arcweld.compiler.region import FusedGraph, Region


def schedule(fused: FusedGraph) -> FusedGraph:
    """Topological order of the regions; among ready ones the one whose last node comes first in the graph.

    Raises VerifyError if the regions depend on each other in a circle (a defect of fusion).
    """
    position = {o.name: i for i, n in enumerate(fused.graph.nodes) for o in n.outputs}
    writer: dict[str, int] = {o.name: i for i, r in enumerate(fused.regions) for o in r.outputs}
    waits = [{writer[v.name] for v in r.inputs if v.name in writer} for r in fused.regions]
    readers: dict[int, list[int]] = {}
    for i, needed in enumerate(waits):
        for j in needed:
            readers.setdefault(j, []).append(i)
    rank = [max(position[o.name] for n in r.nodes for o in n.outputs) for r in fused.regions]
    ready = [(rank[i], i) for i, needed in enumerate(waits) if not needed]
    heapq.heapify(ready)
    order: list[Region] = []
    while ready:
        _, i = heapq.heappop(ready)
        order.append(fused.regions[i])
        for j in readers.get(i, ()):
            waits[j].discard(i)
            if not waits[j]:
                heapq.heappush(ready, (rank[j], j))
    if len(order) != len(fused.regions):
        stuck = [r.name for r, w in zip(fused.regions, waits) if w]
        raise VerifyError(
            f"regions depend on each other in a circle: {', '.join(stuck[:5])}",
            hint="disable the pass fusion",
        )
    _check_inputs(fused, writer)
    return FusedGraph(fused.graph, tuple(order), fused.refusals)


def _check_inputs(fused: FusedGraph, writer: dict[str, int]) -> None:
    available = {v.name for v in fused.graph.inputs} | set(fused.graph.weights) | set(writer)
    for r in fused.regions:
        for v in r.inputs:
            if v.name not in available:
                raise VerifyError(
                    f"region {r.name} reads {v.name}, which no region stores", hint="disable the pass fusion"
                )
