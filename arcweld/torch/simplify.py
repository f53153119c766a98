"""Rewrites ATen nodes that handlers do not support: ``cat`` with empty tensors, and ``as_strided`` of dense tensors.

Key-value caches begin as tensors without elements, which the compiler does not support: each would split the graph.
Pooling to one element and views of views come as ``as_strided``, whose meaning depends on the memory order.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import fx

from arcweld.compiler.dims import Dim, product
from arcweld.compiler.torch.fx_reader import target_name
from arcweld.compiler.torch.types import Sizes
from arcweld.torch.layout import memory_order

aten = torch.ops.aten

_ATTENTION = ("scaled_dot_product_attention", "_scaled_dot_product_")


def simplify(module: fx.GraphModule) -> None:
    """Rewrites the module's graph in place. A node that cannot be rewritten stays as it is."""
    rules = {
        "aten.cat.default": _without_empty, "aten.as_strided.default": _as_views,
        "aten.as_strided_copy.default": _as_views,
    }  # fmt: skip
    changed = False
    for node in list(module.graph.nodes):
        if node.op == "placeholder":
            _require_size(node.meta.get("val"))
        name = target_name(node)
        if name.removeprefix("aten.").startswith(_ATTENTION) and "backward" not in name:
            _require_equal_lengths(node)
        rule = rules.get(name)
        changed |= rule is not None and rule(node)
    if changed:
        module.graph.eliminate_dead_code()
        module.recompile()


def _require_size(value: Any) -> None:
    """Adds PyTorch's guard that an integer argument, such as a cache's length, is not negative if it is not now.

    A shape can bring it to an engine then.
    """
    if isinstance(value, torch.SymInt) and value.node.expr.is_Symbol and value.node.has_hint() and value.node.hint >= 0:
        bool(value >= 0)


def _require_equal_lengths(node: fx.Node) -> None:
    """Adds PyTorch's guard that keys and values have the same length, which its own attention assumes.

    The lengths are two different symbols if keys and values come from a growing cache.
    """
    key, value = (o.meta["val"].shape[-2] if isinstance(o, fx.Node) else 0 for o in node.args[1:3])
    if isinstance(key, torch.SymInt) or isinstance(value, torch.SymInt):
        bool(key == value)  # comparing symbolic sizes makes a guard


def has_no_elements(value: Any) -> bool:
    """True for a (fake) tensor with an axis of the static size 0."""
    return isinstance(value, torch.Tensor) and any(isinstance(d, int) and d == 0 for d in value.shape)


def _without_empty(node: fx.Node) -> bool:
    """Removes empty operands from ``cat``; a single remaining operand is copied. False if nothing was rewritten."""
    parts: Any = node.args[0]
    kept = [p for p in parts if not has_no_elements(p.meta["val"])]
    if not kept or len(kept) == len(parts):
        return False
    result = node.meta["val"]
    if functools.reduce(torch.promote_types, [p.meta["val"].dtype for p in kept]) is not result.dtype:
        return False  # the empty part decides the element type
    if len(kept) > 1:
        node.args = (kept, *node.args[1:])
        return True
    if not result.is_contiguous():
        return False
    with node.graph.inserting_after(node):
        copy = node.graph.call_function(aten.clone.default, (kept[0],), {"memory_format": torch.contiguous_format})
    _replace(node, copy)
    return True


def _as_views(node: fx.Node) -> bool:
    """Rewrites ``as_strided``, or its copy, of a dense tensor.

    A view of all elements is a reshape in memory order, everything else a gather.
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
    if not all(isinstance(d, int) for d in (start, *size, *stride, *before.shape)) or after.numel() == 0:
        return False
    last = start + sum((n - 1) * s for n, s in zip(size, stride))
    return start >= 0 and last < before.numel() and _gathered(node, source, into, start)


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
    _replace(node, back, source)
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
    _replace(node, taken, source)
    return True


def _call(near: fx.Node, op: Any, value: torch.Tensor, *args: Any, **kwargs: Any) -> fx.Node:
    """A new node at the graph's insertion point; ``value`` is its fake result."""
    new = near.graph.call_function(op, args, kwargs)
    new.meta = {**near.meta, "val": value}
    return new


def _replace(node: fx.Node, new: fx.Node, owner: fx.Node | None = None) -> None:
    new.meta = {**node.meta, "strided_view_of": owner}
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
