"""Sibling integer products: those of one activation by several weights become one, with what scales their results.

    q, k = Mul(Cast(MatMulInteger(x, wq)), sq), Mul(Cast(MatMulInteger(x, wk)), sk)
    -> y = Mul(Cast(MatMulInteger(x, Concat(wq, wk))), Concat(sq, sk)); q, k = Slices of y

Zero points, scales and biases become vectors, one element for each column. Requires: constants folded. Ensures: no two
MatMulIntegers have the same left operand, constant matrices of one type on the right, and the same operators behind
them up to values that no pointwise operator but DequantizeLinear reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from arcweld.compiler.ir import Graph, Node, Value, merge_origins
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.options import Options
from arcweld.compiler.text import literal_text
from arcweld.passes.common import Tracker
from arcweld.passes.dce import remove_dead

SCALING = frozenset({"Add", "Sub", "Mul", "Cast", "QuantizeLinear"})
MOST_NESTED = 8  # pointwise nodes, one behind another, that make a scale or a zero point


@dataclass(frozen=True, slots=True)
class _Branch:
    """A product by a weight, and the nodes behind it that scale and shift its columns."""

    product: Node
    tail: list[Node] = field(default_factory=list)

    @property
    def result(self) -> Value:
        return (self.tail or [self.product])[-1].output

    @property
    def width(self) -> int:
        """The columns of its result."""
        width = self.product.output.shape[-1]
        assert isinstance(width, int)
        return width


def merge_integer_matmuls(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` with sibling integer products merged."""
    groups = _groups(graph)
    if not groups:
        return graph
    rw, merger = Tracker(graph), _Merger(graph)
    first = {min(g, key=merger.position).result.name: g for g in groups}
    replaced: set[str] = set()
    for node in graph.nodes:
        group = first.get(node.output.name)
        if group is not None and merger.emit(rw, group):
            replaced.update(b.result.name for b in group)
        if node.output.name not in replaced:
            rw.keep(node)
    return remove_dead(rw.finish()) if replaced else graph


def _groups(graph: Graph) -> list[list[_Branch]]:
    consumers, outputs = graph.consumers(), graph.output_names()
    found: dict[tuple[object, ...], list[_Branch]] = {}
    for node in graph.nodes:
        if node.op != "MatMulInteger":
            continue
        a, b = node.operands()[:2]
        if b.name not in graph.weights or b.type.rank != 2 or a.name in graph.weights or a.type.rank < 2:
            continue
        branch = _branch(graph, node, consumers, outputs)
        if branch is not None:
            signature = [(n.op, _attributes(n), *_places(n, v)) for n, v in _steps(branch)]
            found.setdefault((a.name, b.dtype, len(node.operands()), *signature), []).append(branch)
    return [g for g in found.values() if len(g) > 1]


def _branch(graph: Graph, product: Node, consumers: dict[str, list[Node]], outputs: set[str]) -> _Branch | None:
    """The branch of a product; None if a pointwise operator behind it would lose its place in the product's kernel."""
    branch = _Branch(product)
    while True:
        v = branch.result
        readers = consumers.get(v.name, [])
        if v.name in outputs or not readers:
            return None
        if len(readers) != 1 or not _scales(readers[0], v):
            others = (n for n in readers if n.op != "DequantizeLinear")
            return None if any(opdef(n.op).kind is Kind.POINTWISE for n in others) else branch
        branch.tail.append(readers[0])


def _scales(node: Node, v: Value) -> bool:
    """True if ``node`` changes each element of ``v`` by numbers that only depend on its column."""
    others = [x for x in node.inputs if x is not None and x.name != v.name]
    alike = node.op in SCALING and node.output.shape == v.shape and len(others) == len(node.inputs) - 1
    quantised = node.op != "QuantizeLinear" or (node.operands()[0] is v and not node.attrs["block"])
    return alike and quantised and all(all(d == 1 for d in x.shape[:-1]) for x in others)


def _steps(branch: _Branch) -> list[tuple[Node, Value]]:
    """The nodes of the tail, each with the operand that comes from the product."""
    return list(zip(branch.tail, [n.output for n in (branch.product, *branch.tail)]))


