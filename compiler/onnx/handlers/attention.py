"""Handlers of Attention and RotaryEmbedding."""

from __future__ import annotations

import math
from collections.abc import Sequence

from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.base import Result, handles
from arcweld.compiler.onnx.proto import element_type
from arcweld.compiler.onnx.remedies import fix_dimensions
from arcweld.compiler.ops.shapes import FLOATS, check_dtype

QUERIES, KEYS = 2, 3  # the axes of scores ``[B, H, queries, keys]``


def split_heads(c: NodeContext, x: Value, heads: int) -> Value:
    """``[B, S, H*D]`` to ``[B, H, S, D]``. Raises ModelError for other ranks, and for elements that are no floats."""
    check_dtype(c.op, x.type, FLOATS)
    if x.type.rank != 3:
        c.broken(f"heads are made of an operand of rank {x.type.rank}, not 3")
    batch, length, width = x.shape
    if not isinstance(width, int) or heads < 1 or width % heads:
        c.broken(f"{width} features cannot form {heads} heads")
    return c.transpose(c.reshape(x, (batch, length, heads, width // heads)), (0, 2, 1, 3))


def join_heads(c: NodeContext, x: Value) -> Value:
    """``[B, H, S, D]`` to ``[B, S, H*D]``."""
    batch, heads, length, width = x.shape
    return c.reshape(c.transpose(x, (0, 2, 1, 3)), (batch, length, heads * width))


@handles("Attention")
def _attention(c: NodeContext) -> Result:
    rank = c.needs_rank(0, 3, 4)
    q, k, v = (c.value(i) for i in range(3))
    check_dtype(c.op, q.type, FLOATS)
    if k.type.rank != rank or v.type.rank != rank:
        c.broken("query, key and value differ in rank")
    if rank == 3:
        q = split_heads(c, q, c.int_attr("q_num_heads"))
        k, v = (split_heads(c, x, c.int_attr("kv_num_heads")) for x in (k, v))
    past: Dim = 0
    if c.has(4) != c.has(5) or (c.has(4) and c.has(6)):
        c.broken("past_key and past_value belong together, and exclude nonpad_kv_seqlen")
    if c.has(4):
        c.needs_rank(4, 4, 4)
        c.needs_rank(5, 4, 4)
        past = c.shape(4)[2]
        k = c.emit("Concat", c.value(4), k, axis=2)
        v = c.emit("Concat", c.value(5), v, axis=2)
    causal = bool(c.int_attr("is_causal"))
    plain = causal and past == 0 and not c.has(6)  # as the IR's is_causal attribute means it
    mask = _mask(c, q, k, past, causal and not plain)
    head = c.concrete(q.shape[3], "the head size")
    scale = c.float_attr("scale", 1.0 / math.sqrt(head) if head else 1.0)
    cap = abs(c.float_attr("softcap", 0.0))
    if len(c.used) > 3 and c.used[3]:
        y, scores = _in_pieces(c, q, k, v, mask, scale, plain, cap)
    else:
        y, scores = c.emit("Attention", q, k, v, mask, scale=scale, is_causal=int(plain), softcap=cap), None
    return [join_heads(c, y) if rank == 3 else y, k, v, scores]


def _mask(c: NodeContext, q: Value, k: Value, past: Dim, causal: bool) -> Value | None:
    """The mask of keys for each query: bool, or additive where the model's is; None where all are attended."""
    allowed = _allowed(c, q.shape[2], k.shape[2], past, causal)
    if not c.has(3):
        return allowed
    mask = c.value(3)
    if mask.type.rank < 1 or mask.type.rank > 4:
        c.broken(f"attn_mask has rank {mask.type.rank}")
    if mask.shape[-1] != k.shape[2] and mask.shape[-1] != 1:
        mask = lengthened(c, mask, k.shape[2])
    mask = c.reshape(mask, (*[1] * (4 - mask.type.rank), *mask.shape))
    if allowed is None:
        return mask if mask.dtype is DType.BOOL else c.cast(mask, q.dtype)
    if mask.dtype is DType.BOOL:
        return c.emit("And", mask, allowed)
    return c.emit("Where", allowed, c.cast(mask, q.dtype), c.const(-math.inf, q.dtype))


def numbered(c: NodeContext, axis: int, length: Dim, start: Dim = 0) -> Value:
    """The positions ``start, start + 1, …`` of queries or keys (``axis``: QUERIES, KEYS), to compare with others."""
    shape: list[Dim] = [1, 1, 1, 1]
    shape[axis] = length
    return c.reshape(c.emit("Range", start=start, step=1, length=length, dtype=DType.I64), tuple(shape))


def lengthened(c: NodeContext, mask: Value, length: Dim) -> Value:
    """The mask with keys beyond its end disallowed."""
    missing = length - mask.shape[-1]
    if isinstance(missing, int) and missing < 0:
        c.broken(f"attn_mask covers {mask.shape[-1]} keys, there are {length}")
    pads = (0,) * (2 * mask.type.rank - 1) + (missing,)
    if mask.dtype is DType.BOOL:
        wide = c.emit("Pad", c.cast(mask, DType.U8), pads=pads, mode="constant", value=0.0)
        return c.cast(wide, DType.BOOL)
    return c.emit("Pad", mask, pads=pads, mode="constant", value=-math.inf)


def _allowed(c: NodeContext, queries: Dim, keys: Dim, past: Dim, causal: bool) -> Value | None:
    """The pairs of query and key that causality, the window and the number of valid keys allow; None for all pairs."""
    left, right = c.int_attr("left_window_size", -1), c.int_attr("right_window_size", -1)
    j = numbered(c, KEYS, keys)
    if c.has(6):
        c.needs_rank(6, 1, 1)
    lengths = c.reshape(c.cast(c.value(6), DType.I64), (c.shape(6)[0], 1, 1, 1)) if c.has(6) else None
    terms: list[Value] = []
    if causal or left >= 0 or right >= 0:
        i = numbered(c, QUERIES, queries, past)
        if lengths is not None:
            offset = c.emit("Sub", lengths, c.dim_value(queries))
            i = c.emit("Add", i, offset)
        if causal:
            terms.append(c.emit("LessOrEqual", j, i))
        if left >= 0:
            terms.append(c.emit("LessOrEqual", c.emit("Sub", i, j), c.const(left, DType.I64)))
        if right >= 0:
            terms.append(c.emit("LessOrEqual", c.emit("Sub", j, i), c.const(right, DType.I64)))
    if lengths is not None:
        terms.append(c.emit("Less", j, lengths))
    return all_of(c, terms)


def all_of(c: NodeContext, terms: Sequence[Value]) -> Value | None:
    """Where all of some conditions hold; None for no condition."""
    out: Value | None = None
    for t in terms:
        out = t if out is None else c.emit("And", out, t)
    return out


def _in_pieces(
    c: NodeContext, q: Value, k: Value, v: Value, mask: Value | None, scale: float, causal: bool, cap: float
) -> tuple[Value, Value]:  # fmt: skip
    """Attention as separate operators, where the scores are an output."""
    k, v = (_repeated(c, x, q.shape[1]) for x in (k, v))
    scores = c.scale(c.emit("MatMul", q, c.transpose(k, (0, 1, 3, 2))), scale)
    shown = [scores]
    if cap:
        scores = c.scale(c.emit("Tanh", c.scale(scores, 1.0 / cap)), cap)
    shown.append(scores)
    scores = _biased(c, scores, mask, causal)
    shown.append(scores)
    if c.int_attr("softmax_precision"):
        scores = c.cast(scores, element_type(c.int_attr("softmax_precision")))
    weights = c.cast(c.emit("Softmax", scores, axis=3), q.dtype)
    # a query that attends no key gives zeros
    weights = c.emit("Where", c.emit("IsNaN", weights), c.const(0.0, q.dtype), weights)
    shown.append(weights)
    mode = c.int_attr("qk_matmul_output_mode")
    if not 0 <= mode <= 3:
        c.broken(f"qk_matmul_output_mode is {mode}")
    return c.emit("MatMul", weights, v), shown[mode]


def _biased(c: NodeContext, scores: Value, mask: Value | None, causal: bool) -> Value:
    low = c.const(-math.inf, scores.dtype)
    if mask is not None:
        scores = c.emit("Where", mask, scores, low) if mask.dtype is DType.BOOL else c.emit("Add", scores, mask)
    if causal:
        queries, keys = scores.shape[2:]
        i = numbered(c, QUERIES, queries)
        j = numbered(c, KEYS, keys)
        scores = c.emit("Where", c.emit("LessOrEqual", j, i), scores, low)
    return scores


def _repeated(c: NodeContext, x: Value, heads: Dim) -> Value:
    """Key or value heads repeated until there is one for each query head."""
    batch, groups, length, width = x.shape
    if groups == heads:
        return x
    if not isinstance(heads, int) or not isinstance(groups, int) or groups < 1 or heads % groups:
        c.unsupported(f"{groups} key heads for {heads} query heads", fix_dimensions(groups, heads))
    times = heads // groups
    wide = c.expand(c.reshape(x, (batch, groups, 1, length, width)), (batch, groups, times, length, width))
    return c.reshape(wide, (batch, heads, length, width))


@handles("RotaryEmbedding")
def _rotary(c: NodeContext) -> Result:
    rank = c.needs_rank(0, 3, 4)
    x, cos, sin = (c.value(i) for i in range(3))
    if c.has(3):
        cos, sin = (c.emit("Gather", t, c.value(3), axis=0) for t in (cos, sin))
    return rotary(c, x, cos, sin, c.int_attr("num_heads"), rank, bool(c.int_attr("interleaved")))


def rotary(
    c: NodeContext, x: Value, cos: Value, sin: Value, heads: int, rank: int, interleaved: bool, width: int = 0
) -> Value:
    """Rotates pairs of features by position; ``cos`` and ``sin`` are ``[B or 1, S, R/2]``.

    ``width`` features are rotated, by default those that the node says.
    """
    y = split_heads(c, x, heads) if rank == 3 else x
    head = c.concrete(y.shape[3], "the head size")
    width = width or c.int_attr("rotary_embedding_dim") or head
    ranks = [t.type.rank for t in (cos, sin)]
    if width % 2 or not 0 <= width <= head or ranks != [3, 3]:
        c.broken(f"rotary_embedding_dim is {width} for heads of {head}, the caches have ranks {ranks}")
    turned, rest = c.slice(y, 3, 0, width), c.slice(y, 3, width, head - width) if width < head else None
    cos, sin = (c.reshape(t, (t.shape[0], 1, t.shape[1], t.shape[2])) for t in (cos, sin))
    out = _rotate(c, turned, cos, sin, width, interleaved)
    if rest is not None:
        out = c.emit("Concat", out, rest, axis=3)
    return join_heads(c, out) if rank == 3 else out


def _rotate(c: NodeContext, x: Value, cos: Value, sin: Value, width: int, interleaved: bool) -> Value:
    half = width // 2
    lead: Sequence[Dim] = x.shape[:3]
    if interleaved:
        pairs = c.reshape(x, (*lead, half, 2))
        a, b = (c.reshape(c.slice(pairs, 4, k, 1), (*lead, half)) for k in range(2))
    else:
        a, b = c.slice(x, 3, 0, half), c.slice(x, 3, half, half)
    real = c.emit("Sub", c.emit("Mul", a, cos), c.emit("Mul", b, sin))
    imaginary = c.emit("Add", c.emit("Mul", b, cos), c.emit("Mul", a, sin))
    if not interleaved:
        return c.emit("Concat", real, imaginary, axis=3)
    real, imaginary = (c.reshape(t, (*lead, half, 1)) for t in (real, imaginary))
    return c.reshape(c.emit("Concat", real, imaginary, axis=4), x.shape)
