"""Weights that stay packed, for passes that rearrange weights: what is done to the numbers is done to their parts.

A stored weight is a value that views and casts make of a DequantizeLinear which keeps its operands
(``passes/storage.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from arcweld.compiler.ir import Node, Value
from arcweld.passes.common import Tracker

Producer = Callable[[Value], "Node | None"]
HIGH = 4  # the operand of a DequantizeLinear that holds the elements' upper bits


@dataclass(frozen=True, slots=True)
class Stored:
    """A matrix of weights that stay packed.

    ``base`` is the DequantizeLinear; ``casts`` follow it, first one first. ``swapped``: the matrix is the transpose.
    ``inner``: what makes each operand of ``base``, where it is no weight: a DequantizeLinear of scales of two levels.
    """

    base: Node
    casts: tuple[Node, ...]
    swapped: bool
    inner: tuple[Node | None, ...]


def planes(node: Node) -> tuple[Value, ...]:
    """The operands of a DequantizeLinear that hold its elements: one, or their lower and their upper bits."""
    return tuple(v for v in (node.inputs[0], *node.inputs[HIGH:]) if v is not None)


def element_bits(node: Node) -> int:
    """Bits of an element of a DequantizeLinear as it is stored."""
    return sum(v.dtype.bits for v in planes(node))


def stored_matrix(producer: Producer, v: Value) -> Stored | None:
    """``v``, a matrix, as a stored weight; None if it is not made by casts and transpositions of one."""
    casts: list[Node] = []
    swapped = False
    if v.type.rank != 2:
        return None
    node = producer(v)
    while node is not None and node.op in ("Cast", "Transpose"):
        if node.op == "Cast":
            casts.insert(0, node)
        else:
            swapped ^= node.attrs["perm"] == (1, 0)
        node = producer(node.operands()[0])
    if node is None or node.op != "DequantizeLinear" or not node.attrs["keep"]:
        return None
    inner = tuple(None if v is None else producer(v) for v in node.inputs)
    if any(made is not None and made.op != "DequantizeLinear" for made in inner):
        return None
    return Stored(node, tuple(casts), swapped, inner)


def rebuilt(
    rw: Tracker, s: Stored, parts: Sequence[Value | None], swapped: bool, hint: str, **changes: object
) -> Value:
    """The matrix of other ``parts`` (elements, scales, zero points), with the same casts; ``swapped`` as in Stored."""
    v = rw.make("DequantizeLinear", parts, s.base.origin, hint, **{**s.base.attrs, **changes})
    for cast in s.casts:
        v = rw.make("Cast", [v], cast.origin, **cast.attrs)
    return rw.make("Transpose", [v], s.base.origin, perm=(1, 0)) if swapped else v


def transposed(rw: Tracker, s: Stored, hint: str) -> Value:
    """The same matrix, with its elements in memory in the order of the other axis."""
    turned = [_turned(rw, s.base, v, made) for v, made in zip(s.base.inputs, s.inner)]
    return rebuilt(rw, s, turned, not s.swapped, hint, axis=1 - s.base.attrs["axis"])


def _turned(rw: Tracker, node: Node, v: Value | None, inner: Node | None = None) -> Value | None:
    """An operand of ``node`` in the order of the other axis, with what makes it."""
    if v is None or v.type.rank != 2:
        return v
    if inner is None:
        return rw.make("Transpose", [v], node.origin, perm=(1, 0))
    parts = [_turned(rw, inner, p) for p in inner.inputs]
    return rw.make(inner.op, parts, inner.origin, **{**inner.attrs, "axis": 1 - inner.attrs["axis"]})


def form_of(s: Stored) -> tuple[object, ...] | None:
    """What is equal for matrices that ``joined`` can put side by side; None for one that it can't."""
    x = s.base.operands()[0]
    along = _scaled_along(s)
    if along == "rows" or (along == "blocks" and s.base.attrs["axis"] == _columns(s)):
        return None
    return (
        s.swapped, tuple(c.attrs["to"] for c in s.casts), x.dtype, tuple(v and v.dtype for v in s.base.inputs),
        s.base.output.dtype, s.base.attrs["axis"], s.base.attrs["block"], along, tuple(map(_inner_form, s.inner)),
    )  # fmt: skip


def _inner_form(inner: Node | None) -> tuple[object, ...] | None:
    if inner is None:
        return None
    return inner.attrs["axis"], inner.attrs["block"], tuple(v and v.dtype for v in inner.inputs)


def _scaled_along(s: Stored) -> str:
    """Along what scales differ: ``all`` elements share one, or each column, or each row, or ``blocks`` do."""
    _, scale, *_ = s.base.operands()
    if s.base.attrs["block"]:
        return "blocks"
    if scale.type.numel == 1:
        return "all"
    return "columns" if s.base.attrs["axis"] == _columns(s) else "rows"


def _columns(s: Stored) -> int:
    """The axis of the elements in memory that the matrix' columns run over."""
    return 0 if s.swapped else 1


def joined(rw: Tracker, group: Sequence[Stored], hint: str) -> Value:
    """The matrices side by side: their columns one after another. They have one form (``form_of``)."""
    first, axis = group[0], _columns(group[0])
    along = _scaled_along(first)
    origin = tuple(dict.fromkeys(o for s in group for o in s.base.origin))
    elements = rw.make("Concat", [s.base.operands()[0] for s in group], origin, hint, axis=axis)
    parts: list[Value | None] = [elements]
    for place, values in list(enumerate(zip(*(s.base.inputs for s in group))))[1:]:
        inner = [node for s in group if (node := s.inner[place]) is not None]
        if inner:  # then of all
            levels = [rw.make("Concat", given, origin, axis=axis) for given in zip(*(n.inputs for n in inner))]
            parts.append(rw.make("DequantizeLinear", levels, origin, **inner[0].attrs))
            continue
        if place == HIGH:
            parts.append(rw.make("Concat", values, origin, hint, axis=axis))
            continue
        if (along == "all" or place > 1) and _one_number(rw, values):  # one zero point may serve all scales
            parts.append(values[0])
            continue
        spread = [_spread(rw, v, s, axis, along) for v, s in zip(values, group) if v is not None]
        parts.append(rw.make("Concat", spread, origin, axis=axis if along == "blocks" else 0) if spread else None)
    return rebuilt(rw, first, parts, first.swapped, hint, axis=axis if along == "all" else first.base.attrs["axis"])


def _one_number(rw: Tracker, values: Sequence[Value | None]) -> bool:
    """True if all are scalars of one value, such as the scale 1 of 16-bit floats."""
    arrays = [rw.array(v) for v in values]
    first = arrays[0]
    return first is not None and all(a is not None and a.ndim == 0 and a == first for a in arrays)


def _spread(rw: Tracker, v: Value, s: Stored, axis: int, along: str) -> Value:
    """A scale or a zero point with an element for each block, or for each column."""
    x, scale, *_ = s.base.operands()
    shape = scale.shape if along == "blocks" else (x.shape[axis],)
    if v.shape == shape:
        return v
    one = rw.make("Reshape", [v], (), shape=(1,) * len(shape))
    return rw.make("Expand", [one], (), shape=shape)
