"""The operator registry: one entry says everything that Arcweld knows about an operator.

Importers, passes, the torch partitioner, the support matrix and the tests of all operators use this table. An entry's
``reference`` is written from the operator's specification with numpy and never shares code with its ``lower``, because
the tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import numpy as np

from arcweld.compiler.dims import Dim, IntExpr, evaluate
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.expr import Expr
from arcweld.compiler.ir import Node, Rewriter, TensorType, Value


class Kind(Enum):
    """How an operator is fused, and which template computes it where it is a hero."""

    POINTWISE = "pointwise"  # one output element from the same element of each (broadcast) input
    MOVEMENT = "movement"  # one output element from input elements elsewhere: an index map
    REDUCE = "reduce"  # one output element from all elements along some axes, by a combiner such as sum
    ROWWISE = "rowwise"  # a row program: reductions of each row, and then each element from its row's results
    SCAN = "scan"  # one output element from all elements up to it along an axis, by a combiner
    CONTRACT = "contract"  # matrix products
    CONV = "conv"  # convolutions, also transposed
    WINDOW = "window"  # pools
    ATTENTION = "attention"  # scaled dot-product attention
    RECURRENCE = "recurrence"  # all steps of a recurrent layer
    SORT = "sort"  # the places of a row's elements in order
    SELECT = "select"  # the places of a row's first elements in order
    RUNS = "runs"  # the runs of equal elements of a vector in order
    SUPPRESS = "suppress"  # which boxes of a row stay where each suppresses later ones that it overlaps
    SCATTER = "scatter"  # a copy with the elements at given indices replaced or combined
    COMPOSITE = "composite"  # always decomposed into other operators before fusion


class Reader(Protocol):
    """Gives a lowering its operands, element by element.

    ``mask`` is the condition under which the element that is being computed counts at all; None: always.
    """

    @property
    def mask(self) -> Expr | None:
        """See the class."""

    def read(self, value: Value, coords: Sequence[Dim], mask: Expr | None = None) -> Expr:
        """The element of ``value`` at ``coords``: a load, or the producer's expression where that is fused.

        Where the bool expression ``mask`` is false nothing is read, and the element is 0.
        """


MOST_HEAD_SIZE = 256  # elements of a head that the attention template takes

Infer = Callable[[Sequence[TensorType | None], Mapping[str, Any]], tuple[TensorType, ...]]
Reference = Callable[[Sequence[np.ndarray | None], Mapping[str, Any]], tuple[np.ndarray, ...]]
Lower = Callable[[Reader, Node, tuple[Dim, ...]], Expr]
Decompose = Callable[[Rewriter, Node], tuple[Value, ...]]


@dataclass(frozen=True, slots=True)
class Attr:
    """The schema of an attribute; ``default`` counts where it is not ``required``.

    ``kind`` is int, float, str, bool, dtype, dim, a tuple of one of these (ints, floats, strs, dims), or any.
    """

    kind: str
    default: Any = None
    required: bool = False


@dataclass(frozen=True, slots=True)
class RowStage:
    """One statistic of a row: the sum, max or min (``combine``) of ``value(x, scalars)`` over its elements ``x``.

    ``scalars`` are the statistics of the stages before, by name. ``finish(statistic, scalars)`` changes the statistic
    before it is kept, for example from a sum to a mean; None leaves it.
    """

    name: str
    combine: str
    value: Callable[[Expr, Mapping[str, Expr]], Expr]
    finish: Callable[[Expr, Mapping[str, Expr]], Expr] | None = None


@dataclass(frozen=True, slots=True)
class RowProgram:
    """A rowwise operator: statistics of each row in stages, then a result for each element.

    A row is the last ``axes`` axes of the first input, flattened. ``result(reader, node, x, scalars, coords)`` is the
    output element at ``coords``, given the row's element ``x`` there and the statistics of all stages.
    ``of_row(scalars)`` are the further outputs, which have one element for each row; with ``per_row`` the first one
    has, too.
    """

    axes: int
    stages: tuple[RowStage, ...]
    result: Callable[[Reader, Node, Expr, Mapping[str, Expr], tuple[Dim, ...]], Expr]
    of_row: Callable[[Mapping[str, Expr]], tuple[Expr, ...]] = lambda scalars: ()
    per_row: bool = False


def statistic_type(x: Value) -> DType:
    """The type of the statistics of rows of ``x``."""
    return DType.F64 if x.dtype is DType.F64 else DType.F32


@dataclass(frozen=True, slots=True)
class Case:
    """Operands and attributes with which the tests run an operator.

    shapes     for each operand a shape, an array, or None for an optional one that is absent
    dtypes     the element types of operands given by shape, one run for each; empty: f32 only
    low, high  the interval from which their elements are drawn
    """

    shapes: tuple[Any, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ()
    low: float = -2.0
    high: float = 2.0


@dataclass(frozen=True, slots=True)
class OpDef:
    """The entry of one operator.

    name       the operator's name in IR text. It has the meaning of ONNX's operator of that name at the newest operator
               set, unless ``doc`` says otherwise; shapes, axes and pads, which ONNX passes as tensors, are attributes
    inputs     operand names; ``x?`` is optional, ``x*`` (the last one) stands for any number
    infer      the type rule: operand types and attributes -> result types; raises ModelError where they do not fit
    reference  numpy arrays and attributes without symbols -> arrays; sums of f16 and bf16 are kept in f32 or wider
    attrs      the schemas of all attributes, by name
    lower      (POINTWISE, MOVEMENT) the element of the first output at given coordinates
    combine    (REDUCE, SCAN) the template's combiner: sum, prod, max, min, argmax or argmin
    row        (ROWWISE) the row program of a node
    decompose  emits other operators with the node's meaning through a Rewriter, and returns their results
    supports   why a node cannot be compiled, or None
    cases      test cases
    tolerance  the largest relative error that the operator's tests accept; for 16-bit floats at least their rounding
    cost       scalar operations for one output element, by which fusion judges computing it more than once
    fan_out    how many elements of an operand one output element reads; None: one
    needs      the extents of operands that must not be 0, because the node's results are made of their elements
    doc        what differs from ONNX's operator, or the meaning of one that ONNX lacks
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
    needs: Callable[[Node], Sequence[Dim]] | None = None
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
    """True if an operator of this name has an entry."""
    return name in _OPS


