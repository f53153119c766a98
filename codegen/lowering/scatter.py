"""Scatters (ONNX ScatterElements and ScatterND): updates replace, or are combined with, elements of a copy of the data.

Where few updates may name one element, the scatter is a *search*: one reduce kernel, in which every output element
looks through all indices that could name it, in order. Otherwise it goes *update by update*: one kernel copies the
data, a second one stores every update at its index, and combines by atomics. Where the result takes over the data's
memory, nothing is copied. An update whose index is out of range is dropped, unless the attribute ``strict`` is 1: then
it is an error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from arcweld.codegen.kernel import Axis, BoundKernel, Store, axis
from arcweld.codegen.lowering.reading import Hero, RegionReader, delinearize, finish, stem_of
from arcweld.compiler import dims, expr
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, all_of, binary, both, const
from arcweld.compiler.inlining import Coords
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.region import Region

# attribute ``reduction`` -> the reduce template's combiner, and the operation that applies the result to the data
COMBINE = {"add": ("sum", "add"), "mul": ("prod", "mul"), "max": ("max", "max"), "min": ("min", "min")}


def _place(node: Node, value: Expr, extent: Dim, mask: Expr | None = None) -> Expr:
    """The index as i64; negative ones count from the end, or are 0 where they are padding."""
    strict = bool(node.attrs["strict"])
    if node.attrs.get("padding"):
        at = expr.cast(value, DType.I64)
        return expr.checked_index(binary("max", at, const(0, DType.I64)), extent, mask, strict)
    return expr.wrapped_index(value, extent, mask, strict)


def _real(node: Node, value: Expr) -> list[Expr]:
    """The condition under which an index is no padding, where there may be such."""
    return [binary("ge", value, const(0, value.dtype))] if node.attrs.get("padding") else []


def _below(index: Dim, extent: Dim) -> list[Expr]:
    return [] if dims.is_nonneg(extent - 1 - index) else [binary("lt", expr.index(index), expr.index(extent))]


# ------------------------------------------------------------------------------------------------------------- search


def lower_search(reader: RegionReader, node: Node) -> Hero:
    """A scatter as a reduction over the updates: axes ``out`` (the data's) and ``reduce`` (the updates that may match).

    With the attribute ``reduction``, load ``x`` is the update, or the combiner's identity where it doesn't match; the
    epilogue combines the result with the data. Without it the last matching update counts: ``x`` is the update's
    position, or -1, combined by max; the epilogue reads the update at that position.
    """
    data, indices, updates = node.operands()
    outs = tuple(axis(f"o{k}", d) for k, d in enumerate(data.shape))
    coords = tuple(a.index for a in outs)
    many = _candidates(node, indices)
    steps = tuple(a.index for a in many)
    matches = _matches(reader, node, coords, steps)
    reduction = node.attrs["reduction"]
    if reduction == "none":
        flat = sum((s * dims.product(a.extent for a in many[k + 1 :]) for k, (s, a) in enumerate(zip(steps, many))), 0)
        x = expr.where(matches, expr.index(flat), const(-1, DType.I64))
        combine, result = "max", _last_update(reader, node, many, coords)
    else:
        combine, apply = COMBINE[reduction]
        taken = reader.read(updates, _update_coords(node, coords, steps), matches)
        x = expr.where(matches, taken, const(identity(combine, data.dtype), data.dtype))
        acc = expr.variable("acc", data.dtype)
        result = binary(apply, reader.read(data, coords), acc)
    flops = dims.product(data.shape) * dims.product(a.extent for a in many)
    attrs = {"combine": combine, "select_last": False}
    return Hero({"out": outs, "reduce": many}, {"x": x}, coords, lambda _: result, attrs, flops, template="reduce")


def _candidates(node: Node, indices: Value) -> tuple[Axis, ...]:
    """The axes over the updates that may name one element."""
    if node.op == "ScatterND":
        return tuple(axis(f"u{k}", d) for k, d in enumerate(indices.shape[:-1]))
    return (axis("u", indices.shape[node.attrs["axis"]]),)


def _matches(reader: RegionReader, node: Node, coords: Coords, steps: Coords) -> Expr:
    """Whether the update at ``steps`` names the element at ``coords``."""
    data, indices, _ = node.operands()
    if node.op == "ScatterND":
        given = [reader.read(indices, (*steps, k)) for k in range(_depth(indices))]
        same = [binary("eq", _place(node, v, d), expr.index(c)) for v, d, c in zip(given, data.shape, coords)]
        return all_of([*same, *(c for v in given for c in _real(node, v))]) or const(True, DType.BOOL)
    along = node.attrs["axis"]
    at = _update_coords(node, coords, steps)
    inside = [c for k, (x, d) in enumerate(zip(at, indices.shape)) if k != along for c in _below(x, d)]
    exists = all_of(inside)
    found = _place(node, reader.read(indices, at, exists), data.shape[along], exists)
    named = binary("eq", found, expr.index(coords[along]))
    return named if exists is None else both(exists, named)


def _depth(indices: Value) -> int:
    depth = indices.shape[-1]
    assert isinstance(depth, int)
    return depth


def _update_coords(node: Node, coords: Coords, steps: Coords) -> Coords:
    """The coordinates in the updates of candidate ``steps`` for the element at ``coords``."""
    if node.op == "ScatterND":
        return (*steps, *coords[_depth(node.operands()[1]) :])
    along = node.attrs["axis"]
    return (*coords[:along], *steps, *coords[along + 1 :])


def _last_update(reader: RegionReader, node: Node, many: Sequence[Axis], coords: Coords) -> Expr:
    """The update whose position the reduction found, else the data's own element."""
    data, _, updates = node.operands()
    position = expr.variable("acc", DType.I64)
    total = dims.product(a.extent for a in many)
    steps = delinearize(expr.dynamic_index(position, total), [a.extent for a in many])
    found = binary("ge", position, const(0, DType.I64))
    update = reader.read(updates, _update_coords(node, coords, steps), found)
    return expr.where(found, update, reader.read(data, coords))


def identity(combine: str, dtype: DType) -> float | int | bool:
    """The neutral element of ``sum``, ``prod``, ``max`` or ``min``: combining with it changes nothing."""
    if combine in ("sum", "prod"):
        return int(combine == "prod")
    if dtype.is_float:
        return -float("inf") if combine == "max" else float("inf")
    info = np.iinfo(dtype.numpy)
    return int(info.min if combine == "max" else info.max)


# -------------------------------------------------------------------------------------------------- update by update


def lower_scatter(region: Region, graph: Graph) -> tuple[BoundKernel, ...]:
    """The kernels of a scatter: unless it is in place a copy of the data, then the stores of the updates."""
    node = region.hero
    assert node is not None
    updates = node.operands()[2]
    before = () if region.in_place else (_lower_copy(region, node, graph),)
    reader = RegionReader(region, graph)
    steps = tuple(axis(f"u{k}", d) for k, d in enumerate(updates.shape))
    stored = scattered(reader, node, tuple(a.index for a in steps))
    flops = dims.product(updates.shape)
    return (*before, finish(region, reader, "scatter", {"out": steps}, {}, [stored], {}, flops))


def scattered(reader: RegionReader, node: Node, at: Coords) -> Store:
    """The store of the update at ``at``."""
    places, conditions = _places(reader, node, at)
    target = reader.buffer(node.output, written=True).name
    return Store(target, places, reader.read(node.operands()[2], at), all_of(conditions), node.attrs["reduction"])


def _lower_copy(region: Region, node: Node, graph: Graph) -> BoundKernel:
    """The kernel that copies the data to where the updates will be stored."""
    data, reader = node.operands()[0], RegionReader(region, graph)
    outs = tuple(axis(f"i{k}", d) for k, d in enumerate(data.shape))
    coords = tuple(a.index for a in outs)
    target = reader.buffer(node.output, written=True).name
    stores = [Store(target, coords, reader.read(data, coords))]
    return finish(region, reader, "pointwise", {"out": outs}, {}, stores, {}, 0, stem=stem_of(region, "copy"))


def _places(reader: RegionReader, node: Node, at: Coords) -> tuple[Coords, list[Expr]]:
    """Where the update at ``at`` goes, and the conditions under which it goes anywhere."""
    data, indices, _ = node.operands()
    if node.op == "ScatterND":
        prefix = indices.type.rank - 1
        found = [reader.read(indices, (*at[:prefix], k)) for k in range(_depth(indices))]
        rest = at[prefix:]
        checked = [_checked(node, f, d) for f, d in zip(found, data.shape)]
        return (*(c for c, _ in checked), *rest), [c for _, cs in checked for c in cs]
    along = node.attrs["axis"]
    place, conditions = _checked(node, reader.read(indices, at), data.shape[along])
    return (*at[:along], place, *at[along + 1 :]), conditions


def _checked(node: Node, value: Expr, extent: Dim) -> tuple[Dim, list[Expr]]:
    place = _place(node, value, extent)
    low = _real(node, value) or [binary("ge", place, const(0, DType.I64))]
    return expr.dynamic_index(place, extent), [*low, binary("lt", place, expr.index(extent))]
