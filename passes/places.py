"""The places at which a kernel reads a value, and so how often it computes that value for one element of its result.

    Concat(x, x) reads x at two places, and Concat(y, y) of that y at four; x * Tanh(x) reads x at one
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence

from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.ir import Node, Value
from arcweld.compiler.ops.movement import reshape_coords
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.region import is_view

MAX_PLACES = 16  # at which a kernel reads one value: every read is code of its own
MAX_RECOMPUTE = 40  # scalar operations for one result element that a node may take in a prologue
MAX_CODE = 512  # scalar operations of a kernel for one element: NVRTC should take no more than about two seconds
# Operators that are functions in C: inlined for each of up to eight elements, they take NVRTC as long as this many
# scalar operations.
LARGE_CODE = {"Sin": 80, "Cos": 80, "Tan": 80, "Pow": 48, "Mod": 48}

At = frozenset[int]  # numbers of places
Coords = tuple[Dim, ...]


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
                yield frozenset(self._place((p, step), self._reads[p] * fan_out(node)) for p in at)

    def reads(self, at: At) -> int:
        """How many elements are read at these places for one element of the result."""
        return sum(self._reads[p] for p in at)

    def _place(self, where: Hashable, reads: int) -> int:
        number = self._numbers.setdefault(where, len(self._reads))
        if number == len(self._reads):
            self._reads.append(reads)
        return number


def computed_too_often(
    nodes: Sequence[Node], kept: Collection[str], is_free: Callable[[Node], bool]
) -> dict[str, tuple[str, str]]:
    """The nodes that a region should leave to others: name of the first output -> why, as (code, text).

    They are read at so many places that computing them there costs too much, or other kernels need them because of
    that. ``nodes`` are the region's, in graph order; those in ``kept`` stay. ``is_free``: every kernel may compute a
    node for itself.
    """
    places, total = Places(), 0
    makers = {o.name: n.output.name for n in nodes for o in n.outputs}
    where: dict[str, At] = {}
    outside: set[str] = set()  # nodes that other kernels compute too
    left: dict[str, tuple[str, str]] = {}
    for n in reversed(nodes):  # all readers of a value come before it
        name = n.output.name
        at = places.start(n.output.shape) if name in kept else where.get(name, frozenset())
        amount = places.reads(at)
        if name not in kept:
            refusal = _refusal(n, at, total + amount * code_of(n), shared=name in outside, free=is_free(n))
            if refusal is not None:
                left[name] = refusal
                outside.add(name)
        if name in outside:
            outside.update(makers[v.name] for v in n.operands() if v.name in makers)
        if name not in left:
            total += amount * code_of(n)
            for v, there in zip(n.operands(), places.of_operands(n, at), strict=True):
                if v.name in makers:
                    where[makers[v.name]] = where.get(makers[v.name], frozenset()) | there
    return left


def _refusal(node: Node, at: At, total: int, *, shared: bool, free: bool) -> tuple[str, str] | None:
    if shared and not (free and at):
        return ("shared", f"{node.output.name} is needed by other kernels too")
    if len(at) > MAX_PLACES:
        return ("recompute", f"is read at more than {MAX_PLACES} places by one kernel")
    if total > MAX_CODE:
        return ("size", f"more than {MAX_CODE} scalar operations for one element in one kernel")
    return None


def _movement(node: Node) -> Hashable:
    """What decides which element of its operand a movement reads: views of equal attributes and shapes agree."""
    if not is_view(node):
        return node.output.name
    return node.op, tuple(sorted(node.attrs.items())), node.operands()[0].shape


def fan_out(node: Node) -> int:
    """The number of elements of an operand that one element of the result is computed from."""
    count = opdef(node.op).fan_out
    return 1 if count is None else count(node)


def code_of(node: Node) -> int:
    """The scalar operations of one element, weighed by the time that NVRTC takes for them."""
    return LARGE_CODE.get(node.op, opdef(node.op).cost)


def indices(v: Value) -> Coords:
    """An index symbol for each axis: the coordinates of any element of ``v``."""
    return tuple(0 if d == 1 else symbol(f"i{k}", 0, d - 1) for k, d in enumerate(v.shape))


def moved(c: Node, v: Value, coords: Coords) -> Coords:
    """Where the element of ``v`` at ``coords`` is in the result of ``c``: a reshape, a transpose or pointwise."""
    if c.op == "Reshape":
        return reshape_coords(coords, v.shape, c.output.shape)
    if c.op == "Transpose":
        return tuple(coords[p] for p in c.attrs["perm"])
    return coords