def all_ops() -> tuple[OpDef, ...]:
    """Every entry, sorted by name."""
    return tuple(_OPS[k] for k in sorted(_OPS))


def check_attrs(op: OpDef, attrs: Mapping[str, Any], node: str) -> dict[str, Any]:
    """All attributes of ``op``: those in ``attrs``, and defaults for the others.

    Raises ModelError, which names ``node``, for an unknown attribute and for a missing required one.
    """
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
    """The result types of an operator. Raises ModelError where operands and attributes do not fit."""
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
    """Emits a node through ``rw`` with checked attributes and inferred types; returns its first output.

    ``hint`` is what the outputs' names begin with. Raises ModelError where operands and attributes do not fit,
    UnsupportedError for strings.
    """
    if any(v is not None and v.dtype.is_string for v in inputs):
        raise UnsupportedError(f"{name} of strings: there is no kernel for strings")
    op = opdef(name)
    full = check_attrs(op, attrs or {}, origin[0] if origin else hint or name)
    types = op.infer([None if v is None else v.type for v in inputs], full)
    if any(t.dtype.is_string for t in types):
        raise UnsupportedError(f"{name} that gives strings: there is no kernel for strings")
    return rw.emit(name, inputs, types, full, origin=origin, name=hint)


def concrete(attrs: Mapping[str, Any], env: Mapping[str, int]) -> dict[str, Any]:
    """``attrs`` with every symbolic dimension replaced by its value for the symbols' values in ``env``."""

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
    """True if the attention template takes heads of these sizes, in elements: of queries and keys, and of values."""
    return all(isinstance(d, int) and 1 <= d <= MOST_HEAD_SIZE for d in (head, value_head))


def must_decompose(node: Node) -> bool:
    """Whether no template computes ``node``, so that it must be decomposed.

    That holds for composite operators, rowwise ones along another axis than the last, and attention with heads that
    ``fits_attention`` refuses.
    """
    op = opdef(node.op)
    if op.decompose is None:
        return False
    if op.kind is Kind.ATTENTION:
        return not fits_attention(node.operands()[0].shape[3], node.output.shape[3])
    if op.kind is Kind.ROWWISE:
        return bool(node.attrs["axis"] != node.output.type.rank - 1)
    return op.kind is Kind.COMPOSITE
