"""Layout: convolutions and pools run channels-last (NHWC), and transposes move outwards until they cancel
or reach an edge.

Requires: composite operators decomposed, constants folded. Ensures: Conv, ConvTranspose, MaxPool and
AveragePool have layout "NHWC"; a Transpose is left only where an operator needs an order in which no kernel
has written its operand: at graph inputs and outputs, and beside operators that have no rule in
``layout_rules.py``. A graph without such operators is returned as it is unless the result has fewer
transposes.

Method: the graph is rebuilt in order. Each value is kept in the axis order in which it is computed (its
*native* order); a Transpose only changes the record of that order, and a real one is emitted when a
consumer asks for another order.
"""

from __future__ import annotations

from arcweld.compiler.ir import Graph
from arcweld.compiler.ops.registry import opdef
from arcweld.compiler.options import Options
from arcweld.passes.axis_orders import IMAGES, Layouts
from arcweld.passes.layout_rules import rule_of


def layout(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` with channels-last convolutions and its transposes moved outwards."""
    if not graph.nodes:
        return graph
    rw = Layouts(graph)
    for node in graph.nodes:
        rule = rule_of(node)
        # constants that folding has left are cheaper as index maps: they stay what they are
        constant = all(rw.is_constant(v) for v in node.operands())
        if rule is None or constant or len(node.outputs) != 1 or not rule(rw, node):
            rw.keep_plain(node)
    result = rw.finish()
    if any(opdef(n.op).kind in IMAGES and n.attrs["layout"] == "NCHW" for n in graph.nodes):
        return result
    return result if transposes(result) < transposes(graph) else graph


def transposes(graph: Graph) -> int:
    """How many nodes move elements: Transposes of more than axes of extent 1."""
    count = 0
    for n in graph.nodes:
        if n.op == "Transpose":
            moved = [p for p in n.attrs["perm"] if n.operands()[0].shape[p] != 1]
            count += moved != sorted(moved)
    return count
