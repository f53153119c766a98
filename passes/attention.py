"""Attention recovery: MatMul, scale, mask, Softmax, MatMul become one Attention node, as one flash kernel
computes it.

Requires: Softmax and scalar arithmetic as nodes (pattern passes have run). Ensures: the formulas below
occur only where their operands do not fit Attention ([B,H,S,D] with a common batch), or where a score or a
probability is read elsewhere. Scores in which a mask writes a large negative number count as masked out; a
row that is masked out entirely gives zeros.
"""

from __future__ import annotations

import numpy as np
from arcweld.compiler.dims import Dim, product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import Graph, Value
from arcweld.compiler.options import Options
from arcweld.compiler.registry import infer_types
from arcweld.passes.causal import MASKED_OUT, is_causal
from arcweld.passes.common import Tracker, scalar
from arcweld.passes.patterns import Match, Pattern, apply_patterns, cast_to

_SCALED = "MatMul(q, k) * K"
_SCORES = (
    f"{_SCALED} + mask + mask2",
    f"Where(c, {_SCALED}, N) + mask",
    f"Where(d, N, {_SCALED}) + mask",
    f"{_SCALED} + mask",
    f"Where(c, {_SCALED}, N)",
    f"Where(d, N, {_SCALED})",
    _SCALED,
)
_FORMULAS = tuple(
    formula
    for s in _SCORES
    for formula in (f"MatMul(Where(IsNaN(p), 0, (p := Softmax({s}))), v)", f"MatMul((p := Softmax({s})), v)")
)


def attention(graph: Graph, options: Options) -> Graph:
    """Recovers scaled dot-product attention."""
    return apply_patterns(graph, (Pattern("attention", _FORMULAS, _build),))


def _build(rw: Tracker, m: Match) -> Value | None:
    softmax = m.node("p")
    if softmax.attrs["axis"] != softmax.output.type.rank - 1:
        return None
    q, scale_q = _without_scale(rw, rw.get(m.values["q"]))
    k, scale_k = _keys(rw, rw.get(m.values["k"]), m.origin)
    dtype = m.root.output.dtype
    operands = [cast_to(rw, x, dtype, m.origin) for x in (q, k, rw.get(m.values["v"]))]
    rank = m.root.output.type.rank
    if any(x.type.rank != rank for x in operands):
        return None
    operands = [_four_axes(rw, x, m.origin) for x in operands]
    operands[1:] = _shared_heads(rw, *operands)
    masked = _mask(rw, m, rank, dtype)
    if masked is None:
        return None
    mask, causal = masked
    if mask is not None:
        operands.append(mask)
    attrs = {"scale": (m.scalars["K"] or 0.0) * scale_q * scale_k, "is_causal": int(causal)}
    try:
        infer_types("Attention", [v.type for v in operands], attrs)
    except ModelError:  # a batch or head axis that broadcasts
        return None
    y = rw.make("Attention", operands, m.origin, m.name if rank == 4 else f"{m.name}.heads", **attrs)
    return y if rank == 4 else rw.make("Reshape", [y], m.origin, m.name, shape=m.root.output.shape)


def _without_scale(rw: Tracker, x: Value) -> tuple[Value, float]:
    """``x`` before it was multiplied by scalars, and their product."""
    scale = 1.0
    while (node := rw.producer(x)) is not None and node.op in ("Mul", "Div"):
        a, b = node.operands()
        right, left = scalar(rw.array(b)), scalar(rw.array(a))
        if right is not None and right != 0 and a.shape == x.shape:
            x, scale = a, scale * (right if node.op == "Mul" else 1 / right)
        elif left is not None and node.op == "Mul" and b.shape == x.shape:
            x, scale = b, scale * left
        else:
            break
    return x, scale


def _keys(rw: Tracker, kt: Value, origin: tuple[str, ...]) -> tuple[Value, float]:
    """The keys [.., T, D] whose transpose is ``kt``, and a scalar factor."""
    kt, scale = _without_scale(rw, kt)
    rank = kt.type.rank
    if rank < 2:
        return kt, scale
    perm = (*range(rank - 2), rank - 1, rank - 2)
    node = rw.producer(kt, "Transpose")
    if node is not None:
        perm = tuple(node.attrs["perm"][p] for p in perm)
        kt = node.operands()[0]
    if perm != tuple(range(rank)):
        kt = rw.make("Transpose", [kt], origin, perm=perm)
    kt, more = _without_scale(rw, kt)
    return kt, scale * more


def _four_axes(rw: Tracker, x: Value, origin: tuple[str, ...]) -> Value:
    """``x`` as [B, H, length, size]: without heads H is 1, and axes before the heads are one batch axis."""
    shape = x.shape
    if x.type.rank == 4:
        return x
    lead: tuple[Dim, ...] = (product(shape[:-2]), 1) if x.type.rank < 4 else (product(shape[:-3]), shape[-3])
    return rw.make("Reshape", [x], origin, shape=(*lead, *shape[-2:]))


def _shared_heads(rw: Tracker, q: Value, k: Value, v: Value) -> list[Value]:
    """Keys and values before they were repeated for groups of query heads, if both were."""
    before = [_before_repeat(rw, x) for x in (k, v)]
    return [x for x in before if x is not None] if None not in before else [k, v]


def _before_repeat(rw: Tracker, x: Value) -> Value | None:
    """The source [B,G,T,D] of [B,G,1,T,D] expanded to [B,G,R,T,D] and reshaped to [B,G*R,T,D]."""
    merge = rw.producer(x, "Reshape")
    expand = rw.producer(merge.operands()[0], "Expand") if merge is not None else None
    split = rw.producer(expand.operands()[0], "Reshape") if expand is not None else None
    if merge is None or expand is None or split is None or expand.output.type.rank != 5:
        return None
    b, g, r, t, d = expand.output.shape
    source = split.operands()[0]
    fits = split.output.shape == (b, g, 1, t, d) and source.shape == (b, g, t, d)
    return source if fits and x.shape == (b, g * r, t, d) else None


def _mask(rw: Tracker, m: Match, rank: int, dtype: DType) -> tuple[Value | None, bool] | None:
    """The mask operand and whether it is the causal one instead; None where Attention cannot take it."""
    condition = next((rw.get(m.values[n]) for n in "cd" if n in m.values), None)  # true: seen (c), masked (d)
    added = [cast_to(rw, rw.get(m.values[n]), dtype, m.origin) for n in ("mask", "mask2") if n in m.values]
    if condition is not None and (m.scalars["N"] or 0.0) > MASKED_OUT:
        return None
    if condition is not None and "d" in m.values:
        condition = rw.make("Not", [condition], m.origin)
    if len(added) == 2:
        added = [rw.make("Add", added, m.origin)]
    mask = added[0] if added else condition
    if mask is None:
        return None, False
    if added and condition is not None:
        low = rw.constant(np.asarray(-np.inf, dtype.numpy), dtype, "low")
        mask = rw.make("Where", [condition, mask, low], m.origin)
    if is_causal(rw, mask, m.root.output.shape[-2]):
        return None, True
    if rank == 4 or mask.type.rank <= 2:
        return mask, False
    lead = mask.shape[:-2]
    if rank == 3:
        return rw.make("Reshape", [mask], m.origin, shape=(product(lead), 1, *mask.shape[-2:])), False
    return None
