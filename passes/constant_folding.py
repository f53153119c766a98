"""Constant folding: nodes whose operands are all weights are evaluated by the registry's numpy references.

    Mul(w, Transpose(v)) of weights w and v  ->  a new weight

Requires: nothing. Ensures: a node of constant operands is left only if it is to keep them (``passes/storage.py``), if
its result is of symbolic shape, or large and much larger than what it is made from (a broadcast costs less as an index
map than as memory), or if it is one of so many that they would take too much memory together. Each new weight has a
record of how it was made, so that it can be made again from new data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import Graph, Node, Weight, weight_value
from arcweld.compiler.options import Options
from arcweld.compiler.weights import evaluate, is_affordable, is_evaluated
from arcweld.passes.common import Tracker, rewrite

# Bytes of all results together (``is_affordable`` bounds each). A model of many constant nodes may take this much,
# or this many times what its own arrays take.
ROOM = 128 << 20
SHARE = 32


def constant_folding(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` with constant nodes replaced by weights.

    Raises ModelError for a node whose operands its operator can't be computed of, such as an index out of range.
    """
    return fold(graph)


def fold(graph: Graph, but: Callable[[Node], bool] | None = None) -> Graph:
    """The pass itself, for other passes to call. Nodes for which ``but`` is true are left."""
    own = sum(w.data.nbytes for w in graph.weights.values() if not w.transform)
    return rewrite(graph, _Folder(max(ROOM, SHARE * own), but).visit)


class _Folder:
    """One run of the pass. ``room``: the bytes that further results may take."""

    def __init__(self, room: int, but: Callable[[Node], bool] | None) -> None:
        self.room = room
        self.but = but

    def visit(self, rw: Tracker, node: Node) -> bool:
        """Replaces a constant node."""
        given = rw.inputs_of(node)
        if self.but is not None and self.but(node):
            return False
        operands = [(v.name, rw.weights[v.name]) for v in given if v is not None and v.name in rw.weights]
        if len(operands) != len(node.inputs) or len(node.outputs) != 1 or not is_evaluated(node.attrs):
            return False
        if not is_affordable(node.output.type, operands):
            return False
        size = node.output.type.nbytes
        if not isinstance(size, int) or size > self.room:
            return False
        self.room -= size
        _fold(rw, node, operands)
        return True


def _fold(rw: Tracker, node: Node, operands: Sequence[tuple[str, Weight]]) -> None:
    try:
        weight = evaluate(node.op, operands, node.attrs)
    except (ValueError, IndexError, OverflowError) as error:
        raise ModelError(f"{node.op} of constants failed: {error}", node=node.name) from error
    name = rw.fresh(node.output.name)
    rw.weights[name] = weight
    rw.redirect(node, weight_value(name, weight.data, node.output.dtype))
