"""Attention recovery: MatMul, scale, mask, Softmax and MatMul become one Attention node, which is one kernel.

    MatMul(Softmax(MatMul(q, Transpose(k)) * 0.125 + mask), v)
    -> Attention(q, k, v, mask, scale=0.125)

Scores may be capped, C * Tanh(scores), and a sink may stand beside them, Slice(Softmax(Concat(scores, sink))).

Requires: the pattern passes have run, so that Softmax is a node. Ensures: the formulas below occur only where their
operands do not fit Attention ([B, H, length, size] with a common batch), or where a score or a probability is read
elsewhere. A finite number that a mask writes over scores is a score: in a row that has nothing else, all keys have
the same weight, as in the formulas. A row that is filled with minus infinity, for which they give NaN, gives zeros. A
causal triangle is taken for minus infinity whatever it writes, as every row has a key on its diagonal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from arcweld.compiler.dims import Dim, product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.ops.registry import fits_attention, infer_types
from arcweld.compiler.options import Options
from arcweld.passes.causal import MASKED_OUT, Remainder, without_causal
from arcweld.passes.common import Tracker, rewrite, scalar, use_counts
from arcweld.passes.elements import Elements, elements_of
from arcweld.passes.patterns import Match, Pattern, apply_patterns, cast_to

ABSORBING = -1e30  # so low that adding a score doesn't change it, in f32 and in types of the same range
_SCALED = "MatMul(q, k) * K"
_CAPPED = "Tanh(MatMul(q, k) * K) * C"
_SCORES = (
    "{0} + mask + mask2",
    "(w := Where(c, {0}, N)) + mask",
    "(w := Where(d, N, {0})) + mask",
    "Where(c, {0} + mask, N)",
    "Where(d, N, {0} + mask)",
    "{0} + mask",
    "Where(c, {0}, N)",
    "Where(d, N, {0})",
    "{0}",
)
_PROBABILITIES = (  # the first two write 0 where a row of minus infinities makes Softmax NaN
    "Where(IsNaN(p), 0, (p := Softmax({0})))",
    "Where(IsInf((top := ReduceMax(s)), detect_positive=0, detect_negative=1), 0, (p := Softmax((s := {0}))))",
    "(p := Softmax({0}))",
)
_BESIDE_SINKS = (
    "(cut := Slice((p := Softmax((z := Concat({0}, sink))))))",
    "(cut := Slice((p := Softmax((z := Concat({0}, sink)) - ReduceMax(z)))))",
)
# the terms that are added to a value on the way to a sum: the innermost one, and the list of those further out
_Added: TypeAlias = "tuple[Value, _Added] | None"


def attention(graph: Graph, options: Options) -> Graph:
    """Recovers scaled dot-product attention, and simplifies the masks and repeated keys of all Attention nodes."""
    graph = rewrite(graph, _mask_of_groups)
    uses = use_counts(graph)
    graph = rewrite(graph, lambda rw, node: _scale_of_heads(rw, node, uses))
    graph = apply_patterns(graph, (Pattern("attention", _formulas({n.op for n in graph.nodes}), _build),))
    return rewrite(graph, lambda rw, node: node.op == "Attention" and _simplify(rw, node, elements_of(rw)))


def _formulas(ops: set[str]) -> tuple[str, ...]:
    """The formulas that a graph with the operators ``ops`` may hold: trying others takes time at each product."""
    scaled = (_SCALED, _CAPPED) if "Tanh" in ops else (_SCALED,)
    softmax = (*_PROBABILITIES, *_BESIDE_SINKS) if {"Concat", "Slice"} <= ops else _PROBABILITIES
    return tuple(f"MatMul({p.format(s.format(x))}, v)" for x in scaled for s in _SCORES for p in softmax)


def _mask_of_groups(rw: Tracker, node: Node) -> bool:
    """Moves a mask behind the Reshapes that split the scores into groups for it and join them again.

    Softmax(Reshape(Reshape(scores) + mask)) becomes Softmax(scores + Reshape(Expand(mask))). Models with shifted
    windows write it: a mask for each window of an image, the same in every image of the batch.
    """
    joined = rw.producer(rw.get(node.operands()[0]), "Reshape") if node.op == "Softmax" else None
    found = None if joined is None else _groups(rw, joined.operands()[0], joined.output.shape)
    if joined is None or found is None or not found[1]:
        return False
    scores, (mask, *others) = found
    for other in others:
        mask = rw.make("Add", [mask, other], joined.origin)
    if mask.shape != joined.operands()[0].shape:
        mask = rw.make("Expand", [mask], joined.origin, shape=joined.operands()[0].shape)
    mask = rw.make("Reshape", [mask], joined.origin, shape=joined.output.shape)
    masked = rw.make("Add", [scores, mask], joined.origin)
    rw.redirect(node, rw.make("Softmax", [masked], node.origin, node.output.name, **node.attrs))
    return True


def _groups(rw: Tracker, x: Value, shape: tuple[Dim, ...]) -> tuple[Value, list[Value]] | None:
    """The scores of shape ``shape`` that a Reshape splits, and the terms that are added to them to give ``x``."""
    seen: set[str] = set()
    stack: list[tuple[Value, _Added]] = [(x, None)]
    while stack:
        value, added = stack.pop()
        if value.name in seen:
            continue
        seen.add(value.name)
        split, add = rw.producer(value, "Reshape"), rw.producer(value, "Add")
        if split is not None and split.operands()[0].shape == shape:
            return split.operands()[0], _innermost_first(added)[::-1]
        for scores, mask in () if add is None else (add.operands()[::-1], add.operands()):
            if scores.shape == value.shape:
                stack.append((scores, (mask, added)))
    return None


def _innermost_first(added: _Added) -> list[Value]:
    found = []
    while added is not None:
        value, added = added
        found.append(value)
    return found


def _scale_of_heads(rw: Tracker, node: Node, uses: Mapping[str, int]) -> bool:
    """Moves a learnt factor for each head, by which scores are multiplied, to the queries."""
    if node.op != "Softmax" or node.output.type.rank < 3:
        return False
    scores = _with_scaled_queries(rw, rw.get(node.operands()[0]), uses, node.origin)
    if scores is None:
        return False
    rw.redirect(node, rw.make("Softmax", [scores], node.origin, node.output.name, **node.attrs))
    return True


def _with_scaled_queries(rw: Tracker, x: Value, uses: Mapping[str, int], origin: tuple[str, ...]) -> Value | None:
    """``MatMul(q, k) * factor``, perhaps plus other terms, as ``MatMul(q * factor, k)``; None for other values.

    ``factor`` has one element for each head, and nothing else reads the values in between.
    """
    stack: list[tuple[Value, _Added]] = [(x, None)]
    while stack:
        value, added = stack.pop()
        node = rw.producer(value)
        if node is None or node.op not in ("Add", "Mul") or uses.get(value.name) != 1:
            continue
        found: list[tuple[Value, _Added]] = []
        for scores, other in (node.operands(), node.operands()[::-1]):
            if scores.shape != value.shape:
                continue
            if node.op == "Add":
                found.append((scores, (other, added)))
                continue
            matmul = rw.producer(scores, "MatMul")
            for_each_head = other.shape[-2:] == (1, 1) and other.type.numel != 1
            if matmul is not None and for_each_head and uses.get(scores.name) == 1:
                q, k = matmul.operands()
                value = rw.make("MatMul", [rw.make("Mul", [q, other], origin), k], origin)
                for term in _innermost_first(added):
                    value = rw.make("Add", [value, term], origin)
                return value
        stack += reversed(found)
    return None


def _simplify(rw: Tracker, node: Node, elements: Elements) -> bool:
    """Drops the part of the mask that Attention computes itself, and the repetition of keys and values for heads."""
    q, k, v = [rw.get(x) for x in node.operands()[:3]]
    mask, sink = (None if x is None else rw.get(x) for x in [*node.inputs, None, None][3:5])
    length = q.shape[2] if q.shape[2] == k.shape[2] else None
    fill = node.attrs["fill"]
    rest = Remainder(None, False) if mask is None else without_causal(rw, elements, mask, length, node.origin)
    if rest.causal and rest.mask is not None and mask is not None and mask.dtype is DType.BOOL and np.isfinite(fill):
        # a row without keys by the other conditions has equal weights for all keys, those past the triangle too
        rest = Remainder(mask, False)
    shared = _shared_heads(rw, k, v, node.origin)
    if shared == [k, v] and rest.mask is mask:
        return False
    attrs = {**node.attrs, "is_causal": 1 if rest.causal else node.attrs["is_causal"]}
    if rest.mask is None:
        attrs["fill"] = -np.inf
    operands = _without_absent((q, *shared, rest.mask, sink))
    rw.redirect(node, rw.make("Attention", operands, node.origin, node.output.name, **attrs))
    return True


def _without_absent(operands: Sequence[Value | None]) -> Sequence[Value | None]:
    """The operands without absent ones at the end."""
    count = max(k + 1 for k, v in enumerate(operands) if v is not None)
    return operands[:count]


def _sink(rw: Tracker, m: Match, heads: Dim) -> Value | None:
    """The sink of each head, which a Concat puts behind the scores and a Slice cuts off; None for other values."""
    cut, joined = m.node("cut"), m.node("z")
    scores, column = joined.operands()
    first = not any(cut.attrs["starts"]) and all(s == 1 for s in cut.attrs["steps"])
    if joined.attrs["axis"] != 3 or scores.type.rank != 4 or cut.output.shape != scores.shape or not first:
        return None
    if column.shape[3] != 1:
        return None
    column = rw.get(m.values["sink"])
    while (node := rw.producer(column, "Expand")) is not None:
        column = node.operands()[0]
    array = rw.array(column)
    if array is not None and array.ndim == 4 and np.array_equal(array, np.broadcast_to(array[:1, :, :1], array.shape)):
        sizes = (1, heads, 1, 1)  # an Expand of a weight has been folded
        column = rw.make("Slice", [column], m.origin, starts=(0, 0, 0, 0), sizes=sizes, steps=(1, 1, 1, 1))
    if (1, *column.shape)[-4:] != (1, heads, 1, 1):
        return None
    return rw.make("Reshape", [column], m.origin, shape=(heads,))


def _build(rw: Tracker, m: Match) -> Value | None:
    softmax = m.node("p")
    last = softmax.output.type.rank - 1
    if softmax.op != "Softmax" or softmax.attrs["axis"] != last:
        return None
    if "top" in m.values and m.node("top").attrs["axes"] != (last,):
        return None
    q, scale_q = _without_scale(rw, rw.get(m.values["q"]))
    k, scale_k = _keys(rw, rw.get(m.values["k"]), m.origin)
    dtype = m.root.output.dtype
    operands = [cast_to(rw, x, dtype, m.origin) for x in (q, k, rw.get(m.values["v"]))]
    rank = m.root.output.type.rank
    if any(x.type.rank != rank for x in operands):
        return None
    operands = [_four_axes(rw, x, m.origin) for x in operands]
    if (m.scalars.get("N") or -np.inf) > MASKED_OUT:
        return None
    written = m.scalars.get("N")
    is_added = any(name in m.values for name in ("mask", "mask2"))
    if is_added and written is not None and ABSORBING < written < 0:
        return None  # neither a number that absorbs what is added, nor one that Attention can write
    mask = _mask(rw, m, dtype)
    if mask is not None and mask.type.rank > 2 and rank != 4:
        if rank != 3:
            return None
        mask = rw.make("Reshape", [mask], m.origin, shape=(product(mask.shape[:-2]), 1, *mask.shape[-2:]))
    sink = _sink(rw, m, operands[0].shape[1]) if "cut" in m.values else None
    if sink is None and "cut" in m.values:
        return None
    cap = m.scalars.get("C")
    if cap is not None and cap <= 0:
        return None
    attrs = {"scale": (m.scalars["K"] or 0.0) * scale_q * scale_k * (cap or 1.0), "softcap": cap or 0.0}
    if written is not None and not is_added:
        attrs["fill"] = written
    inputs = _without_absent((*operands, mask, None if sink is None else cast_to(rw, sink, dtype, m.origin)))
    try:
        infer_types("Attention", [None if v is None else v.type for v in inputs], attrs)
    except ModelError:  # a batch or head axis that broadcasts
        return None
    if not fits_attention(operands[0].shape[3], operands[2].shape[3]):
        return None
    y = rw.make("Attention", inputs, m.origin, m.name if rank == 4 else f"{m.name}.heads", **attrs)
    return y if rank == 4 else rw.make("Reshape", [y], m.origin, m.name, shape=m.root.output.shape)


def _without_scale(rw: Tracker, x: Value) -> tuple[Value, float]:
    """The value that scalars multiply or divide to give ``x``, and their product."""
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
    """The keys [..., T, D] and a scalar factor, whose product's transpose is ``kt``."""
    kt, scale = _without_scale(rw, kt)
    spread: list[tuple[Dim, ...]] = []
    while (node := rw.producer(kt, "Expand")) is not None and _over_heads(node):  # the same keys for each head
        spread.append(kt.shape[:-2])
        kt, more = _without_scale(rw, node.operands()[0])
        scale *= more
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
    k, more = _without_scale(rw, kt)
    for lead in reversed(spread):
        k = rw.make("Expand", [k], origin, shape=(*lead, *k.shape[-2:]))
    return k, scale * more


