"""A region: the nodes that become one kernel, grown around at most one hero operation.

Fusion makes regions, codegen lowers them. View nodes (reshape, transpose, slice…) may belong to several regions: each
reads through them by its own index map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from arcweld.compiler.dims import Dim, flat_index, product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.ir import EMPTY, Graph, Node, Value
from arcweld.compiler.ops.registry import Kind, opdef

TEMPLATE_OF_KIND: Mapping[Kind, str] = {
    Kind.POINTWISE: "pointwise",
    Kind.MOVEMENT: "pointwise",
    Kind.REDUCE: "reduce",
    Kind.ROWWISE: "rowwise",
    Kind.SCAN: "scan",
    Kind.CONTRACT: "contract",
    Kind.CONV: "conv",
    Kind.WINDOW: "window",
    Kind.ATTENTION: "attention",
    Kind.RECURRENCE: "recurrence",
    Kind.SORT: "sort",
    Kind.SELECT: "select",
    Kind.RUNS: "runs",
    Kind.SUPPRESS: "suppress",
}
# A scatter in which at most this many updates can write one output element uses the template ``search``, in which every
# output element looks through all of them.
MAX_SEARCH = 64
# Element types by reduction for which CUDA's atomics give the reference's results, up to the order of summation.
ATOMIC: Mapping[str, tuple[DType, ...]] = {
    "add": (DType.F32, DType.F64, DType.I32, DType.U32, DType.I64),
    "max": (DType.F32, DType.I32, DType.I64),
    "min": (DType.F32, DType.I32, DType.I64),
}


def template_of(node: Node, state: Mapping[str, str] = EMPTY) -> str:
    """The name of the template that computes ``node``. Raises KeyError for a composite operator, which has none.

    A scatter has two: in ``search`` each output element looks for its updates, in ``scatter`` each update is stored
    where its index says. It is the second for a scatter into ``state`` (as ``Graph.state``), however few the updates.
    """
    kind = opdef(node.op).kind
    if kind is not Kind.SCATTER:
        return TEMPLATE_OF_KIND[kind]
    data, indices, _ = node.operands()
    candidates = product(indices.shape[:-1]) if node.op == "ScatterND" else indices.shape[node.attrs["axis"]]
    few = isinstance(candidates, int) and candidates <= MAX_SEARCH
    few = few and state.get(node.output.name) != data.name
    exact = node.attrs["reduction"] == "none" or data.dtype in ATOMIC.get(node.attrs["reduction"], ())
    return "search" if few or not exact else "scatter"


@dataclass(frozen=True, slots=True)
class Part:
    """What a chain computes from the product's columns: which element of a value belongs to which column.

    value    the name of the value whose elements are computed: a result, the updates that a scatter stores, or the
             operand of a row-wise operator
    shape    its shape, in which the number of rows may be open. Some axes may be split in two or more: heads that share
             keys, and the heads of a group
    start    the column of the first element
    columns  the axes of ``shape`` that run over columns, the slowest first
    strides  the columns from one element to the next along each of these axes
    repeats  the axes along which elements belong to one column and row: keys that several heads share. All others run
             over rows
    """

    value: str
    shape: tuple[Dim, ...]
    start: int
    columns: tuple[int, ...]
    strides: tuple[int, ...]
    repeats: tuple[int, ...] = ()

    @property
    def rows(self) -> tuple[int, ...]:
        """The axes of ``shape`` that run over rows."""
        return tuple(k for k in range(len(self.shape)) if k not in (*self.columns, *self.repeats))

    def row(self, at: Sequence[Dim]) -> Dim:
        """The row of the product that the element at ``at`` (of ``shape``) belongs to."""
        return flat_index([at[k] for k in self.rows], [self.shape[k] for k in self.rows])

    def column(self, at: Sequence[Dim]) -> Dim:
        """The column that it belongs to."""
        return sum((stride * at[k] for k, stride in zip(self.columns, self.strides)), self.start)


@dataclass(frozen=True, slots=True)
class Head:
    """A row-wise operator behind a chain's product, whose rows are units: the norm of each query's or key's head.

    ``part``: the operator's operand.
    """

    node: Node
    part: Part


@dataclass(frozen=True, slots=True)
class Chain:
    """What a region of the template ``chain`` has around its product of few rows.

    rows   the row-wise operator that makes the left operand; every block computes all of its rows. None: there is none
    unit   (members, stride): columns ``c, c + stride, …`` that results read together, so that one block computes them;
           the product's columns are divided into such units. Members are a power of two up to 256
    parts  one for each of the region's outputs, in their order
    heads  the row-wise operators behind the product, in the order of the graph
    """

    rows: Node | None
    unit: tuple[int, int]
    parts: tuple[Part, ...]
    heads: tuple[Head, ...] = ()


@dataclass(frozen=True, slots=True)
class Region:
    """The nodes of one kernel, in graph order, with the values it reads from memory and those it writes to memory.

    ``template`` is the name of the hero's template, or ``pointwise`` where ``hero`` is None. ``in_place``: the name of
    a result -> the input whose memory it takes over as it is written. ``chain`` is set where the template is ``chain``.
    """

    name: str
    template: str
    hero: Node | None
    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    in_place: Mapping[str, str] = field(default_factory=dict)
    chain: Chain | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a node and the consumer of its result are not in one kernel.

    ``producer`` and ``consumer`` are names of nodes. ``code`` is a stable identifier of the reason, ``detail`` a text.
    """

    producer: str
    consumer: str
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class FusedGraph:
    """The result of fusion: the graph, its regions in launch order, and the fusions that were refused.

    ``copied`` has the state (inputs) that no region writes in place, with the reasons.
    """

    graph: Graph
    regions: tuple[Region, ...]
    refusals: tuple[Refusal, ...]
    copied: Mapping[str, str] = field(default_factory=dict)


def is_hero(node: Node) -> bool:
    """True for a node that decides a kernel's loop nest: it is neither pointwise nor movement.

    Raises UnsupportedError for a composite operator, which must be decomposed before fusion.
    """
    kind = opdef(node.op).kind
    if kind is Kind.COMPOSITE:
        raise UnsupportedError(f"{node.op} reached fusion without being decomposed", node=node.name)
    return kind not in (Kind.POINTWISE, Kind.MOVEMENT)


VIEWS = frozenset({"Reshape", "Transpose", "Slice", "Expand"})


def is_view(node: Node) -> bool:
    """True for movement that only changes the index of a read: no element is masked, and no index is read."""
    return node.op in VIEWS


INDEXED = frozenset({"Gather", "GatherElements", "GatherND", "GridSample", "PagedRead", "PagedSlots"})


def index_cost(node: Node) -> int:
    """What a movement adds to a kernel's chain of computed indices; 0 for most.

    1 where it reads indices from a tensor: the read at such an index waits for the read of the index. 3 where it
    mirrors them: that makes the formula of an index four times as long.
    """
    if node.op == "Pad" and node.attrs["mode"] == "reflect":
        return 3
    return int(node.op in INDEXED)
