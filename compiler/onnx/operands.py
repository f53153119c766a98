"""Operands, which are ONNX tensors while importing, and the graph that is built from them.

An operand is on the device (a Value of the graph), on the host (an array of its elements), or on both.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from arcweld.compiler import dims, host_nodes
from arcweld.compiler.dims import Dim, IntExpr, Sym
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import EMPTY, Graph, Node, Rewriter, TensorType, Value
from arcweld.compiler.onnx import scalars
from arcweld.compiler.onnx.deduce import Bounds, Requirement
from arcweld.compiler.onnx.proto import Source
from arcweld.compiler.onnx.scalars import Ratio
from arcweld.compiler.onnx.symbols import identifier
from arcweld.compiler.ops import registry
from arcweld.compiler.options import LOOP_LIMIT

MAX_HOST_ELEMENTS = 1 << 16


@dataclass(slots=True)
class Operand:
    """One tensor while importing.

    value   the tensor in the graph; None as long as no node needs it there
    known   its elements where the host knows them: a numeric array, an object array of ``scalars.Scalar`` if any is
            symbolic, or one of strings
    source  the name of the initializer that it is, or empty
    """

    dtype: DType
    shape: tuple[Dim, ...]
    value: Value | None = None
    known: np.ndarray | None = None
    source: str = ""

    @property
    def is_symbolic(self) -> bool:
        """True if the host knows the elements and any of them is symbolic."""
        return self.known is not None and self.known.dtype == object and not self.dtype.is_string

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A tensor that cannot be imported, because of ``node``; nodes that read it are skipped.

    ``reason`` is set for an input or an initializer, which the first node that reads it reports.
    """

    node: str
    reason: str = ""


class Items(tuple[Operand, ...]):
    """The operands in a value of ONNX's sequence type."""

    __slots__ = ()


class Nothing:
    """An optional value that is empty."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Growing:
    """A sequence to which a body appends that runs as often as data say: the ``items`` of one turn.

    What it has held before is not known.
    """

    items: tuple[Operand, ...] = ()


@dataclass(frozen=True, slots=True)
class Rows:
    """A sequence of as many items as data say: the rows of ``value``, which are of one shape."""

    value: Value


Form: TypeAlias = "tuple[int | None, ...]"  # None: a tensor; n: a sequence of n; EMPTY_OPTIONAL
EMPTY_OPTIONAL = -1


def flattened(operands: Sequence[Operand | Items | Nothing]) -> tuple[list[Operand], Form]:
    """The tensors of operands in order, and the form by which ``formed`` puts them together again."""
    form = tuple(
        len(o) if isinstance(o, Items) else EMPTY_OPTIONAL if isinstance(o, Nothing) else None for o in operands
    )
    tensors = [t for o in operands for t in (o if isinstance(o, Items) else [] if isinstance(o, Nothing) else [o])]
    return tensors, form


def formed(tensors: Iterable[Operand], form: Form) -> list[Operand | Items | Nothing]:
    """The operands of a form, made of their tensors."""
    left = iter(tensors)

    def one(n: int | None) -> Operand | Items | Nothing:
        if n is None:
            return next(left)
        return Nothing() if n == EMPTY_OPTIONAL else Items(itertools.islice(left, n))

    return [one(n) for n in form]


def on_device(value: Value) -> Operand:
    """An operand that is only in the graph."""
    return Operand(value.dtype, value.shape, value=value)


def on_host(data: Any, dtype: DType, source: str = "") -> Operand:
    """An operand with the elements ``data``, converted to ``dtype`` where none is symbolic.

    Raises ModelError for an integer that ``dtype`` cannot hold.
    """
    array = np.asarray(data)
    if dtype.is_string:
        array = array.astype(object)
    elif array.dtype == object:
        if not any(scalars.is_symbolic(x) for x in array.flat):
            try:
                array = np.array([dtype.numpy.type(x) for x in array.flat], dtype.numpy).reshape(array.shape)
            except OverflowError as error:
                raise ModelError(f"a shape computation overflows {dtype.value}") from error
    elif array.dtype != dtype.numpy:
        array = array.astype(dtype.numpy)
    return Operand(dtype, tuple(int(d) for d in array.shape), known=array, source=source)


def elements(operand: Operand) -> np.ndarray:
    """The known elements as an object array of Python scalars. Raises ModelError for strings."""
    assert operand.known is not None
    if operand.dtype.is_string:
        raise ModelError("an operand that should be numbers is strings")
    if operand.known.dtype == object:
        return operand.known
    convert = float if operand.dtype.is_float else (bool if operand.dtype is DType.BOOL else int)
    out = np.empty(operand.known.shape, object)
    out.reshape(-1)[:] = [convert(x) for x in operand.known.flat]
    return out


class Unknown(NamedTuple):
    """The reason why the host does not know a value's elements, and the names of the symbols they depend on."""

    reason: str
    symbols: frozenset[str]


