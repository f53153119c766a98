"""Scaled dot-product attention as one operator, for the attention template (Dao et al., FlashAttention, 2022).

A query whose scores are all minus infinity gives zeros, not NaN. A finite number that is written over scores (``fill``)
is a score like any other: a query with nothing else gives the mean of the values. A cap bounds scores smoothly before
the mask: ``softcap * tanh(score / softcap)``, as in Gemma 2. A sink is the score of one more key of each head, whose
value is 0 and which no mask excludes, as in gpt-oss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, divides_exactly
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import Node, Rewriter, TensorType, Value
from arcweld.compiler.ops.elementwise import widen
from arcweld.compiler.ops.emit import Emit
from arcweld.compiler.ops.movement import operand
from arcweld.compiler.ops.registry import Attr, Case, Kind, OpDef, register
from arcweld.compiler.ops.shapes import (
    FLOATS,
    check_broadcast_to,
    check_dtype,
    check_equal,
    check_rank,
    same_dtype,
    split_optional,
)

Attrs = Mapping[str, Any]


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> tuple[TensorType, ...]:
    (q, k, v), (mask, sink) = split_optional("Attention", types, 3, 5)
    same_dtype("Attention", [q, k, v])
    check_dtype("Attention", q, FLOATS)
    for t in (q, k, v):
        check_rank("Attention", t, 4, 4)
    for what, a, b in (
        ("batch of q and k", q.shape[0], k.shape[0]),
        ("batch of q and v", q.shape[0], v.shape[0]),
        ("heads of k and v", k.shape[1], v.shape[1]),
        ("head size of q and k", q.shape[3], k.shape[3]),
        ("length of k and v", k.shape[2], v.shape[2]),
    ):
        check_equal("Attention", what, a, b)
    if q.shape[1] == 0 or k.shape[1] == 0:
        raise ModelError(f"Attention: {q} and {k} have no heads")
    if divides_exactly(q.shape[1], k.shape[1]) is None:
        raise ModelError(f"Attention: {q.shape[1]} query heads are not a multiple of {k.shape[1]} key heads")
    if mask is not None:
        check_dtype("Attention mask", mask, (q.dtype, DType.F32, DType.BOOL))
        check_broadcast_to("Attention", "mask", mask.shape, (*q.shape[:3], k.shape[2]))
    if sink is not None:
        check_dtype("Attention sink", sink, (q.dtype, DType.F32))
        check_rank("Attention sink", sink, 1, 1)
        check_equal("Attention", "sinks and heads of q", sink.shape[0], q.shape[1])
    if attrs.get("softcap", 0.0) < 0:
        raise ModelError(f"Attention: the cap of scores is {attrs['softcap']}")
    return (q.with_shape((*q.shape[:3], v.shape[3])),)


def _reference(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> tuple[np.ndarray, ...]:
    q, k, v = (widen(operand(arrays, i)) for i in range(3))
    mask, sink = [*arrays, None, None][3:5]
    repeat = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, repeat, axis=1), np.repeat(v, repeat, axis=1)
    scores = np.matmul(q, np.swapaxes(k, 2, 3)) * np.asarray(attrs["scale"], q.dtype)
    if cap := attrs["softcap"]:
        scores = np.asarray(cap, q.dtype) * np.tanh(scores / np.asarray(cap, q.dtype))
    if mask is not None:
        fill = np.asarray(attrs["fill"], q.dtype)
        scores = np.where(mask, scores, fill) if mask.dtype == np.bool_ else scores + widen(mask)
    if attrs["is_causal"]:
        scores = np.where(np.tril(np.ones(scores.shape[2:], np.bool_)), scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True, initial=-np.inf)  # there may be no keys
    if sink is not None:
        extra = widen(sink).astype(q.dtype)[:, None, None]
        top = np.maximum(top, extra)
    e = np.exp(scores - np.where(np.isfinite(top), top, 0)).astype(q.dtype)
    total = e.sum(axis=-1, keepdims=True)
    if sink is not None:
        total = total + np.exp(extra - np.where(np.isfinite(top), top, 0))
    out = np.matmul(e / np.where(total == 0, 1, total), v)
    return (out.astype(operand(arrays).dtype, copy=False),)


def _decompose(rw: Rewriter, node: Node) -> tuple[Value, ...]:
    """MatMul, scale, mask, Softmax, MatMul: for heads that the attention template does not take."""
    e = Emit(rw, node)
    q, k, v = node.operands()[:3]
    mask, sink = [*node.inputs, None, None][3:5]
    if q.shape[1] != k.shape[1]:
        k, v = (_repeat_heads(e, t, q.shape[1]) for t in (k, v))
    scores = e.wide(e("MatMul", q, e("Transpose", k, perm=(0, 1, 3, 2))))
    dtype = scores.dtype
    scores = e("Mul", scores, e.const(node.attrs["scale"], dtype))
    if cap := node.attrs["softcap"]:
        scores = e("Mul", e("Tanh", e("Mul", scores, e.const(1.0 / cap, dtype))), e.const(cap, dtype))
    low = e.const(-np.inf, dtype)
    if mask is not None and mask.dtype is DType.BOOL:
        scores = e("Where", mask, scores, e.const(node.attrs["fill"], dtype))
    elif mask is not None:
        scores = e("Add", scores, e.cast(mask, dtype))
    if node.attrs["is_causal"]:
        ones = e("ConstantOfShape", shape=scores.shape[2:], value=1, dtype=DType.BOOL)
        scores = e("Where", e("Trilu", ones, upper=0), scores, low)
    keys = scores.shape[3]
    if sink is not None:
        column = e.reshape(e.cast(sink, dtype), (1, q.shape[1], 1, 1))
        scores = e("Concat", scores, e("Expand", column, shape=(*scores.shape[:3], 1)), axis=3)
    p = e("Softmax", scores, axis=3)
    if sink is not None:
        p = e("Slice", p, starts=(0, 0, 0, 0), sizes=(*p.shape[:3], keys), steps=(1, 1, 1, 1))
    if mask is not None:
        p = e("Where", e("IsNaN", p), e.const(0, dtype), p)
    return (e("MatMul", e.cast(p, q.dtype), v),)


def _repeat_heads(e: Emit, t: Value, heads: Dim) -> Value:
    b, g, length, d = t.shape
    each = divides_exactly(heads, g)
    assert each is not None
    y = e.reshape(t, (b, g, 1, length, d))
    y = e("Expand", y, shape=(b, g, each, length, d))
    return e.reshape(y, (b, heads, length, d))


_BOOL_MASK = np.array([[1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1] * 6, [0, 1, 1, 1, 1, 1]], np.bool_)
register(
    OpDef(
        "Attention", Kind.ATTENTION, ("q", "k", "v", "mask?", "sink?"), _infer, _reference,
        {
            "scale": Attr("float", required=True), "is_causal": Attr("int", 0), "fill": Attr("float", -np.inf),
            "softcap": Attr("float", 0.0),
        },
        decompose=_decompose, cost=256,
        cases=(
            Case(((2, 3, 4, 8), (2, 3, 6, 8), (2, 3, 6, 5)), {"scale": 0.35}, ("f32", "f16")),
            Case(((1, 4, 4, 8), (1, 2, 6, 8), (1, 2, 6, 8), (4, 6)), {"scale": 0.35}, ("f32",)),
            Case(((1, 4, 5, 8), (1, 1, 5, 8), (1, 1, 5, 8)), {"scale": 0.35, "is_causal": 1}, ("f32",)),
            Case(((2, 3, 4, 8), (2, 3, 6, 8), (2, 3, 6, 8), (2, 1, 1, 6)), {"scale": 0.5}, ("f32",)),
            Case(((1, 2, 4, 8), (1, 2, 6, 8), (1, 2, 6, 8), _BOOL_MASK), {"scale": 0.35}, ("f32",)),
            Case(((1, 2, 4, 8), (1, 2, 6, 8), (1, 2, 6, 8), _BOOL_MASK), {"scale": 0.35, "fill": -1e4}, ("f32", "f16")),
            Case(((1, 2, 4, 8), (1, 2, 6, 8), (1, 2, 6, 8), _BOOL_MASK), {"scale": 2.0, "softcap": 1.5}, ("f32",)),
            Case(((1, 2, 4, 8), (1, 2, 6, 8), (1, 2, 6, 8)), {"scale": 2.0, "softcap": 1.5}, ("f32", "f16")),
            Case(((1, 4, 3, 8), (1, 2, 70, 8), (1, 2, 70, 8), None, (4,)), {"scale": 0.35}, ("f32", "f16")),
            Case(((1, 2, 4, 8), (1, 2, 6, 8), (1, 2, 6, 8), _BOOL_MASK, (2,)), {"scale": 0.35, "fill": -3.0}, ("f32",)),
        ),
        doc="q [B,H,S,D], k [B,G,T,D], v [B,G,T,Dv], H a multiple of G; mask broadcasts to [B,H,S,T]: added, or bool"
        " (true = attend, false = the score is ``fill``); is_causal lets position i see 0..i;"
        " softcap bounds scores before the mask; sink [H]: the score of one more key, whose value is 0",
    )
)  # fmt: skip
