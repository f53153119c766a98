"""Recognises the causal mask, in which position i sees 0..i, so that attention need not read it from memory.

Forms: a constant triangle; Trilu of ones; a comparison of row and column numbers; and Where(one of these,
0, -large).
"""

from __future__ import annotations

import numpy as np
from arcweld.compiler.dims import Dim
from arcweld.compiler.ir import Node, Value
from arcweld.passes.common import Tracker, scalar

MASKED_OUT = -1e4  # what exporters add to, or write into, a score that must not count, is this or less
_VIEWS = frozenset({"Reshape", "Expand", "Cast", "Identity"})


def is_causal(rw: Tracker, mask: Value, length: Dim) -> bool:
    """Whether ``mask`` (bool: true = seen; else added) is causal for ``length`` queries and as many keys."""
    if mask.type.rank < 2 or mask.shape[-2:] != (length, length) or any(d != 1 for d in mask.shape[:-2]):
        return False
    array = rw.array(mask)
    if array is not None:
        return _is_triangle(array.reshape(array.shape[-2:]))
    if not mask.dtype.is_float:
        return _seen(rw, mask, causal=True)
    where = _behind_views(rw, mask)
    if where is None or where.op != "Where":
        return False
    condition, yes, no = where.operands()
    a, b = scalar(rw.array(yes)), scalar(rw.array(no))
    if a is None or b is None:
        return False
    if a == 0 and b <= MASKED_OUT:
        return _seen(rw, condition, causal=True)
    return b == 0 and a <= MASKED_OUT and _seen(rw, condition, causal=False)


def _is_triangle(square: np.ndarray) -> bool:
    visible = np.tril(np.ones(square.shape, np.bool_))
    if square.dtype == np.bool_:
        return bool(np.array_equal(square, visible))
    wide = square.astype(np.float64)
    return bool(np.all(np.where(visible, wide == 0, wide <= MASKED_OUT)))


def _seen(rw: Tracker, condition: Value, *, causal: bool) -> bool:
    """Whether the bool ``condition`` [.., S, S] is true exactly for keys at or before the query
    (``causal``) or after it.
    """
    array = rw.array(condition)
    if array is not None:
        square = array.reshape(array.shape[-2:]) if array.size == array.shape[-1] ** 2 else None
        return square is not None and _is_triangle(square == causal)
    node = _behind_views(rw, condition)
    if node is None:
        return False
    if node.op == "Not":
        return _seen(rw, node.operands()[0], causal=not causal)
    if node.op == "Trilu" and _is_filled(rw, node.operands()[0]):
        return (node.attrs["upper"], node.attrs["k"]) == ((0, 0) if causal else (1, 1))
    order = _COMPARISONS[causal].get(node.op)
    if order is None:
        return False
    axes = [_number_axis(rw, v) for v in node.operands()]
    return axes == list(order)


# which operand counts queries (axis -2) and which keys (axis -1)
_COMPARISONS: dict[bool, dict[str, tuple[int, int]]] = {
    True: {"GreaterOrEqual": (-2, -1), "LessOrEqual": (-1, -2)},
    False: {"Less": (-2, -1), "Greater": (-1, -2)},
}


def _behind_views(rw: Tracker, v: Value) -> Node | None:
    """The producer of ``v``, behind casts and reshapes that add or drop axes of extent 1 in front."""
    node = rw.producer(v)
    while node is not None and node.op in _VIEWS and node.operands()[0].shape[-2:] == v.shape[-2:]:
        node = rw.producer(node.operands()[0])
    return node


def _is_filled(rw: Tracker, v: Value) -> bool:
    """Whether every element is true (or 1)."""
    array = rw.array(v)
    if array is not None:
        return bool(np.all(array == 1))
    node = rw.producer(v)
    if node is not None and node.op in _VIEWS:
        return _is_filled(rw, node.operands()[0])
    return node is not None and node.op == "ConstantOfShape" and node.attrs["value"] == 1


def _number_axis(rw: Tracker, v: Value) -> int | None:
    """The axis (from the end) along which ``v`` counts 0, 1, 2, ..; None if it is anything else."""
    extents = [k - v.type.rank for k, d in enumerate(v.shape) if d != 1]
    if len(extents) != 1:
        return None
    array = rw.array(v)
    if array is not None:
        return extents[0] if np.array_equal(array.ravel(), np.arange(array.size)) else None
    node = rw.producer(v)
    while node is not None and node.op in _VIEWS and node.operands()[0].type.numel == v.type.numel:
        node = rw.producer(node.operands()[0])
    counts = node is not None and node.op == "Range" and (node.attrs["start"], node.attrs["step"]) == (0, 1)
    return extents[0] if counts else None
