"""Imports If, Loop and Scan whose course depends on data, as host nodes with bodies (``host_nodes.py``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import GraphProto

from arcweld.compiler import dims, host_nodes
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.host_nodes import Body
from arcweld.compiler.ir import Node, TensorType, Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.host import computed
from arcweld.compiler.onnx.operands import (
    Form,
    Growing,
    Operand,
    Rows,
    born,
    flattened,
    formed,
    on_device,
    text,
)
from arcweld.compiler.onnx.scope import BodyRefused, Walker
from arcweld.compiler.text import sanitize

MAX_WIDENINGS = 8

# imports a body's graph with operands by the names of its formal inputs; the prefix is that of its nodes' names
Import = Callable[[GraphProto, str, Mapping[str, Any]], Sequence[Operand]]


def choose(visitor: Walker, c: NodeContext, importing: Import) -> list[Any]:
    """The results of an If: both branches are in the graph, and one of them runs.

    Sequences that they give have equally many items, each of which is a result of its own.
    """
    condition = c.value(0)
    visible = _visible(c)
    found, forms, refused = list[Body](), list[Form](), None
    for branch in ("then", "else"):
        graph = c.graph_attr(f"{branch}_branch")
        if len(graph.output) != len(c.outputs):
            c.broken(f"a branch has {len(graph.output)} outputs, the node {len(c.outputs)}")
        try:
            with visitor.builder.body() as nodes:
                tensors, form = flattened(settled(c, importing(graph, f"{c.name}/{branch}/", {})))
                results = [_value(c, r) for r in tensors]
        except BodyRefused as error:  # what the other branch lacks is to be listed too
            refused = error
            continue
        found.append(Body((), tuple(nodes), tuple(results)))
        forms.append(form)
    if refused is not None:
        raise refused
    then, otherwise = found
    if forms[0] != forms[1]:
        c.unsupported("one branch gives a longer sequence, or an optional value that the other does not give")
    joined = [_Join(c, visible).types(a, b) for a, b in zip(then.results, otherwise.results)]
    outputs = _fresh(c, [t for t, _ in joined])
    symbols = tuple(s for _, own in joined for s in own)
    attrs = {"then": then, "otherwise": otherwise, "symbols": symbols}
    visitor.builder.rw.append(Node(host_nodes.CHOOSE, (condition,), tuple(outputs), attrs, c.origin))
    return formed(map(on_device, outputs), forms[0])


def settled(c: NodeContext, results: Sequence[Any]) -> Sequence[Any]:
    """The results of a body. Raises UnsupportedError for a sequence whose length is not known."""
    if any(isinstance(r, Growing | Rows) for r in results):
        c.unsupported("a branch or a body gives a sequence whose length depends on the data")
    return results


@dataclass
class _Join:
    """Types that values of several origins have: a size that differs, or is not known outside, is a new symbol."""

    c: NodeContext
    visible: frozenset[str]

    def types(self, a: Value, b: Value) -> tuple[TensorType, list[Dim]]:
        """The type of a value that is ``a`` or ``b``, and its new symbols."""
        if a.dtype is not b.dtype:
            self.c.broken(f"the branches give {a.dtype.value} and {b.dtype.value}")
        if a.type.rank != b.type.rank:
            self.c.unsupported(f"the branches give the shapes {text(a.shape)} and {text(b.shape)}")
        shape, new = [], list[Dim]()
        for axis, (x, y) in enumerate(zip(a.shape, b.shape)):
            if x == y and self.is_known(x):
                shape.append(x)
                continue
            ends = [dims.bounds(d) for d in (x, y)]
            lows, highs = [e[0] or 0 for e in ends], [e[1] for e in ends]
            high = None if None in highs else max(h for h in highs if h is not None)
            shape.append(born(self.c.builder, f"{self.c.hint}_{axis}", max(0, min(lows)), high))
            new.append(shape[-1])
        return TensorType(a.dtype, tuple(shape)), new

    def outside(self, v: Value) -> tuple[TensorType, list[Dim]]:
        """The type of a body's value outside of the body, and its new symbols."""
        return self.types(v, v)

    def is_known(self, d: Dim) -> bool:
        """Whether a size is known outside of the bodies."""
        return {s.name for s in dims.free_symbols(d)} <= self.visible


def _visible(c: NodeContext) -> frozenset[str]:
    return frozenset(c.builder.born | {s.name for s in c.builder.rw.graph.symbols()})


