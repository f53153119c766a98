"""A region: the nodes that become one kernel, grown around at most one hero operation.

Fusion makes regions, codegen lowers them. View nodes (reshape, transpose, slice…) may belong to several regions: each reads
through them by its own index map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.registry import Kind, opdef

TEMPLATE_OF_KIND: Mapping[Kind, str] = {
    Kind.POINTWISE: "pointwise",
    Kind.MOVEMENT: "pointwise",
    Kind.REDUCE: "reduce",
    Kind.ROWWISE: "rowwise",
    Kind.CONTRACT: "contract",
    Kind.CONV: "conv",
    Kind.WINDOW: "window",
    Kind.ATTENTION: "attention",
    Kind.SCATTER: "scatter",
}


@dataclass(frozen=True, slots=True)
class Region:
    """``nodes`` are in graph order; ``inputs`` are read from memory, ``outputs`` written to it. ``hero`` is None for pointwise."""

    name: str
    template: str
    hero: Node | None
    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why two neighbouring nodes are not in one kernel. ``code`` is stable, ``detail`` is for people."""

    producer: str
    consumer: str
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class FusedGraph:
    """The result of fusion: regions in launch order over the graph they came from, and what was refused."""

    graph: Graph
    regions: tuple[Region, ...]
    refusals: tuple[Refusal, ...]


def is_hero(node: Node) -> bool:
    """True for operators that need a template of their own."""
    kind = opdef(node.op).kind
    if kind in (Kind.COMPOSITE, Kind.CONTROL):
        raise UnsupportedError(f"{node.op} reached fusion without being decomposed", node=node.name)
    return kind not in (Kind.POINTWISE, Kind.MOVEMENT)


VIEWS = frozenset({"Reshape", "Transpose", "Slice", "Expand"})


def is_view(node: Node) -> bool:
    """True for movement whose index map is affine: reading through it costs nothing."""
    return node.op in VIEWS
