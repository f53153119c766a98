"""Handlers of operators that move elements: reshapes, slices, gathers, scatters, pads, constants made from shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, IntExpr, product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx import scalars
from arcweld.compiler.onnx.arguments import (
    axes_argument,
    computed_shape,
    flattened_shape,
    reshaped,
    slice_spec,
    split_sizes,
    squeezed_shape,
    unsqueezed_shape,
)
from arcweld.compiler.onnx.context import NodeContext, broadcast_shape
from arcweld.compiler.onnx.handlers.base import Result, handles
from arcweld.compiler.onnx.host import depends_on_data, expandable, require_zero, resolved, view
from arcweld.compiler.onnx.proto import element_type
from arcweld.compiler.onnx.remedies import fix_dimensions
from arcweld.compiler.onnx.scalars import Undecided
from arcweld.compiler.onnx.sizes import sizes_of


@handles("Reshape")
def _reshape(c: NodeContext) -> Result:
    if not c.has(1) and c.has_attr("shape"):  # opset 1 form, still written by some tools
        wanted: list[Dim] = list(c.ints_attr("shape") or ())
    else:
        if c.is_seen(1):
            return view(c, c.value(0), resolved(c, c.value(1), c.shape(0), bool(c.int_attr("allowzero"))))
        wanted = c.dims(1)
    x, zero = c.value(0), bool(c.int_attr("allowzero"))
    if not depends_on_data(c.builder, (*x.shape, *wanted)):
        return c.reshape(x, reshaped(c, x.shape, wanted, zero))
    shape = computed_shape(c, x.shape, wanted, zero)
    return c.reshape(x, shape) if product(shape) == product(x.shape) else view(c, x, shape)


@handles("Flatten")
def _flatten(c: NodeContext) -> Result:
    return c.reshape(c.value(0), flattened_shape(c))


@handles("Squeeze")
def _squeeze(c: NodeContext) -> Result:
    return c.reshape(c.value(0), squeezed_shape(c))


@handles("Unsqueeze")
def _unsqueeze(c: NodeContext) -> Result:
    return c.reshape(c.value(0), unsqueezed_shape(c))


@handles("Transpose")
def _transpose(c: NodeContext) -> Result:
    rank = c.operand(0).rank
    perm = c.ints_attr("perm")
    perm = tuple(reversed(range(rank))) if perm is None else perm
    if sorted(perm) != list(range(rank)):
        c.broken(f"perm is {list(perm)} for an operand of rank {rank}")
    return c.transpose(c.value(0), perm)


@handles("Expand")
def _expand(c: NodeContext) -> Result:
    wanted = c.dims(1)
    if any(isinstance(d, int) and d < 0 for d in wanted):
        c.broken(f"the shape {wanted} has a negative dimension")
    x = c.value(0)
    wanted = expandable(c, x.shape, wanted)
    return c.expand(x, broadcast_shape(c, x.shape, wanted))


@handles("Slice")
def _slice(c: NodeContext) -> Result:
    spec = slice_spec(c)
    x = c.value(0)
    if spec.sizes == x.shape and all(s == 0 for s in spec.starts) and all(s == 1 for s in spec.steps):
        return x
    return c.emit("Slice", x, starts=spec.starts, sizes=spec.sizes, steps=spec.steps)


@handles("Split")
def _split(c: NodeContext) -> Result:
    x = c.value(0)
    axis = c.axis(c.int_attr("axis"), x.type.rank)
    start: Dim = 0
    parts: list[Value] = []
    for size in split_sizes(c, x.shape[axis]):
        parts.append(c.slice(x, axis, start, size))
        start = start + size
    if start != x.shape[axis] and depends_on_data(c.builder, [start]):
        require_zero(c, start - x.shape[axis], f"the parts do not add up to {x.shape[axis]}")
    elif start != x.shape[axis]:
        c.unsupported(f"whether the parts add up to {x.shape[axis]} is not known", fix_dimensions(x.shape[axis]))
    return parts


@handles("Concat")
def _concat(c: NodeContext) -> Result:
    axis = c.axis(c.int_attr("axis"), c.needs_rank(0, 1))
    return c.operand(0) if len(c.operands) == 1 else c.emit("Concat", *c.values(), axis=axis)


_MOST_PADS = 4  # that depend on data: of more, the kernel's index arithmetic grows too long


@handles("Pad")
def _pad(c: NodeContext) -> Result:
    rank = c.operand(0).rank
    mode = c.choice_attr("mode", "constant", ("constant", "reflect", "edge", "wrap"))
    if c.opset < 11:
        given: Sequence[Dim] = c.ints_attr("pads") or ()
        value = c.float_attr("value", 0.0)
    else:
        given = c.dims(1)
        told = {s.name for d in given for s in dims.free_symbols(d)} & c.builder.born
        if len(told) > _MOST_PADS:
            c.unsupported(f"{len(told)} pads that depend on data (up to {_MOST_PADS})")
        value = float(c.number(2)) if c.has(2) else 0.0
    axes = axes_argument(c, 3, rank, 18) if c.has(3) else None
    where = list(range(rank)) if axes is None else axes
    if len(given) != 2 * len(where):
        c.broken(f"{len(given)} pads are given for {len(where)} axes")
    pads: list[Dim] = [0] * (2 * rank)
    for k, a in enumerate(where):
        pads[a], pads[a + rank] = given[k], given[k + len(where)]
    if all(p == 0 for p in pads):
        return c.operand(0)
    return pad(c, c.value(0), pads, mode, value)


def pad(c: NodeContext, x: Value, pads: Sequence[Dim], mode: str = "constant", value: float = 0.0) -> Value:
    """Pads (or, where negative, crops) every axis: begins of all axes, then ends."""
    return c.emit("Pad", x, pads=tuple(pads), mode=mode, value=value)


@handles("Gather")
def _gather(c: NodeContext) -> Result:
    return c.emit("Gather", c.value(0), c.value(1), axis=c.axis(c.int_attr("axis"), c.needs_rank(0, 1)))


@handles("GatherElements")
def _gather_elements(c: NodeContext) -> Result:
    axis = c.axis(c.int_attr("axis"), c.needs_rank(0, 1))
    for k, (d, wanted) in enumerate(zip(c.shape(0), c.shape(1))):
        if k != axis:
            c.has_room(d, wanted)
    return c.emit("GatherElements", c.value(0), c.value(1), axis=axis)


@handles("GatherND")
def _gather_nd(c: NodeContext) -> Result:
    return c.emit("GatherND", c.value(0), c.value(1), batch_dims=c.int_attr("batch_dims"))


@handles("TopK")
def _top_k(c: NodeContext) -> Result:
    x = c.value(0)
    axis = c.axis(c.int_attr("axis", -1), c.needs_rank(0, 1))
    wanted = [c.int_attr("k", -1)] if c.opset < 10 else c.dims(1)
    if len(wanted) != 1:
        c.broken(f"k has {len(wanted)} elements")
    c.at_least(x.shape[axis], wanted[0])
    largest = int(c.opset < 11 or c.int_attr("largest", 1) != 0)
    c.emit("TopK", x, k=wanted[0], axis=axis, largest=largest)
    return list(c.rw.nodes[-1].outputs)


@handles("GridSample")
def _grid_sample(c: NodeContext) -> Result:
    mode = c.choice_attr("mode", "linear", ("linear", "bilinear", "nearest", "cubic", "bicubic"))
    if mode.endswith("cubic") and c.operand(0).rank != 4:
        c.unsupported("cubic interpolation along other than two axes")
    return c.emit(
        "GridSample", c.value(0), c.value(1), mode=mode.removeprefix("bi"), align_corners=c.int_attr("align_corners"),
        padding_mode=c.choice_attr("padding_mode", "zeros", ("zeros", "border", "reflection")),
    )  # fmt: skip


@handles("ScatterElements", "Scatter")
def _scatter_elements(c: NodeContext) -> Result:
    axis = c.axis(c.int_attr("axis"), c.needs_rank(0, 1))
    reduction = c.choice_attr("reduction", "none", ("none", "add", "mul", "max", "min"))
    return c.emit("ScatterElements", *c.values(), axis=axis, reduction=reduction)


@handles("ScatterND")
def _scatter_nd(c: NodeContext) -> Result:
    reduction = c.choice_attr("reduction", "none", ("none", "add", "mul", "max", "min"))
    return c.emit("ScatterND", *c.values(), reduction=reduction)


def _differ(a: Dim, b: Dim) -> bool:
    """True for two numbers that are not equal."""
    return isinstance(a, int) and isinstance(b, int) and a != b


@handles("TensorScatter")
def _tensor_scatter(c: NodeContext) -> Result:
    """Writes a run of slices into a cache, from an index of each batch on; indices wrap round in mode circular."""
    cache, update = c.value(0), c.value(1)
    rank = c.needs_rank(0, 2)
    axis = c.axis(c.int_attr("axis", -2), rank)
    if axis == 0:
        c.broken("the axis is that of the batch")
    others = [(a, b) for k, (a, b) in enumerate(zip(cache.shape, update.shape)) if k != axis]
    if update.type.rank != rank or any(_differ(a, b) for a, b in others):
        c.broken(f"an update of shape {list(update.shape)} along axis {axis} of a cache {list(cache.shape)}")
    indices = c.optional(2)
    if indices is not None and indices.type.rank != 1:
        c.broken(f"write_indices has {indices.type.rank} axes, not 1")
    circular = c.choice_attr("mode", "linear", ("linear", "circular")) == "circular"
    return write_run(c, cache, update, indices, axis, circular)


def write_run(
    c: NodeContext, cache: Value, run: Value, first: Value | None, axis: int, circular: bool = False
) -> Value:
    """``cache`` with ``run`` written along ``axis`` from the index on that ``first`` has, one of each batch or of all.

    A run that does not fit is an error when the engine runs, unless indices wrap round (``circular``).
    """
    rank = cache.type.rank
    steps = c.emit("Range", start=0, step=1, length=run.shape[axis], dtype=DType.I64)
    at = c.reshape(steps, tuple(d if k == axis else 1 for k, d in enumerate(run.shape)))
    if first is not None:
        first = c.cast(first, DType.I64)
        at = c.emit("Add", at, c.reshape(first, (first.shape[0], *(1,) * (rank - 1))))
    if circular:
        size = c.emit("Range", start=cache.shape[axis], step=1, length=1, dtype=DType.I64)
        at = c.emit("Mod", at, size, fmod=0)
    wide = c.emit("Expand", at, shape=run.shape)
    return c.emit("ScatterElements", cache, wide, run, axis=axis, reduction="none", strict=int(not circular))


@handles("DepthToSpace")
def _depth_to_space(c: NodeContext) -> Result:
    mode = c.choice_attr("mode", "DCR", ("DCR", "CRD"))
    return c.emit("DepthToSpace", c.value(0), blocksize=c.int_attr("blocksize"), mode=mode)


@handles("SpaceToDepth")
def _space_to_depth(c: NodeContext) -> Result:
    block = c.int_attr("blocksize")
    x = c.value(0)
    if c.choice_attr("mode", "DCR", ("DCR", "CRD")) == "DCR":
        return c.emit("SpaceToDepth", x, blocksize=block)
    c.needs_rank(0, 4, 4)
    if block < 1:
        c.broken(f"blocksize is {block}")
    n, channels, height, width = x.shape
    h, w = (dims.divides_exactly(d, block) for d in (height, width))
    if h is None or w is None:
        c.unsupported(f"whether {block} divides {height} and {width} is not known", fix_dimensions(height, width))
    split = c.reshape(x, (n, channels, h, block, w, block))
    return c.reshape(c.transpose(split, (0, 1, 3, 5, 2, 4)), (n, channels * block * block, h, w))


@handles("Tile")
def _tile(c: NodeContext) -> Result:
    x, repeats = c.value(0), c.dims(1)
    if len(repeats) != x.type.rank or any(isinstance(r, int) and r < 0 for r in repeats):
        c.broken(f"{len(repeats)} repeats are given for an operand of rank {x.type.rank}")
    return x if all(r == 1 for r in repeats) else c.emit("Tile", x, repeats=tuple(repeats))


@handles("Trilu")
def _trilu(c: NodeContext) -> Result:
    c.needs_rank(0, 2)
    x, upper = c.value(0), bool(c.int_attr("upper", 1))
    if c.has(1) and not c.is_known(1):
        return _triangle(c, x, c.value(1), upper)
    k = c.integer(1) if c.has(1) else 0
    return c.emit("Trilu", x, upper=int(upper), k=k)


def _triangle(c: NodeContext, x: Value, k: Value, upper: bool) -> Value:
    """Trilu whose diagonal the device knows."""
    rows, columns = (
        c.reshape(c.emit("Range", start=0, step=1, length=d, dtype=DType.I64), shape)
        for d, shape in ((x.shape[-2], (x.shape[-2], 1)), (x.shape[-1], (1, x.shape[-1])))
    )
    distance = c.emit("Sub", c.emit("Sub", columns, rows), c.cast(c.reshape(k, ()), DType.I64))
    zero = c.const(0, DType.I64)
    keep = c.emit("GreaterOrEqual", distance, zero) if upper else c.emit("LessOrEqual", distance, zero)
    return c.emit("Where", keep, x, c.const(0, x.dtype))


@handles("OneHot")
def _one_hot(c: NodeContext) -> Result:
    rank = c.operand(0).rank
    try:
        depth = scalars.as_dim(c.size(1))
    except Undecided as why:
        c.unsupported(str(why))
    if not isinstance(depth, IntExpr) and depth <= 0:
        c.broken(f"the depth is {depth}")
    axis = c.axis(c.int_attr("axis", -1), rank + 1)
    indices = c.value(0)
    if indices.dtype.is_float:
        indices = c.cast(indices, DType.I64)
    return c.emit("OneHot", indices, c.value(2), axis=axis, depth=depth)


@handles("Range")
def _range(c: NodeContext) -> Result:
    dtype = c.operand(0).dtype
    if not c.is_known(2) or (dtype.is_float and not (c.is_known(0) and c.is_known(1))):
        return _computed_range(c, *(c.reshape(c.value(i), ()) for i in range(3)))
    start, limit, step = (c.scalar(i) if dtype.is_float else c.size(i) for i in range(3))
    if scalars.is_symbolic(step) or step == 0:
        c.unsupported(f"the step of the range is {step}", fix_dimensions(step))
    if dtype.is_float:
        return _float_range(c, start, limit, step)
    try:
        first, last = scalars.as_dim(start), scalars.as_dim(limit)
    except Undecided as why:
        c.unsupported(str(why))
    by = int(step)  # type: ignore[arg-type]
    length = dims.maximum(dims.ceildiv(last - first if by > 0 else first - last, abs(by)), 0)
    return c.emit("Range", start=first, step=by, length=length, dtype=dtype)


def _computed_range(c: NodeContext, start: Value, limit: Value, step: Value) -> Value:
    """A range whose start and step the device knows: the host reads its length."""
    kind = DType.F32 if start.dtype.is_float and start.dtype is not DType.F64 else DType.F64  # exact for integers
    begin, end, by = (c.cast(v, kind) for v in (start, limit, step))
    steps = c.emit("Ceil", c.emit("Div", c.emit("Sub", end, begin), by))
    count = c.cast(c.emit("Max", steps, c.const(0, kind)), DType.I64)
    (length,) = sizes_of(c.builder, count, f"{c.hint}_length", c.origin) or [0]
    places = c.cast(c.emit("Range", start=0, step=1, length=length, dtype=DType.I64), start.dtype)
    return c.emit("Add", start, c.emit("Mul", places, step))


def _float_range(c: NodeContext, start: scalars.Scalar, limit: scalars.Scalar, step: scalars.Scalar) -> Value:
    """A range of floats: an integer range, scaled and shifted."""
    if scalars.is_symbolic(start):
        c.unsupported(f"the range starts at {start}", fix_dimensions(start))
    try:
        count = scalars.to_int(scalars.ceil(scalars.div_float(scalars.sub(limit, start), step)))
        length = dims.maximum(scalars.as_dim(count), 0)
    except Undecided as why:
        c.unsupported(f"the length of the range is not known: {why}", fix_dimensions(limit))
    dtype = c.operand(0).dtype
    x = c.cast(c.emit("Range", start=0, step=1, length=length, dtype=DType.I64), dtype)
    x = c.scale(x, float(step))  # type: ignore[arg-type]
    return x if start == 0 else c.emit("Add", x, c.const(start, dtype))


@handles("ConstantOfShape")
def _constant_of_shape(c: NodeContext) -> Result:
    shape = c.dims(0)
    data, dtype = c.tensor_attr("value") or (np.zeros(1, np.float32), DType.F32)
    if data.size != 1 or any(isinstance(d, int) and d < 0 for d in shape):
        c.broken("the value should have one element and the shape no negative dimension")
    item = data.reshape(-1)[0]
    value = float(item) if dtype.is_float else int(item)
    return c.emit("ConstantOfShape", shape=tuple(shape), value=value, dtype=dtype)


@handles("EyeLike")
def _eye_like(c: NodeContext) -> Result:
    c.needs_rank(0, 2, 2)
    dtype = element_type(c.int_attr("dtype")) if c.has_attr("dtype") else c.operand(0).dtype
    return c.emit("EyeLike", c.value(0), k=c.int_attr("k"), dtype=dtype)


@handles("ReverseSequence")
def _reverse_sequence(c: NodeContext) -> Result:
    x = c.value(0)
    c.needs_rank(0, 2)
    batch, time = c.int_attr("batch_axis", 1), c.int_attr("time_axis", 0)
    if {batch, time} != {0, 1}:
        c.broken("batch_axis and time_axis should be 0 and 1")
    lengths = c.value(1)
    steps = c.emit("Range", start=0, step=1, length=x.shape[time], dtype=lengths.dtype)
    lengths = c.reshape(lengths, [x.shape[batch] if i == batch else 1 for i in range(2)])
    steps = c.reshape(steps, [x.shape[time] if i == time else 1 for i in range(2)])
    back = c.emit("Sub", c.emit("Sub", lengths, c.const(1, lengths.dtype)), steps)
    at = c.emit("Where", c.emit("Less", steps, lengths), back, steps)
    at = c.reshape(at, [*x.shape[:2], *[1] * (x.type.rank - 2)])
    return c.emit("GatherElements", x, c.expand(at, x.shape), axis=time)


def merge(shape: Sequence[Dim]) -> Dim:
    """The product of some dimensions."""
    return math.prod(shape) if all(isinstance(d, int) for d in shape) else dims.product(shape)
