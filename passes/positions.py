"""Positions that are constants are computed where they are compared: an index costs less than reading it.

    LessOrEqual(<0, 1, ..., n - 1>, x)
    -> LessOrEqual(Reshape(Range(start=0, step=1, length=n)), x)

Requires: constants are not folded any more. Ensures: no comparison reads a weight that counts along one axis and is
made from none of the model's arrays. So attention sees which keys a position on the device excludes.
"""

from __future__ import annotations

import numpy as np

from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.options import Options
from arcweld.compiler.records import sources
from arcweld.passes.common import Tracker, rewrite

_COMPARISONS = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual"})


def positions(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` with the operands of comparisons that count as Range."""
    return rewrite(graph, _visit)


def _visit(rw: Tracker, node: Node) -> bool:
    if node.op not in _COMPARISONS:
        return False
    given = [rw.get(v) for v in node.operands()]
    made = [_counted(rw, v, node.origin) for v in given]
    if made == given:
        return False
    rw.redirect(node, rw.make(node.op, made, node.origin, node.output.name))
    return True


def _counted(rw: Tracker, v: Value, origin: tuple[str, ...]) -> Value:
    """``v`` as Range if it is a weight that counts along its only axis of more than one element; else itself."""
    weight = rw.weights.get(v.name)
    if weight is None or not v.dtype.is_int or not weight.transform or sources(weight):
        return v
    if weight.data.size < 2 or weight.data.size != max(weight.data.shape):
        return v
    flat = weight.data.reshape(-1).astype(np.int64)
    start, step = int(flat[0]), int(flat[1] - flat[0])
    if step == 0 or not np.array_equal(flat, start + step * np.arange(flat.size)):
        return v
    counted = rw.make("Range", [], origin, start=start, step=step, length=flat.size, dtype=v.dtype)
    return rw.make("Reshape", [counted], origin, shape=v.shape)
