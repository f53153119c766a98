"""The layout pass's rules: how each operator works on operands whose axes are in another order.

A rule emits the node through ``Layouts``, in the axis order that suits it, and returns True. Or it returns False, and
the node is kept as it is, on operands in their own order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, divides_exactly
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Node, Value
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.passes.axis_orders import Layouts, Perm, Rule, channels_last, identity, vote
from arcweld.passes.stored import HIGH


def pointwise(rw: Layouts, node: Node) -> bool:
    """Computes in the order in which most of the operands' elements are."""
    rank = node.output.type.rank
    perm = vote(rw, node.operands(), rank)
    if "axis" in node.attrs:  # QuantizeLinear, DequantizeLinear: scales are vectors along one axis, or of blocks
        x, *rest = node.inputs
        assert x is not None
        inputs: list[Value | None] = [rw.get_in(x, perm, node.origin)]
        for k, v in enumerate(rest, 1):  # one zero point may serve all blocks
            as_x = v is not None and v.type.rank > 0 and (bool(node.attrs["block"]) or k == HIGH)
            inputs.append(v and (rw.get_in(v, perm, node.origin) if as_x else rw.plain(v, node.origin)))
        rw.copy(node, inputs, perm, axis=perm.index(node.attrs["axis"]) if rank else 0)
        return True
    rw.copy(node, [rw.broadcast_in(v, perm, node.origin) for v in node.operands()], perm)
    return True


def convolution(rw: Layouts, node: Node) -> bool:
    """Convolutions and pools read and write channels-last."""
    if node.attrs["layout"] != "NCHW":
        return False
    perm = channels_last(node.output.type.rank)
    x, *rest = node.inputs
    assert x is not None
    others = [None if v is None else rw.plain(v, node.origin) for v in rest]
    rw.copy(node, [rw.get_in(x, perm, node.origin), *others], perm, layout="NHWC")
    return True


def transpose(rw: Layouts, node: Node) -> bool:
    """Changes the record of the operand's order; no node is emitted."""
    (x,) = node.operands()
    new, native = rw.native[x.name]
    perm = node.attrs["perm"]
    rw.set(node.output, new, tuple(perm.index(p) for p in native))
    return True


def concat(rw: Layouts, node: Node) -> bool:
    """Concatenates in the order in which most of the operands' elements are."""
    perm = vote(rw, node.operands(), node.output.type.rank)
    inputs = [rw.get_in(v, perm, node.origin) for v in node.operands()]
    rw.copy(node, inputs, perm, axis=perm.index(node.attrs["axis"]))
    return True


def per_axis(*names: str) -> Rule:
    """The rule of operators whose attributes ``names`` have one entry for each axis: Slice, Resize, Tile, Expand."""

    def rule(rw: Layouts, node: Node) -> bool:
        (x,) = node.operands()
        perm = rw.order(x)
        if x.type.rank != node.output.type.rank:
            return False
        attrs = {n: _permuted(node.attrs[n], perm) for n in names if node.attrs[n] is not None}
        rw.copy(node, [rw.get_in(x, perm, node.origin)], perm, **attrs)
        return True

    return rule


def _permuted(items: Sequence[Dim], perm: Perm) -> tuple[Dim, ...]:
    return tuple(items[p] for p in perm)


def pad(rw: Layouts, node: Node) -> bool:
    """Pads in the operand's order."""
    (x,) = node.operands()
    perm, pads = rw.order(x), node.attrs["pads"]
    half = len(pads) // 2
    rw.copy(
        node, [rw.get_in(x, perm, node.origin)], perm,
        pads=(*_permuted(pads[:half], perm), *_permuted(pads[half:], perm)),
    )  # fmt: skip
    return True


def reduce(rw: Layouts, node: Node) -> bool:
    """Reduces in the operand's order."""
    (x,) = node.operands()
    perm = rw.order(x)
    axes = node.attrs["axes"] if "axes" in node.attrs else (node.attrs["axis"],)
    moved = tuple(sorted(perm.index(a) for a in axes))
    attrs = {"axes": moved} if "axes" in node.attrs else {"axis": moved[0]}
    result = perm if node.attrs["keepdims"] else _without(perm, axes)
    rw.copy(node, [rw.get_in(x, perm, node.origin)], result, **attrs)
    return True


def _without(perm: Perm, axes: Sequence[int]) -> Perm:
    """The order ``perm`` of a tensor without its axes ``axes``."""
    left = [a for a in range(len(perm)) if a not in axes]
    return tuple(left.index(p) for p in perm if p not in axes)


