"""A region: the nodes that become one kernel, grown around at most one hero operation.

Fusion makes regions, codegen lowers them. View nodes (reshape, transpose, slice…) may belong to several regions: each
reads through them by its own index map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from arcweld.compiler.dims import product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.ops.registry import Kind, opdef

TEMPLATE_OF_KIND: Mapping[Kind, str] = {
    Kind.POINTWISE: "pointwise",
    Kind.MOVEMENT: "pointwise",
    Kind.REDUCE: "reduce",
    Kind.ROWWISE: "rowwise",
    Kind.CONTRACT: "contract",
    Kind.CONV: "conv",
    Kind.WINDOW: "window",
    Kind.ATTENTION: "attention",
}
# up to this many updates may name one element, each output element looks through them
MAX_SEARCH = 64
# types whose atomics give what the reference gives, up to the order of summation
ATOMIC: Mapping[str, tuple[DType, ...]] = {
    "add": (DType.F32, DType.F64, DType.I32, DType.U32, DType.I64),
    "max": (DType.F32, DType.I32, DType.I64),
    "min": (DType.F32, DType.I32, DType.I64),
}


def template_of(node: Node) -> str:
    """The template that computes a node. Scatters have two: ``search`` looks for each element's updates, ``scatter``
    stores each update where it belongs.
    """
    kind = opdef(node.op).kind
    if kind is not Kind.SCATTER:
        return TEMPLATE_OF_KIND[kind]
    data, indices, _ = node.operands()
    candidates = product(indices.shape[:-1]) if node.op == "ScatterND" else indices.shape[node.attrs["axis"]]
    reduction = node.attrs["reduction"]
    few = isinstance(candidates, int) and candidates <= MAX_SEARCH
    exact = reduction == "none" or data.dtype in ATOMIC.get(reduction, ())
    return "search" if few or not exact else "scatter"


@dataclass(frozen=True, slots=True)
class Region:
    """``nodes`` are in graph order; ``inputs`` are read from memory, ``outputs`` written to it. ``hero`` is None for
    pointwise."""

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
    if kind is Kind.COMPOSITE:
        raise UnsupportedError(f"{node.op} reached fusion without being decomposed", node=node.name)
    return kind not in (Kind.POINTWISE, Kind.MOVEMENT)


VIEWS = frozenset({"Reshape", "Transpose", "Slice", "Expand"})


def is_view(node: Node) -> bool:
    """True for movement whose index map is affine: reading through it costs nothing."""
    return node.op in VIEWS


INDEXED = frozenset({"Gather", "GatherElements", "GatherND", "GridSample"})


def reads_indices(node: Node) -> bool:
    """True for movement whose index map depends on elements that it reads: the second read waits for the first."""
    return node.op in INDEXED
