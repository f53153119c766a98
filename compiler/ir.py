"""The graph IR: immutable types, values, nodes and graphs, and a rewriter that makes new graphs from old ones.

A graph is in topological order and in SSA form: each value is written once. Weights are references to arrays of others,
often memory maps; only a pass that changes a weight makes a new array.

State that lives between calls is an input and the output that takes its place: both are values of their own in the
graph, and one piece of memory when it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from arcweld.compiler.dims import Dim, IntExpr, Sym, free_symbols, product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.signature import Argument

AttrValue: TypeAlias = Any  # int, float, str, bool, DType, None, or (nested) tuples of them and of Dims
EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type and shape. Tensors are dense and row-major in the order of ``shape``."""

    dtype: DType
    shape: tuple[Dim, ...]

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def numel(self) -> Dim:
        """The number of elements; 1 for rank 0."""
        return product(self.shape)

    @property
    def nbytes(self) -> Dim:
        """The bytes of all elements, without padding."""
        return self.dtype.nbytes(self.numel)

    @property
    def is_static(self) -> bool:
        """True if all dimensions are ints."""
        return all(isinstance(d, int) for d in self.shape)

    def with_shape(self, shape: Sequence[Dim]) -> TensorType:
        """The type with the same elements and another shape."""
        return TensorType(self.dtype, tuple(shape))

    def with_dtype(self, dtype: DType) -> TensorType:
        """The type with the same shape and other elements."""
        return TensorType(dtype, self.shape)

    def __str__(self) -> str:
        return f"{self.dtype.value}[{', '.join(str(d) for d in self.shape)}]"


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor of a graph, written once (SSA). Names are unique inside a graph."""

    name: str
    type: TensorType

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self.type.dtype

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The dimensions."""
        return self.type.shape

    def __str__(self) -> str:
        return f"%{self.name}: {self.type}"


@dataclass(frozen=True, slots=True)
class Node:
    """An application of a registered operator. A missing optional input is None.

    ``origin`` names what the user wrote: ONNX node names or Python source lines. Passes keep it, and merge the origins
    of nodes that they join.
    """

    op: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attrs: Mapping[str, AttrValue] = field(default_factory=dict)
    origin: tuple[str, ...] = ()

    @property
    def output(self) -> Value:
        """The first output; most operators have only this one."""
        return self.outputs[0]

    @property
    def name(self) -> str:
        """The node's name in messages: its first origin, else its first output's name."""
        return self.origin[0] if self.origin else self.outputs[0].name

    def operands(self) -> tuple[Value, ...]:
        """The inputs that are present."""
        return tuple(v for v in self.inputs if v is not None)


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant array of a graph. ``data`` may be a memory map.

    ``source`` is the model's name for it, empty for a constant without one. ``transform`` is the record of how ``data``
    was made from the model's weights (``compiler/records.py``), so that it can be made again from new ones; it is empty
    where ``data`` is the model's own.
    """

    data: np.ndarray
    source: str = ""
    transform: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    @property
    def is_zero(self) -> bool:
        """True if all elements are 0. Of a repeated element only one is looked at: a large cache costs nothing."""
        one = self.data.size > 0 and not any(self.data.strides)
        return not np.any(self.data[(0,) * self.data.ndim] if one else self.data)


@dataclass(frozen=True)
class Graph:
    """A model, or a part of one, with its nodes in topological order.

    ``weights`` maps the names of values that no node writes to their arrays. ``output_labels`` are the user's names for
    the outputs; empty where these are the values' names. ``aliases`` maps the label of an output to the input whose
    memory it takes over: after a call, the input's memory holds the output. ``initial`` has the first values of those
    inputs that a module owns, by name. ``takes`` and ``gives`` say which inputs and outputs (by label) are lists for a
    caller; empty where each is a tensor by itself.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    weights: Mapping[str, Weight] = field(default_factory=dict)
    output_labels: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    initial: Mapping[str, Weight] = field(default_factory=dict)
    takes: tuple[Argument, ...] = ()
    gives: tuple[Argument, ...] = ()

    def labels(self) -> tuple[str, ...]:
        """The user's names for the outputs. Passes may rename the values, but never these."""
        return self.output_labels or tuple(o.name for o in self.outputs)

    def producers(self) -> dict[str, Node]:
        """The node that writes each value, by the value's name."""
        return {o.name: n for n in self.nodes for o in n.outputs}

    def consumers(self) -> dict[str, list[Node]]:
        """The nodes that read each value, by the value's name, each node once and in graph order."""
        table: dict[str, list[Node]] = {}
        for n in self.nodes:
            for name in dict.fromkeys(v.name for v in n.operands()):
                table.setdefault(name, []).append(n)
        return table

    def output_names(self) -> set[str]:
        """The names of the output values."""
        return {o.name for o in self.outputs}

    def values(self) -> Iterator[Value]:
        """Every value once: the inputs, then each node's operands and outputs in graph order."""
        seen: set[str] = set()
        for v in (*self.inputs, *(v for n in self.nodes for v in (*n.operands(), *n.outputs)), *self.outputs):
            if v.name not in seen:
                seen.add(v.name)
                yield v

    def state(self) -> dict[str, str]:
        """The input whose memory an output takes over, by the names of the two values."""
        labelled = dict(zip(self.labels(), self.outputs))
        return {labelled[label].name: name for label, name in self.aliases.items()}

    def symbols(self) -> tuple[Sym, ...]:
        """The symbols in the inputs' shapes, sorted by name."""
        found: dict[str, Sym] = {}
        for v in self.inputs:
            for d in v.shape:
                if isinstance(d, IntExpr):
                    found.update({s.name: s for s in free_symbols(d)})
        return tuple(found[k] for k in sorted(found))

    def replace(self, **changes: Any) -> Graph:
        """The graph with the given fields changed."""
        return replace(self, **changes)