def softmax(rw: Layouts, node: Node) -> bool:
    """Softmax and LogSoftmax: the axis becomes the last one, as rows are; the others stay in order."""
    (x,) = node.operands()
    perm = _trailing(rw.order(x), (node.attrs["axis"],))
    rw.copy(node, [rw.get_in(x, perm, node.origin)], perm, axis=len(perm) - 1)
    return True


def _trailing(perm: Perm, axes: Sequence[int]) -> Perm:
    """``perm`` if ``axes`` are the last in it, else with them moved to the end."""
    if set(perm[len(perm) - len(axes) :]) == set(axes):
        return perm
    return (*(p for p in perm if p not in axes), *axes)


def normalization(rw: Layouts, node: Node) -> bool:
    """LayerNormalization and RMSNormalization: the normalised axes become the last ones, as rows are.

    In front of convolutions the order stays, and the node is computed by reductions instead.
    """
    x, *affine = node.operands()
    rank, perm = x.type.rank, rw.order(x)
    axes = tuple(range(node.attrs["axis"], rank))
    if _trailing(perm, axes) != perm and rw.feeds_convolution(node.output, reshaped=True):
        fitted = [rw.broadcast_in(v, perm, node.origin) for v in affine]
        where = tuple(sorted(perm.index(a) for a in axes))
        new = rw.get_in(x, perm, node.origin)
        rw.set(node.output, _norm_by_reductions(rw, node, new, fitted, where), perm)
        return True
    perm = _trailing(perm, axes)
    fitted = [rw.broadcast_in(v, perm, node.origin) for v in affine]
    rw.copy(node, [rw.get_in(x, perm, node.origin), *fitted], perm, axis=rank - len(axes))
    return True


def _norm_by_reductions(rw: Layouts, node: Node, x: Value, affine: Sequence[Value], axes: tuple[int, ...]) -> Value:
    """(x - mean) / sqrt(var + epsilon) * scale + bias by reductions over ``axes``, which may be any.

    RMSNormalization has no mean. 16-bit floats are f32 in between, and x is multiplied and shifted once, so that no
    centred copy of it is kept: their few bits leave the difference exact enough.
    """

    def emit(op: str, *inputs: Value, **attrs: Any) -> Value:
        return rw.make(op, inputs, node.origin, **attrs)

    if x.dtype.is_half:
        return emit("Cast", _in_f32(rw, node, x, affine, axes), to=x.dtype)
    if node.op == "LayerNormalization":
        x = emit("Sub", x, emit("ReduceMean", x, axes=axes, keepdims=1))
    power = emit("ReduceMean", emit("Mul", x, x), axes=axes, keepdims=1)
    epsilon = rw.constant(x.dtype.numpy.type(node.attrs["epsilon"]).reshape(()), x.dtype, "epsilon")
    y = emit("Mul", x, emit("Rsqrt", emit("Add", power, epsilon)))
    y = emit("Mul", y, affine[0]) if affine else y
    return emit("Add", y, affine[1]) if len(affine) > 1 else y


def _in_f32(rw: Layouts, node: Node, x: Value, affine: Sequence[Value], axes: tuple[int, ...]) -> Value:
    """``x * factor + shift`` with the statistics of ``x``, all in f32."""

    def emit(op: str, *inputs: Value, **attrs: Any) -> Value:
        return rw.make(op, inputs, node.origin, **attrs)

    x, *affine = (emit("Cast", v, to=DType.F32) for v in (x, *affine))
    mean = emit("ReduceMean", x, axes=axes, keepdims=1) if node.op == "LayerNormalization" else None
    centred = x if mean is None else emit("Sub", x, mean)
    power = emit("ReduceMean", emit("Mul", centred, centred), axes=axes, keepdims=1)
    epsilon = rw.constant(np.asarray(node.attrs["epsilon"], np.float32), DType.F32, "epsilon")
    factor = emit("Rsqrt", emit("Add", power, epsilon))
    factor = emit("Mul", factor, affine[0]) if affine else factor
    y = emit("Mul", x, factor)
    shift = affine[1] if len(affine) > 1 else None
    if mean is not None:
        moved = emit("Mul", mean, factor)
        shift = emit("Neg", moved) if shift is None else emit("Sub", shift, moved)
    return y if shift is None else emit("Add", y, shift)


