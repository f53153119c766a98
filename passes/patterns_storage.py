"""Recovers DequantizeLinear from the arithmetic that exporters write in its place.

    Cast(w) * scale, (Cast(w) - zero) * scale  ->  DequantizeLinear(w, scale, zero)      w: a weight of 8 bits or fewer

Requires: scales and zero points are weights. Ensures: no such product is left whose scales have the axes of w, each as
long as there or of one element, and differ along one axis or along all axes but one.
"""

from __future__ import annotations

from dataclasses import dataclass

from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.ops.registry import make
from arcweld.passes.common import Tracker, rewrite


def recover_storage(graph: Graph) -> Graph:
    """Returns ``graph`` with the formula recovered."""
    return rewrite(graph, _visit)


@dataclass(frozen=True, slots=True)
class _Numbers:
    """``Cast(x) - zero``: stored numbers, not yet scaled."""

    x: Value
    zero: Value | None


def _visit(rw: Tracker, node: Node) -> bool:
    if node.op != "Mul" or not node.output.dtype.is_float:
        return False
    operands = [v for v in rw.inputs_of(node) if v is not None]
    for a, scale in (operands, operands[::-1]):
        found = _numbers(rw, a)
        if found is None or scale.name not in rw.weights or found.x.shape != node.output.shape:
            continue
        form = _form(found.x.shape, scale.shape)
        if form is None:
            continue
        axis, block, shape = form
        zero = found.zero
        if zero is not None and zero.type.numel != 1:
            if _form(found.x.shape, zero.shape) != form:
                continue
            zero = _reshaped(rw, zero, shape)
        elif zero is not None:
            zero = _reshaped(rw, zero, ())
        parts = [found.x, _reshaped(rw, scale, shape), *([] if zero is None else [zero])]
        attrs = {"axis": axis, "block": block, "dtype": node.output.dtype}
        # not evaluated here, though all operands are weights
        y = make(rw, "DequantizeLinear", parts, attrs, origin=node.origin, hint=node.output.name)
        rw.redirect(node, y)
        return True
    return False


def _numbers(rw: Tracker, v: Value) -> _Numbers | None:
    """``v`` as the numbers of a stored weight, less a zero point if there is one; None for anything else."""
    x = _cast_weight(rw, v)
    if x is not None:
        return _Numbers(x, None)
    node = rw.producer(v)
    if node is None or node.op not in ("Sub", "Cast"):
        return None
    if node.op == "Cast":  # of a difference of integers, which are wide enough for it
        source = node.operands()[0]
        return _numbers(rw, source) if source.dtype in (DType.I16, DType.I32, DType.I64) else None
    x = _cast_weight(rw, node.operands()[0])
    zero = node.operands()[1]
    if x is None or node.output.shape != x.shape:
        return None
    own = _cast_weight(rw, zero)
    if own is not None and own.dtype is x.dtype:
        return _Numbers(x, own)
    return _Numbers(x, zero) if zero.name in rw.weights and zero.dtype.is_float else None


def _cast_weight(rw: Tracker, v: Value) -> Value | None:
    """The weight of 8 bits or fewer that a Cast makes ``v`` of."""
    node = rw.producer(v, "Cast")
    if node is None:
        return None
    x = node.operands()[0]
    narrow = x.name in rw.weights and x.dtype.bits <= 8 and (x.dtype.is_int or x.dtype.is_storage)
    return x if narrow else None


def _form(x: tuple[Dim, ...], scale: tuple[Dim, ...]) -> tuple[int, int, tuple[Dim, ...]] | None:
    """``axis``, ``block`` and the shape of the scales of a DequantizeLinear; None for scales that it can't have."""
    if all(d == 1 for d in scale):
        return 0, 0, ()
    if len(scale) != len(x) or any(s not in (1, d) for s, d in zip(scale, x)):
        return None
    own = [k for k, s in enumerate(scale) if s != 1]
    if len(own) == 1:
        return own[0], 0, (scale[own[0]],)
    shared = [k for k, (s, d) in enumerate(zip(scale, x)) if s == 1 and d != 1]
    extent = x[shared[0]] if len(shared) == 1 else None
    return (shared[0], extent, scale) if isinstance(extent, int) else None


def _reshaped(rw: Tracker, v: Value, shape: tuple[Dim, ...]) -> Value:
    return v if v.shape == shape else rw.make("Reshape", [v], (), shape=shape)
