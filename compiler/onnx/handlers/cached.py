"""Handlers of attention with cached keys and values: GroupQueryAttention and MultiHeadAttention (com.microsoft).

A cache that has its full length from the beginning gets new rows by a scatter, which may be in place.
"""

from __future__ import annotations

import math

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.attention import (
    KEYS,
    QUERIES,
    all_of,
    join_heads,
    numbered,
    rotary,
    split_heads,
)
from arcweld.compiler.onnx.handlers.base import MICROSOFT, Result, handles
from arcweld.compiler.onnx.handlers.masks import MULTI_HEAD, limited, scores_mask
from arcweld.compiler.onnx.handlers.movement import write_run

# --------------------------------------------------------------------------------------------- GroupQueryAttention


@handles("GroupQueryAttention", domain=MICROSOFT)
def _group_query(c: NodeContext) -> Result:
    """Inputs: q, k?, v?, past k and v, last positions ``[B]``, longest length, cos, sin, positions, bias, sink, …

    The last positions are the numbers of keys, less one; new keys follow those that a batch's cache has already.
    """
    _check_group_query(c)
    q, k, v = _group_query_operands(c)
    batch, _, new, head = q.shape
    lengths = c.emit("Add", c.cast(c.reshape(c.value(5), (batch,)), DType.I64), c.const(1, DType.I64))
    first = _first_new(c, lengths, new) if _has_past(c) else None
    q, k = _rotated(c, q, k, first)
    total = _longest(c)
    if first is not None:
        k, v = (_extended(c, c.value(i), x, first, total) for i, x in ((3, k), (4, v)))
    used = total if first is not None and total is not None and dims.is_nonneg(k.shape[2] - total) else k.shape[2]
    keys, values = (c.slice(x, 2, 0, used) for x in (k, v))
    plain = first is None and not c.has(10) and _causal(c) and _window(c) == 0
    mask = None if plain else _group_query_mask(c, lengths, first, new, used)
    scale = c.float_attr("scale", 0.0) or 1.0 / math.sqrt(max(c.concrete(head, "the head size"), 1))
    cap, sink = abs(c.float_attr("softcap", 0.0)), _sink(c, q)
    operands = (q, keys, values, mask) if sink is None else (q, keys, values, mask, sink)
    y = c.emit("Attention", *operands, scale=scale, is_causal=int(plain), softcap=cap)
    return [join_heads(c, y), k, v]


def _check_group_query(c: NodeContext) -> None:
    quantised = [n for n in ("k_quant_type", "v_quant_type") if c.str_attr(n, "NONE") != "NONE"]
    if c.has(12) or c.has(13) or quantised:
        c.unsupported("a quantised cache")
    if c.int_attr("sliding_window_cache"):
        c.unsupported("a cache that drops what is outside the window (sliding_window_cache)")
    if c.has(1) != c.has(2):
        c.unsupported("a key without a value, or a value without a key")
    if c.has(3) != c.has(4) or c.has(14) != c.has(15):
        c.broken("past_key and past_value belong together, and so do q_norm_weight and k_norm_weight")
    if not _causal(c) and _window(c):
        c.broken("a window needs causal=1")


def _causal(c: NodeContext) -> bool:
    return bool(c.int_attr("causal", 1))


def _window(c: NodeContext) -> int:
    """The number of keys that a query sees, itself included; 0 for all."""
    return max(0, c.int_attr("local_window_size", -1))


def _group_query_operands(c: NodeContext) -> list[Value]:
    """Query, key and value of this step, ``[B, heads, S, D]``, and the first two normalised where weights are given."""
    heads, groups = c.int_attr("num_heads"), c.int_attr("kv_num_heads")
    if heads < 1 or groups < 1 or heads % groups:
        c.broken(f"num_heads is {heads}, kv_num_heads {groups}")
    c.needs_rank(0, 3, 3)
    if c.has(1):
        c.needs_rank(1, 3, 3)
        c.needs_rank(2, 3, 3)
        parts = [split_heads(c, c.value(i), n) for i, n in enumerate((heads, groups, groups))]
    else:
        every, counts, starts = split_heads(c, c.value(0), heads + 2 * groups), (heads, groups, groups), (0, heads)
        parts = [c.slice(every, 1, start, n) for start, n in zip((*starts, heads + groups), counts)]
    if c.has(14):
        both = c.float_attr("qk_norm_epsilon", 1e-6)
        for k, name in enumerate(("q_norm_epsilon", "k_norm_epsilon")):
            epsilon = c.float_attr(name, both)
            parts[k] = c.emit("RMSNormalization", parts[k], c.value(14 + k), axis=3, epsilon=epsilon)
    return parts


