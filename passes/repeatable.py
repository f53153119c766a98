"""What costs so little that every kernel may compute it for itself, instead of one that stores it for the others.

    views                          a reshape, a slice: only another index
    formulas of single constants   index arithmetic, sizes, literals
    formulas of single elements    a causal mask by the position of a decode step, of at most MAX_LIGHT operations
    elements made of single bytes  keys and values from caches of 8 bits: the scaled copy would be larger than the cache
    activations of 8 bits          by one constant scale: as numbers of 32 bits they would be larger in memory
    weights that stay packed       what unpacks them: in memory they would be larger
    lengths of paged sequences     three entries of a table, and formulas of them as of single elements
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.ops.integer import BYTES
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.region import index_cost, is_view
from arcweld.passes.places import code_of

MAX_LIGHT = 8  # scalar operations that every kernel may repeat
MAX_WIDENING = 4  # operators that make an element from a byte: a cast, a zero point, a scale, another cast


class Repeatable:
    """The nodes of one graph that every kernel may compute for itself. Nodes are known by their first output."""

    def __init__(self, graph: Graph, producers: dict[str, Node]) -> None:
        self._graph = graph
        self._producers = producers
        self._leaves: set[str] = set()  # of single constants
        self._light: dict[str, int] = {}  # of single elements, lengths and weights -> scalar operations
        self._stored: set[str] = set()  # of weights that stay packed
        self._widened: set[str] = set()  # of 8-bit activations, by single constants

    def note(self, node: Node) -> None:
        """Looks at a node that is no hero; all that it reads was looked at before."""
        if all(self._is_leaf(v) for v in node.operands()):
            self._leaves.add(node.output.name)
        elif self._unpacks(node):
            self._stored.add(node.output.name)
        elif self._widens_activations(node):
            self._widened.add(node.output.name)
        elif node.op == "PagedLengths":
            self._light[node.output.name] = code_of(node)
        elif index_cost(node) == 0 and len(node.outputs) == 1:
            costs = [self._cost(v) for v in node.operands()]
            known = [c for c in costs if c is not None]
            if len(known) == len(costs) and sum(known) + code_of(node) <= MAX_LIGHT:
                self._light[node.output.name] = sum(known) + code_of(node)

    def __contains__(self, node: Node) -> bool:
        name = node.output.name
        known = name in self._leaves or name in self._light or name in self._stored or name in self._widened
        return is_view(node) or known

    def _unpacks(self, node: Node) -> bool:
        """True for a DequantizeLinear that keeps its weights as they are stored, and a cast of what that gives."""
        if node.op == "DequantizeLinear":
            return bool(node.attrs["keep"])
        if node.op != "Cast":
            return False
        source = node.operands()[0]
        made_by = self._producers.get(source.name)
        while made_by is not None and is_view(made_by):
            source = made_by.operands()[0]
            made_by = self._producers.get(source.name)
        return source.name in self._stored

    def _widens_activations(self, node: Node) -> bool:
        """True for a DequantizeLinear of 8-bit values, which are smaller in memory, by a constant scale."""
        if node.op != "DequantizeLinear" or node.operands()[0].dtype not in BYTES:
            return False
        return node.operands()[0].name in self._producers and all(self._is_leaf(v) for v in node.operands()[1:])

    def only_once(self, node: Node) -> bool:
        """True if a kernel that reads its operands more than once should find ``node`` in memory."""
        name = node.output.name
        return (name in self._light or name in self._widened) and not is_view(node)

    def widens_bytes(self, node: Node) -> bool:
        """True if ``node`` is the last of what makes each element from a number of 8 bits or fewer.

        That is a cast, and products and differences with scales and zero points, which have fewer elements.
        """
        for _ in range(MAX_WIDENING):
            first = node.operands()[0]
            if node.op in ("DequantizeLinear", "Cast") and (first.dtype.is_int or first.dtype.is_storage):
                return first.dtype.bits <= 8
            if node.op not in ("Mul", "Sub", "Cast"):
                return False
            whole = [v for v in node.operands() if v.type.numel == node.output.type.numel]
            made_by = self._producers.get(whole[0].name) if len(whole) == 1 else None
            if made_by is None:
                return False
            node = made_by
        return False

    def widened_by_readers(
        self, node: Node, consumers: Mapping[str, Sequence[Node]], heroes: frozenset[Kind]
    ) -> bool:  # fmt: skip
        """True if ``node`` widens an 8-bit value, and its readers, pointwise or of ``heroes``, can do that."""
        if node.op not in ("Cast", "DequantizeLinear") or node.operands()[0].dtype not in BYTES:
            return False
        readers: list[Node] = []
        stack = [node]
        while stack:
            for r in consumers.get(stack.pop().output.name, ()):
                (stack if is_view(r) else readers).append(r)
        can = all(opdef(r.op).kind in heroes | {Kind.POINTWISE} for r in readers) and node.output.dtype.size > 1
        return can and (len(readers) == 1 or node in self)

    def _is_leaf(self, v: Value) -> bool:
        """True if ``v`` is a constant of one element, or computed from such ones only."""
        made_by = self._producers.get(v.name)
        if made_by is None:
            return v.name in self._graph.weights and v.type.numel == 1
        return made_by.output.name in self._leaves

    def _cost(self, v: Value) -> int | None:
        """The operations that computing ``v`` takes; None if it is no formula of single elements."""
        if v.name in self._producers:
            name = self._producers[v.name].output.name
            if v.name != name and v.type.numel == 1:
                return 0  # what a kernel stores beside its result, such as a scale
            return 0 if name in self._leaves else self._light.get(name)
        return 0 if v.name in self._graph.weights or v.type.numel == 1 else None
