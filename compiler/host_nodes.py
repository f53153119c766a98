"""Nodes of a graph that the host runs: it reads sizes, calls operators, takes branches and repeats bodies.

They exist between the import and the cut into stages (``arcweld/driver/stages.py``) only: no pass sees them. Values of
bodies have names of their own in the whole graph, so that bodies capture what is outside of them by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from arcweld.compiler.ir import Node, Value

READ = "ReadSizes"  # (x, whole...) -> beginnings: the elements of x are the values of the attribute ``symbols``
VIEW = "View"  # (x) -> x in another shape, whose number of elements is compared
CHECK = "CheckSizes"  # () -> (): the size ``zero`` must be 0, else the host refuses and says ``what``
CALL = "CallOnHost"  # (operands) -> results of the operator ``op`` with ``attrs``
CHOOSE = "Choose"  # (condition) -> the results of the body ``then`` or ``otherwise``
REPEAT = "Repeat"  # (trips, condition, carried...) -> carried and scanned results of ``body``, at most ``limit`` times
OPS = frozenset({READ, VIEW, CHECK, CALL, CHOOSE, REPEAT})


@dataclass(frozen=True, slots=True, eq=False)
class Body:
    """A branch or a loop's body: ``nodes`` that make ``results``, from ``formals`` and from values outside."""

    formals: tuple[Value, ...]
    nodes: tuple[Node, ...]
    results: tuple[Value, ...]


def renamed(n: Node, names: Mapping[str, Value]) -> Node:
    """The node with other values in the place of those called ``names``, in its bodies too."""

    def new(v: Value) -> Value:
        return names.get(v.name, v)

    def body(b: Body) -> Body:
        nodes = tuple(renamed(m, names) for m in b.nodes)
        return Body(tuple(map(new, b.formals)), nodes, tuple(map(new, b.results)))

    inputs = tuple(None if v is None else new(v) for v in n.inputs)
    attrs = n.attrs if not bodies(n) else {k: body(v) if isinstance(v, Body) else v for k, v in n.attrs.items()}
    if inputs == n.inputs and attrs is n.attrs and all(o.name not in names for o in n.outputs):
        return n
    return replace(n, inputs=inputs, outputs=tuple(map(new, n.outputs)), attrs=attrs)


def values_read(nodes: Iterable[Node]) -> Iterator[Value]:
    """The operands of nodes and of those in their bodies, and the bodies' results."""
    for n in nodes:
        yield from n.operands()
        for b in bodies(n):
            yield from values_read(b.nodes)
            yield from b.results


def bodies(n: Node) -> tuple[Body, ...]:
    """The bodies that a node holds."""
    return tuple(v for v in n.attrs.values() if isinstance(v, Body))