def _has_past(c: NodeContext) -> bool:
    """Whether there is a cache, which may be empty."""
    if not c.has(3):
        return False
    c.needs_rank(3, 4, 4)
    c.needs_rank(4, 4, 4)
    return c.shape(3)[2] != 0 or c.shape(4)[2] != 0


def _first_new(c: NodeContext, lengths: Value, new: Dim) -> Value:
    """The positions ``[B]`` of the first new keys. A prompt that is padded on the right begins at 0."""
    if c.has(16):
        valid = c.cast(c.reshape(c.value(16), lengths.shape), DType.I64)
        return c.emit("Sub", lengths, valid)
    return c.emit("Max", c.emit("Sub", lengths, c.dim_value(new)), c.const(0, DType.I64))


def _rotated(c: NodeContext, q: Value, k: Value, first: Value | None) -> tuple[Value, Value]:
    if not c.int_attr("do_rotary"):
        return q, k
    c.needs_rank(7, 2, 2)
    batch, _, new, _ = q.shape
    if c.has(9):
        at = c.reshape(c.value(9), (batch, new))
    else:
        at = c.reshape(c.emit("Range", start=0, step=1, length=new, dtype=DType.I64), (1, new))
        at = at if first is None else c.emit("Add", at, c.reshape(first, (batch, 1)))
    cos, sin = (c.emit("Gather", c.value(i), at, axis=0) for i in (7, 8))
    interleaved, width = bool(c.int_attr("rotary_interleaved")), 2 * c.concrete(cos.shape[2], "the rotary width")
    turned = [rotary(c, x, cos, sin, 0, 4, interleaved, width) for x in (q, k)]
    return turned[0], turned[1]


def _longest(c: NodeContext) -> Dim | None:
    """The greatest number of keys of a batch (``total_sequence_length``), where the host knows it."""
    try:
        found = c.dims(6, read=False)
    except UnsupportedError:  # an input: only the device sees it, and does not need it
        return None
    if len(found) != 1:
        c.broken(f"total_sequence_length has {len(found)} elements")
    return found[0]


def _extended(c: NodeContext, past: Value, new: Value, first: Value, total: Dim | None) -> Value:
    """The cache with the new rows.

    Where an output takes over the cache's memory it keeps its length. Otherwise it is as long as the longest batch
    needs, or, where the host does not know that, as the cache and the new rows together.
    """
    room: Dim = past.shape[2]
    if any(c.operand(i).value is not None and c.value(i).name in c.builder.shared for i in (3, 4)):
        if total is not None and not c.has_room(room, total) and isinstance(total - room, int):
            c.broken(f"a cache of {room} positions for {total} keys")
        return write_run(c, past, new, first, 2)
    length = room + new.shape[2] if total is None else dims.maximum(room, total)
    if length != room:
        past = c.emit("Pad", past, pads=(0,) * 6 + (length - room, 0), mode="constant", value=0.0)
    return write_run(c, past, new, first, 2)


def _group_query_mask(c: NodeContext, lengths: Value, first: Value | None, new: Dim, keys: Dim) -> Value:
    """Which keys a query attends, or what is added to their scores."""
    batch = lengths.shape[0]
    j = numbered(c, KEYS, keys)
    i = numbered(c, QUERIES, new)
    if first is not None:
        i = c.emit("Add", i, c.reshape(first, (batch, 1, 1, 1)))
    if _causal(c):
        terms = [c.emit("LessOrEqual", j, i)]
        if _window(c):
            terms.append(c.emit("Less", c.emit("Sub", i, j), c.const(_window(c), DType.I64)))
    else:
        terms = [c.emit("Less", j, c.reshape(lengths, (batch, 1, 1, 1)))]
    allowed = all_of(c, terms)
    assert allowed is not None
    if not c.has(10):
        return allowed
    c.needs_rank(10, 1, 4)
    return limited(c, c.value(10), allowed, keys)


def _sink(c: NodeContext, q: Value) -> Value | None:
    """The scores that belong to no key: one of each head, or 0 for a smooth softmax."""
    if c.has(11):
        c.needs_rank(11, 1, 1)
        return c.expand(c.cast(c.value(11), q.dtype), (q.shape[1],))
    return c.expand(c.const([0.0], q.dtype), (q.shape[1],)) if c.int_attr("smooth_softmax") else None


# ---------------------------------------------------------------------------------------------- MultiHeadAttention


