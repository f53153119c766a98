"""Einsum, decomposed into products of two operands, from left to right.

Each is a MatMul, or a broadcast Mul where no index is summed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, product
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import Node, Rewriter, TensorType, Value
from arcweld.compiler.ops.elementwise import widen
from arcweld.compiler.ops.emit import Emit
from arcweld.compiler.ops.registry import Attr, Case, Kind, OpDef, register
from arcweld.compiler.ops.shapes import NUMERIC, check_dtype, present, same_dtype

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A parsed equation: the labels of each operand and of the result, and every label's extent."""

    terms: tuple[Labels, ...]
    result: Labels
    extents: Mapping[str, Dim]


def parse_equation(equation: str, shapes: Sequence[Sequence[Dim]]) -> Plan:
    """Parses ``equation`` for operands of these shapes; an ellipsis becomes numbered labels.

    Raises ModelError for a malformed equation, and for one that does not fit the shapes.
    """
    text = equation.replace(" ", "")
    if not re.fullmatch(r"[A-Za-z.,]*(->[A-Za-z.]*)?", text):
        raise ModelError(f"Einsum: cannot read the equation {equation!r}")
    left, arrow, right = text.partition("->")
    sides = left.split(",")
    if len(sides) != len(shapes):
        raise ModelError(f"Einsum: {equation!r} has {len(sides)} operands, {len(shapes)} are given")
    terms = tuple(_labels(side, len(shape), equation) for side, shape in zip(sides, shapes))
    dots = max((t for t in terms), key=lambda t: sum(x.isdigit() for x in t))
    ellipsis = tuple(x for x in dots if x.isdigit())
    if arrow:
        result = _expand(right, ellipsis, equation)
    else:
        flat = left.replace(".", "").replace(",", "")
        result = (*ellipsis, *sorted(x for x in set(flat) if flat.count(x) == 1))
    extents = _extents(terms, shapes, equation)
    if any(x not in extents for x in result) or len(set(result)) != len(result):
        raise ModelError(f"Einsum: the result of {equation!r} has unknown or repeated labels")
    return Plan(terms, result, extents)


def _labels(side: str, rank: int, equation: str) -> Labels:
    hidden = rank - len(side.replace("...", ""))
    if hidden < 0 or (hidden and "..." not in side):
        raise ModelError(f"Einsum: {side!r} in {equation!r} does not fit a rank {rank} operand")
    # counted from the end, because ellipses broadcast
    return _expand(side, tuple(str(k) for k in range(hidden, 0, -1)), equation)


def _expand(side: str, ellipsis: Labels, equation: str) -> Labels:
    before, dots, after = side.partition("...")
    if "." in before or "." in after:
        raise ModelError(f"Einsum: cannot read the equation {equation!r}")
    return (*before, *(ellipsis if dots else ()), *after)


def _extents(terms: Sequence[Labels], shapes: Sequence[Sequence[Dim]], equation: str) -> dict[str, Dim]:
    extents: dict[str, Dim] = {}
    for labels, shape in zip(terms, shapes):
        for k, (label, d) in enumerate(zip(labels, shape)):
            own = shape[labels.index(label)]
            if label in labels[:k] and d != own:
                raise ModelError(f"Einsum: index {label} of {equation!r} is both {own} and {d} in one operand")
            have = extents.setdefault(label, d)
            if have == 1:
                extents[label] = d
            elif d not in (1, have):
                raise ModelError(f"Einsum: index {label} of {equation!r} is both {have} and {d}")
    return extents


def _infer(types: Sequence[TensorType | None], attrs: Mapping[str, Any]) -> tuple[TensorType, ...]:
    given = present("Einsum", types)
    same_dtype("Einsum", given)
    check_dtype("Einsum", given[0], NUMERIC)
    plan = parse_equation(attrs["equation"], [t.shape for t in given])
    return (given[0].with_shape([plan.extents[x] for x in plan.result]),)


