"""Common subexpression elimination: nodes with the same operator, operands and attributes are computed once.

    a = Exp(x); b = Exp(x); y = a + b  ->  a = Exp(x); y = a + a

Requires: nothing. Ensures: no two nodes differ in names and origins only, nor do two small constants, unless they are
named weights of the model. The node that stays has the origins of all.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from arcweld.compiler.ir import Graph, Node, Rewriter, Weight, merge_origins, weight_value
from arcweld.compiler.options import Options
from arcweld.compiler.text import literal_text

SMALL = 4096  # bytes: comparing larger constants would take more time than it saves
_COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Xor", "Equal", "BitwiseAnd", "BitwiseOr", "BitwiseXor"})


def cse(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` with equal nodes merged into the first of them."""
    rw = Rewriter(graph)
    changed = _merge_constants(graph, rw)
    seen: dict[Hashable, int] = {}
    for node in graph.nodes:
        key = _key(rw, node)
        at = seen.get(key)
        if at is None:
            seen[key] = len(rw.nodes)
            rw.keep(node)
            continue
        changed = True
        first = rw.nodes[at]
        rw.nodes[at] = replace(first, origin=merge_origins((first, node)))
        for old, new in zip(node.outputs, first.outputs, strict=True):
            rw.alias(old, new)
    return rw.finish() if changed else graph


def _key(rw: Rewriter, node: Node) -> Hashable:
    # the text tells 0.0 from -0.0 and 1 from 1.0 and True, which compare equal
    attrs = tuple(sorted((k, literal_text(v)) for k, v in node.attrs.items()))
    operands = tuple("" if v is None else v.name for v in rw.inputs_of(node))
    return node.op, tuple(sorted(operands)) if node.op in _COMMUTATIVE else operands, attrs, len(node.outputs)


def _merge_constants(graph: Graph, rw: Rewriter) -> bool:
    changed = False
    seen: dict[Hashable, str] = {}
    values = {v.name: v for v in graph.values() if v.name in graph.weights}
    for name, w in graph.weights.items():
        if w.data.nbytes > SMALL or not _anonymous(w) or name not in values:
            continue
        first = seen.setdefault((str(w.data.dtype), w.data.shape, w.data.tobytes()), name)
        if first != name:
            changed = True
            rw.alias(values[name], weight_value(first, graph.weights[first].data, values[name].dtype))
    return changed


def _anonymous(w: Weight) -> bool:
    return not w.source and not w.transform
