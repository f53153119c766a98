"""The operator registry: one entry says everything that Arcweld knows about an operator.

Importers, passes, the torch partitioner, the support matrix and the sweep tests all ask this table. An
entry's ``reference`` is written from the operator's specification with numpy and must never share code with
its ``lower``: that independence is what the tests rest on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import numpy as np

from arcweld.compiler.dims import Dim, IntExpr, evaluate
from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.expr import Expr
from arcweld.compiler.ir import Node, Rewriter, TensorType, Value


class Kind(Enum):
    """How an operator fuses. The kind decides which template can compute it, if any."""

    POINTWISE = "pointwise"  # one output element from the same element of each (broadcast) input
    MOVEMENT = "movement"  # one output element from input elements elsewhere: an index map
    REDUCE = "reduce"  # folds axes with a combiner
    ROWWISE = "rowwise"  # [reduce, map]* on one row
    CONTRACT = "contract"  # matrix products
    CONV = "conv"  # convolutions, also transposed
    WINDOW = "window"  # pools
    ATTENTION = "attention"
    SCATTER = "scatter"
    COMPOSITE = "composite"  # always decomposed into others before fusion


class Reader(Protocol):
    """What a lowering gets: access to the operands, element by element."""

    def read(self, value: Value, coords: Sequence[Dim], mask: Expr | None = None) -> Expr:
        """The element of ``value`` at ``coords``: a load, or the producer's expression where it is fused.

        Where ``mask`` (bool) is false the element is not read and the result is 0.
        """


MOST_HEAD_SIZE = 256  # of the attention template

Infer = Callable[[Sequence[TensorType | None], Mapping[str, Any]], tuple[TensorType, ...]]
Reference = Callable[[Sequence[np.ndarray | None], Mapping[str, Any]], tuple[np.ndarray, ...]]
Lower = Callable[[Reader, Node, tuple[Dim, ...]], Expr]
Decompose = Callable[[Rewriter, Node], tuple[Value, ...]]


@dataclass(frozen=True, slots=True)
class Attr:
    """An attribute's schema. ``kind`` is one of int, float, str, bool, dtype, ints, floats, strs, dim, dims, any."""

    kind: str
    default: Any = None
    required: bool = False


@dataclass(frozen=True, slots=True)
class RowStage:
    """One reduction over a row: ``combine`` (sum, max, min) over ``value(x, scalars)``, stored under ``name``.

    ``finish`` maps the reduced scalar to what later stages see (for example a sum to a mean); None keeps it.
    """

    name: str
    combine: str
    value: Callable[[Expr, Mapping[str, Expr]], Expr]
    finish: Callable[[Expr, Mapping[str, Expr]], Expr] | None = None


@dataclass(frozen=True, slots=True)
class RowProgram:
    """A rowwise operator as ``[reduce, map]*``. The row is the trailing ``axes`` of the first input, flattened.

    ``result(reader, node, x, scalars, coords)`` is the output element at ``coords``, given the row element ``x``.
    """

    axes: int
    stages: tuple[RowStage, ...]
    result: Callable[[Reader, Node, Expr, Mapping[str, Expr], tuple[Dim, ...]], Expr]


