"""Wide operators: Sum, Mean, Max, Min and Concat of very many operands become trees of narrower ones.

Requires: nothing. Ensures: no such operator has more than MOST operands, so that no kernel reads more buffers than its
parameters can name. Partial sums of 16-bit types are f32, as a single kernel's would be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.options import Options
from arcweld.passes.common import Tracker, rewrite

MOST = 64  # a kernel's parameters are at most 4 KB: 8 bytes for a pointer, and more for symbolic sizes


def split_operands(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` with every operator of more than MOST operands taken apart."""
    return rewrite(graph, _visit)


def _visit(rw: Tracker, node: Node) -> bool:
    join = _JOIN.get(node.op)
    if join is None or len(node.inputs) <= MOST:
        return False
    rw.redirect(node, join(rw, node, [rw.get(v) for v in node.operands()]))
    return True


def _same(rw: Tracker, node: Node, operands: Sequence[Value]) -> Value:
    """Max, Min and Concat: the parts are joined as the operands are."""
    while len(operands) > MOST:
        operands = [
            rw.make(node.op, operands[k : k + MOST], node.origin, f"{node.output.name}.part", **node.attrs)
            for k in range(0, len(operands), MOST)
        ]
    return rw.make(node.op, operands, node.origin, node.output.name, **node.attrs)


def _sum(rw: Tracker, node: Node, operands: Sequence[Value]) -> Value:
    dtype, count = node.output.dtype, len(operands)
    wide = DType.F32 if dtype.is_half else dtype
    while len(operands) > MOST:
        operands = [
            _total(rw, node, operands[k : k + MOST], wide, f"{node.output.name}.part")
            for k in range(0, len(operands), MOST)
        ]
    name = node.output.name
    total = _total(rw, node, operands, wide, f"{name}.sum" if node.op == "Mean" or wide is not dtype else name)
    if node.op == "Mean":
        share = rw.constant(np.asarray(1.0 / count, wide.numpy), wide, "share")
        total = rw.make("Mul", [total, share], node.origin, f"{name}.mean" if wide is not dtype else name)
    return total if wide is dtype else rw.make("Cast", [total], node.origin, name, to=dtype)


def _total(rw: Tracker, node: Node, operands: Sequence[Value], wide: DType, name: str) -> Value:
    same = [v if v.dtype is wide else rw.make("Cast", [v], node.origin, to=wide) for v in operands]
    return rw.make("Sum", same, node.origin, name)


_JOIN: dict[str, Callable[[Tracker, Node, Sequence[Value]], Value]] = {
    "Concat": _same,
    "Max": _same,
    "Min": _same,
    "Sum": _sum,
    "Mean": _sum,
}
