"""The graph that the layout pass rebuilds, in which every value may exist in several axis orders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from arcweld.compiler.dims import Dim, product
from arcweld.compiler.ir import Graph, Node, Value, weight_value
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.passes.common import Tracker

Perm = tuple[int, ...]
IMAGES = (Kind.CONV, Kind.WINDOW)
TYPICAL = 64  # what a symbolic dimension counts as where sizes are compared


def identity(rank: int) -> Perm:
    """The order that moves nothing."""
    return tuple(range(rank))


def channels_last(rank: int) -> Perm:
    """The order N, spatial, C of a tensor N, C, spatial."""
    return (0, *range(2, rank), 1)


def name_in(value: Value, perm: Perm) -> str:
    """The name of the value in order ``perm``: its own name in its own order, else with a suffix."""
    return value.name if perm == identity(len(perm)) else f"{value.name}.p{''.join(map(str, perm))}"


class Layouts(Tracker):
    """The graph being rebuilt: every value of the old graph in one or more axis orders.

    A value is in order ``perm`` when its axis i is the old value's axis ``perm[i]``.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.native: dict[str, tuple[Value, Perm]] = {}
        self._versions: dict[tuple[str, Perm], Value] = {}
        self.types = {v.name: v.type for v in graph.values()}
        self._consumers = graph.consumers()
        for node in graph.nodes:
            self.release(node)
        for v in graph.inputs:
            self.set(v, v, identity(v.type.rank))
        for name, w in graph.weights.items():
            if name in self.types:
                v = weight_value(name, w.data, self.types[name].dtype)
                self.set(v, v, identity(v.type.rank))

    def set(self, old: Value, new: Value, perm: Perm) -> None:
        """Records that ``old`` is computed in order ``perm``, as ``new``."""
        self.native[old.name] = (new, perm)
        self._versions[old.name, perm] = new

    def order(self, old: Value) -> Perm:
        """The order in which ``old`` is computed."""
        return self.native[old.name][1]

    def is_constant(self, old: Value) -> bool:
        """True if ``old`` is a weight of the new graph."""
        return self.native[old.name][0].name in self.weights

    def feeds_convolution(self, old: Value, depth: int = 4, reshaped: bool = False) -> bool:
        """True if a convolution or pool reads ``old``, directly or through up to ``depth`` pointwise operators.

        ``reshaped``: or through reshapes.
        """
        for node in self._consumers.get(old.name, ()):
            kind = opdef(node.op).kind
            passes_on = kind is Kind.POINTWISE or (reshaped and node.op == "Reshape")
            if kind in IMAGES or (passes_on and depth and self.feeds_convolution(node.output, depth - 1, reshaped)):
                return True
        return False

    def get_in(self, old: Value, perm: Perm, origin: tuple[str, ...]) -> Value:
        """``old`` in order ``perm``, by a Transpose unless it exists in that order."""
        found = self._versions.get((old.name, perm))
        if found is None:
            new, native = self.native[old.name]
            moves = tuple(native.index(p) for p in perm)
            found = self.make("Transpose", [new], origin, name_in(old, perm), perm=moves)
            self._versions[old.name, perm] = found
        return found

    def plain(self, old: Value, origin: tuple[str, ...] = ()) -> Value:
        """``old`` in its own order."""
        return self.get_in(old, identity(old.type.rank), origin)

    def broadcast_in(self, old: Value, perm: Perm, origin: tuple[str, ...]) -> Value:
        """``old``, which broadcasts to rank ``len(perm)``, so that it broadcasts with operands in order ``perm``."""
        if old.type.rank == len(perm):
            return self.get_in(old, perm, origin)
        plain = self.plain(old, origin)
        if perm == identity(len(perm)) or all(d == 1 for d in old.shape):
            return plain
        shape = (*(1,) * (len(perm) - old.type.rank), *old.shape)
        wide = self.make("Reshape", [plain], origin, f"{old.name}.r", shape=shape)
        return self.make("Transpose", [wide], origin, name_in(old, perm), perm=perm)

    def copy(self, node: Node, inputs: Sequence[Value | None], perm: Perm, **attrs: Any) -> None:
        """Emits ``node`` on new operands, with some attributes changed; its result is in order ``perm``."""
        value = self.make(node.op, inputs, node.origin, name_in(node.output, perm), **{**node.attrs, **attrs})
        self.set(node.output, value, perm)

    def keep_plain(self, node: Node) -> None:
        """Keeps ``node`` as it is, on operands in their own order."""
        inputs = tuple(None if v is None else self.plain(v, node.origin) for v in node.inputs)
        new = dataclasses.replace(node, inputs=inputs)
        self._released.difference_update(o.name for o in node.outputs)
        self.nodes.append(self._note(new))
        for o in node.outputs:
            self.set(o, o, identity(o.type.rank))

    def finish(self) -> Graph:
        """The new graph, with its outputs in their own orders."""
        outputs = tuple(self.plain(o) for o in self.graph.outputs)
        return self.graph.replace(nodes=tuple(self.nodes), outputs=outputs, weights=self.weights)


def vote(layouts: Layouts, operands: Sequence[Value], rank: int) -> Perm:
    """The order in which most elements of the operands of this rank are, weights aside.

    Of equals, channels-last is preferred, then the operands' own order.
    """
    votes: dict[Perm, int] = {}
    for v in operands:
        if v.type.rank == rank and not layouts.is_constant(v):
            votes[layouts.order(v)] = votes.get(layouts.order(v), 0) + likely_elements(v.shape)
    if not votes:
        return identity(rank)
    best = max(votes.values())
    preferred = [channels_last(rank) if rank >= 3 else identity(rank), identity(rank)]
    candidates = [p for p, n in votes.items() if n == best]
    return next((p for p in preferred if p in candidates), candidates[0])


def likely_elements(shape: Sequence[Dim]) -> int:
    """The estimated number of elements: symbolic dimensions count as TYPICAL."""
    return int(str(product(d if isinstance(d, int) else TYPICAL for d in shape)))


# emits a node in the order that suits it and returns True, or returns False
Rule = Callable[[Layouts, Node], bool]