def _reference(arrays: Sequence[np.ndarray | None], attrs: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
    given = [a for a in arrays if a is not None]
    y = np.einsum(attrs["equation"], *[widen(a) for a in given], optimize=True)
    return (np.asarray(y).astype(given[0].dtype),)


Term = tuple[Value, Labels]


def _decompose(rw: Rewriter, node: Node) -> tuple[Value, ...]:
    e = Emit(rw, node)
    plan = parse_equation(node.attrs["equation"], [v.shape for v in node.operands()])
    todo = [_squeezed(e, *_diagonal(e, v, labels)) for v, labels in zip(node.operands(), plan.terms)]
    done = todo.pop(0)
    while todo:
        other = todo.pop(0)
        needed = {*plan.result, *(x for _, labels in todo for x in labels)}
        a, b = _summed(e, done, needed | set(other[1])), _summed(e, other, needed | set(done[1]))
        done = _pair(e, a, b, needed, plan)
    value, labels = _summed(e, done, set(plan.result))
    # labels of extent 1 in every operand were squeezed away: they come back as axes of 1
    kept = [x for x in plan.result if x in labels]
    value = e.transpose(value, [labels.index(x) for x in kept])
    return (e.reshape(value, [plan.extents[x] for x in plan.result]),)


def _diagonal(e: Emit, value: Value, labels: Labels) -> Term:
    """The diagonals along axes that share a label, which becomes the last one.

    A row of zeros is put behind the two axes' n rows, and all is divided into rows of n + 1: the first column is the
    diagonal.
    """
    while repeated := next((x for x in labels if labels.count(x) > 1), None):
        first = labels.index(repeated)
        second = labels.index(repeated, first + 1)
        rest = [k for k in range(len(labels)) if k not in (first, second)]
        value = e.transpose(value, [*rest, first, second])
        lead, n, last = value.shape[:-2], value.shape[-1], len(rest)
        pads = (*[0] * (last + 1), *[0] * last, n)
        value = e("Pad", e.reshape(value, (*lead, n * n)), pads=pads, mode="constant", value=0.0)
        value = e.reshape(e.slice(e.reshape(value, (*lead, n, n + 1)), last + 1, 0, 1), (*lead, n))
        labels = (*(labels[k] for k in rest), repeated)
    return value, labels


def _squeezed(e: Emit, value: Value, labels: Labels) -> Term:
    """The value without its axes of extent 1, which only broadcast, and the labels of the others."""
    keep = [k for k, d in enumerate(value.shape) if d != 1]
    return e.reshape(value, [value.shape[k] for k in keep]), tuple(labels[k] for k in keep)


def _summed(e: Emit, term: Term, needed: set[str]) -> Term:
    """Sums over the indices that nothing else needs."""
    value, labels = term
    axes = tuple(k for k, x in enumerate(labels) if x not in needed)
    if not axes:
        return term
    return e("ReduceSum", value, axes=axes, keepdims=0), tuple(x for x in labels if x in needed)


def _pair(e: Emit, a: Term, b: Term, needed: set[str], plan: Plan) -> Term:
    shared = [x for x in a[1] if x in b[1]]
    batch = [x for x in shared if x in needed]
    inner = [x for x in shared if x not in needed]
    rows = [x for x in a[1] if x not in shared]
    columns = [x for x in b[1] if x not in shared]
    out = (*batch, *rows, *columns)

    def extents(labels: Sequence[str]) -> tuple[Dim, ...]:
        return tuple(plan.extents[x] for x in labels)

    left = _ordered(e, a, (*batch, *rows, *inner))
    right = _ordered(e, b, (*batch, *inner, *columns))
    if not inner:
        left = e.reshape(left, (*extents(batch), *extents(rows), *[1] * len(columns)))
        right = e.reshape(right, (*extents(batch), *[1] * len(rows), *extents(columns)))
        return e("Mul", left, right), out
    m, k, n = (product(extents(labels)) for labels in (rows, inner, columns))
    left = e.reshape(left, (*extents(batch), m, k))
    right = e.reshape(right, (*extents(batch), k, n))
    return e.reshape(e("MatMul", left, right), extents(out)), out


def _ordered(e: Emit, term: Term, labels: Labels) -> Value:
    return e.transpose(term[0], [term[1].index(x) for x in labels])


register(
    OpDef(
        "Einsum", Kind.COMPOSITE, ("x*",), _infer, _reference, {"equation": Attr("str", required=True)},
        decompose=_decompose,
        cases=(
            Case(((3, 4), (4, 5)), {"equation": "ij,jk->ik"}, ("f32", "f16")),
            Case(((2, 3, 4), (2, 5, 4)), {"equation": "bid, bjd -> bij"}, ("f32",)),
            Case(((2, 3, 4, 5), (2, 6, 4, 5)), {"equation": "bqhd,bkhd->bhqk"}, ("f32",)),
            Case(((3, 4), (5,)), {"equation": "ij,k->kji"}, ("f32",)),
            Case(((3, 4, 5),), {"equation": "ijk->ki"}, ("f32",)),
            Case(((3, 4), (3, 4)), {"equation": "ij,ij->"}, ("f32",)),
            Case(((2, 3, 4), (4, 5)), {"equation": "...ij,jk"}, ("f32",)),
            Case(((2, 1, 3, 4), (5, 4, 6)), {"equation": "...ij,...jk->...ik"}, ("f32",)),
            Case(((2, 3), (3, 4), (4, 5)), {"equation": "ab,bc,cd->ad"}, ("f32",)),
            Case(((2, 3, 4), (2, 3)), {"equation": "bij,bi->bj"}, ("f32",)),
            Case(((3, 4, 4),), {"equation": "...ii->...i"}, ("f32", "i32")),
            Case(((4, 2, 4), (4, 5)), {"equation": "iji,ik->jk"}, ("f32",)),
            Case(((3, 3),), {"equation": "ii"}, ("f32",)),
            Case(((3, 2, 3, 3),), {"equation": "iaii->ai"}, ("f32",)),
        ),
    )
)  # fmt: skip
