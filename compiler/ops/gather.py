"""Movement operators whose coordinates come from a tensor: the Gather family and OneHot.

Negative indices count from the end. The reference raises IndexError for an index out of range. Kernels clamp it, unless
the attribute ``strict`` is 1 or the simulator checks: then it is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, is_nonneg, product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.expr import Expr, binary, cast, const, dynamic_index, index, where, wrapped_index
from arcweld.compiler.ir import Node, TensorType
from arcweld.compiler.ops.movement import movement, operand
from arcweld.compiler.ops.registry import Attr, Case, Reader
from arcweld.compiler.ops.shapes import (
    NUMERIC,
    check_axis,
    check_dtype,
    check_elements,
    check_equal,
    check_rank,
    check_within,
    if_any,
    present,
)

Attrs = Mapping[str, Any]
Arrays = Sequence[np.ndarray | None]
Types = Sequence[TensorType | None]
INDEX = (DType.I64, DType.I32)
STRICT = {"strict": Attr("int", 0)}  # 1: an index out of range stops the kernel with an error


def _place(reader: Reader, node: Node, value: Expr, extent: Dim) -> Dim:
    """The coordinate that an index names along an axis of ``extent`` elements."""
    return dynamic_index(wrapped_index(value, extent, reader.mask, bool(node.attrs["strict"])), extent)


def _infer_gather(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, indices = present("Gather", types, 2)
    check_dtype("Gather", indices, INDEX)
    axis = check_axis("Gather", attrs["axis"], x.rank)
    out = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    check_elements("Gather", x, [axis], out)
    return (x.with_shape(out),)


def _lower_gather(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    x, indices = node.operands()
    axis = node.attrs["axis"]
    end = axis + indices.type.rank
    found = _place(reader, node, reader.read(indices, coords[axis:end]), x.shape[axis])
    return reader.read(x, (*coords[:axis], found, *coords[end:]), if_any([x.shape[axis]]))


def _indexed(node: Node) -> Sequence[Dim]:
    """The extent of the attribute ``axis``, where there are indices into it."""
    x, indices = node.operands()
    return [x.shape[node.attrs["axis"]]] if is_nonneg(product(indices.shape) - 1) else []


movement(
    "Gather", "x indices", _infer_gather, lambda a, p: (np.take(operand(a), operand(a, 1), axis=p["axis"]),),
    _lower_gather, {"axis": Attr("int", 0), **STRICT},
    [
        Case(((7, 4), np.array([[0, 6, -1], [3, 3, -7]])), {"axis": 0}, ("f32", "f16", "i64", "bool")),
        Case(((2, 5, 3), np.array([4, 0], np.int32)), {"axis": 1}, ("f32",)),
        Case(((2, 5, 3), np.array(2)), {"axis": 2}, ("f32",)),
    ],
    needs=_indexed,
)  # fmt: skip


def _infer_gather_elements(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, indices = present("GatherElements", types, 2)
    check_dtype("GatherElements", indices, INDEX)
    check_within("GatherElements", indices.shape, x.shape, attrs["axis"])
    check_rank("GatherElements", indices, x.rank, x.rank)
    check_elements("GatherElements", x, [check_axis("GatherElements", attrs["axis"], x.rank)], indices.shape)
    return (x.with_shape(indices.shape),)


def _gather_elements(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, indices, axis = operand(arrays), operand(arrays, 1), attrs["axis"]
    box = tuple(slice(None) if k == axis else slice(0, n) for k, n in enumerate(indices.shape))
    return (np.take_along_axis(x[box], indices.astype(np.int64), axis),)


def _lower_gather_elements(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    x, indices = node.operands()
    axis = node.attrs["axis"]
    found = _place(reader, node, reader.read(indices, coords), x.shape[axis])
    return reader.read(x, (*coords[:axis], found, *coords[axis + 1 :]), if_any([x.shape[axis]]))


movement(
    "GatherElements", "x indices", _infer_gather_elements, _gather_elements, _lower_gather_elements,
    {"axis": Attr("int", 0), **STRICT},
    [
        Case(((4, 3), np.array([[0, 1, -1], [2, 3, 0]])), {"axis": 0}, ("f32", "f16", "i64")),
        Case(((4, 3), np.array([[0, 2], [1, -1]], np.int32)), {"axis": 1}, ("f32",)),
    ],
    needs=_indexed,
)  # fmt: skip


def _infer_gather_nd(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, indices = present("GatherND", types, 2)
    check_dtype("GatherND", indices, INDEX)
    check_rank("GatherND", indices, 1)
    batch, depth = attrs["batch_dims"], indices.shape[-1]
    if not isinstance(depth, int) or batch + depth > x.rank or not 0 <= batch < indices.rank:
        raise ModelError(f"GatherND: indices {indices} into {x} with {batch} batch axes")
    for k in range(batch):
        check_equal("GatherND", f"batch axis {k}", x.shape[k], indices.shape[k])
    out = (*indices.shape[:-1], *x.shape[batch + depth :])
    check_elements("GatherND", x, range(batch, batch + depth), out)
    return (x.with_shape(out),)


def _gather_nd(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, indices, batch = operand(arrays), operand(arrays, 1), attrs["batch_dims"]
    depth = indices.shape[-1]
    grid = np.indices(indices.shape[:-1])
    own = [grid[k] for k in range(batch)]
    return (x[(*own, *(indices[..., k] for k in range(depth)))],)


def _lower_gather_nd(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    x, indices = node.operands()
    batch, lead, depth = node.attrs["batch_dims"], indices.type.rank - 1, int(indices.shape[-1])  # type: ignore[arg-type]
    found = [_place(reader, node, reader.read(indices, (*coords[:lead], k)), x.shape[batch + k]) for k in range(depth)]
    return reader.read(x, (*coords[:batch], *found, *coords[lead:]), if_any(x.shape[batch : batch + depth]))


def _indexed_nd(node: Node) -> Sequence[Dim]:
    x, indices = node.operands()
    batch, depth = node.attrs["batch_dims"], int(indices.shape[-1])  # type: ignore[arg-type]
    return x.shape[batch : batch + depth] if is_nonneg(product(indices.shape) - 1) else []


movement(
    "GatherND", "x indices", _infer_gather_nd, _gather_nd, _lower_gather_nd, {"batch_dims": Attr("int", 0), **STRICT},
    [
        Case(((4, 3, 2), np.array([[0, 1], [3, -1]])), {}, ("f32", "f16", "i64")),
        Case(((4, 3, 2), np.array([[[1]], [[3]]])), {}, ("f32",)),
        Case(((2, 3, 4), np.array([[[1], [0]], [[2], [1]]])), {"batch_dims": 1}, ("f32",)),
        Case(((2, 3), np.array([1, 2])), {}, ("f32",)),
    ],
    needs=_indexed_nd,
)  # fmt: skip


def _infer_one_hot(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    indices, values = present("OneHot", types, 2)
    check_dtype("OneHot", indices, NUMERIC)
    check_rank("OneHot", values, 1, 1)
    check_equal("OneHot", "the values are off and on", values.shape[0], 2)
    axis = check_axis("OneHot", attrs["axis"], indices.rank + 1)
    shape = (*indices.shape[:axis], attrs["depth"], *indices.shape[axis:])
    return (TensorType(values.dtype, shape),)


def _one_hot(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    indices, values, depth = operand(arrays).astype(np.int64), operand(arrays, 1), attrs["depth"]
    wrapped = np.where(indices < 0, indices + depth, indices)
    hit = np.expand_dims(wrapped, -1) == np.arange(depth)
    return (np.moveaxis(np.where(hit, values[1], values[0]), -1, attrs["axis"]),)


def _lower_one_hot(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    indices, values = node.operands()
    axis, zero = node.attrs["axis"], const(0, DType.I64)
    at = cast(reader.read(indices, (*coords[:axis], *coords[axis + 1 :])), DType.I64)
    wrapped = where(binary("lt", at, zero), at + index(node.attrs["depth"]), at)
    hit = binary("eq", wrapped, index(coords[axis]))
    return where(hit, reader.read(values, (1,)), reader.read(values, (0,)))


movement(
    "OneHot", "indices values", _infer_one_hot, _one_hot, _lower_one_hot,
    {"axis": Attr("int", required=True), "depth": Attr("dim", required=True)},
    [
        Case((np.array([[0, 2, -1], [1, 5, -9]]), np.array([0.5, 2.0], np.float32)), {"axis": 2, "depth": 4}),
        Case((np.array([0, 2], np.int32), np.array([0, 1], np.int64)), {"axis": 0, "depth": 3}),
    ],
    doc="values is [off, on]; an index outside [-depth, depth) gives a row of off",
)  # fmt: skip
