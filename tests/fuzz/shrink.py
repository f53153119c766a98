"""Delta debugging of a failing case: the smallest one that still fails in the same stage and in the same way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from case import Case, Failure, check
from maker import live

from arcweld.compiler.dims import Dim, evaluate, substitute
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import Graph, Node, Rewriter, TensorType, Value, Weight
from arcweld.compiler.ops.registry import infer_types, opdef

Swap = Callable[[Dim], Dim]


def shrink(case: Case, failure: Failure, seconds: float) -> Case:
    """The first simpler case that fails like ``failure``, again and again until there is none or the time is over."""
    end = time.monotonic() + seconds
    found: Case | None = case
    while found is not None:
        case = found
        found = next((c for c in simpler(case, end) if failure.same(check(c, failure.stage))), None)
    return case


def simpler(case: Case, end: float) -> Iterator[Case]:
    """Cases that are simpler by one step, the largest steps first, until the time is over."""
    for candidate in _simpler(case):
        if time.monotonic() > end:
            return
        if candidate.graph.nodes:
            yield candidate


def _simpler(case: Case) -> Iterator[Case]:
    graph = case.graph
    if case.precision != "fp32":
        yield replace(case, precision="fp32")
    if case.disable:
        yield replace(case, disable="")
    if len(case.sizes) > 1:
        yield from (replace(case, sizes=(sizes,)) for sizes in case.sizes)
    for fewer in (*_outputs(graph), *_cuts(graph), *_bypasses(graph)):
        if len(fewer.nodes) < len(graph.nodes):
            yield replace(case, graph=fewer)
    if len(graph.outputs) > 1:
        for k in range(len(graph.outputs)):
            yield replace(case, graph=live(graph.replace(outputs=(*graph.outputs[:k], *graph.outputs[k + 1 :]))))
    if len(case.sizes) == 1:
        yield from _without_symbols(case)
    yield from (replace(case, graph=g) for g in _extents(graph))


def _outputs(graph: Graph) -> Iterator[Graph]:
    """One value alone as the output, early ones first."""
    for node in graph.nodes:
        yield live(graph.replace(outputs=node.outputs[:1]))


def _cuts(graph: Graph) -> Iterator[Graph]:
    """A node's result as an input, late ones first."""
    for k in reversed(range(len(graph.nodes))):
        node = graph.nodes[k]
        if not graph.output_names() & {o.name for o in node.outputs}:
            rest = (*graph.nodes[:k], *graph.nodes[k + 1 :])
            yield live(graph.replace(nodes=rest, inputs=(*graph.inputs, *node.outputs)))


def _bypasses(graph: Graph) -> Iterator[Graph]:
    """A node's operand in place of its result."""
    for node in graph.nodes:
        for v in node.operands():
            if v.type == node.output.type:
                rw = Rewriter(graph)
                rw.alias(node.output, v)
                for n in graph.nodes:
                    if n is not node:
                        rw.keep(n)
                yield live(rw.finish())


def _without_symbols(case: Case) -> Iterator[Case]:
    """A symbol replaced by its size."""
    for s in case.graph.symbols():
        size = case.sizes[0][s.name]
        graph = _swapped(case.graph, lambda d, s=s, size=size: substitute(d, {s: size}))  # type: ignore[misc]
        if graph is not None:
            yield replace(case, graph=graph, sizes=({k: v for k, v in case.sizes[0].items() if k != s.name},))


def _extents(graph: Graph) -> Iterator[Graph]:
    """An extent replaced by a smaller one wherever it stands."""
    extents = {d for v in graph.values() for d in v.shape if isinstance(d, int) and d > 1}
    for old in sorted(extents, reverse=True):
        for new in (n for n in (1, 2) if n < old):
            swapped = _swapped(graph, lambda d, old=old, new=new: new if d == old else d)  # type: ignore[misc]
            if swapped is not None and _extent(swapped) < _extent(graph):
                yield swapped


def _extent(graph: Graph) -> int:
    return sum(d for v in graph.values() for d in v.shape if isinstance(d, int))


def _swapped(graph: Graph, swap: Swap) -> Graph | None:
    """The graph with other extents, all types inferred again; None where an operator refuses them."""
    known: dict[str, Value] = {}
    for v in graph.inputs:
        known[v.name] = _with(v, v.type.with_shape([swap(d) for d in v.shape]))
    weights: dict[str, Weight] = {}
    for name, w in graph.weights.items():
        shape = [evaluate(swap(d), {}) for d in w.data.shape]
        weights[name] = replace(w, data=w.data[tuple(slice(0, n) for n in shape)])
    nodes = []
    for node in graph.nodes:
        operands = tuple(None if v is None else _operand(v, known, weights) for v in node.inputs)
        schema = opdef(node.op).attrs
        attrs = {k: _attr(schema[k].kind, a, swap) for k, a in node.attrs.items()}
        try:
            types = infer_types(node.op, [None if v is None else v.type for v in operands], attrs)
        except ModelError:
            return None
        outputs = tuple(_with(o, t) for o, t in zip(node.outputs, types))
        known |= {o.name: o for o in outputs}
        nodes.append(Node(node.op, operands, outputs, attrs, node.origin))
    inputs = tuple(known[v.name] for v in graph.inputs)
    outputs = tuple(_operand(o, known, weights) for o in graph.outputs)
    return graph.replace(inputs=inputs, nodes=tuple(nodes), outputs=outputs, weights=weights)


def _with(v: Value, t: TensorType) -> Value:
    return Value(v.name, t)


def _operand(v: Value, known: Mapping[str, Value], weights: Mapping[str, Weight]) -> Value:
    return known[v.name] if v.name in known else _with(v, v.type.with_shape(weights[v.name].data.shape))


def _attr(kind: str, a: Any, swap: Swap) -> Any:
    if kind == "dims" and isinstance(a, tuple):
        return tuple(swap(d) for d in a)
    return swap(a) if kind == "dim" else a