@dataclass(frozen=True, slots=True)
class Case:
    """A test case of the sweep: input shapes (or arrays), dtypes and attributes. ``low``/``high`` bound random
    values."""

    shapes: tuple[Any, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ()
    low: float = -2.0
    high: float = 2.0


@dataclass(frozen=True, slots=True)
class OpDef:
    """All about one operator.

    name       the operator's name in IR text: ONNX's name and meaning at its newest opset, unless ``doc`` says
               otherwise;
               what ONNX passes as shape, axes or pads *tensors* are attributes here (ints or Dims)
    inputs     operand names; ``x?`` optional, ``x*`` variadic (last)
    infer      operand types and attributes -> result types; raises ModelError on disagreement
    reference  numpy arrays and concrete attributes -> arrays (accumulating in f32 or wider for f16/bf16 inputs)
    lower      (POINTWISE, MOVEMENT) the element of output 0 at coords, reading operands through a Reader
    combine    (REDUCE) the reduce template's combiner: sum, prod, max, min, argmax or argmin
    row        (ROWWISE) the row program of a node
    decompose  an equivalent sequence of other operators, emitted through the Rewriter (operands already substituted)
    supports   None, or why this node cannot be compiled
    cost       scalar operations for one output element: what recomputing it would cost
    fan_out    how many elements of an operand one output element reads; None: one
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    infer: Infer
    reference: Reference
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    lower: Lower | None = None
    combine: str = ""
    row: Callable[[Node], RowProgram] | None = None
    decompose: Decompose | None = None
    supports: Callable[[Node], str | None] | None = None
    cases: tuple[Case, ...] = ()
    tolerance: float = 1e-5
    cost: int = 1
    fan_out: Callable[[Node], int] | None = None
    doc: str = ""


_OPS: dict[str, OpDef] = {}


def register(op: OpDef) -> OpDef:
    """Adds an entry. Raises ValueError for a name already taken: each operator is defined in one place."""
    if op.name in _OPS:
        raise ValueError(f"operator {op.name} is registered twice")
    _OPS[op.name] = op
    return op


def opdef(name: str) -> OpDef:
    """The entry of an operator. Raises UnsupportedError for an unknown name."""
    try:
        return _OPS[name]
    except KeyError:
        raise UnsupportedError(
            f"unknown operator {name}", hint="`onnx-to-engine inspect MODEL` lists every unsupported node"
        ) from None


def is_registered(name: str) -> bool:
    return name in _OPS


def all_ops() -> tuple[OpDef, ...]:
    """Every entry, by name."""
    return tuple(_OPS[k] for k in sorted(_OPS))


def check_attrs(op: OpDef, attrs: Mapping[str, Any], node: str) -> dict[str, Any]:
    """Fills in defaults. Raises ModelError for an unknown attribute or a missing required one."""
    unknown = sorted(set(attrs) - set(op.attrs))
    if unknown:
        raise ModelError(f"{op.name} has no attribute {', '.join(unknown)}", node=node)
    full = {}
    for name, spec in op.attrs.items():
        if name in attrs:
            full[name] = attrs[name]
        elif spec.required:
            raise ModelError(f"{op.name} needs the attribute {name}", node=node)
        else:
            full[name] = spec.default
    return full


def infer_types(name: str, inputs: Sequence[TensorType | None], attrs: Mapping[str, Any]) -> tuple[TensorType, ...]:
    """The result types of an operator. Raises ModelError where operands disagree."""
    return opdef(name).infer(inputs, attrs)


def make(
    rw: Rewriter,
    name: str,
    inputs: Sequence[Value | None],
    attrs: Mapping[str, Any] | None = None,
    *,
    origin: tuple[str, ...] = (),
    hint: str = "",
) -> Value:
    """Emits a node through ``rw`` with checked attributes and inferred types; returns its first output."""
    op = opdef(name)
    full = check_attrs(op, attrs or {}, origin[0] if origin else hint or name)
    types = op.infer([None if v is None else v.type for v in inputs], full)
    return rw.emit(name, inputs, types, full, origin=origin, name=hint)


def concrete(attrs: Mapping[str, Any], env: Mapping[str, int]) -> dict[str, Any]:
    """Attributes with every symbolic dimension replaced by its value."""

    def value(a: Any) -> Any:
        if isinstance(a, IntExpr):
            return evaluate(a, env)
        if isinstance(a, tuple):
            return tuple(value(x) for x in a)
        return a

    return {k: value(v) for k, v in attrs.items()}


def unsupported_reason(node: Node) -> str | None:
    """Why ``node`` cannot be compiled, or None."""
    if not is_registered(node.op):
        return f"operator {node.op} is not implemented"
    op = opdef(node.op)
    return op.supports(node) if op.supports else None


def fits_attention(head: Dim, value_head: Dim) -> bool:
    """True if the attention template takes heads of these sizes."""
    return all(isinstance(d, int) and 1 <= d <= MOST_HEAD_SIZE for d in (head, value_head))


def must_decompose(node: Node) -> bool:
    """True for a composite operator, for a row program along another axis than the last, and for attention whose heads
    are too large for the attention template.
    """
    op = opdef(node.op)
    if op.decompose is None:
        return False
    if op.kind is Kind.ATTENTION:
        return not fits_attention(node.operands()[0].shape[3], node.output.shape[3])
    if op.kind is Kind.ROWWISE:
        return bool(node.attrs["axis"] != node.output.type.rank - 1)
    return op.kind is Kind.COMPOSITE
