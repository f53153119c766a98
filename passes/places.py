"""The places at which a kernel reads a value, and so how often it computes that value for one element of its result.

    Concat(x, x) reads x at two places, and Concat(y, y) of that y at four; x * Tanh(x) reads x at one
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from arcweld.compiler.ir import Node, Value
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.region import is_view

At = frozenset[int]  # numbers of places


@dataclass(frozen=True, slots=True)
class Read:
    """A value that a node of a region reads, whose producer the region may take.

    places     where it is read
    pointwise  allow pointwise nodes, not only views and casts
    storable   the region computes each element exactly once, so it may store the value for other regions
    """

    value: Value
    reader: Node
    places: At
    pointwise: bool
    storable: bool = False


class Places:
    """Numbers the places of one region. Equal chains of movements lead to one place, others to places of their own."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._reads: list[int] = []

    def start(self, where: Hashable) -> At:
        """The place called ``where``, at which one element is read for one element of the result."""
        return frozenset([self._place(where, 1)])

    def of_operands(self, node: Node, at: At) -> Iterator[At]:
        """For each operand of ``node`` the places at which it is read, if the node's result is needed ``at`` these."""
        for k, _ in enumerate(node.operands()):
            if opdef(node.op).kind is Kind.POINTWISE:
                yield at
            else:
                step = (_movement(node), k)
                yield frozenset(self._place((p, step), self._reads[p] * _fan_out(node)) for p in at)

    def reads(self, at: At) -> int:
        """How many elements are read at these places for one element of the result."""
        return sum(self._reads[p] for p in at)

    def _place(self, where: Hashable, reads: int) -> int:
        number = self._numbers.setdefault(where, len(self._reads))
        if number == len(self._reads):
            self._reads.append(reads)
        return number


def _movement(node: Node) -> Hashable:
    """What decides which element of its operand a movement reads: views of equal attributes and shapes agree."""
    if not is_view(node):
        return node.output.name
    return node.op, tuple(sorted(node.attrs.items())), node.operands()[0].shape


def _fan_out(node: Node) -> int:
    """The number of elements of an operand that one element of the result is computed from."""
    count = opdef(node.op).fan_out
    return 1 if count is None else count(node)
