"""Columns of weights in another order: products take their activations in that order, and the weights stay as they are.

    MatMul(x, Transpose(Gather(w, inverse, axis=1)))  ->  MatMul(Gather(x, order, axis=-1), Transpose(w))

Weights that are stored group by group, as GPTQ's act-order leaves them, mean a matrix with its columns in other places.
Putting these in place would widen the matrix; an activation has few elements. Requires: nothing has evaluated w, which
is no weight but made of packed ones. Ensures: no product reads such a w through a permutation of what it sums over.
"""

from __future__ import annotations

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.options import Options
from arcweld.passes.common import Tracker, rewrite


def column_orders(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` with permutations of constant matrices moved to the activations of the products."""
    return rewrite(graph, _visit) if any(n.op == "Gather" for n in graph.nodes) else graph


def _visit(rw: Tracker, node: Node) -> bool:
    if node.op != "MatMul":
        return False
    x, w = (v for v in rw.inputs_of(node) if v is not None)
    above, gather = _chain(rw, w)
    if gather is None:
        return False
    matrix, indices = gather.operands()
    order = _inverse(rw.array(indices), matrix.shape[gather.attrs["axis"]])
    if order is None or matrix.name in rw.weights or x.name in rw.weights:
        return False
    for step in reversed(above):
        matrix = rw.make(step.op, [matrix], step.origin, **step.attrs)
    moved = rw.make("MatMul", [_ordered(rw, x, order, node), matrix], node.origin, node.output.name)
    rw.redirect(node, moved)
    return True


def _chain(rw: Tracker, w: Value) -> tuple[list[Node], Node | None]:
    """The casts and transpositions that make ``w`` of a Gather along what products sum over, and the Gather."""
    above: list[Node] = []
    axis = 0
    node = rw.producer(w) if w.type.rank == 2 else None
    while node is not None and node.op in ("Cast", "Transpose"):
        if node.op == "Transpose" and node.attrs["perm"] == (1, 0):
            axis = 1 - axis
        above.append(node)
        node = rw.producer(node.operands()[0])
    found = node is not None and node.op == "Gather" and node.attrs["axis"] == axis
    return above, node if found else None


def _inverse(indices: np.ndarray | None, extent: object) -> np.ndarray | None:
    """The inverse of a permutation of ``extent`` elements; None for anything else."""
    if indices is None or indices.ndim != 1 or indices.size != extent:
        return None
    order = np.argsort(indices, kind="stable").astype(np.int64)
    return order if (indices[order] == np.arange(indices.size)).all() else None


def _ordered(rw: Tracker, x: Value, order: np.ndarray, node: Node) -> Value:
    """The activation in that order: one value for all products that take it so, which are then merged."""
    key = f"{x.name}|{order.tobytes().hex()}"
    if key not in rw.memo:
        indices = rw.constant(order, DType.I64, "order")
        rw.memo[key] = rw.make("Gather", [x, indices], node.origin, axis=x.type.rank - 1)
    found: Value = rw.memo[key]
    return found
