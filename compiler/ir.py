"""The graph IR: immutable types, values, nodes and graphs, and a rewriter that makes new graphs from old ones.

A graph is in topological order and in SSA form: each value is written once. Weights are held by reference (a memory map
or an array that somebody else owns) and never copied by the compiler unless a pass says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from arcweld.compiler.dims import Dim, IntExpr, Sym, free_symbols, product
from arcweld.compiler.dtypes import DType

AttrValue: TypeAlias = Any  # int, float, str, bool, DType, None, or (nested) tuples of them and of Dims
EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type and shape. Tensors are dense and row-major in the order of ``shape``."""

    dtype: DType
    shape: tuple[Dim, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> Dim:
        return product(self.shape)

    @property
    def nbytes(self) -> Dim:
        return self.numel * self.dtype.size

    @property
    def is_static(self) -> bool:
        return all(isinstance(d, int) for d in self.shape)

    def with_shape(self, shape: Sequence[Dim]) -> TensorType:
        return TensorType(self.dtype, tuple(shape))

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(dtype, self.shape)

    def __str__(self) -> str:
        return f"{self.dtype.value}[{', '.join(str(d) for d in self.shape)}]"


@dataclass(frozen=True, slots=True)
class Value:
    """One SSA value. Names are unique inside a graph."""

    name: str
    type: TensorType

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.type.shape

    def __str__(self) -> str:
        return f"%{self.name}: {self.type}"


@dataclass(frozen=True, slots=True)
class Node:
    """An application of a registered operator. A missing optional input is None.

    ``origin`` names what the user wrote: ONNX node names or Python source lines. It follows the node through every
    pass.
    """

    op: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attrs: Mapping[str, AttrValue] = field(default_factory=dict)
    origin: tuple[str, ...] = ()

    @property
    def output(self) -> Value:
        """The first output, for the many operators that have one."""
        return self.outputs[0]

    @property
    def name(self) -> str:
        """How messages call this node: its origin, or its output's name."""
        return self.origin[0] if self.origin else self.outputs[0].name

    def operands(self) -> tuple[Value, ...]:
        """The inputs that are present."""
        return tuple(v for v in self.inputs if v is not None)


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant array. ``data`` may be a memory map; ``source`` is the model's own name for it.

    ``transform`` records how ``data`` was made from the source (see ``compiler/records.py``), so that new weights can
    be packed the same way; an empty tuple means ``data`` is the source itself.
    """

    data: np.ndarray
    source: str = ""
    transform: tuple[tuple[str, tuple[Any, ...]], ...] = ()


@dataclass(frozen=True)
class Graph:
    """A whole model, or a piece of one. ``weights`` maps the names of constant values to arrays."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    weights: Mapping[str, Weight] = field(default_factory=dict)
    output_labels: tuple[str, ...] = ()

    def labels(self) -> tuple[str, ...]:
        """The outputs' names as the user knows them; passes may rename the values, never these."""
        return self.output_labels or tuple(o.name for o in self.outputs)

    def producers(self) -> dict[str, Node]:
        """The node that writes each value."""
        return {o.name: n for n in self.nodes for o in n.outputs}

    def consumers(self) -> dict[str, list[Node]]:
        """The nodes that read each value, one entry a node, in graph order."""
        table: dict[str, list[Node]] = {}
        for n in self.nodes:
            for name in dict.fromkeys(v.name for v in n.operands()):
                table.setdefault(name, []).append(n)
        return table

    def output_names(self) -> set[str]:
        return {o.name for o in self.outputs}

    def values(self) -> Iterator[Value]:
        """Every value once: inputs, weights (as used), then node outputs."""
        seen: set[str] = set()
        for v in (*self.inputs, *(v for n in self.nodes for v in (*n.operands(), *n.outputs)), *self.outputs):
            if v.name not in seen:
                seen.add(v.name)
                yield v

    def symbols(self) -> tuple[Sym, ...]:
        """The symbolic dimensions of the inputs, by name."""
        found: dict[str, Sym] = {}
        for v in self.inputs:
            for d in v.shape:
                if isinstance(d, IntExpr):
                    found.update({s.name: s for s in free_symbols(d)})
        return tuple(found[k] for k in sorted(found))

    def replace(self, **changes: Any) -> Graph:
        return replace(self, **changes)


def weight_value(name: str, data: np.ndarray, dtype: DType) -> Value:
    """The Value through which nodes read a weight."""
    return Value(name, TensorType(dtype, tuple(int(d) for d in data.shape)))


class Rewriter:
    """Builds a new graph from an old one, node by node, replacing values as it goes.

    A pass walks ``graph.nodes`` and for each node calls ``keep`` (after substitution), or emits others through
    ``emit`` and redirects the old outputs with ``alias``. ``finish`` returns the new graph; dead nodes are left for
    DCE.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[Node] = []
        self.weights: dict[str, Weight] = dict(graph.weights)
        self._subst: dict[str, Value] = {}
        self._names = {v.name for v in graph.values()} | set(graph.weights)
        self._numbers: dict[str, int] = {}  # the last number that was put behind each hint

    def fresh(self, hint: str) -> str:
        """A name not yet in use, derived from ``hint``."""
        name, i = hint, self._numbers.get(hint, 0)
        while name in self._names:
            i += 1
            name = f"{hint}.{i}"
        self._numbers[hint] = i
        self._names.add(name)
        return name

    def get(self, value: Value) -> Value:
        """What ``value`` of the old graph is called in the new one."""
        while value.name in self._subst:
            value = self._subst[value.name]
        return value

    def inputs_of(self, node: Node) -> tuple[Value | None, ...]:
        return tuple(None if v is None else self.get(v) for v in node.inputs)

    def keep(self, node: Node, **changes: Any) -> Node:
        """Copies ``node`` with its inputs substituted and the given fields changed."""
        return self.append(replace(node, inputs=self.inputs_of(node), **changes))

    def append(self, node: Node) -> Node:
        """Adds a node of the new graph."""
        self.nodes.append(node)
        return node

    def emit(
        self,
        op: str,
        inputs: Sequence[Value | None],
        types: TensorType | Sequence[TensorType],
        attrs: Mapping[str, AttrValue] = EMPTY,
        *,
        origin: tuple[str, ...] = (),
        name: str = "",
    ) -> Value:
        """Appends a new node with fresh outputs and returns its first output."""
        listed = (types,) if isinstance(types, TensorType) else tuple(types)
        hint = name or op.lower()
        outs = tuple(Value(self.fresh(hint), t) for t in listed)
        self.append(Node(op, tuple(inputs), outs, dict(attrs), origin))
        return outs[0]

    def constant(self, data: np.ndarray, dtype: DType, hint: str = "const", source: str = "") -> Value:
        """Adds a weight and returns the value that reads it."""
        name = self.fresh(hint)
        self.weights[name] = Weight(data, source)
        return weight_value(name, data, dtype)

    def alias(self, old: Value, new: Value) -> None:
        """From here on, whoever read ``old`` reads ``new``."""
        if old.name != new.name:
            self._subst[old.name] = new

    def finish(self) -> Graph:
        outputs = tuple(self.get(o) for o in self.graph.outputs)
        return self.graph.replace(nodes=tuple(self.nodes), outputs=outputs, weights=self.weights)


def merge_origins(nodes: Iterable[Node]) -> tuple[str, ...]:
    """The origins of several nodes, in order, each once."""
    return tuple(dict.fromkeys(o for n in nodes for o in n.origin))
