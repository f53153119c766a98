"""Sibling products: MatMuls of one activation by several weights become one MatMul, of which the results are Slices.

    q, k, v = MatMul(x, wq), MatMul(x, wk), MatMul(x, wv)
    -> y = MatMul(x, Concat(wq, wk, wv)); q, k, v = Slices of y

Requires: constants folded. Ensures: no two MatMuls have the same left operand and constant [K, N] right operands,
packed alike if they stay packed. Those
whose result (or its sum with a bias) is a graph output stay, and those where it is the operand of a pointwise operator:
they can have that operator as their epilogue, which a slice could not. Of few rows, a chain can (``passes/chain.py``):
where some range of sizes has few, they are merged for all sizes, since these share the weights.

Likewise GroupedMatMuls of one activation with the same ends, such as the first products of adapters of several layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from arcweld.compiler.dims import Dim
from arcweld.compiler.few_rows import is_few_rows
from arcweld.compiler.ir import Graph, Node, Value, merge_origins
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.options import Options
from arcweld.passes.common import Tracker
from arcweld.passes.stored import form_of, joined, stored_matrix


@dataclass(frozen=True, slots=True)
class _Branch:
    """A product by a weight, and the Add of a constant vector behind it, if there is one."""

    product: Node
    weight: Value
    add: Node | None
    bias: Value | None

    @property
    def result(self) -> Value:
        return (self.add or self.product).output


def merge_matmuls(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` with sibling products merged."""
    groups = _groups(graph, options)
    if not groups:
        return graph
    first = {g[0].product.output.name: g for g in groups}
    replaced = {b.result.name for g in groups for b in g}
    rw, producers = Tracker(graph), graph.producers()
    for node in graph.nodes:
        group = first.get(node.output.name)
        if group is not None:
            _emit(rw, group, producers)
        if node.output.name not in replaced:
            rw.keep(node)
    return rw.finish()


def _groups(graph: Graph, options: Options) -> list[list[_Branch]]:
    narrowed = [r.dims(graph) for r in options.ranges or ()]
    consumers, producers = graph.consumers(), graph.producers()
    outputs = graph.output_names()
    found: dict[tuple[object, ...], list[_Branch]] = {}
    for node in graph.nodes:
        if node.op == "GroupedMatMul":
            x, w, ends = node.operands()
            plain = w.name in graph.weights and x.name not in graph.weights and node.output.name not in outputs
            if plain and not _has_epilogue(branch := _Branch(node, w, None, None), consumers):
                found.setdefault((x.name, ends.name, w.dtype, w.shape[0]), []).append(branch)
        if node.op != "MatMul":
            continue
        x, w = node.operands()
        form = (w.dtype,) if w.name in graph.weights else _stored_form(producers, w)
        if form is None or w.type.rank != 2 or x.name in graph.weights or x.type.rank < 2:
            continue
        branch = _branch(graph, node, w, consumers, outputs)
        if branch.result.name not in outputs and (_few_rows(x, narrowed) or not _has_epilogue(branch, consumers)):
            found.setdefault((x.name, *form), []).append(branch)
    return [g for g in found.values() if len(g) > 1]


def _stored_form(producers: Mapping[str, Node], w: Value) -> tuple[object, ...] | None:
    stored = stored_matrix(lambda v: producers.get(v.name), w)
    return None if stored is None else form_of(stored)


def _few_rows(x: Value, ranges: Sequence[Callable[[Dim], Dim]]) -> bool:
    """True if a product has few rows, of which ``x`` is the left operand, always or at the sizes of one range."""
    shapes = [tuple(map(dim, x.shape)) for dim in ranges]
    return is_few_rows(x) or any(is_few_rows(Value(x.name, x.type.with_shape(s))) for s in shapes)


def _branch(graph: Graph, node: Node, weight: Value, consumers: dict[str, list[Node]], outputs: set[str]) -> _Branch:
    readers = consumers.get(node.output.name, [])
    add = readers[0] if len(readers) == 1 and readers[0].op == "Add" and node.output.name not in outputs else None
    if add is not None and add.output.shape == node.output.shape:
        others = [v for v in add.operands() if v.name in graph.weights]
        width = weight.shape[1]
        if len(others) == 1 and others[0].shape in ((width,), (1, width), (1, 1, width)):
            return _Branch(node, weight, add, others[0])
    return _Branch(node, weight, None, None)


def _has_epilogue(branch: _Branch, consumers: dict[str, list[Node]]) -> bool:
    return any(opdef(n.op).kind is Kind.POINTWISE for n in consumers.get(branch.result.name, []))


def _emit(rw: Tracker, group: list[_Branch], producers: Mapping[str, Node]) -> None:
    """Emits the product of a whole group, in the place of its first member, and the slices."""
    nodes = [n for b in group for n in (b.product, b.add) if n is not None]
    origin = merge_origins(nodes)
    op = group[0].product.op
    x, _, *ends = map(rw.get, group[0].product.operands())
    hint = f"{group[0].weight.name}.merged"
    stored = [stored_matrix(lambda v: producers.get(v.name), b.weight) for b in group]
    if all(stored):
        weight = joined(rw, [s for s in stored if s is not None], hint)
    else:
        weight = rw.make("Concat", [b.weight for b in group], origin, hint, axis=group[0].weight.type.rank - 1)
    y = rw.make(op, [x, weight, *ends], origin, f"{group[0].product.output.name}.merged")
    if any(b.bias is not None for b in group):
        y = rw.make("Add", [y, rw.make("Concat", [_bias(rw, b) for b in group], origin, axis=0)], origin)
    start = 0
    for b in group:
        width = b.weight.shape[-1]
        assert isinstance(width, int)
        rw.release(b.add or b.product)
        starts = (*(0,) * (y.type.rank - 1), start)
        part = rw.make(
            "Slice", [y], merge_origins([n for n in (b.product, b.add) if n is not None]), b.result.name,
            starts=starts, sizes=(*y.shape[:-1], width), steps=(1,) * y.type.rank,
        )  # fmt: skip
        rw.alias(b.result, part)
        start += width


def _bias(rw: Tracker, b: _Branch) -> Value:
    width = b.weight.shape[1]
    assert isinstance(width, int)
    if b.bias is None:
        return rw.constant(np.zeros(width, b.weight.dtype.numpy), b.weight.dtype, "zeros")
    return rw.make("Reshape", [b.bias], (), shape=(width,))
