"""MoE (com.microsoft): a mixture of experts, each token by the few experts that its router prefers.

Pairs of a token and an expert are sorted by expert: the place of a pair is the number of those of experts before its
own, and of those before it of the same expert. So the experts' products are those of rows in groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.base import MICROSOFT, Result, handles
from arcweld.compiler.ops.grouped import grouped_product

GATED = ("swiglu", "geglu")
ACTIVATIONS = ("relu", "relu2", "gelu", "silu", "identity", *GATED)
SEPARATE, INTERLEAVED, APART = 0, 1, 2  # values of swiglu_fusion: how gates and what they scale lie in FC1


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Pairs of a token and an expert, ``count`` in all.

    weights  [tokens, k, 1], f32: what each expert's result counts
    place    [count]: the place of each pair among those sorted by expert
    token    [count]: the token of the pair at each place
    expert   [count]: its expert
    ends     [experts], i32: the first place behind those of each expert
    """

    weights: Value
    place: Value
    token: Value
    expert: Value
    ends: Value


@handles("MoE", domain=MICROSOFT)
def _mixture(c: NodeContext) -> Result:
    c.needs_rank(0, 2, 3)
    c.needs_rank(1, 2, 2)
    x, logits = c.value(0), c.value(1)
    width = x.shape[-1]
    tokens = c.reshape(x, (logits.shape[0], width))
    k = c.int_attr("k", 1)
    if c.int_attr("use_sparse_mixer"):
        c.unsupported("a sparse mixer")
    if k < 1:
        c.broken(f"{k} experts of each token")
    c.at_least(logits.shape[1], k)
    pairs = _sorted_by_expert(c, logits, k)
    rows = c.emit("Gather", tokens, pairs.token, axis=0)
    hidden = _linear(c, rows, 2, pairs)
    hidden = _activated(c, hidden, _linear(c, rows, 6, pairs) if c.has(6) else None)
    found = c.emit("Gather", _linear(c, hidden, 4, pairs), pairs.place, axis=0)
    each = c.emit("Mul", c.reshape(c.wide(found), (logits.shape[0], k, width)), pairs.weights)
    return c.reshape(c.cast(c.emit("ReduceSum", each, axes=(1,), keepdims=0), x.dtype), x.shape)


def _sorted_by_expert(c: NodeContext, logits: Value, k: int) -> _Pairs:
    count, experts = logits.shape[0] * k, logits.shape[1]
    shares = c.emit("Softmax", c.wide(logits), axis=1)
    chosen = c.emit("TopKIndices", shares, k=k, axis=1, largest=1)
    weights = c.emit("GatherElements", shares, chosen, axis=1)
    if c.int_attr("normalize_routing_weights"):
        weights = c.emit("Div", weights, c.emit("ReduceSum", weights, axes=(1,), keepdims=1))
    expert = c.reshape(chosen, (count,))
    own = c.emit("Equal", c.reshape(chosen, (count, 1)), c.reshape(_numbers(c, experts), (1, experts)))
    own = c.cast(own, DType.I32)
    before = c.emit("CumSum", own, axis=0, exclusive=1)  # of the same expert
    ends = c.emit("CumSum", c.emit("ReduceSum", own, axes=(0,), keepdims=0), axis=0)
    starts = c.emit("Sub", ends, c.emit("ReduceSum", own, axes=(0,), keepdims=0))
    places = c.emit("Mul", own, c.emit("Add", before, starts))
    place = c.cast(c.emit("ReduceSum", places, axes=(1,), keepdims=0), DType.I64)
    empty = c.expand(c.const(0, DType.I64), (count,))
    pair = c.emit("ScatterElements", empty, place, _numbers(c, count), axis=0)
    return _Pairs(
        c.reshape(weights, (logits.shape[0], k, 1)), place, c.emit("Div", pair, c.const(k, DType.I64)),
        c.emit("Gather", expert, pair, axis=0), ends,
    )  # fmt: skip


def _numbers(c: NodeContext, count: Dim) -> Value:
    return c.emit("Range", start=0, step=1, length=count, dtype=DType.I64)


def _linear(c: NodeContext, rows: Value, i: int, pairs: _Pairs) -> Value:
    """Each row by the weight [experts, out, in] and the bias of its expert: the inputs ``i`` and ``i + 1``."""
    c.needs_rank(i, 3, 3)
    y = grouped_product(c, rows, c.transpose(c.value(i), (0, 2, 1)), pairs.ends)
    return c.emit("Add", y, c.emit("Gather", c.value(i + 1), pairs.expert, axis=0)) if c.has(i + 1) else y


def _activated(c: NodeContext, x: Value, beside: Value | None) -> Value:
    """The activation of FC1's result, and of FC3's (``beside``), which it scales."""
    kind, fusion = c.choice_attr("activation_type", "relu", ACTIVATIONS), c.int_attr("swiglu_fusion")
    if kind not in GATED:
        if beside is not None and kind != "silu":
            c.unsupported(f"the activation {kind} of FC1 beside FC3")
        y = _plain(c, kind, x)
        return y if beside is None else c.emit("Mul", y, beside)
    if (fusion == SEPARATE) != (beside is not None) or fusion not in (SEPARATE, INTERLEAVED, APART):
        c.broken(f"swiglu_fusion {fusion} {'with' if beside is not None else 'without'} FC3")
    gate, linear = (x, beside) if beside is not None else _halves(c, x, fusion)
    assert linear is not None
    if kind == "geglu":
        return c.emit("Mul", c.emit("Gelu", gate, approximate="tanh"), linear)
    return _swiglu(c, gate, linear)


def _plain(c: NodeContext, kind: str, x: Value) -> Value:
    if kind == "gelu":
        return c.emit("Gelu", x, approximate="tanh")
    if kind == "silu":
        return c.emit("Silu", x)
    if kind == "identity":
        return x
    y = c.emit("Relu", x)
    return c.emit("Mul", y, y) if kind == "relu2" else y


def _halves(c: NodeContext, x: Value, fusion: int) -> tuple[Value, Value]:
    width = c.concrete(x.shape[1], "the width of FC1")
    if width % 2:
        c.broken(f"{width} columns of FC1 have no halves")
    starts, step = ((0, 1), 2) if fusion == INTERLEAVED else ((0, width // 2), 1)
    gate, linear = (c.slice(x, 1, start, width // 2, step) for start in starts)
    return gate, linear


def _swiglu(c: NodeContext, gate: Value, linear: Value) -> Value:
    alpha, beta = c.float_attr("activation_alpha", 1.0), c.float_attr("activation_beta", 0.0)
    limit = c.float_attr("swiglu_limit", math.inf)
    if c.int_attr("swiglu_limit_after_activation"):
        c.unsupported("a limit behind the activation")
    if math.isfinite(limit):
        most = c.const(limit, gate.dtype)
        gate = c.emit("Min", gate, most)
        linear = c.emit("Max", c.emit("Min", linear, most), c.const(-limit, gate.dtype))
    scaled = c.emit("Add", linear, c.const(beta, linear.dtype)) if beta else linear
    return c.emit("Mul", c.emit("Silu", gate, alpha=alpha), scaled)
