"""Recovers DequantizeLinear from the arithmetic that exporters write in its place.

    (Cast(w) - zero) * scale  ->  DequantizeLinear(w, scale, zero)      w: a weight of 8 bits or fewer
    Cast(w) * scale + offset  ->  DequantizeLinear(w, scale, 0, offset)

Requires: scales, zero points and offsets are weights, perhaps cast. Ensures: no such arithmetic is left whose scales
have the axes of w, each as long as there or of one element, and differ along one axis or along all axes but one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

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


@dataclass(frozen=True, slots=True)
class _Form:
    """The attributes of a DequantizeLinear and the shape of its scales."""

    axis: int
    block: int
    shape: tuple[Dim, ...]


Found: TypeAlias = "tuple[list[Value], dict[str, object]]"


def _visit(rw: Tracker, node: Node) -> bool:
    if not node.output.dtype.is_float or len(node.inputs) != 2 or node.op not in ("Mul", "Add"):
        return False
    a, b = (v for v in rw.inputs_of(node) if v is not None)
    recover = _scaled if node.op == "Mul" else _moved
    found = recover(rw, node, a, b) or recover(rw, node, b, a)
    if found is None:
        return False
    parts, attrs = found
    # not evaluated here, though all operands are weights
    rw.redirect(node, make(rw, "DequantizeLinear", parts, attrs, origin=node.origin, hint=node.output.name))
    return True


def _scaled(rw: Tracker, node: Node, a: Value, b: Value) -> Found | None:
    """``a * b``, numbers and their scales."""
    numbers, scale = _numbers(rw, a), _constant(rw, b)
    if numbers is None or scale is None or numbers.x.shape != node.output.shape:
        return None
    form = _form(numbers.x.shape, scale.shape)
    if form is None:
        return None
    zero = None if numbers.zero is None else _fitting(rw, numbers.zero, numbers.x.shape, form)
    if numbers.zero is not None and zero is None:
        return None
    parts = [numbers.x, _reshaped(rw, scale, form.shape), *([] if zero is None else [zero])]
    return parts, {"axis": form.axis, "block": form.block, "dtype": node.output.dtype}


def _moved(rw: Tracker, node: Node, a: Value, b: Value) -> Found | None:
    """``a + b``, scaled numbers without a zero point and their offsets."""
    scaled, offset = rw.producer(a, "DequantizeLinear"), _constant(rw, b)
    if scaled is None or offset is None or len(scaled.inputs) != 2 or scaled.output.shape != node.output.shape:
        return None
    x, scale = scaled.operands()
    form = _Form(scaled.attrs["axis"], scaled.attrs["block"], scale.shape)
    moved = _fitting(rw, offset, x.shape, form)
    if moved is None or x.name not in rw.weights:
        return None
    none = rw.constant(np.zeros((), x.dtype.numpy), x.dtype, "zero")
    return [x, scale, none, moved], dict(scaled.attrs)


def _fitting(rw: Tracker, v: Value, x: tuple[Dim, ...], form: _Form) -> Value | None:
    """A zero point or an offset in the shape of the scales, or as a scalar; None where it has another form."""
    if v.type.numel == 1:
        return _reshaped(rw, v, ())
    return _reshaped(rw, v, form.shape) if _form(x, v.shape) == form else None


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


def _constant(rw: Tracker, v: Value) -> Value | None:
    """A weight of scales or offsets: ``v`` itself, or what it is a wider copy of."""
    node = rw.producer(v, "Cast")
    source = v if node is None else node.operands()[0]
    return source if source.name in rw.weights and source.dtype.is_float and not source.dtype.is_storage else None


def _form(x: tuple[Dim, ...], scale: tuple[Dim, ...]) -> _Form | None:
    """The form of scales of that shape; None for scales that a DequantizeLinear can't have."""
    if all(d == 1 for d in scale):
        return _Form(0, 0, ())
    if len(scale) != len(x) or any(s not in (1, d) for s, d in zip(scale, x)):
        return None
    own = [k for k, s in enumerate(scale) if s != 1]
    if len(own) == 1:
        return _Form(own[0], 0, (scale[own[0]],))
    shared = [k for k, (s, d) in enumerate(zip(scale, x)) if s == 1 and d != 1]
    extent = x[shared[0]] if len(shared) == 1 else None
    return _Form(shared[0], extent, scale) if isinstance(extent, int) else None


def _reshaped(rw: Tracker, v: Value, shape: tuple[Dim, ...]) -> Value:
    return v if v.shape == shape else rw.make("Reshape", [v], (), shape=shape)
