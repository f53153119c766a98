"""Handlers of the fused operators that ONNX Runtime's optimiser writes (domain com.microsoft)."""

from __future__ import annotations

import math

from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.attention import join_heads, rotary, split_heads
from arcweld.compiler.onnx.handlers.base import MICROSOFT, Result, handles
from arcweld.compiler.onnx.handlers.matmul import matmul
from arcweld.compiler.onnx.handlers.pointwise import bias_add
from arcweld.compiler.onnx.handlers.window import conv


@handles("Gelu", domain=MICROSOFT)
def _gelu(c: NodeContext) -> Result:
    return c.emit("Gelu", c.value(0), approximate="none")


@handles("BiasGelu", domain=MICROSOFT)
def _bias_gelu(c: NodeContext) -> Result:
    return c.emit("Gelu", bias_add(c, c.value(0), c.value(1)), approximate="none")


@handles("FastGelu", domain=MICROSOFT)
def _fast_gelu(c: NodeContext) -> Result:
    return c.emit("Gelu", bias_add(c, c.value(0), c.optional(1)), approximate="tanh")


@handles("QuickGelu", domain=MICROSOFT)
def _quick_gelu(c: NodeContext) -> Result:
    return c.emit("Silu", c.value(0), alpha=c.float_attr("alpha", 1.702))


@handles("BiasAdd", domain=MICROSOFT)
def _bias_add(c: NodeContext) -> Result:
    return c.emit("Add", c.emit("Add", c.value(0), c.value(1)), c.value(2))