def _fresh(c: NodeContext, types: Sequence[TensorType]) -> list[Value]:
    one = len(types) == len(c.outputs)  # else some are sequences
    names = [(c.outputs[k] if one else "") or f"{c.hint}.{k}" for k in range(len(types))]
    return [Value(c.builder.rw.fresh(sanitize(n)), t) for n, t in zip(names, types)]


def _value(c: NodeContext, operand: Operand) -> Value:
    """A result of a body as a value that one of its nodes makes."""
    return computed(c.builder, c.builder.device(operand, c.origin, f"{c.hint}.result"), c.origin)


# ------------------------------------------------------------------------------------------------------------ loops


@dataclass(frozen=True)
class Loop:
    """A loop to import.

    trips, most   how often at most: a value of one element, or a number; neither: without such a limit
    condition     whether it runs at all: a value of one element; None: it does
    carried       what it carries at first
    length        how often, if nothing ends it before
    """

    trips: Value | None
    most: int | None
    condition: Value | None
    carried: Sequence[Value]
    length: Dim | None = None


def repeat(
    c: NodeContext, loop: Loop, turn: Callable[[Value, Value, Sequence[Value]], Sequence[Operand]]
) -> list[Value]:
    """The last carried values and the scanned ones, stacked along a first axis.

    ``turn`` imports the body, given the values of the iteration's number, the condition and what is carried; it gives
    the condition, what is carried, and the items of scanned outputs. A size that changes from turn to turn is a symbol
    inside of the body.
    """
    rw, visible = c.builder.rw, _visible(c)
    counter, going = (Value(rw.fresh(f"{c.hint}.{n}"), TensorType(t, ())) for n, t in _ROLES)
    types, own = [v.type for v in loop.carried], set[str]()
    for _ in range(MAX_WIDENINGS):
        formals = [Value(rw.fresh(f"{c.hint}.carried"), t) for t in types]
        with c.builder.body() as nodes:
            first, *rest = turn(counter, going, formals)
            endless = first.known is not None and not first.is_symbolic and bool(first.known.all())
            results = [going if endless else _value(c, first), *(_value(c, r) for r in rest)]
        wider = [_widened(c, t, r.type, own) for t, r in zip(types, results[1:])]
        if wider == types:
            break
        types = wider
    else:
        c.unsupported("the shapes that the loop carries do not settle")
    body = Body((counter, going, *formals), tuple(nodes), tuple(results))
    join = _Join(c, visible)
    outer = [join.outside(v) for v in formals]
    items = [join.outside(r) for r in results[1 + len(formals) :]]
    every = {s.name: s for t in types for d in t.shape for s in dims.free_symbols(d)}
    symbols: list[Dim] = [dims.var(every[name]) for name in sorted(own)]
    symbols += [s for _, new in (*outer, *items) for s in new]
    if items:
        turns = loop.length if endless and loop.condition is None else None
        if turns is None:
            turns = born(c.builder, f"{c.hint}_turns", 0, loop.most)
            symbols.append(turns)
        items = [(TensorType(t.dtype, (turns, *t.shape)), new) for t, new in items]
    outputs = _fresh(c, [t for t, _ in (*outer, *items)])
    attrs = {"body": body, "most": loop.most, "limit": c.builder.loop_limit, "symbols": tuple(dict.fromkeys(symbols))}
    given = (loop.trips, loop.condition, *loop.carried)
    inputs = [None if v is None else computed(c.builder, v, c.origin) for v in given]
    rw.append(Node(host_nodes.REPEAT, tuple(inputs), tuple(outputs), attrs, c.origin))
    return outputs


_ROLES = (("turn", DType.I64), ("going", DType.BOOL))


def _widened(c: NodeContext, formal: TensorType, result: TensorType, own: set[str]) -> TensorType:
    """The formal's type with a new symbol, whose name ``own`` then holds, for each size that a turn changes."""
    if formal.dtype is not result.dtype:
        c.broken(f"the body gives {result.dtype.value} for {formal.dtype.value}")
    if formal.rank != result.rank:
        c.unsupported(f"a turn makes the shape {text(result.shape)} of {text(formal.shape)}")
    shape = []
    for axis, (x, y) in enumerate(zip(formal.shape, result.shape)):
        free = {s.name for s in dims.free_symbols(x)}
        if x != y and not free & own:
            x = born(c.builder, f"{c.hint}_carried_{axis}", 0, None)
            own |= {s.name for s in dims.free_symbols(x)}
        shape.append(x)
    return TensorType(formal.dtype, tuple(shape))