def weight_value(name: str, data: np.ndarray, dtype: DType) -> Value:
    """The Value through which nodes read a weight."""
    return Value(name, TensorType(dtype, tuple(int(d) for d in data.shape)))


class Rewriter:
    """Builds a new graph from an old one, node by node.

    A pass visits ``graph.nodes`` in order. For each node it calls ``keep``, or emits other nodes with ``emit`` and
    replaces the old outputs with ``alias``. ``finish`` returns the new graph, in which nodes that nothing reads remain:
    dead code elimination removes them.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[Node] = []
        self.weights: dict[str, Weight] = dict(graph.weights)
        self._subst: dict[str, Value] = {}
        self._names = {v.name for v in graph.values()} | set(graph.weights)
        self._numbers: dict[str, int] = {}  # the last number that was appended to each hint

    def fresh(self, hint: str) -> str:
        """A value name that is not in use yet: ``hint``, or ``hint`` and a number."""
        name, i = hint, self._numbers.get(hint, 0)
        while name in self._names:
            i += 1
            name = f"{hint}.{i}"
        self._numbers[hint] = i
        self._names.add(name)
        return name

    def get(self, value: Value) -> Value:
        """The value of the new graph that takes the place of ``value``."""
        while value.name in self._subst:
            value = self._subst[value.name]
        return value

    def inputs_of(self, node: Node) -> tuple[Value | None, ...]:
        """The inputs of ``node``, an old node, in the new graph."""
        return tuple(None if v is None else self.get(v) for v in node.inputs)

    def keep(self, node: Node, **changes: Any) -> Node:
        """Appends ``node`` with its inputs in the new graph and the given fields changed."""
        return self.append(replace(node, inputs=self.inputs_of(node), **changes))

    def append(self, node: Node) -> Node:
        """Appends a node whose inputs are values of the new graph."""
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
        """Appends a node with fresh outputs of ``types`` and returns the first of them; nothing is checked.

        ``name`` is the hint for the outputs' names, by default the operator's name.
        """
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
        """Lets the nodes that are kept from here on, and the graph's outputs, read ``new`` instead of ``old``."""
        if old.name != new.name:
            self._subst[old.name] = new

    def finish(self) -> Graph:
        """The new graph."""
        outputs = tuple(self.get(o) for o in self.graph.outputs)
        return self.graph.replace(nodes=tuple(self.nodes), outputs=outputs, weights=self.weights)


def merge_origins(nodes: Iterable[Node]) -> tuple[str, ...]:
    """The origins of several nodes, in order, each once."""
    return tuple(dict.fromkeys(o for n in nodes for o in n.origin))
