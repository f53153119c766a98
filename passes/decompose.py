"""Decomposition: rewrites COMPOSITE operators in terms of others, until none is left.

    ReduceSumSquare(x)  ->  ReduceSum(x * x)

Requires: patterns that match composite operators have run. Ensures: no node's operator is of kind
COMPOSITE, unless it has no decomposition. New nodes carry the origin of the node that they replace.
"""

from __future__ import annotations

from dataclasses import replace

from arcweld.compiler.errors import CompileError
from arcweld.compiler.ir import Graph, Node
from arcweld.compiler.ops.registry import Kind, must_decompose, opdef
from arcweld.compiler.options import Options
from arcweld.passes.common import Tracker, rewrite

MAX_ROUNDS = 16


def decompose(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` without composite operators. Raises CompileError if some are left after MAX_ROUNDS rounds."""
    for _ in range(MAX_ROUNDS):
        before, graph = graph, rewrite(graph, _visit)
        if graph is before:
            return graph
    left = sorted({n.op for n in graph.nodes if opdef(n.op).kind is Kind.COMPOSITE})
    raise CompileError(f"decomposition does not end: {', '.join(left)} come back after {MAX_ROUNDS} rounds")


def _visit(rw: Tracker, node: Node) -> bool:
    op = opdef(node.op)
    if op.decompose is None or not must_decompose(node):
        return False
    values = op.decompose(rw, replace(node, inputs=rw.inputs_of(node)))
    for old, new in zip(node.outputs, values, strict=True):
        rw.alias(old, new)
    return True
