"""Dead code elimination: drops nodes and weights that no output depends on.

Requires: nothing. Ensures: every node contributes to an output; every weight is read or is an output. Graph inputs stay
even if nothing reads them: they are the model's interface. Operators have no side effects.
"""

from __future__ import annotations

from arcweld.compiler.ir import Graph, Node
from arcweld.compiler.options import Options


def dce(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` without dead nodes and weights."""
    return remove_dead(graph)


def remove_dead(graph: Graph) -> Graph:
    """The pass itself, for other passes to call."""
    live = graph.output_names()
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(o.name in live for o in node.outputs):
            live.update(v.name for v in node.operands())
            kept.append(node)
    weights = {name: w for name, w in graph.weights.items() if name in live}
    if len(kept) == len(graph.nodes) and len(weights) == len(graph.weights):
        return graph
    return graph.replace(nodes=tuple(reversed(kept)), weights=weights)
