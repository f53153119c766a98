"""Constant folding: nodes whose operands are all weights are evaluated now, by the registry's references.

Requires: nothing. Ensures: a node of constant operands is left only where its result would be large and much
larger than its operands (a broadcast costs less as an index map than as memory), or where it has no result of
fixed shape. How each new weight was made is recorded, so that it can be made again from new source weights.
"""

from __future__ import annotations

from arcweld.compiler.dims import IntExpr
from arcweld.compiler.ir import Graph, Node, weight_value
from arcweld.compiler.options import Options
from arcweld.compiler.weights import evaluate, is_symbolic
from arcweld.passes.common import Tracker, rewrite

SMALL = 64 * 1024  # bytes that may always be folded
# a larger result may take this many times its operands' bytes: int8 weights become f32, or f64 for exact sums
GROWTH = 8


def constant_folding(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` with constant nodes replaced by weights."""
    return rewrite(graph, _visit)


def _visit(rw: Tracker, node: Node) -> bool:
    operands = [(v.name, rw.weights[v.name]) for v in rw.inputs_of(node) if v is not None and v.name in rw.weights]
    if (
        len(operands) != len(node.inputs)
        or len(node.outputs) != 1
        or not _worthwhile(node, sum(w.data.nbytes for _, w in operands))
    ):
        return False
    weight = evaluate(node.op, operands, node.attrs)
    name = rw.fresh(node.output.name)
    rw.weights[name] = weight
    rw.redirect(node, weight_value(name, weight.data, node.output.dtype))
    return True


def _worthwhile(node: Node, operand_bytes: int) -> bool:
    size = node.output.type.nbytes
    if isinstance(size, IntExpr) or is_symbolic(tuple(node.attrs.values())):
        return False
    return size <= max(SMALL, GROWTH * operand_bytes)
