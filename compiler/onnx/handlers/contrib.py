"""Handlers of the fused operators that ONNX Runtime's optimiser writes (domain com.microsoft)."""

from __future__ import annotations

import math

from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.attention import join_heads, rotary, split_heads
from arcweld.compiler.onnx.handlers.base import MICROSOFT, Result, handles
from arcweld.compiler.onnx.handlers.masks import PACKED, QUANTISED, Inputs, scores_mask
from arcweld.compiler.onnx.handlers.matmul import matmul
from arcweld.compiler.onnx.handlers.norm import statistics
from arcweld.compiler.onnx.handlers.pointwise import bias_add
from arcweld.compiler.onnx.handlers.quant import integer_matmul, scalar
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


@handles("BiasSplitGelu", domain=MICROSOFT)
def _bias_split_gelu(c: NodeContext) -> Result:
    """The left half of the features times the Gelu of the right half, after a bias."""
    x = bias_add(c, c.value(0), c.value(1))
    axis, width = x.type.rank - 1, c.concrete(x.shape[-1], "the hidden size")
    if width % 2:
        c.broken(f"{width} features have no halves")
    left, right = (c.slice(x, axis, start, width // 2) for start in (0, width // 2))
    return c.emit("Mul", left, c.emit("Gelu", right, approximate="none"))


@handles("BiasAdd", domain=MICROSOFT)
def _bias_add(c: NodeContext) -> Result:
    return c.emit("Add", c.emit("Add", c.value(0), c.value(1)), c.value(2))


@handles("NhwcConv", domain=MICROSOFT)
def _nhwc_conv(c: NodeContext) -> Result:
    """A Conv whose image, result and filters [out, kernel, in] have their channels last."""
    rank = c.needs_rank(0, 3, 5)
    c.needs_rank(1, rank, rank)
    first, last = (0, rank - 1, *range(1, rank - 1)), (0, *range(2, rank), 1)
    y = conv(c, c.transpose(c.value(0), first), c.transpose(c.value(1), first), c.optional(2))
    return c.transpose(y, last)


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
    params = c.floats_attr("activation_params") or ()
    if c.str_attr("activation", "") == "Clip" and len(params) == 2:
        return c.emit("Clip", y, min=params[0], max=params[1])
    return _activated(c, y, params[0] if params else 0.01)


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


@handles("GroupNorm", domain=MICROSOFT)
def _group_norm(c: NodeContext) -> Result:
    """Inputs: x, by default with its channels last, gamma, beta."""
    x, last = c.value(0), bool(c.int_attr("channels_last", 1))
    rank, groups = c.needs_rank(0, 3), c.int_attr("groups")
    channels = c.concrete(x.shape[rank - 1 if last else 1], "the number of channels")
    if groups < 1 or channels % groups:
        c.broken(f"{channels} channels cannot form {groups} groups")
    inside = c.transpose(x, (0, rank - 1, *range(1, rank - 1))) if last else x
    scale, bias = (c.cast(c.value(i), x.dtype) for i in (1, 2))
    y = c.emit("GroupNormalization", inside, scale, bias, epsilon=c.float_attr("epsilon", 1e-5), num_groups=groups)
    if c.int_attr("activation"):
        y = c.emit("Silu", y, alpha=1.0)
    return c.transpose(y, (0, *range(2, rank), 1)) if last else y


@handles("SkipLayerNormalization", domain=MICROSOFT)
def _skip_layer(c: NodeContext) -> Result:
    """Inputs: x, skip, gamma, beta?, bias?; outputs: y, mean, inverse deviation, the sum."""
    total = bias_add(c, bias_add(c, c.value(0), c.value(1)), c.optional(4))
    y = c.emit(
        "LayerNormalization", total, c.value(2), c.optional(3),
        axis=total.type.rank - 1, epsilon=c.float_attr("epsilon", 1e-12),
    )  # fmt: skip
    if not any(c.used[1:3]):
        return [y, None, None, total]
    return [y, *statistics(c, total, [total.type.rank - 1], c.float_attr("epsilon", 1e-12)), total]


@handles("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def _skip_simplified(c: NodeContext) -> Result:
    """Inputs: x, skip, gamma, bias?; outputs: y, mean, inverse deviation, the sum."""
    total = bias_add(c, bias_add(c, c.value(0), c.value(1)), c.optional(3))
    axis = total.type.rank - 1
    y = c.emit("RMSNormalization", total, c.value(2), axis=axis, epsilon=c.float_attr("epsilon", 1e-12))
    return [y, None, None, total]


@handles("EmbedLayerNormalization", domain=MICROSOFT)
def _embed_layer(c: NodeContext) -> Result:
    """Word, position and segment embeddings, summed and normalised; the number of unmasked tokens; the sum."""
    c.needs_rank(0, 2, 2)
    c.needs_rank(3, 2, 2)
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
    return [y, _unmasked(c, ids), total]


def _unmasked(c: NodeContext, ids: Value) -> Value:
    """How many tokens of each batch the mask leaves, by EmbedLayerNormalization: 0 without a mask."""
    if len(c.used) < 2 or not c.used[1]:
        return ids
    if not c.has(7):
        return c.expand(c.const(0, DType.I32), (ids.shape[0],))
    ones = c.cast(c.emit("Equal", c.value(7), c.const(1, c.value(7).dtype)), DType.I32)
    return c.emit("ReduceSum", ones, axes=(1,), keepdims=0)


# ------------------------------------------------------------------------------------------------------- attention


@handles("Attention", domain=MICROSOFT)
def _packed_attention(c: NodeContext) -> Result:
    """One weight matrix ``[hidden, widths of q, k and v]`` makes query, key and value from the input.

    Inputs: x, weight, bias, mask, past ``[2, B, H, P, D]``, bias of scores, …; outputs: y and the cache that follows.
    """
    return _attended(c, PACKED, bias_add(c, matmul(c, c.value(0), c.value(1)), c.optional(2)))


@handles("QAttention", domain=MICROSOFT)
def _quantised_attention(c: NodeContext) -> Result:
    """Attention whose input and weight are 8-bit integers.

    Inputs: x, weight, bias, their scales, mask, their zero points, past ``[2, B, H, P, D]``; outputs as Attention's.
    """
    exact = integer_matmul(c, c.value(0), c.value(1), c.optional(6), c.optional(7))
    scale = c.emit("Mul", scalar(c, c.value(3)), scalar(c, c.value(4)))
    packed = c.emit("Mul", c.cast(exact, scale.dtype), scale)
    return _attended(c, QUANTISED, bias_add(c, packed, c.optional(2)))


def _attended(c: NodeContext, at: Inputs, packed: Value) -> Result:
    """The outputs of an attention of query, key and value that lie side by side in ``packed``, ``[B, S, widths]``."""
    if c.int_attr("do_rotary") or c.int_attr("past_present_share_buffer") or (at is PACKED and c.has(6)):
        c.unsupported("rotary positions inside, or a shared cache")
    if packed.type.rank != 3:
        c.broken(f"the input and the weight make {packed.type}, not query, key and value side by side")
    width, heads = c.concrete(packed.shape[2], "the hidden size"), c.int_attr("num_heads")
    widths = c.ints_attr("qkv_hidden_sizes") or (width // 3,) * 3
    if len(widths) != 3 or sum(widths) != width:
        c.broken(f"qkv_hidden_sizes is {widths}, the weight makes {width} features")
    starts = (0, widths[0], widths[0] + widths[1])
    q, k, v = (split_heads(c, c.slice(packed, 2, s, w), heads) for s, w in zip(starts, widths))
    before: Dim = 0
    if c.has(at.past):
        c.needs_rank(at.past, 5, 5)
        batch, _, _, head = k.shape
        before = c.shape(at.past)[3]
        pasts = [c.reshape(c.slice(c.value(at.past), 0, i, 1), (batch, heads, before, head)) for i in range(2)]
        k, v = (c.emit("Concat", past, x, axis=2) for past, x in zip(pasts, (k, v)))
    mask = scores_mask(c, at, q, k, before)
    plain = bool(c.int_attr("unidirectional")) and not c.has(at.past) and mask is None
    scale = c.float_attr("scale", 0.0) or 1.0 / math.sqrt(max(c.concrete(q.shape[3], "the head size"), 1))
    y = join_heads(c, c.emit("Attention", q, k, v, mask, scale=scale, is_causal=int(plain)))
    if len(c.used) < 2 or not c.used[1]:
        return y
    return [y, c.emit("Concat", *(c.reshape(x, (1, *x.shape)) for x in (k, v)), axis=0)]


@handles("RotaryEmbedding", domain=MICROSOFT)
def _rotary(c: NodeContext) -> Result:
    """Inputs: x, positions ``[B, S]`` (or the first position, of one element), cos cache, sin cache."""
    rank = c.needs_rank(0, 3, 4)
    for i in (2, 3):
        c.needs_rank(i, 2, 2)
    if c.operand(1).rank != 2 or c.float_attr("scale", 1.0) != 1.0:
        c.unsupported("a single start position, or a scale")
    x = c.value(0)
    cos, sin = (c.emit("Gather", c.value(i), c.value(1), axis=0) for i in (2, 3))
    heads = c.int_attr("num_heads")
    if rank == 3 and heads == 0:
        head = 2 * c.concrete(cos.shape[2], "the head size")
        heads = c.concrete(x.shape[2], "the hidden size") // max(head, 1)
    return rotary(c, x, cos, sin, heads, rank, bool(c.int_attr("interleaved")))