@handles("MultiHeadAttention", domain=MICROSOFT)
def _multi_head(c: NodeContext) -> Result:
    """Inputs: q, k?, v?, bias, padding mask, score bias, past k and v, the number of past keys, …

    With the number of past keys the caches have their full length, and keep it; otherwise they grow.
    """
    if c.has(9):
        c.unsupported("beams in a shared cache (cache_indirection)")
    if c.has(6) != c.has(7):
        c.broken("past_key and past_value belong together")
    q, k, v = _multi_head_operands(c)
    first: Value | None = None
    before: Dim = 0
    if c.has(6):
        c.needs_rank(6, 4, 4)
        c.needs_rank(7, 4, 4)
        new, pasts = k.shape[2], (c.value(6), c.value(7))
        if c.has(8):
            first = c.cast(c.reshape(c.value(8), (1,)), DType.I64)
            k, v = (write_run(c, past, x, first, 2) for past, x in zip(pasts, (k, v)))
            used = c.emit("Add", first, c.dim_value(new))
        else:
            before = pasts[0].shape[2]
            k, v = (c.emit("Concat", past, x, axis=2) for past, x in zip(pasts, (k, v)))
    mask = scores_mask(c, MULTI_HEAD, q, k, before, first, None if first is None else used)
    plain = bool(c.int_attr("unidirectional")) and not c.has(6) and mask is None
    head = c.concrete(q.shape[3], "the head size")
    scale = c.float_attr("scale", 0.0) or 1.0 / math.sqrt(max(head, 1))
    return [join_heads(c, c.emit("Attention", q, k, v, mask, scale=scale, is_causal=int(plain))), k, v]


@handles("DecoderMaskedMultiHeadAttention", domain=MICROSOFT)
def _decoder_multi_head(c: NodeContext) -> Result:
    """MultiHeadAttention of one query with the inputs in another order; an attribute says whether the cache is shared.

    Keys in a shared cache have the layout of all other caches, as on a CPU. ONNX Runtime's CUDA kernels group features.
    """
    shared = bool(c.int_attr("past_present_share_buffer"))
    if shared and c.has(5) and not c.has(7):
        c.broken("a shared cache needs past_sequence_length")
    order = (0, 1, 2, 10, 3, 4, 5, 6, 7 if shared else len(c.operands), 9)
    c.operands = [c.operands[i] if i < len(c.operands) else None for i in order]
    return _multi_head(c)


def _multi_head_operands(c: NodeContext) -> tuple[Value, Value, Value]:
    """Query, key and value ``[B, H, *, D]`` from any of the forms that the operator takes, with the bias added."""
    ranks = tuple(c.operand(i).rank if c.has(i) else 0 for i in range(3))
    if c.has(3):
        c.needs_rank(3, 1, 1)
    heads, bias = c.int_attr("num_heads"), _Pieces(c, c.optional(3))
    q = _packed(c, 0, 0, bias) if ranks[0] == 5 else split_heads(c, bias.added_to(c.value(0)), heads)
    if ranks == (5, 0, 0):
        return q, _packed(c, 0, 1, bias), _packed(c, 0, 2, bias)
    if ranks == (3, 5, 0):
        return q, _packed(c, 1, 0, bias), _packed(c, 1, 1, bias)
    if ranks == (3, 3, 3):
        k, v = (split_heads(c, bias.added_to(c.value(i)), heads) for i in (1, 2))
        return q, k, v
    if ranks == (3, 4, 4) and not c.has(6):  # an encoder's keys and values, which have their bias already
        return q, c.value(1), c.value(2)
    c.unsupported(f"query, key and value of ranks {', '.join(map(str, ranks))}")


class _Pieces:
    """A bias for query, key and value, of which each takes the next piece."""

    def __init__(self, c: NodeContext, bias: Value | None) -> None:
        self.c, self.bias, self.start = c, bias, 0

    def added_to(self, x: Value, axes: int = 1) -> Value:
        """``x`` with the piece that its last ``axes`` axes need."""
        if self.bias is None:
            return x
        shape = x.shape[-axes:]
        width = self.c.concrete(dims.product(shape), "the hidden size")
        piece = self.c.slice(self.bias, 0, self.start, width)
        self.start += width
        return self.c.emit("Add", x, self.c.reshape(piece, shape))


def _packed(c: NodeContext, i: int, part: int, bias: _Pieces) -> Value:
    """One part of input ``i``, ``[B, S, H, parts, D]``, as ``[B, H, S, D]``."""
    batch, length, heads, _, head = c.shape(i)
    one = c.reshape(c.slice(c.value(i), 3, part, 1), (batch, length, heads, head))
    return c.transpose(bias.added_to(one, axes=2), (0, 2, 1, 3))
