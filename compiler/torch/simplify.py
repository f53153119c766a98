"""Writes ATen graphs in the operators that handlers know: empty parts of concatenations and dense ``as_strided``.

Key-value caches begin as tensors without elements, which PyTorch keeps; left in, each would part the graph. Pooling
to one element and views of views come as ``as_strided``, whose meaning depends on memory order.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from arcweld.compiler.torch.fx_reader import target_name
from arcweld.compiler.torch.layout import memory_order
from arcweld.compiler.torch.types import Sizes
from torch import fx

aten = torch.ops.aten


def simplify(module: fx.GraphModule) -> None:
    """Rewrites such nodes in place; a node that cannot be rewritten stays as it is."""
    rules = {"aten.cat.default": _without_empty, "aten.as_strided.default": _as_views}
    changed = False
    for node in list(module.graph.nodes):
        rule = rules.get(target_name(node))
        changed |= rule is not None and rule(node)
    if changed:
        module.graph.eliminate_dead_code()
        module.recompile()


def has_no_elements(value: Any) -> bool:
    """True for a (fake) tensor of which an axis is known to have no elements."""
    return isinstance(value, torch.Tensor) and any(isinstance(d, int) and d == 0 for d in value.shape)


def _without_empty(node: fx.Node) -> bool:
    """``cat`` without those parts that have no elements; where it keeps a single one, a copy of that."""
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
    """``as_strided`` that takes all elements of a dense tensor in some order of its axes: permute, reshape, permute."""
    source, size, _, *offset = node.args
    assert isinstance(source, fx.Node)
    assert isinstance(size, list | tuple)
    before, after = source.meta["val"], node.meta["val"]
    start = offset[0] if offset else node.kwargs.get("storage_offset")
    sizes = Sizes()
    orders = [memory_order(t, sizes) for t in (before, after)]
    if any(o is None for o in orders) or not (start is None or start == before.storage_offset()):
        return False
    if sizes.type_of(before).numel != sizes.type_of(after).numel or any(u.op == "output" for u in node.users):
        return False
    into, out = (o for o in orders if o is not None)
    with node.graph.inserting_before(node):
        flat = node.graph.call_function(aten.permute.default, (source, list(into)))
        flat.meta["val"] = before.permute(into)
        wide = node.graph.call_function(aten.view.default, (flat, [size[k] for k in out]))
        wide.meta["val"] = flat.meta["val"].view([after.shape[k] for k in out])
        back = node.graph.call_function(aten.permute.default, (wide, [out.index(k) for k in range(len(out))]))
    _replace(node, back)
    return True


def _replace(node: fx.Node, new: fx.Node) -> None:
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