def gather(rw: Layouts, node: Node) -> bool:
    """Gathers in the operand's order."""
    x, indices = node.operands()
    perm, axis = rw.order(x), node.attrs["axis"]
    if perm == identity(len(perm)):
        return False
    count = indices.type.rank
    result: list[int] = []
    for p in perm:
        result += range(axis, axis + count) if p == axis else [p if p < axis else p + count - 1]
    inputs = [rw.get_in(x, perm, node.origin), rw.plain(indices, node.origin)]
    rw.copy(node, inputs, tuple(result), axis=perm.index(axis))
    return True


# ---------------------------------------------------------------------------------------------------- Reshape


def reshape(rw: Layouts, node: Node) -> bool:
    """Splits and merges axes in the operand's order.

    Where axes to be merged are not neighbours in that order, they are moved if a convolution follows; else the node is
    kept, on the operand in its own order.
    """
    (x,) = node.operands()
    perm = rw.order(x)
    groups = factor(x.shape, node.output.shape)
    if perm == identity(len(perm)) or groups is None:
        return False
    groups.sort(key=lambda g: perm.index(g[0][0]))
    wanted = [a for ins, _ in groups for a in ins]
    if wanted == [p for p in perm if x.shape[p] != 1]:
        source = rw.get_in(x, perm, node.origin)
    elif rw.feeds_convolution(node.output):
        source = rw.get_in(x, (*(a for a in range(len(perm)) if a not in wanted), *wanted), node.origin)
    else:
        return False  # axes have to move: then to where they belong
    order = _with_ones([a for _, outs in groups for a in outs], node.output.shape)
    shape = tuple(node.output.shape[a] for a in order)
    rw.copy(node, [source], order, shape=shape)
    return True


def _with_ones(order: list[int], shape: Sequence[Dim]) -> Perm:
    """``order`` with the missing axes, of extent 1, each behind the one that precedes it in ``shape``."""
    out = list(order)
    for a in range(len(shape)):
        if a not in out:
            out.insert(out.index(a - 1) + 1 if a else 0, a)
    return tuple(out)


def factor(a: Sequence[Dim], b: Sequence[Dim]) -> list[tuple[list[int], list[int]]] | None:
    """The least groups of axes of a Reshape from shape ``a`` to shape ``b``: ([axes of a], [axes of b]) pairs.

    Both sides of a pair have the same number of elements. Axes of extent 1 are in no pair. None if there is no pair, or
    if extents cannot be compared.
    """
    groups: list[tuple[list[int], list[int]]] = []
    left = [i for i, d in enumerate(a) if d != 1]
    right = [i for i, d in enumerate(b) if d != 1]
    i = j = 0
    while i < len(left) and j < len(right):
        start = i, j
        size_a, size_b = a[left[i]], b[right[j]]
        i, j = i + 1, j + 1
        while size_a != size_b:
            if _divides(size_a, size_b) and i < len(left):
                size_a, i = size_a * a[left[i]], i + 1
            elif _divides(size_b, size_a) and j < len(right):
                size_b, j = size_b * b[right[j]], j + 1
            elif i < len(left):
                size_a, i = size_a * a[left[i]], i + 1
            elif j < len(right):
                size_b, j = size_b * b[right[j]], j + 1
            else:
                return None
        groups.append((left[start[0] : i], right[start[1] : j]))
    return groups if i == len(left) and j == len(right) and groups else None


def _divides(part: Dim, whole: Dim) -> bool:
    if whole == 0 or part == 0:
        return False
    return divides_exactly(whole, part) is not None


OF_KIND: dict[Kind, Rule] = {
    Kind.POINTWISE: pointwise,
    Kind.REDUCE: reduce,
    Kind.CONV: convolution,
    Kind.WINDOW: convolution,
}
OF_OPERATOR: dict[str, Rule] = {
    "Transpose": transpose,
    "Reshape": reshape,
    "Concat": concat,
    "Pad": pad,
    "Slice": per_axis("starts", "sizes", "steps"),
    "Resize": per_axis("sizes", "scales"),
    "Tile": per_axis("repeats"),
    "Expand": per_axis("shape"),
    "Gather": gather,
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "LayerNormalization": normalization,
    "RMSNormalization": normalization,
}


def rule_of(node: Node) -> Rule | None:
    """The rule for a node, by its operator or else by its kind. None: it needs operands in their own order."""
    return OF_OPERATOR.get(node.op) or OF_KIND.get(opdef(node.op).kind)
