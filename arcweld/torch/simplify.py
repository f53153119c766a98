"""Rewrites ATen nodes that handlers do not support: ``cat`` with empty tensors, and ``as_strided`` of dense tensors.

Key-value caches begin as tensors without elements, which the compiler does not support: each would split the graph.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import fx

from arcweld.compiler.torch.fx_reader import target_name
from arcweld.compiler.torch.strided import STRIDED, as_views, replace_node

aten = torch.ops.aten

_ATTENTION = ("scaled_dot_product_attention", "_scaled_dot_product_")


def simplify(module: fx.GraphModule) -> None:
    """Rewrites the module's graph in place. A node that cannot be rewritten stays as it is."""
    rules = {"aten.cat.default": _without_empty, **dict.fromkeys(STRIDED, as_views)}
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
    replace_node(node, copy)
    return True
