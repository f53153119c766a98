"""The order of a graph's nodes, and the names that they read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

from onnx import NodeProto

from arcweld.compiler.errors import ModelError
from arcweld.compiler.onnx.control import MAX_DEPTH


def in_order(nodes: Sequence[NodeProto]) -> Sequence[NodeProto]:
    """``nodes`` in topological order, which the standard demands and some converters do not keep.

    Nodes that read the result of a later node are moved, in their order, behind the others, until none has to be. Nodes
    in a cycle come last: the importer reports what they lack.
    """
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    reads = [{maker[name] for name in names_read([node]) if name in maker} for node in nodes]
    if all(before < i for i, needed in enumerate(reads) for before in needed):
        return nodes
    import networkx as nx  # rarely needed

    graph = nx.DiGraph((before, i) for i, needed in enumerate(reads) for before in needed)
    graph.add_nodes_from(range(len(nodes)))
    circles = [c for c in nx.strongly_connected_components(graph) if len(c) > 1 or graph.has_edge(*c, *c)]
    waiting = {i for c in circles for start in c for i in (start, *nx.descendants(graph, start))}
    graph.remove_nodes_from(waiting)
    turn: dict[int, int] = {}
    for i in nx.topological_sort(graph):
        turn[i] = max((turn[before] + (before > i) for before in reads[i]), default=0)
    return [nodes[i] for i in (*sorted(turn, key=lambda i: (turn[i], i)), *sorted(waiting))]


def names_used(nodes: Sequence[NodeProto], outputs: Sequence[str]) -> Set[str]:
    """The names that are read: by a node, inside a subgraph, or as an output of the graph."""
    return set(outputs) | set(names_read(nodes))


def names_read(nodes: Sequence[NodeProto], depth: int = 0) -> Iterator[str]:
    """Every name that a node or a node of its subgraphs reads."""
    if depth > MAX_DEPTH:
        raise ModelError(f"functions and branches nest more than {MAX_DEPTH} levels deep")
    for node in nodes:
        yield from node.input
        for attr in node.attribute:
            for graph in ([attr.g] if attr.HasField("g") else []) + list(attr.graphs):
                yield from names_read(graph.node, depth + 1)
                yield from (o.name for o in graph.output)
