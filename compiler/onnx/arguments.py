"""Reads operands and attributes of movement operators, whose places changed between operator sets.

The handlers, which emit IR nodes, and shapes.py, which evaluates shape tensors, share these functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.deduce import to_be_equal, to_have_equal_numbers
from arcweld.compiler.onnx.host import seen_slice
from arcweld.compiler.onnx.inputs import MAX_RANK
from arcweld.compiler.onnx.operands import numel, text
from arcweld.compiler.onnx.remedies import fix_dimensions

_FAR = 2**31 - 1  # exporters write the largest int for "to the end"


def axes_argument(c: NodeContext, i: int, rank: int, since: int) -> list[int] | None:
    """The axes of a reduction, Squeeze or Unsqueeze: input ``i`` from opset ``since`` on, an attribute before."""
    if c.opset >= since:
        if c.has_attr("axes"):
            c.broken(f"axes is an input since opset {since}")
        given = c.ints(i) if c.has(i) else None
    else:
        attr = c.ints_attr("axes")
        given = None if attr is None else list(attr)
    return None if given is None else c.axes(given, rank)


def squeezed_shape(c: NodeContext) -> tuple[Dim, ...]:
    """The result shape of Squeeze."""
    shape = c.shape(0)
    axes = axes_argument(c, 1, len(shape), 13)
    if axes is None:
        return tuple(d for d in shape if not c.equal_dims(d, 1))
    for a in axes:
        if not c.equal_dims(shape[a], 1):
            c.broken(f"axis {a} of {text(shape)} is not 1")
    return tuple(d for i, d in enumerate(shape) if i not in axes)


def unsqueezed_shape(c: NodeContext) -> tuple[Dim, ...]:
    """The result shape of Unsqueeze."""
    given = c.ints(1) if c.opset >= 13 else list(c.ints_attr("axes") or ())
    shape = list(c.shape(0))
    rank = len(shape) + len(given)
    if rank > MAX_RANK:
        c.broken(f"the result would have rank {rank}")
    for a in sorted(c.axes(given, rank)):
        shape.insert(a, 1)
    return tuple(shape)


def flattened_shape(c: NodeContext) -> tuple[Dim, ...]:
    """The result shape of Flatten."""
    shape = c.shape(0)
    axis = c.int_attr("axis", 1)
    if axis != len(shape):
        axis = c.axis(axis, len(shape)) if shape else 0
    return (numel(shape[:axis]), numel(shape[axis:]))


def reshaped(c: NodeContext, old: Sequence[Dim], wanted: Sequence[Dim], allow_zero: bool = False) -> tuple[Dim, ...]:
    """The result shape of a Reshape of shape ``old``: ``wanted`` with its 0 (unless ``allow_zero``) and -1 solved."""
    if len(wanted) > MAX_RANK:
        c.broken(f"the result would have rank {len(wanted)}")
    shape: list[Dim] = []
    for i, d in enumerate(wanted):
        if d == 0 and not allow_zero:
            if i >= len(old):
                c.broken(f"the shape {text(wanted)} keeps axis {i} of an operand of rank {len(old)}")
            d = old[i]
        elif isinstance(d, int) and d < -1:
            c.broken(f"the shape {text(wanted)} has a negative dimension")
        shape.append(d)
    unknown = [i for i, d in enumerate(shape) if d == -1]
    if len(unknown) > 1:
        c.broken(f"the shape {text(wanted)} leaves more than one dimension open")
    total, rest = numel(old), numel([d for i, d in enumerate(shape) if i not in unknown])
    if unknown:
        shape[unknown[0]] = _missing(c, total, rest)
    elif isinstance(total, int) and isinstance(rest, int) and total != rest:
        c.broken(f"{text(old)} cannot become {text(shape)}")
    elif total != rest:
        c.narrow(to_be_equal(total, rest) or to_have_equal_numbers(total, rest))
        c.unsupported(f"whether {text(old)} can become {text(shape)} is not known", fix_dimensions(*old, *shape))
    return tuple(shape)


def computed_shape(c: NodeContext, old: Sequence[Dim], wanted: Sequence[Dim], allow_zero: bool) -> tuple[Dim, ...]:
    """As ``reshaped``, of sizes that depend on data: whether the numbers of elements agree is seen at run time."""
    shape = [old[i] if d == 0 and not allow_zero and i < len(old) else d for i, d in enumerate(wanted)]
    open_axes = [i for i, d in enumerate(shape) if d == -1]
    if len(open_axes) > 1 or len(wanted) > MAX_RANK:
        c.broken(f"the shape {text(wanted)} leaves more than one dimension open, or is too long")
    if open_axes:
        rest = numel([d for d in shape if d != -1])
        exact = dims.divides_exactly(numel(old), rest)
        positive = rest if dims.is_nonneg(rest - 1) else dims.maximum(rest, 1)
        shape[open_axes[0]] = exact if exact is not None else dims.floordiv(numel(old), positive)
    return tuple(shape)


def _missing(c: NodeContext, total: Dim, rest: Dim) -> Dim:
    if isinstance(total, int) and isinstance(rest, int):
        if rest == 0:
            return 0
        if total % rest:
            c.broken(f"{total} elements cannot be divided into parts of {rest}")
        return total // rest
    exact = dims.divides_exactly(total, rest)
    if exact is not None:
        return exact
    if not dims.is_nonneg(rest - 1):
        c.unsupported(f"whether {rest} is positive is not known", fix_dimensions(rest))
    return dims.floordiv(total, rest)


# ----------------------------------------------------------------------------------------------------------- Slice


@dataclass(frozen=True, slots=True)
class SliceSpec:
    """Element i of the result is element ``start + i * step`` of the operand, along each axis."""

    starts: tuple[Dim, ...]
    sizes: tuple[Dim, ...]
    steps: tuple[int, ...]


def _dims_attr(c: NodeContext, name: str) -> list[Dim]:
    return list(c.ints_attr(name) or ())


def slice_spec(c: NodeContext) -> SliceSpec:
    """The starts, sizes and steps of a Slice node, for every axis of its operand and clamped to it."""
    shape = c.shape(0)
    if c.opset < 10:
        begins, ends = _dims_attr(c, "starts"), _dims_attr(c, "ends")
        axes, strides = c.ints_attr("axes"), None
    else:
        axes = tuple(c.ints(3)) if c.has(3) else None
        strides = c.ints(4) if c.has(4) else None
        if c.is_seen(1) or c.is_seen(2):
            return _seen_slice(c, axes, strides)
        begins, ends = c.dims(1), c.dims(2)
    where = c.axes(axes if axes is not None else range(len(begins)), len(shape))
    by = strides if strides is not None else [1] * len(where)
    if not len(begins) == len(ends) == len(where) == len(by):
        c.broken("starts, ends, axes and steps differ in length")
    starts: list[Dim] = [0] * len(shape)
    sizes: list[Dim] = list(shape)
    steps = [1] * len(shape)
    for a, b, e, s in zip(where, begins, ends, by):
        if s == 0:
            c.broken("a step is 0")
        starts[a], sizes[a] = _range(c, shape[a], b, e, s)
        steps[a] = s
    return SliceSpec(tuple(starts), tuple(sizes), tuple(steps))


def _seen_slice(c: NodeContext, axes: Sequence[int] | None, strides: Sequence[int] | None) -> SliceSpec:
    """The spec of a Slice whose starts and ends the host sees at run time."""
    c.needs_rank(1, 1, 1)
    shape, count = c.shape(0), c.shape(1)[0]
    if c.shape(1) != c.shape(2) or not isinstance(count, int):
        c.broken("starts and ends differ in length")
    where = c.axes(axes if axes is not None else range(count), len(shape))
    by = list(strides) if strides is not None else [1] * count
    if not len(where) == len(by) == count or 0 in by:
        c.broken("starts, ends, axes and steps differ in length, or a step is 0")
    found = seen_slice(c, [shape[a] for a in where], by)
    starts: list[Dim] = [0] * len(shape)
    sizes: list[Dim] = list(shape)
    steps = [1] * len(shape)
    for a, (start, size), step in zip(where, found, by):
        starts[a], sizes[a], steps[a] = start, size, step
    return SliceSpec(tuple(starts), tuple(sizes), tuple(steps))


def _range(c: NodeContext, extent: Dim, begin: Dim, end: Dim, step: int) -> tuple[Dim, Dim]:
    low, high = (0, extent) if step > 0 else (-1, extent - 1)
    first = _clamp(c, extent, begin, 0, high)
    last = _clamp(c, extent, end, low, high)
    length = last - first if step > 0 else first - last
    size = dims.maximum(dims.ceildiv(length, abs(step)), 0)
    return (first if size != 0 else 0), size


def _clamp(c: NodeContext, extent: Dim, x: Dim, low: Dim, high: Dim) -> Dim:
    if isinstance(x, int):
        if x >= _FAR:
            return high
        if x <= -_FAR:
            return low
        negative = x < 0
    elif dims.is_nonneg(x):
        negative = False
    elif dims.is_nonneg(-1 - x):
        negative = True
    else:
        c.unsupported(f"whether {x} is negative is not known", fix_dimensions(x))
    return dims.maximum(dims.minimum(x + extent if negative else x, high), low)


# ----------------------------------------------------------------------------------------------------------- Split


def split_sizes(c: NodeContext, extent: Dim) -> list[Dim]:
    """The sizes of a Split's outputs: given, or equal parts of which the last may be smaller."""
    parts = len(c.outputs)
    if c.opset >= 13:
        sizes = c.dims(1) if c.has(1) else None
    else:
        attr = c.ints_attr("split")
        sizes = None if attr is None else list(attr)
    if sizes is not None:
        if len(sizes) != parts:
            c.broken(f"{len(sizes)} sizes are given for {parts} outputs")
        total = sum(sizes)
        if isinstance(total, int) and isinstance(extent, int) and total != extent:
            c.broken(f"the sizes add up to {total}, the axis has {extent}")
        return sizes
    count = c.int_attr("num_outputs", parts)
    if count != parts:
        c.broken(f"num_outputs is {count}, the node has {parts} outputs")
    exact = dims.divides_exactly(extent, parts)
    if exact is not None:
        return [exact] * parts
    if not isinstance(extent, int):
        c.unsupported(f"whether {parts} divides the dimension {extent} is not known", fix_dimensions(extent))
    each = -(-extent // parts)
    return [max(0, min(each, extent - i * each)) for i in range(parts)]


def normal_indices(c: NodeContext, indices: np.ndarray, extent: int) -> np.ndarray:
    """``indices`` counted from the front. Raises ModelError where one is out of range for ``extent`` elements."""
    found = np.asarray(indices, np.int64)
    if found.size and (found.min() < -extent or found.max() >= extent):
        c.broken(f"an index is out of range for a dimension of {extent}")
    return np.where(found < 0, found + extent, found)
