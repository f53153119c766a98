"""Rewrites ``as_strided`` of dense tensors, whose meaning depends on the memory order, into views, windows or gathers.

Pooling to one element, views of views and the frames of ``stft`` come as ``as_strided``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from arcweld.compiler.dims import Dim, floordiv, product
from arcweld.compiler.torch.fx_reader import target_name
from arcweld.compiler.torch.layout import memory_order
from arcweld.compiler.torch.types import Sizes

aten = torch.ops.aten

STRIDED = ("aten.as_strided.default", "aten.as_strided_copy.default")


def rewrite_strided(graph: fx.Graph) -> bool:
    """Rewrites what can be rewritten, in place; True if anything was."""
    found = [as_views(node) for node in list(graph.nodes) if target_name(node) in STRIDED]
    if any(found):
        graph.eliminate_dead_code()
    return any(found)


def as_views(node: fx.Node) -> bool:
    """Rewrites ``as_strided``, or its copy, of a dense tensor.

    A view of all elements is a reshape in memory order, overlapping frames are windows, everything else is a gather.
    False if nothing was rewritten.
    """
    source, size, stride, *offset = node.args
    assert isinstance(source, fx.Node)
    start = offset[0] if offset else node.kwargs.get("storage_offset")
    start = source.meta["val"].storage_offset() if start is None else start
    source = _owner(source)
    if not isinstance(start, int) or not isinstance(source.meta["val"].storage_offset(), int):
        return False
    assert isinstance(size, list | tuple)
    assert isinstance(stride, list | tuple)
    before, after = source.meta["val"], node.meta["val"]
    sizes = Sizes()
    into, out = (memory_order(t, sizes) for t in (before, after))
    is_view = target_name(node) == "aten.as_strided.default"
    if into is None or (is_view and any(u.op == "output" for u in node.users)):
        return False
    start = start - before.storage_offset()
    if is_view and start == 0 and out is not None and _count(before, sizes) == _count(after, sizes):
        return _reordered(node, source, into, [size[k] for k in out], out)
    if start == 0 and before.is_contiguous() and _is_windows(before, after, sizes):
        return _windows(node, source, sizes)
    if not all(isinstance(d, int) for d in (start, *size, *stride, *before.shape)) or after.numel() == 0:
        return False
    last = start + sum((n - 1) * s for n, s in zip(size, stride))
    return start >= 0 and last < before.numel() and _gathered(node, source, into, start)


def _is_windows(signal: torch.Tensor, frames: torch.Tensor, sizes: Sizes) -> bool:
    """True if ``frames`` are ``[.., frames, n]`` of the last axis of ``signal``, a constant step apart."""
    if signal.dim() < 1 or frames.dim() != signal.dim() + 1:
        return False
    *lead, count, n = (sizes.dim(d) for d in frames.shape)
    *outer, step, unit = (sizes.dim(d) for d in frames.stride())
    shape, strides = ([sizes.dim(d) for d in given] for given in (signal.shape, signal.stride()))
    if lead != shape[:-1] or any(a != b for a, b, d in zip(outer, strides, lead) if d != 1) or unit != 1:
        return False
    if not (isinstance(n, int) and isinstance(step, int) and n > 0 and step > 0):
        return False
    room = floordiv(shape[-1] - n, step) + 1
    return count == room or (isinstance(count, int) and isinstance(room, int) and 0 < count <= room)


def _windows(node: fx.Node, source: fx.Node, sizes: Sizes) -> bool:
    """Replaces ``node`` by windows of the last axis, as many as it takes."""
    before, after = source.meta["val"], node.meta["val"]
    axis, n, step = before.dim() - 1, after.shape[-1], after.stride()[-2]
    with node.graph.inserting_before(node):
        found = _call(node, aten.unfold.default, before.unfold(axis, n, step), source, axis, n, step)
        if sizes.dim(found.meta["val"].shape[axis]) != sizes.dim(after.shape[axis]):
            found = node.graph.call_function(aten.slice.Tensor, (found, axis, 0, after.shape[axis]))
    replace_node(node, found, source)
    return True


def _count(tensor: torch.Tensor, sizes: Sizes) -> Dim:
    return product(sizes.dim(d) for d in tensor.shape)


def _owner(source: fx.Node) -> fx.Node:
    """The tensor that owns the memory of ``source``: the strides of ``as_strided`` refer to it."""
    while (earlier := source.meta.get("strided_view_of")) is not None:
        source = earlier
    return source


def _reordered(node: fx.Node, source: fx.Node, into: tuple[int, ...], size: list[Any], out: tuple[int, ...]) -> bool:
    """Replaces ``node``: permute to memory order ``into``, reshape, permute back from the result's order ``out``."""
    before, after = source.meta["val"], node.meta["val"]
    with node.graph.inserting_before(node):
        flat = _call(node, aten.permute.default, before.permute(into), source, list(into))
        wide = _call(node, aten.view.default, flat.meta["val"].view([after.shape[k] for k in out]), flat, size)
        back = node.graph.call_function(aten.permute.default, (wide, [out.index(k) for k in range(len(out))]))
    replace_node(node, back, source)
    return True


def _gathered(node: fx.Node, source: fx.Node, into: tuple[int, ...], start: int) -> bool:
    """Replaces ``node`` by a gather of the elements at ``start + sum(index * stride)`` of memory."""
    before, after = source.meta["val"], node.meta["val"]
    with node.graph.inserting_before(node):
        ordered = _call(node, aten.permute.default, before.permute(into), source, list(into))
        flat = _call(node, aten.view.default, ordered.meta["val"].view([-1]), ordered, [before.numel()])
        at: fx.Node | None = None
        for axis, (n, s) in enumerate(zip(after.shape, node.args[2])):  # type: ignore[arg-type]
            shape = [n if k == axis else 1 for k in range(after.dim())]
            like = before.new_empty([n], dtype=torch.int64)
            first = start if axis == 0 else 0
            kept = {"dtype": torch.int64, "device": before.device, "pin_memory": False}
            numbers = _call(node, aten.arange.start_step, like, first, first + n * s, s, **kept) if s else None
            if numbers is None:
                numbers = _call(node, aten.full.default, like, [n], first, **kept)
            column = _call(node, aten.view.default, like.view(shape), numbers, shape)
            total = column.meta["val"] if at is None else at.meta["val"] + column.meta["val"]
            at = column if at is None else _call(node, aten.add.Tensor, total, at, column)
        taken = flat if at is None else node.graph.call_function(aten.index.Tensor, (flat, [at]))
    replace_node(node, taken, source)
    return True


def _call(near: fx.Node, op: Any, value: torch.Tensor, *args: Any, **kwargs: Any) -> fx.Node:
    """A new node at the graph's insertion point; ``value`` is its fake result."""
    new = near.graph.call_function(op, args, kwargs)
    new.meta = {**near.meta, "val": value}
    return new


def replace_node(node: fx.Node, new: fx.Node, owner: fx.Node | None = None) -> None:
    """Puts ``new`` in the place of ``node``; ``owner`` is the tensor whose memory both show, if there is one."""
    new.meta = {**node.meta, "strided_view_of": owner}
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
