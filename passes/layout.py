"""Layout: convolutions and pools run channels-last (NHWC), and transposes move until they cancel or reach an edge.

    Conv[NCHW](Relu(Conv[NCHW](x)))
    -> Transpose(Conv[NHWC](Relu(Conv[NHWC](Transpose(x)))))

Requires: composite operators decomposed, constants folded. Ensures: Conv, ConvTranspose, MaxPool and AveragePool have
layout "NHWC". A Transpose is left only where an operator needs an order in which no kernel has written its operand: at
graph inputs and outputs, and beside operators without a rule in ``layout_rules.py``. A graph without convolutions and
pools in NCHW is returned as it is, unless the result has fewer transposes.

Method: the graph is rebuilt node by node. Each value has a *native* order of axes, that in which it is computed. A
Transpose only changes the record of that order; a real one is emitted when a consumer needs another order.
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
        # constants that folding left are cheaper as index maps: they stay as they are
        constant = all(rw.is_constant(v) for v in node.operands())
        if rule is None or constant or len(node.outputs) != 1 or not rule(rw, node):
            rw.keep_plain(node)
    result = rw.finish()
    if any(opdef(n.op).kind in IMAGES and n.attrs["layout"] == "NCHW" for n in graph.nodes):
        return result
    return result if transposes(result) < transposes(graph) else graph


def transposes(graph: Graph) -> int:
    """The number of Transposes that move elements: those that permute more than axes of extent 1."""
    count = 0
    for n in graph.nodes:
        if n.op == "Transpose":
            moved = [p for p in n.attrs["perm"] if n.operands()[0].shape[p] != 1]
            count += moved != sorted(moved)
    return count