def _over_heads(expand: Node) -> bool:
    """True if an Expand repeats leading axes only."""
    return expand.output.type.rank >= 2 and expand.operands()[0].shape[-2:] == expand.output.shape[-2:]


def _four_axes(rw: Tracker, x: Value, origin: tuple[str, ...]) -> Value:
    """``x`` as [B, H, length, size]: H is 1 below rank 4; above it, the axes before the heads become one batch axis."""
    shape = x.shape
    if x.type.rank == 4:
        return x
    lead: tuple[Dim, ...] = (product(shape[:-2]), 1) if x.type.rank < 4 else (product(shape[:-3]), shape[-3])
    return rw.make("Reshape", [x], origin, shape=(*lead, *shape[-2:]))


def _shared_heads(rw: Tracker, k: Value, v: Value, origin: tuple[str, ...]) -> list[Value]:
    """Keys and values before they are repeated for groups of query heads, if both are; else themselves."""
    before = [_before_repeat(rw, x) for x in (k, v)]
    if None in before:
        return [k, v]
    shared = []
    for found in before:
        assert found is not None
        source, shape, perm = found
        x = rw.make("Reshape", [source], origin, shape=shape)
        shared.append(x if perm is None else rw.make("Transpose", [x], origin, perm=perm))
    return shared


