"""ATen's movement operators: views, slices, concatenation, padding, and tensors made from nothing.

Output shapes come from torch's own shape propagation, so that -1, expansion and splitting need no arithmetic here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arcweld.compiler.dims import Dim, IntExpr, is_nonneg, product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.torch.context import AtenContext, Result, aten

# ------------------------------------------------------------------------------------------------------- views

RESHAPES = (
    "view", "_unsafe_view", "reshape", "_reshape_alias", "flatten.using_ints", "unflatten.int", "unsqueeze", "squeeze",
    "squeeze.dim", "squeeze.dims", "view_as", "reshape_as", "view_copy", "_reshape_copy", "unsqueeze_copy",
    "squeeze_copy", "squeeze_copy.dim", "squeeze_copy.dims",
)  # fmt: skip


@aten(*RESHAPES)
def reshape(c: AtenContext) -> Result:
    return c.reshape(c["self"], c.out.shape)


@aten("permute", "permute_copy")
def permute(c: AtenContext) -> Result:
    return c.transpose(c["self"], [c.axis(d) for d in c["dims"]])


@aten("t", "numpy_T", "mT", "t_copy")
def matrix_transpose(c: AtenContext) -> Result:
    rank = len(c["self"].shape)
    return c["self"] if rank < 2 else swapped(c, c["self"], rank - 2, rank - 1)


@aten("transpose.int", "transpose_copy.int")
def transpose(c: AtenContext) -> Result:
    rank = len(c["self"].shape)
    return c["self"] if rank == 0 else swapped(c, c["self"], c.axis(c["dim0"]), c.axis(c["dim1"]))


def swapped(c: AtenContext, v: Value, a: int, b: int) -> Value:
    """``v`` with two axes exchanged."""
    perm = list(range(len(v.shape)))
    perm[a], perm[b] = perm[b], perm[a]
    return c.transpose(v, perm)


@aten("expand", "broadcast_to", "expand_as", "expand_copy")
def expand(c: AtenContext) -> Result:
    return c.expand(c["self"], c.out.shape)


# ----------------------------------------------------------------------------------------------------- slicing


def position(c: AtenContext, start: Any, extent: Dim) -> Dim:
    """A start argument as a non-negative offset: negative counts from the end, and the end is the limit."""
    at: Dim = 0 if start is None else start
    if isinstance(at, int):
        if at < 0:
            at = at + extent
        if isinstance(at, int) and isinstance(extent, int):
            return min(max(at, 0), extent)
        return at
    if is_nonneg(at):
        return at
    if is_nonneg(-at):
        return at + extent
    raise c.fail(f"the sign of the offset {at} is not known")


@aten("slice.Tensor", "slice_copy.Tensor")
def slice_(c: AtenContext) -> Result:
    axis = c.axis(c["dim"])
    start = position(c, c["start"], c["self"].shape[axis])
    return c.slice(c["self"], axis, start, c.out.shape[axis], c["step"])


@aten("narrow", "narrow_copy")
def narrow(c: AtenContext) -> Result:
    axis = c.axis(c["dim"])
    return c.slice(c["self"], axis, position(c, c["start"], c["self"].shape[axis]), c.out.shape[axis])


@aten("select.int", "select_copy.int")
def select(c: AtenContext) -> Result:
    axis = c.axis(c["dim"])
    start = position(c, c["index"], c["self"].shape[axis])
    return c.reshape(c.slice(c["self"], axis, start, 1), c.out.shape)


SPLITS = ("split.Tensor", "split_with_sizes", "split.sizes", "chunk", "tensor_split.sections", "unsafe_split.Tensor")


@aten(*SPLITS, "unsafe_chunk", "split_with_sizes_copy", "split_copy.Tensor")
def split(c: AtenContext) -> Result:
    axis = c.axis(c["dim"])
    parts: list[Value | None] = []
    start: Dim = 0
    for k, out in enumerate(c.outs):
        assert out is not None
        parts.append(c.slice(c["self"], axis, start, out.shape[axis]) if k in c.used else None)
        start = start + out.shape[axis]
    return tuple(parts)


@aten("unbind.int", "unbind_copy.int")
def unbind(c: AtenContext) -> Result:
    axis = c.axis(c["dim"])
    return tuple(
        c.reshape(c.slice(c["self"], axis, k, 1), out.shape) if k in c.used and out is not None else None
        for k, out in enumerate(c.outs)
    )


@aten("unfold", "unfold_copy")
def unfold(c: AtenContext) -> Result:
    """Windows of one axis, which become a last axis of their own."""
    x: Value = c["self"]
    if not x.shape:
        return c.reshape(x, c.out.shape)
    axis, n, step = c.axis(c["dimension"]), c["size"], c["step"]
    if not (isinstance(n, int) and isinstance(step, int) and n > 0):
        raise c.fail(f"windows of {n} elements, {step} apart")
    order = (*(k for k in range(len(x.shape)) if k != axis), axis)
    lead = tuple(x.shape[k] for k in order[:-1])
    rows = c.reshape(c.transpose(x, order), (1, product(lead), x.shape[axis]))
    taps = c.emit("WindowTaps", rows, kernel_shape=(n,), strides=(step,), dilations=(1,), pads=(0, 0))
    found = c.reshape(taps, (*lead, *taps.shape[2:]))
    last = len(x.shape) - 1
    return c.transpose(found, (*range(axis), last, *range(axis, last), last + 1))


@aten("flip")
def flip(c: AtenContext) -> Result:
    x: Value = c["self"]
    for dim in c["dims"]:
        axis = c.axis(dim)
        x = c.slice(x, axis, x.shape[axis] - 1, x.shape[axis], -1)
    return x


@aten("roll")
def roll(c: AtenContext) -> Result:
    x = c["self"]
    dims = list(c["dims"] or ())
    shifts = list(c["shifts"])
    if not dims:
        x = c.reshape(x, (x.type.numel,))
        dims = [0]
    for shift, dim in zip(shifts, dims):
        axis = dim + len(x.shape) if dim < 0 else dim
        extent = x.shape[axis]
        if extent == 0:
            continue
        cut = (extent - shift) % extent if isinstance(extent, int) else _symbolic_cut(c, extent, shift)
        tail = c.slice(x, axis, cut, extent - cut)
        x = tail if cut == 0 else c.concat([tail, c.slice(x, axis, 0, cut)], axis)
    return c.reshape(x, c.out.shape)


def _symbolic_cut(c: AtenContext, extent: Dim, shift: Dim) -> Dim:
    if is_nonneg(-shift) and is_nonneg(extent + shift):
        return -shift
    if is_nonneg(shift) and is_nonneg(extent - shift):
        return extent - shift
    raise c.fail(f"roll by {shift} along a dimension of {extent}")


# ----------------------------------------------------------------------------------------- joining and repeating


@aten("cat")
def cat(c: AtenContext) -> Result:
    parts = [c.cast(t, c.out.dtype) for t in c["tensors"] if t.shape != (0,) or len(c.out.shape) == 1]
    axis = c["dim"] + len(c.out.shape) if c["dim"] < 0 else c["dim"]
    kept = [p for p in parts if p.shape[axis] != 0]
    return c.concat(kept or parts[:1], axis)


@aten("stack")
def stack(c: AtenContext) -> Result:
    axis = c["dim"] + len(c.out.shape) if c["dim"] < 0 else c["dim"]
    shape = tuple(1 if k == axis else d for k, d in enumerate(c.out.shape))
    return c.concat([c.reshape(c.cast(t, c.out.dtype), shape) for t in c["tensors"]], axis)


@aten("repeat")
def repeat(c: AtenContext) -> Result:
    repeats = tuple(c["repeats"])
    x = c["self"]
    x = c.reshape(x, (1,) * (len(repeats) - len(x.shape)) + x.shape)
    if all(r == 1 for r in repeats):
        return x
    if all(d == 1 or r == 1 for d, r in zip(x.shape, repeats)):
        return c.expand(x, c.out.shape)
    return c.emit("Tile", x, repeats=repeats)


@aten("repeat_interleave.self_int")
def repeat_interleave(c: AtenContext) -> Result:
    x, dim = c["self"], c["dim"]
    if dim is None:
        x, dim = c.reshape(x, (x.type.numel,)), 0
    axis = dim + len(x.shape) if dim < 0 else dim
    inner = (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :])
    wide = (*x.shape[: axis + 1], c["repeats"], *x.shape[axis + 1 :])
    return c.reshape(c.expand(c.reshape(x, inner), wide), c.out.shape)


# ----------------------------------------------------------------------------------------------------- padding


@aten("constant_pad_nd")
def constant_pad(c: AtenContext) -> Result:
    return _pad(c, c["pad"], "constant", float(c["value"]))


@aten("reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
def reflection_pad(c: AtenContext) -> Result:
    return _pad(c, c["padding"], "reflect", 0.0)


@aten("replication_pad1d", "replication_pad2d", "replication_pad3d")
def replication_pad(c: AtenContext) -> Result:
    """Padding by the edge; negative amounts crop, and where nothing is left of an axis, its edge is repeated."""
    x, pairs = c["self"], c["padding"]
    rank = len(x.shape)
    for k in range(len(pairs) // 2):
        axis, begin, end = rank - 1 - k, pairs[2 * k], pairs[2 * k + 1]
        n = x.shape[axis]
        if all(isinstance(d, int) for d in (n, begin, end)) and n + min(begin, 0) + min(end, 0) <= 0:
            places = [min(max(j - begin, 0), n - 1) for j in range(n + begin + end)]
            x = c.emit("Gather", x, c.const(places, DType.I64), axis=axis)
            pairs = [*pairs[: 2 * k], 0, 0, *pairs[2 * k + 2 :]]
    return _pad(c, pairs, "edge", 0.0, x)


@aten("_pad_circular")
def circular_pad(c: AtenContext) -> Result:
    return _pad(c, c["pad"], "wrap", 0.0)


def _pad(c: AtenContext, pairs: Sequence[Dim], mode: str, value: float, operand: Value | None = None) -> Value:
    """Torch lists (before, after) from the last axis backwards; negative amounts crop."""
    x: Value = c["self"] if operand is None else operand
    rank = len(x.shape)
    begin: list[Dim] = [0] * rank
    end: list[Dim] = [0] * rank
    for k in range(len(pairs) // 2):
        begin[rank - 1 - k], end[rank - 1 - k] = pairs[2 * k], pairs[2 * k + 1]
    for axis in range(rank):
        cut_b, cut_e = _cropped(begin[axis]), _cropped(end[axis])
        if cut_b or cut_e:
            x = c.slice(x, axis, cut_b, x.shape[axis] - cut_b - cut_e)
            begin[axis], end[axis] = begin[axis] + cut_b, end[axis] + cut_e
            if mode != "constant" and x.shape[axis] == 0 and begin[axis] + end[axis] != 0:
                raise c.fail(f"padding in mode {mode} crops all of axis {axis}")
    if all(d == 0 for d in (*begin, *end)):
        return x
    return c.emit("Pad", x, pads=(*begin, *end), mode=mode, value=value)


def _cropped(amount: Dim) -> int:
    return -amount if isinstance(amount, int) and amount < 0 else 0


# ---------------------------------------------------------------------------------------------- space and depth


@aten("pixel_shuffle")
def pixel_shuffle(c: AtenContext) -> Result:
    x = c["self"]
    y = c.emit("DepthToSpace", _as_images(c, x), blocksize=c["upscale_factor"], mode="CRD")
    return c.reshape(y, c.out.shape)


@aten("pixel_unshuffle")
def pixel_unshuffle(c: AtenContext) -> Result:
    """[N, C, H*r, W*r] -> [N, C*r*r, H, W] with the channel outermost, unlike ONNX's SpaceToDepth."""
    r = c["downscale_factor"]
    n, ch, h, w = _as_images(c, c["self"]).shape
    y = c.reshape(c["self"], (n, ch, h // r, r, w // r, r))
    return c.reshape(c.transpose(y, (0, 1, 3, 5, 2, 4)), c.out.shape)


def _as_images(c: AtenContext, x: Value) -> Value:
    lead: Dim = 1
    for d in x.shape[:-3]:
        lead = lead * d
    return c.reshape(x, (lead, *x.shape[-3:]))


@aten("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(c: AtenContext) -> Result:
    n, ch, *rest = c["self"].shape
    g = c["groups"]
    y = c.reshape(c["self"], (n, g, ch // g, *rest))
    return c.reshape(swapped(c, y, 1, 2), c.out.shape)


@aten("tril")
def tril(c: AtenContext) -> Result:
    return _triangle(c, upper=0)


@aten("triu")
def triu(c: AtenContext) -> Result:
    return _triangle(c, upper=1)


def _triangle(c: AtenContext, upper: int) -> Value:
    x, k = c["self"], c["diagonal"]
    if not isinstance(k, IntExpr):
        return c.emit("Trilu", x, upper=upper, k=k)
    rows, columns = x.shape[-2:]
    edge = c.reshape(c.emit("Range", start=k, step=1, length=rows, dtype=DType.I64), (rows, 1))
    column = c.emit("Range", start=0, step=1, length=columns, dtype=DType.I64)
    kept = c.emit("LessOrEqual", edge, column) if upper else c.emit("LessOrEqual", column, edge)
    return c.emit("Where", kept, x, c.scalar(0, x.dtype))


@aten("slice_scatter")
def slice_scatter(c: AtenContext) -> Result:
    x, axis = c["self"], c.axis(c["dim"])
    if c["step"] != 1:
        raise c.fail(f"slice_scatter with step {c['step']}")
    return _overwrite(c, x, axis, position(c, c["start"], x.shape[axis]), c["src"])


@aten("select_scatter")
def select_scatter(c: AtenContext) -> Result:
    x, axis = c["self"], c.axis(c["dim"])
    src = c.reshape(c["src"], tuple(1 if k == axis else d for k, d in enumerate(x.shape)))
    return _overwrite(c, x, axis, position(c, c["index"], x.shape[axis]), src)


def _overwrite(c: AtenContext, x: Value, axis: int, start: Dim, src: Value) -> Value:
    size = src.shape[axis]
    end = start + size
    parts = [] if start == 0 else [c.slice(x, axis, 0, start)]
    parts += [] if size == 0 else [c.cast(src, x.dtype)]
    parts += [] if end == x.shape[axis] else [c.slice(x, axis, end, x.shape[axis] - end)]
    return c.concat(parts, axis)


# ------------------------------------------------------------------------------------- tensors made from nothing


@aten("full", "new_full")
def full(c: AtenContext) -> Result:
    return c.full(c["fill_value"], c.out.shape, c.out.dtype)


@aten("full_like")
def full_like(c: AtenContext) -> Result:
    return c.full(c["fill_value"], c.out.shape, c.out.dtype)


@aten("fill.Scalar", "fill.Tensor")
def fill(c: AtenContext) -> Result:
    value = c["value"]
    if isinstance(value, Value):
        return c.expand(c.cast(value, c.out.dtype), c.out.shape)
    return c.full(value, c.out.shape, c.out.dtype)


ZEROS = ("zeros", "zeros_like", "new_zeros", "empty.memory_format", "empty_like", "new_empty", "empty_strided")


@aten(*ZEROS, "new_empty_strided", "empty_permuted")
def zeros(c: AtenContext) -> Result:
    return c.full(0, c.out.shape, c.out.dtype)


@aten("ones", "ones_like", "new_ones")
def ones(c: AtenContext) -> Result:
    return c.full(1, c.out.shape, c.out.dtype)


@aten("scalar_tensor")
def scalar_tensor(c: AtenContext) -> Result:
    return c.scalar(c["s"], c.out.dtype)


@aten("arange", "arange.start", "arange.start_step")
def arange(c: AtenContext) -> Result:
    start, step, length = c.get("start", 0), c.get("step", 1), c.out.shape[0]
    if isinstance(start, int | IntExpr) and isinstance(step, int):
        return c.emit("Range", start=start, step=step, length=length, dtype=c.out.dtype)
    if isinstance(step, IntExpr):
        raise c.fail(f"arange with the symbolic step {step}")
    return _ramp(c, start, float(step), length)


def _ramp(c: AtenContext, start: Any, step: float, length: Dim) -> Value:
    """``start + i * step``, computed in f64 as torch does on the host, then rounded once."""
    count = c.emit("Range", start=0, step=1, length=length, dtype=DType.F64)
    steps = c.emit("Mul", count, c.scalar(step, DType.F64))
    return c.result(c.emit("Add", steps, c.tensor(start, DType.F64)))


@aten("prims.iota.default")
def iota(c: AtenContext) -> Result:
    return c.emit("Range", start=c["start"], step=c["step"], length=c["length"], dtype=c.out.dtype)


@aten("linspace")
def linspace(c: AtenContext) -> Result:
    start, end, length = c["start"], c["end"], c.out.shape[0]
    if not isinstance(length, int):
        raise c.fail(f"linspace of the symbolic length {length}")
    return _ramp(c, start, (end - start) / max(length - 1, 1), length)


@aten("eye", "eye.m")
def eye(c: AtenContext) -> Result:
    return c.emit("EyeLike", c.full(0, c.out.shape, c.out.dtype), k=0, dtype=c.out.dtype)
