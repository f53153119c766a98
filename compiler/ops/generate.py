"""Movement operators without operands: ranges, constants, dimensions as tensors, identity matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, flat_index, product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.expr import Expr, binary, both, cast, const, index, where
from arcweld.compiler.ir import Node, TensorType
from arcweld.compiler.ops.movement import movement, operand
from arcweld.compiler.ops.registry import Attr, Case, Reader
from arcweld.compiler.ops.shapes import ANY, NUMERIC, below, check_dtype, check_rank, dim_expr, present

Attrs = Mapping[str, Any]
Arrays = Sequence[np.ndarray | None]
Types = Sequence[TensorType | None]


def _no_operands(op: str, types: Types) -> None:
    if types:
        raise ModelError(f"{op} takes no operands, got {len(types)}")


def _infer_range(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    _no_operands("Range", types)
    t = TensorType(attrs["dtype"], (attrs["length"],))
    check_dtype("Range", t, NUMERIC)
    return (t,)


def _range(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    steps = np.arange(attrs["length"], dtype=np.int64)
    return ((attrs["start"] + attrs["step"] * steps).astype(attrs["dtype"].numpy),)


def _lower_range(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    return dim_expr(node.attrs["start"] + coords[0] * node.attrs["step"], node.output.dtype)


movement(
    "Range", "", _infer_range, _range, _lower_range,
    {
        "start": Attr("dim", 0),
        "step": Attr("int", 1),
        "length": Attr("dim", required=True),
        "dtype": Attr("dtype", DType.I64),
    },
    [
        Case((), {"start": 3, "step": -2, "length": 5}),
        Case((), {"length": 4, "dtype": DType.F32}),
        Case((), {"length": 0, "dtype": DType.I32}),
    ],
    doc="start, start + step, ...: ``length`` elements, all integers, as ``dtype``",
)  # fmt: skip


def _infer_constant(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    _no_operands("ConstantOfShape", types)
    t = TensorType(attrs["dtype"], tuple(attrs["shape"]))
    check_dtype("ConstantOfShape", t, ANY)
    return (t,)


def _constant(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    return (np.full(attrs["shape"], attrs["value"], attrs["dtype"].numpy),)


movement(
    "ConstantOfShape", "", _infer_constant, _constant,
    lambda reader, node, coords: const(node.attrs["value"], node.output.dtype),
    {"shape": Attr("dims", required=True), "value": Attr("float", 0), "dtype": Attr("dtype", DType.F32)},
    [
        Case((), {"shape": (2, 3), "value": 1.5}),
        Case((), {"shape": (4,), "value": 7, "dtype": DType.I64}),
        Case((), {"shape": (), "value": 1, "dtype": DType.BOOL}),
    ],
)  # fmt: skip


def _infer_dims(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    _no_operands("Dims", types)
    if product(attrs["shape"]) != len(attrs["values"]):
        raise ModelError(f"Dims: {len(attrs['values'])} values do not fill the shape {attrs['shape']}")
    return (TensorType(DType.I64, tuple(attrs["shape"])),)


def _dims(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    return (np.array(attrs["values"], np.int64).reshape(attrs["shape"]),)


def _lower_dims(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    values = node.attrs["values"]
    at = flat_index(coords, node.output.shape)
    if not values:
        return const(0, DType.I64)
    if isinstance(at, int):
        return index(values[at])
    out = index(values[-1])
    for k in range(len(values) - 2, -1, -1):
        out = where(binary("eq", index(at), const(k, DType.I64)), index(values[k]), out)
    return out


movement(
    "Dims", "", _infer_dims, _dims, _lower_dims,
    {"values": Attr("dims", required=True), "shape": Attr("ints", ())},
    [
        Case((), {"values": (5,), "shape": ()}),
        Case((), {"values": (5, 7, 9, 1), "shape": (2, 2)}),
    ],
    doc="an i64 tensor of (symbolic) dimensions: what a shape tensor becomes when a kernel needs its values",
)  # fmt: skip


def _infer_eye(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = present("EyeLike", types, 1)
    check_rank("EyeLike", x, 2, 2)
    return (TensorType(attrs["dtype"] or x.dtype, x.shape),)


def _eye(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = operand(arrays)
    dtype = attrs["dtype"].numpy if attrs["dtype"] else x.dtype
    return (np.eye(x.shape[0], x.shape[1], attrs["k"]).astype(dtype),)


def _lower_eye(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    i, j = coords[0] + node.attrs["k"], coords[1]
    return cast(both(below(i - 1, j), below(j - 1, i)), node.output.dtype)


movement(
    "EyeLike", "x", _infer_eye, _eye, _lower_eye, {"k": Attr("int", 0), "dtype": Attr("dtype", None)},
    [Case(((3, 4),), {"k": k}, ("f32", "i64")) for k in (0, 1, -1)]
    + [Case(((3, 3),), {"dtype": DType.F16}, ("f32",))],
    doc="the operand gives only the shape (and the element type where ``dtype`` is None)",
)  # fmt: skip
