"""Constant folding: nodes whose operands are all weights are evaluated by the registry's numpy references.

    Mul(w, Transpose(v)) of weights w and v  ->  a new weight

Requires: nothing. Ensures: a node of constant operands is left only if its result is of symbolic shape, or large and
much larger than its operands (a broadcast costs less as an index map than as memory). Each new weight has a record of
how it was made, so that it can be made again from new data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from arcweld.compiler.dims import IntExpr
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import Graph, Node, weight_value
from arcweld.compiler.options import Options
from arcweld.compiler.weights import evaluate, is_symbolic
from arcweld.passes.common import Tracker, rewrite

SMALL = 64 * 1024  # bytes of a result that is always folded
GROWTH = 4  # a larger result may have this many times its operands' bytes, as f32 has of int8 weights


def constant_folding(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` with constant nodes replaced by weights.

    Raises ModelError for a node whose operands its operator can't be computed of, such as an index out of range.
    """
    return rewrite(graph, _visit)


def _visit(rw: Tracker, node: Node) -> bool:
    operands = [(v.name, rw.weights[v.name]) for v in rw.inputs_of(node) if v is not None and v.name in rw.weights]
    if (
        len(operands) != len(node.inputs)
        or len(node.outputs) != 1
        or not _worthwhile(node, [w.data for _, w in operands])
    ):
        return False
    try:
        weight = evaluate(node.op, operands, node.attrs)
    except (ValueError, IndexError, OverflowError) as error:
        raise ModelError(f"{node.op} of constants failed: {error}", node=node.name) from error
    name = rw.fresh(node.output.name)
    rw.weights[name] = weight
    rw.redirect(node, weight_value(name, weight.data, node.output.dtype))
    return True


def _worthwhile(node: Node, operands: Sequence[np.ndarray]) -> bool:
    size, elements = node.output.type.nbytes, node.output.type.numel
    if isinstance(size, IntExpr) or isinstance(elements, IntExpr) or is_symbolic(tuple(node.attrs.values())):
        return False
    # no more elements than an operand has, but wider ones: 8-bit weights as f64, for exact sums
    widest = max((a.size for a in operands), default=0)
    return size <= max(SMALL, GROWTH * sum(a.nbytes for a in operands)) or elements <= widest
