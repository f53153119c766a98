"""Operators on sequences and optional values, which are evaluated while importing: none reaches the graph.

Exporters write them for Python's lists of tensors. The host must know their lengths and the indices of their elements,
but for a list to which each turn of a loop appends one tensor, as often as data say: that is one value, whose rows are
the items. Whether an optional value is there is known too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from arcweld.compiler import dims
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.host import require_zero
from arcweld.compiler.onnx.operands import Growing, Items, Nothing, Operand, Rows, on_device, on_host

MAX_ITEMS = 4096


def _items(c: NodeContext, i: int) -> Items:
    found = c.operands[i] if i < len(c.operands) else None
    if isinstance(found, Growing | Rows):
        c.unsupported(f"input {i} is a sequence whose length depends on the data")
    if not isinstance(found, Items):
        c.broken(f"input {i} should be a sequence")
    return found


def _place(c: NodeContext, i: int, count: int, end: int) -> int:
    """Input ``i`` as an index among ``count`` elements, counted from the front; ``end`` where it is missing."""
    at = c.integer(i) if c.has(i) else end
    if not -count <= at <= count:
        c.broken(f"place {at} in a sequence of {len(_items(c, 0))}")
    return at + count if at < 0 else at


def _construct(c: NodeContext) -> Sequence[Any]:
    return [Items(c.operand(i) for i in range(len(c.operands)))]


def _empty(c: NodeContext) -> Sequence[Any]:
    return [Items()]


def _at(c: NodeContext) -> Sequence[Any]:
    found: Any = c.operands[0] if c.operands else None
    if isinstance(found, Rows):
        return [on_device(c.emit("Gather", found.value, c.reshape(c.value(1), ()), axis=0))]
    items = _items(c, 0)
    at = _place(c, 1, len(items), 0)
    if at == len(items):
        c.broken(f"place {at} in a sequence of {len(items)}")
    return [items[at]]


def _insert(c: NodeContext) -> Sequence[Any]:
    found: Any = c.operands[0] if c.operands else None
    if isinstance(found, Growing) and not c.has(2):
        return [Growing((*found.items, c.operand(1)))]
    items = _items(c, 0)
    at = _place(c, 2, len(items), len(items))
    if len(items) >= MAX_ITEMS:
        c.unsupported(f"a sequence of more than {MAX_ITEMS} items")
    return [Items((*items[:at], c.operand(1), *items[at:]))]


def _erase(c: NodeContext) -> Sequence[Any]:
    items = _items(c, 0)
    at = _place(c, 1, len(items), len(items) - 1)
    return [Items((*items[:at], *items[at + 1 :]))]


def _length(c: NodeContext) -> Sequence[Any]:
    found: Any = c.operands[0] if c.operands else None
    if isinstance(found, Rows):
        return [on_device(c.dim_value(found.value.shape[0]))]
    return [on_host(np.asarray(len(_items(c, 0))), DType.I64)]


def _split(c: NodeContext) -> Sequence[Any]:
    """Parts of the given sizes; without them, parts of one element that lose the axis if ``keepdims`` is 0."""
    x = c.value(0)
    axis = c.axis(c.int_attr("axis"), c.needs_rank(0, 1))
    n = c.concrete(x.shape[axis], "the number of parts")
    if not c.has(1):
        sizes = [1] * n
    elif c.operand(1).rank == 0:
        each = c.integer(1)
        if each < 1:
            c.broken(f"parts of {each}")
        sizes = [min(each, n - start) for start in range(0, n, each)]
    else:
        sizes = c.ints(1)
        if min(sizes, default=0) < 0 or sum(sizes) != n:
            c.broken(f"the sizes {sizes} of an axis of {n}")
    if len(sizes) > MAX_ITEMS:
        c.unsupported(f"a sequence of {len(sizes)} items (at most {MAX_ITEMS})")
    parts, start = [], 0
    for size in sizes:
        part = c.slice(x, axis, start, size)
        if not c.has(1) and not c.int_attr("keepdims", 1):
            part = c.reshape(part, (*x.shape[:axis], *x.shape[axis + 1 :]))
        parts.append(on_device(part))
        start += size
    return [Items(parts)]


def _joined_rows(c: NodeContext, value: Value) -> Value:
    """The rows of a value joined along an axis of theirs, or along a new one."""
    rows, *item = value.shape
    require_zero(c, dims.minimum(rows - 1, 0), "an empty sequence has nothing to join")
    new = c.int_attr("new_axis")
    axis = c.axis(c.int_attr("axis"), len(item) + new)
    apart = c.transpose(value, [*range(1, axis + 1), 0, *range(axis + 1, len(item) + 1)])
    return apart if new else c.reshape(apart, (*item[:axis], rows * item[axis], *item[axis + 1 :]))


def _concat(c: NodeContext) -> Sequence[Any]:
    found: Any = c.operands[0] if c.operands else None
    if isinstance(found, Rows):
        return [on_device(_joined_rows(c, found.value))]
    items = _items(c, 0)
    if not items:
        c.broken("an empty sequence has nothing to join")
    rank = items[0].rank + c.int_attr("new_axis")
    axis = c.axis(c.int_attr("axis"), rank)
    values = [c.builder.device(i, c.origin, f"{c.hint}.item") for i in items]
    if c.int_attr("new_axis"):
        values = [c.reshape(v, (*v.shape[:axis], 1, *v.shape[axis:])) for v in values]
    return [on_device(c.concat(values, axis))]


def _optional(c: NodeContext) -> Sequence[Any]:
    return [c.operands[0] if c.has(0) else Nothing()]


def _element(c: NodeContext) -> Sequence[Any]:
    if not c.has(0) or isinstance(c.operands[0], Nothing):
        c.broken("the optional value is empty")
    return [c.operands[0]]


def _has_element(c: NodeContext) -> Sequence[Operand]:
    there = c.has(0) and not isinstance(c.operands[0], Nothing)
    return [on_host(np.asarray(there), DType.BOOL)]


SEQUENCES: dict[str, Callable[[NodeContext], Sequence[Any]]] = {
    "SequenceConstruct": _construct, "SequenceEmpty": _empty, "SequenceAt": _at, "SequenceInsert": _insert,
    "SequenceErase": _erase, "SequenceLength": _length, "SplitToSequence": _split, "ConcatFromSequence": _concat,
    "Optional": _optional, "OptionalGetElement": _element, "OptionalHasElement": _has_element,
}  # fmt: skip
