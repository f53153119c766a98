"""Derives closed forms of integer and bool tensors: the element at (i, j, …) as a formula of its coordinates.

Exporters compute positions and masks with tensors: ranges, comparisons, running sums, gathers at computed indices. The
registry's lowerings give one element of these as an expression. Folding it gives the closed form. Of integers it is a
``Dim``; of bools a conjunction, a set of ``Dim`` that must all be at least 0 (the empty set always holds). For example,
``LessOrEqual(Range(n)[None, :], Range(n)[:, None])`` has the closed form {i - j}, a causal mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from arcweld.compiler.demand import Notes, Request, demand
from arcweld.compiler.dims import (
    Dim,
    Sym,
    add,
    coefficient,
    dynamic_atoms,
    free_symbols,
    is_nonneg,
    maximum,
    mentions,
    minimum,
    mul,
    substitute,
    symbol,
    var,
)
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, binary, cast, const, index, variable, walk, where
from arcweld.compiler.ir import Node, Value
from arcweld.compiler.ops.registry import opdef
from arcweld.passes.common import Tracker

Conjunction = frozenset[Dim]
ClosedForm = Dim | Conjunction
ALWAYS: Conjunction = frozenset()
NEVER: Conjunction = frozenset({-1})
MOST_ELEMENTS = 1 << 22  # the most elements of a constant for which a closed form is looked for


class Elements:
    """The closed forms of the values of one graph, each derived once."""

    def __init__(self, rw: Tracker) -> None:
        self._rw = rw
        self._values: dict[str, Value] = {}
        self._read: dict[Request, Expr] = {}
        self._folded: dict[Expr, ClosedForm | None] = {}
        self._constants: dict[str, ClosedForm | None] = {}

    def closed_form(self, v: Value) -> ClosedForm | None:
        """The element of ``v`` at ``coordinates(v)``; None if it depends on data, or if no closed form was found."""
        return self._fold(demand(self._request(v, coordinates(v)), self._read, self._element))

    def read(self, notes: Notes, value: Value, coords: Sequence[Dim]) -> Expr:
        """The element of ``value`` at ``coords`` as an expression, for a lowering.

        If it is not known yet, that is put down in ``notes``, and a stand-in is returned (``compiler/demand.py``).
        """
        request = self._request(value, coords)
        found = self._read.get(request)
        return notes.stand_in(request, value.dtype) if found is None else found

    def _request(self, value: Value, coords: Sequence[Dim]) -> Request:
        self._values[value.name] = value
        return value.name, tuple(coords), None

    def _element(self, request: Request) -> Expr:
        value, coords = self._values[request[0]], request[1]
        unknown = variable(value.name, value.dtype)
        node = self._rw.producer(value)
        if node is None:
            form = self._constant(value) if value.name in self._rw.weights else None
            if form is None:
                return unknown
            return _expression(form, dict(zip(_axes(value), coords)), value.dtype)
        if node.op in ("ReduceSum", "CumSum"):
            total = self._total(node, coords)
            return unknown if total is None else cast(index(total), value.dtype)
        lower = opdef(node.op).lower
        if lower is None:
            return unknown
        inside = _Inside(self, masked=node.op not in _SELECTING)
        return inside.notes.checked(lower(inside, node, coords))

    def _total(self, node: Node, coords: tuple[Dim, ...]) -> Dim | None:
        """The result of a ReduceSum or a CumSum whose summed elements are all equal; else None."""
        (x,), running = node.operands(), node.op == "CumSum"
        axes = (node.attrs["axis"],) if running else node.attrs["axes"]
        own = {a: symbol(f"sum{a}.{node.name}", 0, x.shape[a] - 1) for a in axes}
        kept = iter(c for a, c in enumerate(coords) if not ((running or node.attrs["keepdims"]) and a in own))
        notes = Notes()
        element = self._fold(
            notes.checked(self.read(notes, x, [own[a] if a in own else next(kept) for a in range(x.type.rank)]))
        )
        if element is None or isinstance(element, frozenset):
            return None
        if any(mentions(element, s) for o in own.values() for s in free_symbols(o)):
            return None
        for count in [_terms(node, coords)] if running else [x.shape[a] for a in axes]:
            element = mul(element, count)
        return element

    def _constant(self, value: Value) -> ClosedForm | None:
        if value.name not in self._constants:
            self._constants[value.name] = _form_of_array(self._rw.weights[value.name].data, _axes(value))
        return self._constants[value.name]

    # ------------------------------------------------------------------------------------------------- folding

    def _fold(self, e: Expr) -> ClosedForm | None:
        for x in walk([e], self._folded):
            self._folded[x] = self._step(x)
        return self._folded[e]

    def _step(self, e: Expr) -> ClosedForm | None:
        if e.op == "const":
            return None if e.dtype.is_float else _truth(e.attr) if e.dtype is DType.BOOL else int(e.attr)
        if e.op == "index":
            return self._settled(e.attr)
        if e.op in ("load", "var"):
            return None
        args = [self._folded[a] for a in e.args]
        if e.op == "and":
            return _both(*args)
        if e.op == "or":
            return _either(*args)
        if any(a is None for a in args):
            return None
        if e.op == "where":
            return _choice(*args)
        if e.op == "not":
            return negation(args[0])
        if e.op == "cast":
            return _converted(args[0], e.dtype)
        if len(args) == 2 and not any(isinstance(a, frozenset) for a in args):
            return _arithmetic(e.op, *args)
        return None

    def _settled(self, d: Dim) -> Dim | None:
        """``d`` with the indices that it reads at run time replaced by their closed forms; None if one has none."""
        table: dict[Any, Dim] = {}
        for dyn in dynamic_atoms(d):
            assert isinstance(dyn.payload, Expr)
            found = self._folded[dyn.payload]
            if found is None or isinstance(found, frozenset):
                return None
            table[dyn] = found
        return substitute(d, table)


def elements_of(rw: Tracker) -> Elements:
    """The closed forms of the graph that ``rw`` makes: the same object at every call."""
    found: Elements = rw.memo.setdefault("elements", Elements(rw))
    return found


# operators whose lowerings select among the elements that they read, so that the value of a masked one doesn't matter,
# and those that mask only reads from an axis without elements, for which no index is right
_SELECTING = frozenset({"Concat", "Pad", "Gather", "GatherElements", "GatherND"})


class _Inside:
    """The reader of one lowering. Unless ``masked``, masks are dropped: closed forms are defined for every integer."""

    mask: Expr | None = None

    def __init__(self, elements: Elements, masked: bool) -> None:
        self._elements = elements
        self._masked = masked
        self.notes = Notes()

    def read(self, value: Value, coords: Sequence[Dim], mask: Expr | None = None) -> Expr:
        found = self._elements.read(self.notes, value, coords)
        return where(mask, found, const(0, found.dtype)) if mask is not None and self._masked else found


def _terms(node: Node, coords: tuple[Dim, ...]) -> Dim:
    """How many elements a CumSum adds up for the element at ``coords``."""
    axis, last = node.attrs["axis"], int(not node.attrs["exclusive"])
    before = node.output.shape[axis] - 1 - coords[axis] if node.attrs["reverse"] else coords[axis]
    return before + last


def coordinates(v: Value) -> tuple[Dim, ...]:
    """The coordinates of ``v`` in closed forms: symbols, and 0 along an axis of extent 1."""
    return tuple(0 if d == 1 else var(axis) for d, axis in zip(v.shape, _axes(v)))


def _axes(v: Value) -> tuple[Sym, ...]:
    return tuple(Sym(f"axis{k}", 0, d - 1) for k, d in enumerate(v.shape))


def _form_of_array(array: np.ndarray, axes: Sequence[Sym]) -> ClosedForm | None:
    """The closed form of a constant whose elements are equal, linear in the coordinates, or a lower triangle."""
    if not 0 < array.size <= MOST_ELEMENTS or array.dtype.kind not in "biu":
        return None
    first = array.flat[0]
    if (array == first).all():
        return _truth(bool(first)) if array.dtype == np.bool_ else int(first)
    if array.dtype == np.bool_:
        square = array.ndim >= 2 and array.size == array.shape[-1] ** 2 and array.shape[-2] == array.shape[-1]
        if square and np.array_equal(array.reshape(array.shape[-2:]), np.tril(np.ones(array.shape[-2:], np.bool_))):
            return frozenset({var(axes[-2]) - var(axes[-1])})
        return None
    total: Dim = int(first)
    fitted = np.asarray(int(first))
    for k, axis in enumerate(axes):
        if array.shape[k] > 1:
            slope = int(array[tuple(int(j == k) for j in range(array.ndim))]) - int(first)
            steps = np.arange(array.shape[k]) * slope
            fitted = fitted + steps.reshape([-1 if j == k else 1 for j in range(array.ndim)])
            total = add(total, mul(slope, var(axis)))
    return total if np.array_equal(array, fitted) else None


def _expression(form: ClosedForm, at: dict[Any, Dim], dtype: DType) -> Expr:
    """A closed form at other coordinates, as an expression."""
    if not isinstance(form, frozenset):
        return cast(index(substitute(form, at)), dtype)
    out = const(True, DType.BOOL)
    for e in form:
        out = binary("and", out, binary("ge", index(substitute(e, at)), const(0, DType.I64)))
    return out


# -------------------------------------------------------------------------------------------------- rules of folding


def _truth(value: bool) -> Conjunction:
    return ALWAYS if value else NEVER


def at_least_zero(e: Dim) -> Conjunction:
    """The condition ``e >= 0``, decided where the ranges of its symbols allow."""
    if is_nonneg(e):
        return ALWAYS
    return NEVER if is_nonneg(-e - 1) else frozenset({e})


def negation(c: ClosedForm | None) -> Conjunction | None:
    """The negation of a condition; None of a conjunction of several, whose negation is no conjunction."""
    if not isinstance(c, frozenset) or len(c) > 1:
        return None
    return NEVER if not c else at_least_zero(-next(iter(c)) - 1)


def _both(a: ClosedForm | None, b: ClosedForm | None) -> Conjunction | None:
    if NEVER in (a, b):
        return NEVER
    return a | b if isinstance(a, frozenset) and isinstance(b, frozenset) else None


def _either(a: ClosedForm | None, b: ClosedForm | None) -> Conjunction | None:
    if ALWAYS in (a, b):
        return ALWAYS
    for x, y in ((a, b), (b, a)):
        if x in (NEVER, y) and isinstance(y, frozenset):
            return y
    return None


def _converted(x: ClosedForm | None, dtype: DType) -> ClosedForm | None:
    if isinstance(x, frozenset):
        return x if dtype is DType.BOOL else {ALWAYS: 1, NEVER: 0}.get(x) if dtype.is_int else None
    if dtype is DType.BOOL:
        return _truth(x != 0) if isinstance(x, int) else None
    return x if dtype in (DType.I64, DType.I32) else None


def _arithmetic(op: str, a: Any, b: Any) -> ClosedForm | None:
    if op == "eq":
        low, high = at_least_zero(a - b), at_least_zero(b - a)
        return NEVER if NEVER in (low, high) else low | high
    if op == "ne":
        return negation(_arithmetic("eq", a, b))
    if op in _ORDER:
        return at_least_zero(_ORDER[op](a, b))
    return _INTEGER[op](a, b) if op in _INTEGER else None


_ORDER: dict[str, Any] = {
    "le": lambda a, b: b - a,
    "lt": lambda a, b: b - a - 1,
    "ge": lambda a, b: a - b,
    "gt": lambda a, b: a - b - 1,
}
_INTEGER: dict[str, Any] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "index_in": lambda a, n: a,
    "strict_index": lambda a, n: a,
    "min": minimum,
    "max": maximum,
}


def _choice(condition: Any, yes: Any, no: Any) -> ClosedForm | None:
    """``yes`` where the condition holds, else ``no``."""
    if condition == ALWAYS or yes == no:
        return yes  # type: ignore[no-any-return]
    if condition == NEVER:
        return no  # type: ignore[no-any-return]
    if isinstance(yes, frozenset):
        if (yes, no) == (ALWAYS, NEVER):
            return condition  # type: ignore[no-any-return]
        if (yes, no) == (NEVER, ALWAYS):
            return negation(condition)
        return _both(condition, yes) if no == NEVER else None
    # if one branch is chosen at a single coordinate, and the other one has the same value there, the other is enough
    for c, here, elsewhere in ((condition, yes, no), (negation(condition), no, yes)):
        place = _only_place(c)
        if place and substitute(here, place) == substitute(elsewhere, place):
            return elsewhere  # type: ignore[no-any-return]
    return None


def _only_place(c: Conjunction | None) -> dict[Any, Dim]:
    """{coordinate: value} for a condition that holds at the first or last value of a coordinate only; else {}."""
    if c is None or len(c) != 1:
        return {}
    (e,) = c
    for s in free_symbols(e):
        slope = coefficient(e, s)
        if slope == -1 and e + var(s) == s.lo:
            return {s: s.lo}
        if slope == 1 and s.hi is not None and e - var(s) == -s.hi:
            return {s: s.hi}
    return {}
