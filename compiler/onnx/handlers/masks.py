"""Masks of com.microsoft's attention operators: padding in every form, biases of scores, causality."""

from __future__ import annotations

import math
from dataclasses import dataclass

from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.attention import KEYS, QUERIES, lengthened, numbered
from arcweld.compiler.ops.shapes import FLOATS, check_dtype


@dataclass(frozen=True, slots=True)
class Inputs:
    """Which inputs of an operator are the padding mask, the bias of scores and the cache."""

    padding: int
    bias: int | None
    past: int


MULTI_HEAD, PACKED, QUANTISED = Inputs(4, 5, 6), Inputs(3, 5, 4), Inputs(5, None, 8)


def scores_mask(
    c: NodeContext, at: Inputs, q: Value, k: Value, before: Dim, first: Value | None = None, used: Value | None = None
) -> Value | None:
    """What is added to scores, or which keys are attended; None for all keys, or for those that causality alone allows.

    ``first`` is the place of the first new key in a cache of full length, ``used`` the number of its keys; ``before``
    is the number of past keys in one that grows.
    """
    added = _padding(c, at.padding, q, k)
    if at.bias is not None and c.has(at.bias):
        c.needs_rank(at.bias, 1, 4)
        bias = c.value(at.bias)
        bias = bias if bias.shape[-1] == k.shape[2] else lengthened(c, bias, k.shape[2])
        added = bias if added is None else c.emit("Add", added, bias)
    new, keys = q.shape[2], k.shape[2]
    causal = bool(c.int_attr("unidirectional"))
    if first is None and (not causal or (added is None and not c.has(at.past))):
        return added
    j = numbered(c, KEYS, keys)
    if causal:
        i = numbered(c, QUERIES, new, before)
        i = i if first is None else c.emit("Add", i, c.reshape(first, (1, 1, 1, 1)))
        allowed = c.emit("LessOrEqual", j, i)
    else:
        assert used is not None
        allowed = c.emit("Less", j, c.reshape(used, (1, 1, 1, 1)))
    return allowed if added is None else limited(c, added, allowed, keys)


def _padding(c: NodeContext, i: int, q: Value, k: Value) -> Value | None:
    """What the padding mask, input ``i``, adds to scores: 0, or ``mask_filter_value`` where there is padding.

    It has an element for each key, or each pair of query and key; or the number of keys of each batch; or where these
    end, for each batch, and after that where they begin.
    """
    if not c.has(i):
        return None
    mask, (batch, _, new, _), keys = c.value(i), q.shape, k.shape[2]
    if mask.type.rank == 1:
        if mask.shape[0] not in (batch, batch * 2):
            c.unsupported("a padding mask of cumulated lengths")
        j, bounds = numbered(c, KEYS, keys), c.cast(mask, DType.I64)
        end = c.slice(bounds, 0, 0, batch) if mask.shape[0] != batch else bounds
        valid = c.emit("Less", j, c.reshape(end, (batch, 1, 1, 1)))
        if mask.shape[0] != batch:
            start = c.reshape(c.slice(bounds, 0, batch, batch), (batch, 1, 1, 1))
            valid = c.emit("And", valid, c.emit("GreaterOrEqual", j, start))
    else:
        c.needs_rank(i, 2, 3)
        shape = (batch, 1, 1 if mask.type.rank == 2 else new, mask.shape[-1])
        valid = c.cast(c.reshape(mask, shape), DType.BOOL)
    low = c.const(c.float_attr("mask_filter_value", -10000.0), q.dtype)
    added = c.emit("Where", valid, c.const(0.0, q.dtype), low)
    return added if added.shape[-1] == keys else lengthened(c, added, keys)


def limited(c: NodeContext, bias: Value, allowed: Value, keys: Dim) -> Value:
    """``bias``, which is added to scores, with minus infinity where a key is not allowed."""
    check_dtype(c.op, bias.type, FLOATS)
    if bias.shape[-1] != keys:
        bias = lengthened(c, bias, keys)
    return c.emit("Where", allowed, bias, c.const(-math.inf, bias.dtype))