def _attributes(node: Node) -> tuple[tuple[str, str], ...]:
    counting = ((k, a) for k, a in node.attrs.items() if (node.op, k) != ("QuantizeLinear", "axis"))
    return tuple(sorted((k, literal_text(a)) for k, a in counting))


def _places(node: Node, v: Value) -> tuple[object, ...]:
    """Which operand ``v`` is, and the types of all."""
    return ([x.name for x in node.operands()].index(v.name), *(x.dtype for x in node.operands()))


class _Merger:
    """Emits the products of groups."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producers = graph.producers()
        self._position = {n.output.name: i for i, n in enumerate(graph.nodes)}

    def position(self, branch: _Branch) -> int:
        """The place of the branch's result in the graph."""
        return self._position[branch.result.name]

    def emit(self, rw: Tracker, group: Sequence[_Branch]) -> bool:
        """Emits the product of a group and the slices; False, and nothing, if some operands can't be joined."""
        count = len(rw.nodes)
        y = self._product(rw, group)
        if y is None:
            del rw.nodes[count:]
            return False
        start = 0
        for b in group:
            rw.release((b.tail or [b.product])[-1])
            part = rw.make(
                "Slice", [y], merge_origins((b.product, *b.tail)), b.result.name,
                starts=(*(0,) * (y.type.rank - 1), start), sizes=(*y.shape[:-1], b.width), steps=(1,) * y.type.rank,
            )  # fmt: skip
            rw.alias(b.result, part)
            start += b.width
        return True

    def _product(self, rw: Tracker, group: Sequence[_Branch]) -> Value | None:
        a, *rest = (rw.get(v) for v in group[0].product.operands())
        operands = [self._joined(rw, group, [b.product.operands()[k] for b in group]) for k in range(1, len(rest) + 1)]
        if any(v is None for v in operands):
            return None
        nodes = [n for b in group for n in (b.product, *b.tail)]
        origin, hint = merge_origins(nodes), f"{group[0].product.output.name}.merged"
        y = rw.make("MatMulInteger", [a, *operands], origin, hint)
        for k, (node, v) in enumerate(_steps(group[0])):
            places = [i for i, x in enumerate(node.operands()) if x.name != v.name]
            others = {
                i: self._joined(rw, group, [b.tail[k].operands()[i] for b in group], node.op == "QuantizeLinear")
                for i in places
            }
            if any(x is None for x in others.values()):
                return None
            attrs = {**node.attrs, "axis": y.type.rank - 1} if node.op == "QuantizeLinear" else node.attrs
            y = rw.make(node.op, [others.get(i, y) for i in range(len(node.operands()))], origin, hint, **attrs)
        return y

    def _joined(
        self, rw: Tracker, group: Sequence[_Branch], values: Sequence[Value], spread: bool = False, nested: int = 0
    ) -> Value | None:  # fmt: skip
        """One value for what the branches have each: itself, or one element for each column; None if there is no such.

        ``spread``: even a shared value.
        """
        value = values[0]
        shared = all(v.name == value.name for v in values)
        if shared and not spread and (value.type.rank == 0 or value.shape[-1] == 1):
            return rw.get(value)
        if all(v.name in self.graph.weights for v in values):
            lead = value.shape[:-1]
            fits = all(v.shape[:-1] == lead and v.shape[-1:] in ((), (1,), (b.width,)) for v, b in zip(values, group))
            wide = [
                v if v.shape[-1:] == (b.width,) else rw.make("Expand", [v], (), shape=(*v.shape[:-1], b.width))
                for v, b in zip(values, group) if fits
            ]  # fmt: skip
            return rw.make("Concat", wide, (), f"{value.name}.merged", axis=len(lead)) if fits else None
        made = [self.producers.get(v.name) for v in values]
        nodes = [n for n in made if n is not None]
        alike = {(n.op, _attributes(n), len(n.operands()), len(n.inputs)) for n in nodes}
        if len(nodes) < len(values) or len(alike) > 1 or nodes[0].op not in ("Mul", "Cast") or nested == MOST_NESTED:
            return None
        parts = [
            self._joined(rw, group, [n.operands()[i] for n in nodes], False, nested + 1)
            for i in range(len(nodes[0].operands()))
        ]
        if any(p is None for p in parts):
            return None
        return rw.make(nodes[0].op, parts, merge_origins(nodes), f"{value.name}.merged", **nodes[0].attrs)
