"""Wide operators: Sum, Mean, Max, Min and Concat of more than MOST operands become trees of narrower ones.

    Sum(x0, …, x99)  ->  Sum(Sum(x0, …, x63), Sum(x64, …, x99))

Requires: nothing. Ensures: no such operator has more than MOST operands, so that the pointers of a kernel fit into its
parameters. Partial sums of 16-bit types are f32, as they are inside one kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.options import Options
from arcweld.passes.common import Tracker, rewrite

MOST = 64  # kernel parameters are at most 4 KB (CUDA Programming Guide): 8 bytes a pointer, and symbolic sizes


def split_operands(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` with every operator of more than MOST operands as a tree."""
    return rewrite(graph, _visit)


def _visit(rw: Tracker, node: Node) -> bool:
    join = _JOIN.get(node.op)
    if join is None or len(node.inputs) <= MOST:
        return False
    rw.redirect(node, join(rw, node, [rw.get(v) for v in node.operands()]))
    return True


def _narrowed(operands: Sequence[Value], join: Callable[[Sequence[Value]], Value]) -> Sequence[Value]:
    """At most MOST values, made by joining MOST neighbours at a time."""
    while len(operands) > MOST:
        parts = [operands[k : k + MOST] for k in range(0, len(operands), MOST)]
        operands = [join(part) if len(part) > 1 else part[0] for part in parts]
    return operands


def _same(rw: Tracker, node: Node, operands: Sequence[Value]) -> Value:
    """Max, Min and Concat: the parts are joined as the operands are."""

    def join(part: Sequence[Value], name: str = f"{node.output.name}.part") -> Value:
        return rw.make(node.op, part, node.origin, name, **node.attrs)

    return join(_narrowed(operands, join), node.output.name)


def _sum(rw: Tracker, node: Node, operands: Sequence[Value]) -> Value:
    dtype, name = node.output.dtype, node.output.name
    wide = DType.F32 if dtype.is_half else dtype
    last = _narrowed(operands, lambda part: _total(rw, node, part, wide, f"{name}.part"))
    total = _total(rw, node, last, wide, f"{name}.sum" if node.op == "Mean" or wide is not dtype else name)
    if node.op == "Mean":
        share = rw.constant(np.asarray(1.0 / len(operands), wide.numpy), wide, "share")
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
