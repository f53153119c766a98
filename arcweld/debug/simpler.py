"""Delta debugging: graphs that are simpler than a failing one by one step, and the search for the simplest that fails.

The method is greedy (A. Zeller, R. Hildebrandt, "Simplifying and isolating failure-inducing input", 2002): the first
simpler candidate that still fails takes the place of the failing one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from arcweld.compiler.dims import Dim, evaluate, substitute
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import Graph, Node, Rewriter, TensorType, Value, Weight
from arcweld.compiler.ops.registry import infer_types, opdef

Swap = Callable[[Dim], Dim]
T = TypeVar("T")


def simplest(found: T, simpler: Callable[[T], Iterator[T]], attempt: Callable[[T], T | None], end: float) -> T:
    """The last of a chain of failing candidates, each of them the first of the ``simpler`` ones that fails too.

    ``attempt`` returns a candidate that fails, as it is to be kept, or None. The search ends where none fails, or at
    ``end`` of ``time.monotonic``.
    """
    going = True
    while going:
        going = False
        for candidate in simpler(found):
            if time.monotonic() > end:
                return found
            kept = attempt(candidate)
            if kept is not None:
                found, going = kept, True
                break
    return found


def live(graph: Graph, kept: Collection[str] = ()) -> Graph:
    """The graph without nodes, weights and inputs that no output needs, but for the inputs that are ``kept``."""
    needed = graph.output_names()
    nodes: list[Node] = []
    for n in reversed(graph.nodes):
        if any(o.name in needed for o in n.outputs):
            nodes.append(n)
            needed |= {v.name for v in n.operands()}
    inputs = tuple(v for v in graph.inputs if v.name in needed or v.name in kept)
    weights = {name: w for name, w in graph.weights.items() if name in needed}
    return graph.replace(nodes=tuple(reversed(nodes)), inputs=inputs, weights=weights)


def windows(graph: Graph) -> Iterator[Graph]:
    """A half of the nodes alone, then a quarter, down to one; what they read from others are inputs."""
    size = len(graph.nodes) // 2
    while size:
        for start in range(0, len(graph.nodes), max(size // 2, 1)):
            inside = graph.nodes[start : start + size]
            made = {o.name for n in inside for o in n.outputs}
            outside = {v.name for n in (*graph.nodes[:start], *graph.nodes[start + size :]) for v in n.operands()}
            read = {v.name: v for n in inside for v in n.operands() if v.name not in made | graph.weights.keys()}
            own = {v.name for n in inside for v in n.operands()}
            wanted = graph.output_names() | outside
            results = tuple(o for n in inside for o in n.outputs if o.name in wanted or o.name not in own)
            yield live(graph.replace(nodes=inside, inputs=tuple(read.values()), outputs=results, output_labels=()))
        size //= 2


def outputs(graph: Graph, kept: Collection[str] = ()) -> Iterator[Graph]:
    """A node's first result alone as the output, early ones first."""
    for node in graph.nodes:
        yield live(graph.replace(outputs=node.outputs[:1], output_labels=()), kept)


def cuts(graph: Graph, kept: Collection[str] = ()) -> Iterator[Graph]:
    """A node's result as an input, late ones first."""
    for k in reversed(range(len(graph.nodes))):
        node = graph.nodes[k]
        if not graph.output_names() & {o.name for o in node.outputs}:
            rest = (*graph.nodes[:k], *graph.nodes[k + 1 :])
            yield live(graph.replace(nodes=rest, inputs=(*graph.inputs, *node.outputs)), kept)


def bypasses(graph: Graph, kept: Collection[str] = ()) -> Iterator[Graph]:
    """A node's operand in place of its result."""
    for node in graph.nodes:
        for v in node.operands():
            if v.type == node.output.type:
                rw = Rewriter(graph)
                rw.alias(node.output, v)
                for n in graph.nodes:
                    if n is not node:
                        rw.keep(n)
                yield live(rw.finish(), kept)


def fewer_outputs(graph: Graph, kept: Collection[str] = ()) -> Iterator[Graph]:
    """All outputs but one."""
    for k in range(len(graph.outputs) if len(graph.outputs) > 1 else 0):
        outputs, labels = ((*t[:k], *t[k + 1 :]) for t in (graph.outputs, graph.output_labels))
        yield live(graph.replace(outputs=outputs, output_labels=labels), kept)


def without_symbols(graph: Graph, sizes: Mapping[str, int]) -> Iterator[tuple[Graph, dict[str, int]]]:
    """A symbol replaced by its size, and the sizes of the others."""
    for s in graph.symbols():
        fixed = swapped(graph, lambda d, s=s: substitute(d, {s: sizes[s.name]}))  # type: ignore[misc]
        if fixed is not None:
            yield fixed, {k: v for k, v in sizes.items() if k != s.name}


def extents(graph: Graph) -> Iterator[Graph]:
    """An extent replaced by a smaller one wherever it stands."""
    found = {d for v in graph.values() for d in v.shape if isinstance(d, int) and d > 1}
    for old in sorted(found, reverse=True):
        for new in (n for n in (1, 2) if n < old):
            smaller = swapped(graph, lambda d, old=old, new=new: new if d == old else d)  # type: ignore[misc]
            if smaller is not None and _extent(smaller) < _extent(graph):
                yield smaller


def _extent(graph: Graph) -> int:
    return sum(d for v in graph.values() for d in v.shape if isinstance(d, int))


def swapped(graph: Graph, swap: Swap) -> Graph | None:
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