def _before_repeat(rw: Tracker, x: Value) -> tuple[Value, tuple[Dim, ...], tuple[int, ...] | None] | None:
    """The value of which ``x`` [B, H, T, D] repeats the heads, the shape to give it, and then the permutation, if any.

    Repetition is written [B, G, 1, T, D] -> [B, G, R, T, D] -> [B, G*R, T, D], or the same with T in front of the heads
    and a Transpose; for a single group it is [B, 1, T, D] -> [B, H, T, D]. None if ``x`` is no such value.
    """
    spread = rw.producer(x, "Expand")
    if spread is not None:
        group = spread.operands()[0]
        return (group, group.shape, None) if group.shape == (x.shape[0], 1, *x.shape[2:]) else None
    transpose = rw.producer(x, "Transpose")
    perm = None if transpose is None else transpose.attrs["perm"]
    if perm not in (None, (0, 2, 1, 3)):
        return None
    merge = rw.producer(x if transpose is None else transpose.operands()[0], "Reshape")
    expand = rw.producer(merge.operands()[0], "Expand") if merge is not None else None
    split = rw.producer(expand.operands()[0], "Reshape") if expand is not None else None
    if merge is None or expand is None or split is None or expand.output.type.rank != 5:
        return None
    axis = 2 if transpose is None else 3
    repeated, single = list(expand.output.shape), list(split.output.shape)
    heads = [*repeated[: axis - 1], repeated[axis - 1] * repeated[axis], *repeated[axis + 1 :]]
    if single[axis] != 1 or list(merge.output.shape) != heads:
        return None
    groups = (*single[:axis], *single[axis + 1 :])
    if groups != (*repeated[:axis], *repeated[axis + 1 :]):
        return None
    return split.operands()[0], groups, perm