@dataclass(slots=True)
class Builder:
    """The graph under construction, shared by all nodes of a model.

    ``requirements`` are those of its open dimensions. If there are any, the graph is of no use, and the model is
    imported again with dimensions that meet them. ``unknown`` says why the host does not know a value's elements.
    ``shared`` names the inputs whose memory outputs take over. ``computed`` counts the elements that the host has
    computed. ``born`` names the symbols that depend on data, ``bounds`` has what earlier rounds required of symbols.
    """

    rw: Rewriter
    source: Source = field(default_factory=Source)
    shared: Collection[str] = ()
    requirements: list[Requirement] = field(default_factory=list)
    unknown: dict[str, Unknown] = field(default_factory=dict)  # by value name
    producers: dict[str, Node] = field(default_factory=dict)
    scanned: int = 0
    computed: int = 0
    born: set[str] = field(default_factory=set)
    sizes: dict[str, list[Dim]] = field(default_factory=dict)  # by value name: what the host reads
    places: dict[str, Value] = field(default_factory=dict)  # of elements that are not 0, by value name
    loop_limit: int = LOOP_LIMIT
    depth: int = 0  # of the bodies around the nodes that are emitted
    bounds: Mapping[str, Bounds] = field(default_factory=dict)

    @staticmethod
    def start(
        name: str, inputs: Sequence[Value], source: Source, shared: Collection[str] = (),
        bounds: Mapping[str, Bounds] = EMPTY, loop_limit: int = LOOP_LIMIT,
    ) -> Builder:  # fmt: skip
        """A builder whose graph has inputs and nothing else."""
        rw = Rewriter(Graph(name, tuple(inputs), (), ()))
        return Builder(rw, source, shared, bounds=bounds, loop_limit=loop_limit)

    def device(self, operand: Operand, origin: tuple[str, ...], hint: str) -> Value:
        """The operand as a device value: a weight for concrete elements, a Dims node for symbolic ones."""
        if operand.value is None:
            assert operand.known is not None
            if operand.is_symbolic and self.depth:
                return self._symbolic(operand, origin, hint)  # a body's nodes are not there outside of it
            if operand.is_symbolic:
                operand.value = self._symbolic(operand, origin, hint)
            else:
                operand.value = self.rw.constant(operand.known, operand.dtype, hint, operand.source)
        return operand.value

    def _symbolic(self, operand: Operand, origin: tuple[str, ...], hint: str) -> Value:
        flat = [as_ratio(x) for x in elements(operand).flat]
        shape = tuple(int(d) for d in operand.shape)  # type: ignore[arg-type]

        def emit(values: Sequence[Dim]) -> Value:
            out = registry.make(
                self.rw, "Dims", [], {"values": tuple(values), "shape": shape}, origin=origin, hint=hint
            )
            if operand.dtype is DType.I64:
                return out
            return registry.make(self.rw, "Cast", [out], {"to": operand.dtype}, origin=origin, hint=hint)

        top = emit([n for n, _ in flat])
        if all(d == 1 for _, d in flat):
            return top
        return registry.make(self.rw, "Div", [top, emit([d for _, d in flat])], {}, origin=origin, hint=hint)

    def drop(self, start: int) -> None:
        """Removes the nodes from index ``start`` on, which belong to an ONNX node that cannot be imported."""
        del self.rw.nodes[start:]
        self.scanned = min(self.scanned, start)

    @contextmanager
    def body(self) -> Iterator[list[Node]]:
        """Within it, nodes are emitted into the list that it gives: those of a branch or of a loop's body."""
        self._scan()
        outside, self.rw.nodes, self.scanned = self.rw.nodes, [], 0
        self.depth += 1
        try:
            yield self.rw.nodes
        finally:
            self.rw.nodes, self.scanned = outside, len(outside)
            self.depth -= 1

    def rename(self, names: Mapping[str, Value], start: int = 0) -> None:
        """Puts other values in the place of those that nodes from index ``start`` on write: ``names``, by old name."""
        if not names:
            return
        self.rw.nodes[start:] = [host_nodes.renamed(n, names) for n in self.rw.nodes[start:]]
        for old in names:
            self.producers.pop(old, None)
        self.scanned = min(self.scanned, start)

    def producer(self, value: Value) -> Node | None:
        """The node that writes ``value``, if any."""
        self._scan()
        return self.producers.get(value.name)

    def _scan(self) -> None:
        for node in self.rw.nodes[self.scanned :]:
            self.producers.update((o.name, node) for o in node.outputs)
        self.scanned = len(self.rw.nodes)


def born(builder: Builder, hint: str, low: int, high: Dim | None) -> Dim:
    """A new symbol between ``low`` and what is known of ``high``, or what nodes required of it in earlier rounds.

    It is one of those that depend on data: a host node tells its value.
    """
    name, k = identifier(hint), 0
    while name in builder.born or name in {s.name for s in builder.rw.graph.symbols()}:
        k += 1
        name = f"{identifier(hint)}_{k}"
    most = dims.bounds(high)[1] if isinstance(high, IntExpr) else high
    required = builder.bounds.get(name)
    if required is not None:
        low = max(low, required.low)
        most = min((h for h in (most, required.high) if h is not None), default=None)
    builder.born.add(name)
    return dims.symbol(name, low, most)


def told(builder: Builder, sizes: Sequence[Dim], hint: str) -> tuple[IntExpr, ...]:
    """The symbols of sizes that a host node tells. One that can have one value only has a symbol to be checked by."""
    def only(d: int, k: int) -> IntExpr:
        return dims.var(Sym(identifier(builder.rw.fresh(f"{identifier(hint)}_is_{k}")), d, d))

    return tuple(d if isinstance(d, IntExpr) else only(d, k) for k, d in enumerate(sizes))


def as_ratio(x: scalars.Scalar) -> tuple[Dim, Dim]:
    """``x`` as (numerator, denominator). Raises Undecided where a float has no short exact fraction."""
    return (x.num, x.den) if isinstance(x, Ratio) else scalars.as_ratio(x)


def text(shape: Sequence[Dim]) -> str:
    """A shape for messages: ``[n, 3, 224]``."""
    return f"[{', '.join(str(d) for d in shape)}]"


def numel(shape: Sequence[Dim]) -> Dim:
    """The number of elements of a shape."""
    return dims.product(shape)


def tensor_type(operand: Operand) -> TensorType:
    """The type of an operand."""
    return TensorType(operand.dtype, operand.shape)
