"""Puts stored tensors into a graph: weights as they are stored, and what the storage pass takes for quantised ones."""

from __future__ import annotations

import numpy as np

from arcweld.compiler.checkpoints.tensors import Packed, Scales, StoredTensor
from arcweld.compiler.dtypes import DType, from_numpy
from arcweld.compiler.ir import Rewriter, Value
from arcweld.compiler.ops.registry import make


def add_weight(rw: Rewriter, tensor: StoredTensor, dtype: DType) -> tuple[Value, Value | None]:
    """The tensor as a value of type ``dtype`` in its logical shape, and the order of its columns.

    A packed matrix becomes weights, UnpackBits and DequantizeLinear, which the storage pass may keep. In f32, so does a
    matrix of 16-bit floats, by the scale 1. Where it is
    stored group by group (``Packed.order``), the order is a value ``i64[k]``: column j is column ``order[j]`` of the
    logical matrix. Else it is None.
    """
    stored = tensor.to_stored()
    if isinstance(stored, np.ndarray):
        own = from_numpy(stored.dtype)
        value = rw.constant(stored, own, tensor.name, tensor.name)
        if own.is_half and dtype is DType.F32 and value.type.rank > 1:
            one = rw.constant(np.ones((), np.float32), DType.F32, "one")
            attrs = {"axis": 0, "block": 0, "dtype": dtype}
            return make(rw, "DequantizeLinear", [value, one], attrs, origin=(tensor.name,)), None
        return value if own is dtype else make(rw, "Cast", [value], {"to": dtype}, origin=(tensor.name,)), None
    value = _dequantised(rw, tensor.name, stored, dtype)
    if tensor.shape != stored.shape:
        value = make(rw, "Reshape", [value], {"shape": tensor.shape}, origin=(tensor.name,))
    order = None if stored.order is None else rw.constant(stored.order, DType.I64, f"{tensor.name}.order")
    return value, order


def add_logical(rw: Rewriter, tensor: StoredTensor, dtype: DType) -> Value:
    """The tensor as a value of type ``dtype`` in its logical shape and order.

    Columns that are stored group by group are put in place by a Gather, which the pass ``column-orders`` moves from
    packed weights to the activations of products.
    """
    value, order = add_weight(rw, tensor, dtype)
    if order is None:
        return value
    inverse = np.argsort(rw.weights.pop(order.name).data).astype(np.int64)
    places = rw.constant(inverse, DType.I64, f"{tensor.name}.places")
    return make(rw, "Gather", [value, places], {"axis": 1}, origin=(tensor.name,))


def add_linear(rw: Rewriter, x: Value, tensor: StoredTensor) -> Value:
    """``x[…, k]`` times the transpose of the matrix ``[n, k]``: what a layer without a bias computes."""
    w, order = add_weight(rw, tensor, x.dtype)
    if order is not None:
        x = make(rw, "Gather", [x, order], {"axis": x.type.rank - 1}, origin=(tensor.name,))
    turned = make(rw, "Transpose", [w], {"perm": (1, 0)}, origin=(tensor.name,))
    return make(rw, "MatMul", [x, turned], origin=(tensor.name,))


def _dequantised(rw: Rewriter, name: str, p: Packed, dtype: DType) -> Value:
    origin = (name,)
    if p.dtype.is_packed:
        elements = _unpacked(rw, name, "packed", p.elements, p.dtype, p.shape)
    else:
        elements = rw.constant(p.elements, p.dtype, f"{name}.elements", f"{name}.elements")
    operands: list[Value | None] = [elements, _scales(rw, name, "scale", p.scale)]
    zero, offset = p.zero, p.offset
    if zero is None and (offset is not None or p.high is not None):
        zero = np.zeros((), p.dtype.numpy if p.high is None else np.uint8)
    if offset is None and p.high is not None:
        offset = np.zeros((), np.float32)
    for what, array in (("zero", zero), ("offset", offset)):
        if array is not None:
            operands.append(_scales(rw, name, what, array))
    if p.high is not None:
        operands.append(_unpacked(rw, name, "high", p.high, p.high_dtype, p.shape))
    attrs = {"axis": 1 if p.block else 0, "block": p.block, "dtype": dtype}
    return make(rw, "DequantizeLinear", operands, attrs, origin=origin, hint=name)


def _scales(rw: Rewriter, name: str, what: str, given: Scales) -> Value:
    """Scales, zero points or offsets as a weight; those of two levels dequantised by their units."""
    if isinstance(given, np.ndarray):
        return rw.constant(given, from_numpy(given.dtype), f"{name}.{what}", f"{name}.{what}")
    codes, unit = _scales(rw, name, what, given.codes), _scales(rw, name, f"{what}.unit", given.unit)
    attrs = {"axis": 1, "block": given.block, "dtype": DType.F32}
    return make(rw, "DequantizeLinear", [codes, unit], attrs, origin=(name,))


def _unpacked(rw: Rewriter, name: str, what: str, rows: np.ndarray, dtype: DType, shape: tuple[int, int]) -> Value:
    """Rows of whole bytes as the elements of a packed type that they hold."""
    data = rw.constant(rows, DType.U8, f"{name}.{what}", f"{name}.{what}")
    elements = make(rw, "UnpackBits", [data], {"dtype": dtype}, origin=(name,))
    if elements.shape == shape:
        return elements
    whole = {"starts": (0, 0), "sizes": shape, "steps": (1, 1)}
    return make(rw, "Slice", [elements], whole, origin=(name,))
