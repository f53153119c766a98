"""What passes share: a rewriter that knows the producers of values and evaluates constants, and counts of uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.ir import Graph, Node, Rewriter, Value
from arcweld.compiler.ops.emit import Emitter
from arcweld.compiler.ops.registry import make
from arcweld.compiler.weights import derive


class Tracker(Rewriter):
    """A Rewriter that also knows which node of the new graph writes a value, and evaluates what is constant."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.made: dict[str, Node] = {}
        self.memo: dict[str, Any] = {}  # cached analyses of the new graph
        self._released: set[str] = set()

    def release(self, node: Node) -> None:
        """Frees the names of ``node``'s results, as it will be replaced: the next ``fresh`` of one returns it."""
        self._released.update(o.name for o in node.outputs)

    def fresh(self, hint: str) -> str:
        """``hint`` if it has been released, else an unused name made of it."""
        if hint in self._released:
            self._released.remove(hint)
            return hint
        return super().fresh(hint)

    def keep(self, node: Node, **changes: Any) -> Node:
        """Copies ``node`` as ``Rewriter.keep`` does; its names are its own again."""
        self._released.difference_update(o.name for o in node.outputs)
        return super().keep(node, **changes)

    def append(self, node: Node) -> Node:
        """Appends a finished node, and records it as the producer of its results."""
        return self._note(super().append(node))

    def _note(self, node: Node) -> Node:
        self.made.update((o.name, node) for o in node.outputs)
        return node

    def producer(self, value: Value | None, op: str = "") -> Node | None:
        """The node of the new graph that writes ``value``, if its operator is ``op`` ("": any); else None."""
        node = self.made.get(value.name) if value is not None else None
        return node if node is not None and op in ("", node.op) else None

    def array(self, value: Value | None) -> np.ndarray | None:
        """The data of a weight; None for anything else."""
        weight = self.weights.get(value.name) if value is not None else None
        return None if weight is None else weight.data

    def make(
        self, op: str, inputs: Sequence[Value | None], origin: tuple[str, ...], hint: str = "", **attrs: Any
    ) -> Value:
        """Emits a node with checked attributes and inferred types, and returns its result.

        If all operands are weights it is evaluated at once, and the result is a weight. ``hint``: the name wanted.
        Raises ModelError for operands or attributes that don't fit.
        """
        given = [v for v in inputs if v is not None]
        if len(given) == len(inputs) and given and all(v.name in self.weights for v in given):
            return derive(self, op, given, attrs, origin=origin, hint=hint)
        return make(self, op, inputs, attrs, origin=origin, hint=hint)

    def redirect(self, node: Node, value: Value) -> None:
        """``node``'s only result is ``value`` from here on."""
        self.alias(node.output, value)


Visit = Callable[[Tracker, Node], bool]


class FoldingEmitter(Emitter):
    """Emits in the place of ``node`` through a Tracker, so that what is made of constants is a constant at once."""

    def __init__(self, rw: Tracker, node: Node) -> None:
        super().__init__(rw, node.origin)
        self.tracker = rw
        self.hint = node.output.name

    def emit(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """Emits one node, or evaluates it, and returns its result."""
        return self.tracker.make(op, inputs, self.origin, f"{self.hint}.{op.lower()}", **attrs)


def rewrite(graph: Graph, visit: Visit) -> Graph:
    """Rebuilds ``graph`` node by node. ``visit`` replaces a node and returns True, or returns False to keep it.

    A replacement may take the name of the node's result, so ``visit`` must emit nothing if it returns False. Returns
    the same graph if no node was replaced.
    """
    rw = Tracker(graph)
    changed = False
    for node in graph.nodes:
        rw.release(node)
        if visit(rw, node):
            changed = True
        else:
            rw.keep(node)
    return rw.finish() if changed else graph


def scalar(array: np.ndarray | None) -> float | None:
    """The value of a float or int array of one element; None for anything else."""
    if array is None or array.size != 1 or array.dtype == np.bool_:
        return None
    return float(array.reshape(()).astype(np.float64))


def use_counts(graph: Graph) -> dict[str, int]:
    """Value name -> the number of operands and graph outputs that read it."""
    counts: dict[str, int] = {}
    for v in (*(v for n in graph.nodes for v in n.operands()), *graph.outputs):
        counts[v.name] = counts.get(v.name, 0) + 1
    return counts


def count_ops(graph: Graph, op: str) -> int:
    """The number of nodes of an operator."""
    return sum(n.op == op for n in graph.nodes)
