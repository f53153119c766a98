"""State in place: a region whose result takes over an input's memory writes it there, where that is safe.

    state = Scatter(last, at, new)    stores the updates into ``last``, copies nothing
    state = 0.9 * last + x            each thread reads the elements that it writes
    y = last + x, then either         the sum is launched first, since it needs the old values

A region may do so if it needs the old values nowhere else than where it writes, and if every other region that reads
them can be launched before it. Everywhere else the result gets memory of its own, and is copied at the end of the call.
"""

from __future__ import annotations

from dataclasses import replace

from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.region import FusedGraph, Region
from arcweld.passes.schedule import dependences


def write_in_place(fused: FusedGraph) -> FusedGraph:
    """The regions, with ``in_place`` set where it is safe; ``copied`` says why it is not elsewhere."""
    import networkx as nx

    graph, regions, copied = fused.graph, list(fused.regions), dict[str, str]()
    if not graph.aliases:
        return fused
    waits = dependences(fused)
    writer = {o.name: i for i, r in enumerate(regions) for o in r.outputs}
    for label, o in zip(graph.labels(), graph.outputs):
        state = graph.aliases.get(label)
        if state is None:
            continue
        i = writer[o.name]
        readers = {k for k, r in enumerate(regions) if k != i and any(v.name == state for v in r.inputs)}
        late = readers & nx.descendants(waits, i)
        reason = _obstacle(regions[i], o.name, state)
        if late and not reason:
            reason = f"{_node(regions[min(late)])} needs its old values and the new ones"
        if reason:
            copied[state] = reason
            continue
        regions[i] = replace(regions[i], in_place={**regions[i].in_place, o.name: state})
        waits.add_edges_from((k, i) for k in readers)
    return FusedGraph(graph, tuple(regions), fused.refusals, copied)


def _obstacle(region: Region, output: str, state: str) -> str:
    """Why the region may not write ``output`` over ``state``; empty if it may."""
    hero = region.hero
    if hero is None:
        return "" if reads_own_elements(region, state) else f"{_node(region)} reads it at other places than it writes"
    if region.template != "scatter" or hero.output.name != output:
        return f"{_node(region)} computes all of its elements anew"
    if hero.operands()[0].name != state:
        return f"{_node(region)} changes another tensor than {state}"
    if sum(v.name == state for n in region.nodes for v in n.operands()) > 1:
        return f"{_node(region)} reads it at other places than it writes"
    return ""


def reads_own_elements(region: Region, state: str) -> bool:
    """True if each thread of a pointwise region reads those elements of ``state`` only at which it stores its results.

    Then no node of the region that depends on the state moves, repeats or broadcasts elements.
    """
    shape = region.outputs[0].shape
    dependent = {state}
    for n in region.nodes:
        if n.op == "Transpose":
            return False  # its kernel may exchange elements between threads
        if any(v.name in dependent for v in n.operands()):
            if opdef(n.op).kind is not Kind.POINTWISE or n.output.shape != shape:
                return False
            if any(v.name in dependent and v.shape != shape for v in n.operands()):
                return False
            dependent.update(o.name for o in n.outputs)
    return True


def _node(region: Region) -> str:
    return (region.hero or region.nodes[-1]).name
