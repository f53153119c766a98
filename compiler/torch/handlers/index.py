"""ATen's gathers and writes by index: embedding, indexing by tensors, gather, index_put, topk.

Boolean masks as indices are refused: how much they select depends on data. An index out of range is an error, as in
eager; only ``_unsafe_index`` and its kind promise that there is none.
"""

from __future__ import annotations

from collections.abc import Sequence

from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.ops.shapes import broadcast
from arcweld.compiler.torch.context import AtenContext, Result, aten
from arcweld.compiler.torch.handlers.places import index_tensor, slices


@aten("index_select")
def index_select(c: AtenContext) -> Result:
    x: Value = c["self"]
    at = index_tensor(c, c["index"])
    if not x.shape:
        return x
    return c.emit("Gather", x, c.reshape(at, (at.type.numel,)), axis=c.axis(c["dim"]), strict=1)


@aten("gather")
def gather(c: AtenContext) -> Result:
    if not c["self"].shape:
        return c.expand(c["self"], c.out.shape)
    return c.emit("GatherElements", c["self"], index_tensor(c, c["index"]), axis=c.axis(c["dim"]), strict=1)


@aten("take")
def take(c: AtenContext) -> Result:
    flat = c.reshape(c["self"], (c["self"].type.numel,))
    return c.emit("Gather", flat, index_tensor(c, c["index"]), axis=0, strict=1)


@aten("index.Tensor")
def index(c: AtenContext) -> Result:
    return _picked(c, 1)


@aten("_unsafe_index.Tensor")
def unsafe_index(c: AtenContext) -> Result:
    return _picked(c, 0)


def _picked(c: AtenContext, strict: int) -> Value:
    """Tensors as indices of some axes; the indexed axes become the axes of the (broadcast) index tensors."""
    x: Value = c["self"]
    axes = [k for k, v in enumerate(c["indices"]) if v is not None]
    found = [index_tensor(c, c["indices"][k]) for k in axes]
    if not axes:
        return x
    if len(axes) == 1:
        return c.emit("Gather", x, found[0], axis=axes[0], strict=strict)
    rest = [k for k in range(len(x.shape)) if k not in axes]
    picked = c.emit("GatherND", c.transpose(x, [*axes, *rest]), _stacked(c, found), batch_dims=0, strict=strict)
    if axes != list(range(axes[0], axes[0] + len(axes))):
        return picked  # indices apart from each other: torch puts the indexed axes first
    lead = len(picked.shape) - len(rest)
    order = [*range(lead, lead + axes[0]), *range(lead), *range(lead + axes[0], len(picked.shape))]
    return c.transpose(picked, order)


def _stacked(c: AtenContext, found: Sequence[Value]) -> Value:
    """Index tensors broadcast against each other and stacked along a new last axis."""
    shape = broadcast("index", [v.shape for v in found])
    columns = [c.reshape(c.expand(c.cast(v, DType.I64), shape), (*shape, 1)) for v in found]
    return c.concat(columns, len(shape))


@aten("index_put")
def index_put(c: AtenContext) -> Result:
    return _put(c, 1)


@aten("_unsafe_index_put")
def unsafe_index_put(c: AtenContext) -> Result:
    return _put(c, 0)


def _put(c: AtenContext, strict: int) -> Value:
    """Writes (or adds) values at indexed positions; repeated positions are only defined when accumulating."""
    x: Value = c["self"]
    axes = [k for k, v in enumerate(c["indices"]) if v is not None]
    if len(axes) == 1 and c["indices"][axes[0]].dtype is DType.BOOL:
        return _masked_put(c, x, c["indices"][axes[0]])
    found = [index_tensor(c, c["indices"][k]) for k in axes]
    reduction = "add" if c.get("accumulate", False) else "none"
    if len(axes) == 1 and len(found[0].shape) == 1:
        wide = (*x.shape[: axes[0]], *found[0].shape, *x.shape[axes[0] + 1 :])
        return slices(c, found[0], c.expand(c.cast(c["values"], x.dtype), wide), axes[0], reduction, strict)
    together = axes == list(range(axes[0], axes[0] + len(axes)))
    rest = [k for k in range(len(x.shape)) if k not in axes]
    order = [*axes, *rest]
    at = _stacked(c, found)
    lead = at.shape[:-1]
    inner = tuple(x.shape[k] for k in rest)
    values = _index_values(c, lead, inner, axes[0] if together else 0)  # as indexing places the indexed axes
    y = c.emit("ScatterND", c.transpose(x, order), at, values, reduction=reduction, strict=strict)
    return c.transpose(y, [order.index(k) for k in range(len(order))])


def _index_values(c: AtenContext, lead: tuple[Dim, ...], inner: tuple[Dim, ...], before: int) -> Value:
    """The values broadcast to what indexing would return, with the indexed axes brought to the front."""
    shape = (*inner[:before], *lead, *inner[before:])
    wide = c.expand(c.cast(c["values"], c.out.dtype), shape)
    n = len(lead)
    return c.transpose(wide, [*range(before, before + n), *range(before), *range(before + n, len(shape))])


def _masked_put(c: AtenContext, x: Value, mask: Value) -> Value:
    """``x`` with values where ``mask`` is true: one for all, or one for each in order if the mask has all axes of x."""
    value: Value = c.cast(c["values"], x.dtype)
    shape = mask.shape + (1,) * (len(x.shape) - len(mask.shape))
    if all(d == 1 for d in value.shape):
        new = c.reshape(value, ())
    elif len(mask.shape) == len(x.shape) and len(value.shape) == 1:
        count = c.emit("CumSum", c.reshape(c.cast(mask, DType.I64), (mask.type.numel,)), axis=0)
        place = c.emit("Max", c.emit("Sub", count, c.scalar(1, DType.I64)), c.scalar(0, DType.I64))
        new = c.reshape(c.emit("Gather", value, place, axis=0, strict=1), x.shape)
    else:
        raise c.fail("index_put by a boolean mask of some axes with more than one value")
    if c.get("accumulate", False):
        new = c.emit("Add", x, new)
    return c.emit("Where", c.reshape(mask, shape), new, x)


# ------------------------------------------------------------------------------------------- largest, sampled places

@aten("topk")
def topk(c: AtenContext) -> Result:
    """The largest or smallest elements of a row and their indices, always sorted, equal ones by index."""
    x, k = c["self"], c["k"]
    if not x.shape:
        return x, c.scalar(0, DType.I64)
    axis = c.axis(c["dim"])
    if not isinstance(k, int):
        raise c.fail(f"the first {k} of {x.shape[axis]} elements, an open number")
    c.emit("TopK", x, k=k, axis=axis, largest=int(c["largest"]))
    values, places = c.rw.nodes[-1].outputs
    return values, places


_SAMPLING = ("linear", "nearest", "cubic")
_OUTSIDE = ("zeros", "border", "reflection")


@aten("grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(c: AtenContext) -> Result:
    return c.emit(
        "GridSample", c["input"], c["grid"], mode=_SAMPLING[c["interpolation_mode"]],
        padding_mode=_OUTSIDE[c["padding_mode"]], align_corners=int(c["align_corners"]),
    )  # fmt: skip
