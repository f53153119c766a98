"""Tied weights: arrays with the same elements are stored once; other orders of their axes become views.

    Gather(w, i), MatMul(x, wt) with wt made as Transpose(w)  ->  Gather(w, i), MatMul(x, Transpose(w))

Embeddings that are the last layer's weights too, and layers that are applied several times. Weights are compared by the
records of how they were made. Requires: nothing folds constants later. Ensures: no two large weights have records that
differ only in transpositions at their end, beside casts.
"""

from __future__ import annotations

from arcweld.compiler.ir import Graph, Value, Weight, weight_value
from arcweld.compiler.options import Options
from arcweld.compiler.records import Transform
from arcweld.compiler.text import parse_fields
from arcweld.compiler.weights import record
from arcweld.passes.common import Tracker
from arcweld.passes.dce import remove_dead

SMALL = 4096  # elements: less is not worth a view

Perm = tuple[int, ...]


def tied_weights(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` with each large weight stored once."""
    graph = remove_dead(graph)  # what nothing needs ties nothing
    views = _views(graph)
    if not views:
        return graph
    rw = Tracker(graph)
    values = {v.name: v for v in graph.values() if v.name in views}
    for name, (first, perm) in views.items():
        old = values[name]
        kept = weight_value(first, graph.weights[first].data, old.dtype)
        rw.alias(old, _view(rw, kept, perm))
    for node in graph.nodes:
        rw.keep(node)
    return rw.finish()


def _view(rw: Tracker, kept: Value, perm: Perm) -> Value:
    if perm == tuple(range(len(perm))):
        return kept
    return rw.emit("Transpose", [kept], kept.type.with_shape([kept.shape[p] for p in perm]), {"perm": perm})


def _views(graph: Graph) -> dict[str, tuple[str, Perm]]:
    """Weights that others stand for: name -> the first one, and the order of its axes."""
    read = [v.name for n in graph.nodes for v in n.operands() if v.name in graph.weights]
    kept: dict[Transform, tuple[str, Perm]] = {}
    found: dict[str, tuple[str, Perm]] = {}
    for name in dict.fromkeys(read):
        weight = graph.weights[name]
        if weight.data.size <= SMALL:
            continue
        made, perm = _untransposed(name, weight)
        first, own = kept.setdefault(made, (name, perm))
        if first != name:
            found[name] = first, tuple(own.index(p) for p in perm)
    outputs = graph.output_names()
    return {name: v for name, v in found.items() if name not in outputs}


def _untransposed(name: str, weight: Weight) -> tuple[Transform, Perm]:
    """The record without the transpositions at its end, and the order in which the weight has the axes of that.

    A cast between them is the same before and after.
    """
    casts: Transform = ()
    steps, perm = record(name, weight), tuple(range(weight.data.ndim))
    while steps[-1][0] in ("Transpose", "Cast"):
        *rest, last = steps
        steps = tuple(rest)
        if last[0] == "Cast":
            casts = (last, *casts)
            continue
        before = parse_fields(str(last[1][1]))["perm"]
        perm = tuple(before[p] for p in perm)
    return (*steps, *casts), perm
