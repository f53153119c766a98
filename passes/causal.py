"""Finds the parts of a mask that attention need not read: the causal triangle, and conditions that always hold.

In a causal mask query i attends to keys 0..i, which the kernel computes itself. Exporters write the triangle as a
constant, as Trilu of ones, or as a comparison of positions whose closed form ``elements.py`` derives; joined with other
conditions by And; and often as numbers to add: Where(condition, 0, -large).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arcweld.compiler.dims import Dim
from arcweld.compiler.ir import Node, Value
from arcweld.passes.common import Tracker, scalar
from arcweld.passes.elements import ALWAYS, Conjunction, Elements, coordinates, negation

MASKED_OUT = -1e4  # exporters add a number of at most this to a score that must not count, or write it
_VIEWS = frozenset({"Reshape", "Expand", "Cast", "Identity"})


@dataclass(frozen=True, slots=True)
class Remainder:
    """The part of a mask that is left (None: nothing), and whether the causal triangle was in it."""

    mask: Value | None
    causal: bool


def without_causal(
    rw: Tracker, elements: Elements, mask: Value, length: Dim | None, origin: tuple[str, ...]
) -> Remainder:
    """Splits ``mask`` into the causal triangle and the rest.

    A bool mask is true where a query attends to a key, a float one is added to the scores. ``length``: the number of
    queries and of keys, None if they differ. New nodes get ``origin``.
    """
    if not mask.dtype.is_float:
        return _of_condition(rw, elements, mask, length, origin)
    array = rw.array(mask)
    if array is not None:
        causal = _is_square(mask, length) and all(_is_added_triangle(m) for m in array.reshape(-1, *array.shape[-2:]))
        return Remainder(None if causal else mask, causal)
    chosen = _behind_views(rw, mask)
    if chosen is None or chosen.op != "Where":
        return Remainder(mask, False)
    condition, yes, no = chosen.operands()
    a, b = _number(rw, yes), _number(rw, no)
    if a == 0 and b is not None and b <= MASKED_OUT:
        rest = _of_condition(rw, elements, condition, length, origin)
        # a row without keys by the other conditions has equal weights for all keys, those past the triangle too
        equal_rows = rest.causal and rest.mask is not None and not np.isinf(b)
        if rest.mask is None or rest.mask is condition or equal_rows:
            return Remainder(None, rest.causal) if rest.mask is None else Remainder(mask, False)
        return Remainder(rw.make("Where", [rest.mask, yes, no], origin), rest.causal)
    if b == 0 and a is not None and a <= MASKED_OUT:
        seen = negation(elements.closed_form(condition))
        if seen == ALWAYS or _is_causal(seen, condition, length):
            return Remainder(None, seen != ALWAYS)
    return Remainder(mask, False)


def _number(rw: Tracker, v: Value) -> float | None:
    """The one value that all elements of ``v`` have: of a constant, or of a tensor filled with it; else None."""
    node = rw.producer(v)
    while node is not None and node.op in _VIEWS:
        v = node.operands()[0]
        node = rw.producer(v)
    if node is not None and node.op == "ConstantOfShape":
        return float(node.attrs["value"])
    return scalar(rw.array(v))


def _of_condition(
    rw: Tracker, elements: Elements, condition: Value, length: Dim | None, origin: tuple[str, ...]
) -> Remainder:
    kept: list[Value] = []
    causal = False
    terms = _terms(rw, condition)
    for term in terms:
        form = elements.closed_form(term)
        if not isinstance(form, frozenset):
            kept.append(term)
        elif _is_causal(form, term, length):
            causal = True
        elif form != ALWAYS:
            kept.append(term)
    if len(kept) == len(terms):
        return Remainder(condition, False)
    rest = kept[0] if kept else None
    for term in kept[1:]:
        rest = rw.make("And", [rest, term], origin)
    return Remainder(rest, causal)


def _terms(rw: Tracker, condition: Value) -> list[Value]:
    """The conditions that And joins. Expands are dropped: attention broadcasts its mask."""
    terms: list[Value] = []
    stack = [condition]
    while stack:
        term = stack.pop()
        node = rw.producer(term)
        if node is not None and node.op == "Expand" and node.operands()[0].type.rank >= 2:
            stack.append(node.operands()[0])
        elif node is not None and node.op == "And":
            stack += reversed(node.operands())
        else:
            terms.append(term)
    return terms


def _is_causal(form: Conjunction | None, v: Value, length: Dim | None) -> bool:
    if form is None or not _is_square(v, length):
        return False
    query, key = coordinates(v)[-2:]
    return form == frozenset({query - key})


def _is_square(v: Value, length: Dim | None) -> bool:
    return v.type.rank >= 2 and v.shape[-2:] == (length, length)


def _is_added_triangle(square: np.ndarray) -> bool:
    visible = np.tril(np.ones(square.shape, np.bool_))
    wide = square.astype(np.float64)
    return bool(np.all(np.where(visible, wide == 0, wide <= MASKED_OUT)))


def _behind_views(rw: Tracker, v: Value) -> Node | None:
    """The producer of ``v``, looking through casts and views that keep the last two axes."""
    node = rw.producer(v)
    while node is not None and node.op in _VIEWS and node.operands()[0].shape[-2:] == v.shape[-2:]:
        node = rw.producer(node.operands()[0])
    return node