@handles("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def _fused_matmul(c: NodeContext) -> Result:
    if c.int_attr("transBatchA") or c.int_attr("transBatchB"):
        c.unsupported("transposed batch dimensions")
    a, b = c.value(0), c.value(1)
    if c.int_attr("transA") and a.type.rank > 1:
        a = _last_two(c, a)
    if c.int_attr("transB") and b.type.rank > 1:
        b = _last_two(c, b)
    return c.scale(matmul(c, a, b), c.float_attr("alpha", 1.0))


def _last_two(c: NodeContext, x: Value) -> Value:
    n = x.type.rank
    return c.transpose(x, (*range(n - 2), n - 1, n - 2))


_ACTIVATIONS = ("Relu", "Sigmoid", "Tanh")


@handles("FusedGemm", domain=MICROSOFT)
def _fused_gemm(c: NodeContext) -> Result:
    y = c.emit(
        "Gemm", c.value(0), c.value(1), c.optional(2), alpha=c.float_attr("alpha", 1.0), beta=c.float_attr("beta", 1.0),
        transA=int(bool(c.int_attr("transA"))), transB=int(bool(c.int_attr("transB"))),
    )  # fmt: skip
    return _activated(c, y, c.float_attr("activation_alpha", 0.01))


@handles("FusedConv", domain=MICROSOFT)
def _fused_conv(c: NodeContext) -> Result:
    rank = c.needs_rank(0, 3, 5)
    c.needs_rank(1, rank, rank)
    y = conv(c, c.value(0), c.value(1), c.optional(2))
    if c.has(3):
        y = c.emit("Add", y, c.value(3))
    params = c.attrs.get("activation_params", ())
    if c.str_attr("activation", "") == "Clip" and len(params) == 2:
        return c.emit("Clip", y, min=float(params[0]), max=float(params[1]))
    return _activated(c, y, float(params[0]) if params else 0.01)


def _activated(c: NodeContext, y: Value, alpha: float) -> Value:
    name = c.str_attr("activation", "")
    if not name:
        return y
    if name == "LeakyRelu":
        return c.emit("LeakyRelu", y, alpha=alpha)
    if name not in _ACTIVATIONS:
        c.unsupported(f"the fused activation {name}")
    return c.emit(name, y)


# --------------------------------------------------------------------------------------------------- normalisation


@handles("SimplifiedLayerNormalization")
@handles("SimplifiedLayerNormalization", domain=MICROSOFT)
def _simplified(c: NodeContext) -> Result:
    x = c.value(0)
    axis = c.axis(c.int_attr("axis", -1), c.needs_rank(0, 1))
    return c.emit("RMSNormalization", x, c.value(1), axis=axis, epsilon=c.float_attr("epsilon", 1e-5))


@handles("LayerNormalization", domain=MICROSOFT)
def _layer(c: NodeContext) -> Result:
    axis = c.axis(c.int_attr("axis", -1), c.needs_rank(0, 1))
    epsilon = c.float_attr("epsilon", 1e-5)
    return c.emit("LayerNormalization", c.value(0), c.value(1), c.optional(2), axis=axis, epsilon=epsilon)


@handles("SkipLayerNormalization", domain=MICROSOFT)
def _skip_layer(c: NodeContext) -> Result:
    """Inputs: x, skip, gamma, beta?, bias?; outputs: y, mean, inverse deviation, the sum."""
    total = bias_add(c, bias_add(c, c.value(0), c.value(1)), c.optional(4))
    y = c.emit(
        "LayerNormalization", total, c.value(2), c.optional(3),
        axis=total.type.rank - 1, epsilon=c.float_attr("epsilon", 1e-12),
    )  # fmt: skip
    return [y, None, None, total]


@handles("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def _skip_simplified(c: NodeContext) -> Result:
    """Inputs: x, skip, gamma, bias?; outputs: y, mean, inverse deviation, the sum."""
    total = bias_add(c, bias_add(c, c.value(0), c.value(1)), c.optional(3))
    axis = total.type.rank - 1
    y = c.emit("RMSNormalization", total, c.value(2), axis=axis, epsilon=c.float_attr("epsilon", 1e-12))
    return [y, None, None, total]


@handles("EmbedLayerNormalization", domain=MICROSOFT)
def _embed_layer(c: NodeContext) -> Result:
    """Word, position and segment embeddings, summed and normalised."""
    if c.has(7):
        c.unsupported("EmbedLayerNormalization with a mask")
    if len(c.used) > 1 and c.used[1]:
        c.unsupported("the mask index of EmbedLayerNormalization, which another node reads")
    ids = c.value(0)
    total = c.emit("Gather", c.value(2), ids, axis=0)
    length = ids.shape[1]
    if c.has(8):
        position = c.emit("Gather", c.value(3), c.value(8), axis=0)
    else:
        position = c.slice(c.value(3), 0, 0, length)
    total = c.emit("Add", total, position)
    if c.has(1) and c.has(4):
        total = c.emit("Add", total, c.emit("Gather", c.value(4), c.value(1), axis=0))
    epsilon = c.float_attr("epsilon", 1e-12)
    y = c.emit("LayerNormalization", total, c.value(5), c.value(6), axis=2, epsilon=epsilon)
    return [y, None, total]


# ------------------------------------------------------------------------------------------------------- attention


def _attend(c: NodeContext, q: Value, k: Value, v: Value, mask: Value | None) -> Value:
    head = c.concrete(q.shape[3], "the head size")
    scale = c.float_attr("scale", 0.0) or 1.0 / math.sqrt(max(head, 1))
    return c.emit("Attention", q, k, v, mask, scale=scale, is_causal=int(bool(c.int_attr("unidirectional"))))


@handles("Attention", domain=MICROSOFT)
def _packed_attention(c: NodeContext) -> Result:
    """One weight matrix ``[hidden, 3*H*D]`` makes query, key and value from the input."""
    if c.has(3) or c.has(4) or c.has_attr("qkv_hidden_sizes") or c.int_attr("do_rotary") or any(c.used[1:]):
        c.unsupported("a mask index, a cache, rotary positions or unequal hidden sizes")
    packed = bias_add(c, matmul(c, c.value(0), c.value(1)), c.optional(2))
    width = c.concrete(packed.shape[2], "the hidden size") // 3
    heads = c.int_attr("num_heads")
    q, k, v = (split_heads(c, c.slice(packed, 2, i * width, width), heads) for i in range(3))
    return join_heads(c, _attend(c, q, k, v, c.optional(5)))


@handles("RotaryEmbedding", domain=MICROSOFT)
def _rotary(c: NodeContext) -> Result:
    """Inputs: x, positions ``[B, S]`` (or the first position, of one element), cos cache, sin cache."""
    rank = c.needs_rank(0, 3, 4)
    if c.operand(1).rank != 2 or c.float_attr("scale", 1.0) != 1.0:
        c.unsupported("a single start position, or a scale")
    x = c.value(0)
    cos, sin = (c.emit("Gather", c.value(i), c.value(1), axis=0) for i in (2, 3))
    heads = c.int_attr("num_heads")
    if rank == 3 and heads == 0:
        head = 2 * c.concrete(cos.shape[2], "the head size")
        heads = c.concrete(x.shape[2], "the hidden size") // max(head, 1)
    return rotary(c, x, cos, sin, heads, rank, bool(c.int_attr("interleaved")))