def _mask(rw: Tracker, m: Match, dtype: DType) -> Value | None:
    """The mask operand, if there is one: a bool condition, numbers to add, or both as numbers to add.

    A condition alone writes the number N over scores, Attention's ``fill``. Beside numbers to add, N is added too: it
    is so low that adding a score doesn't change it.
    """
    condition = next((rw.get(m.values[n]) for n in "cd" if n in m.values), None)  # true: seen (c), masked (d)
    added = [cast_to(rw, rw.get(m.values[n]), dtype, m.origin) for n in ("mask", "mask2") if n in m.values]
    written = m.scalars.get("N")
    absorbs = written is not None and np.isfinite(written) and written <= ABSORBING
    if len(added) == 2:
        added = [rw.make("Add", added, m.origin)]
    if condition is None or not added:
        if condition is not None and "d" in m.values:
            condition = rw.make("Not", [condition], m.origin)
        return added[0] if added else condition
    with np.errstate(over="ignore"):
        low = rw.constant(np.asarray(written if absorbs else -np.inf).astype(dtype.numpy), dtype, "low")
    if absorbs and "w" in m.values:  # the mask is added to the written number too: their sum may be minus infinity
        low = rw.make("Add", [added[0], low], m.origin)
    return rw.make("Where", [condition, *((low, added[0]) if "d" in m.values else (added[0], low))], m.origin)
