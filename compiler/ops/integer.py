"""Integer arithmetic on quantised tensors: exact products of 8-bit integers, and DynamicQuantizeLinear.

MatMulInteger and ConvInteger multiply 8-bit integers of any signs, the right ones less their zero points, and sum in
i32. What a zero point of the left operand adds is sums over columns, which importers and passes write as operators of
their own: of constant weights they are constants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.expr import Expr, binary, cast, const, unary, where
from arcweld.compiler.ir import Node, TensorType
from arcweld.compiler.ops import reference_nn as nn
from arcweld.compiler.ops.contract import CONV_ATTRS, static_kernel
from arcweld.compiler.ops.movement import operand
from arcweld.compiler.ops.registry import Case, Kind, OpDef, Reader, RowProgram, RowStage, infer_types, register
from arcweld.compiler.ops.shapes import (
    check_broadcast_to,
    check_dtype,
    check_equal,
    present,
    same_dtype,
    split_optional,
)

Attrs = Mapping[str, Any]
Types = Sequence[TensorType | None]
Arrays = Sequence[np.ndarray | None]
BYTES = (DType.I8, DType.U8)


def _wrapped(y: np.ndarray) -> np.ndarray:
    """Exact sums (integers below 2^53, in f64) as i32, which wraps as kernels do."""
    return y.astype(np.int64).astype(np.int32)


# ------------------------------------------------------------------------------------------------ MatMulInteger


def _infer_matmul(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (a, b), (zero,) = split_optional("MatMulInteger", types, 2, 3)
    check_dtype("MatMulInteger", a, BYTES)
    check_dtype("MatMulInteger", b, BYTES)
    if zero is not None:
        same_dtype("MatMulInteger", [b, zero])
        check_broadcast_to("MatMulInteger", "zero point", zero.shape, (*b.shape[:-2], 1, b.shape[-1]))
    return infer_types("MatMul", [a.with_dtype(DType.I32), b.with_dtype(DType.I32)], {})


def _matmul(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    a, b = (operand(arrays, k).astype(np.float64) for k in range(2))
    return (_wrapped(np.matmul(a, b if len(arrays) < 3 or arrays[2] is None else b - arrays[2])),)


_U8 = np.random.default_rng(8).integers(0, 256, (6, 4), np.uint8)
register(
    OpDef(
        "MatMulInteger", Kind.CONTRACT, ("a", "b", "b_zero?"), _infer_matmul, _matmul, cost=64,
        cases=(
            Case(((3, 6), (6, 4)), {}, ("i8",), -128.0, 127.0),
            Case(((3, 6), (6, 4)), {}, ("u8",), 0.0, 255.0),
            Case(((3, 6), _U8), {}, ("i8",), -128.0, 127.0),
            Case(((2, 3, 6), _U8.view(np.int8)), {}, ("u8",), 0.0, 255.0),
            Case(((2, 1, 3, 5), (2, 5, 4)), {}, ("i8",), -128.0, 127.0),
            Case(((2, 300), (300, 2)), {}, ("u8",), 200.0, 255.0),
            Case(((3, 6), _U8, np.array(131, np.uint8)), {}, ("i8",), -128.0, 127.0),
            Case(((40, 6), _U8, np.array([3, 255, 0, 77], np.uint8)), {}, ("u8",), 0.0, 255.0),
            Case(((2, 1, 3, 5), (2, 5, 4), (2, 1, 1)), {}, ("i8",), -128.0, 127.0),
        ),
        doc="8-bit integers of any signs, those of ``b`` less ``b_zero``, which has one element for each column or "
        "broadcasts to that; the sums are i32 and wrap",
    )
)  # fmt: skip

# -------------------------------------------------------------------------------------------------- ConvInteger


def _infer_conv(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x, w), (fill, zero) = split_optional("ConvInteger", types, 2, 4)
    check_dtype("ConvInteger", x, BYTES)
    check_dtype("ConvInteger", w, BYTES)
    if fill is not None and fill.dtype is not x.dtype:
        raise ModelError(f"ConvInteger: {x} is padded with {fill}")
    if fill is not None:
        check_equal("ConvInteger", "elements of what pads", fill.numel, 1)
    if zero is not None:
        same_dtype("ConvInteger", [w, zero])
        check_broadcast_to("ConvInteger", "zero point", zero.shape, w.shape[:1])
    (y,) = infer_types("Conv", [x.with_dtype(DType.F32), w.with_dtype(DType.F32)], attrs)
    return (y.with_dtype(DType.I32),)


def _conv(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, w, fill, zero = [*arrays, None, None][:4]
    assert x is not None
    assert w is not None
    filters = w.astype(np.float64)
    if zero is not None:
        filters = filters - zero.reshape(-1, *(1,) * (w.ndim - 1))
    wide = nn.to_channels_first(x.astype(np.float64), attrs["layout"])
    pads = attrs["pads"]
    if fill is not None:
        wide, pads = nn.pad_spatial(wide, pads, float(fill.reshape(()))), (0,) * len(pads)
    y = nn.conv(wide, filters, attrs["strides"], attrs["dilations"], pads, attrs["group"])
    return (_wrapped(nn.from_channels_first(y, attrs["layout"])),)


def _window(rank: int, **kw: Any) -> dict[str, Any]:
    return {"strides": (1,) * rank, "dilations": (1,) * rank, "pads": (0,) * 2 * rank, **kw}


_FILL, _WEIGHTS = np.array(7, np.uint8), np.random.default_rng(9).integers(-128, 128, (3, 2, 3, 3), np.int8)
_ZEROS = np.array([-128, 5, 127], np.int8)
register(
    OpDef(
        "ConvInteger", Kind.CONV, ("x", "w", "fill?", "w_zero?"), _infer_conv, _conv, CONV_ATTRS,
        supports=static_kernel, cost=64,
        cases=(
            Case(((1, 2, 5, 5), (3, 2, 3, 3)), _window(2, pads=(1, 1, 1, 1)), ("i8",), -128.0, 127.0),
            Case(((1, 2, 5, 5), _WEIGHTS, _FILL), _window(2, pads=(1, 0, 2, 1)), ("u8",), 0.0, 255.0),
            Case(((2, 5, 4, 2), _WEIGHTS, _FILL), _window(2, pads=(1, 1, 1, 1), layout="NHWC"), ("u8",), 0.0, 255.0),
            Case(((1, 2, 5, 5), (2, 1, 2, 2)), _window(2, strides=(2, 2), group=2), ("u8",), 0.0, 255.0),
            Case(((1, 6, 5, 4), (4, 1, 3, 3)), _window(2, group=4, layout="NHWC"), ("i8",), -128.0, 127.0),
            Case(((2, 3, 9), (4, 3, 3)), _window(1, dilations=(2,), pads=(1, 1)), ("i8",), -128.0, 127.0),
            Case(((1, 2, 5, 5), _WEIGHTS, _FILL, _ZEROS), _window(2, pads=(1, 1, 1, 1)), ("u8",), 0.0, 255.0),
            Case(((1, 2, 5, 5), _WEIGHTS, None, _ZEROS[:1]), _window(2, strides=(2, 2)), ("u8",), 0.0, 255.0),
            Case(
                ((1, 3, 5, 4), _WEIGHTS[:, :1], _FILL, _ZEROS), _window(2, pads=(1,) * 4, group=3), ("u8",), 0.0, 255.0
            ),
        ),
        doc="8-bit integers of any signs, the filters less ``w_zero``, a scalar or one for each; padding is ``fill`` "
        "(0 if left out); the sums are i32 and wrap; layout as Conv's",
    )
)  # fmt: skip

# ---------------------------------------------------------------------------------------- DynamicQuantizeLinear


def _infer_dynamic(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = present("DynamicQuantizeLinear", types, 1)
    return (x.with_dtype(DType.U8), *_infer_range(types, attrs))


def _infer_range(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = present("DynamicRange", types, 1)
    check_dtype("DynamicRange", x, (DType.F32,))
    return (TensorType(DType.F32, ()), TensorType(DType.U8, ()))


def _dynamic(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, (scale, zero) = operand(arrays), _range(arrays, attrs)
    return np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.uint8), scale, zero


def _range(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = operand(arrays)
    top, low = max(x.max(initial=0), np.float32(0)), min(x.min(initial=0), np.float32(0))
    scale = np.float32((top - low) / np.float32(255)) if top > low else np.float32(1)
    return np.asarray(scale, np.float32), np.asarray(np.uint8(np.clip(np.rint(-low / scale), 0, 255)))


_STEPS, _NOTHING, _ONE = (const(c, DType.F32) for c in (255.0, 0.0, 1.0))


def _scale(top: Expr, s: Mapping[str, Expr]) -> Expr:
    step = (binary("max", top, _NOTHING) - s["low"]) / _STEPS
    return where(binary("eq", step, _NOTHING), _ONE, step)  # a tensor of zeros: any scale will do


def _zero_point(s: Mapping[str, Expr]) -> Expr:
    return binary("min", binary("max", unary("round", -s["low"] / s["scale"]), _NOTHING), _STEPS)


def _row_range(node: Node) -> RowProgram:
    stages = (
        RowStage("low", "min", lambda x, s: x, lambda low, s: binary("min", low, _NOTHING)),
        RowStage("scale", "max", lambda x, s: x, _scale),
    )

    def scale(reader: Reader, node: Node, x: Expr, s: Mapping[str, Expr], coords: tuple[Dim, ...]) -> Expr:
        return s["scale"]

    rank = node.operands()[0].type.rank
    return RowProgram(rank, stages, scale, lambda s: (cast(_zero_point(s), DType.U8),), per_row=True)


def _row_dynamic(node: Node) -> RowProgram:
    program = _row_range(node)

    def result(reader: Reader, node: Node, x: Expr, s: Mapping[str, Expr], coords: tuple[Dim, ...]) -> Expr:
        y = unary("round", x / s["scale"]) + _zero_point(s)
        return cast(binary("min", binary("max", y, _NOTHING), _STEPS), DType.U8)

    return replace(program, result=result, of_row=lambda s: (s["scale"], *program.of_row(s)), per_row=False)


_TENSORS = (
    Case(((3, 4),), {}, ("f32",), -1.0, 3.0),
    Case(((2, 3, 5),), {}, ("f32",), 0.5, 3.0),
    Case((np.zeros((2, 2), np.float32),)),
)
register(
    OpDef(
        "DynamicQuantizeLinear", Kind.ROWWISE, ("x",), _infer_dynamic, _dynamic, row=_row_dynamic, cost=8,
        cases=_TENSORS, doc="the row is the whole tensor; outputs y (u8), scale (f32) and zero point (u8)",
    )
)  # fmt: skip
register(
    OpDef(
        "DynamicRange", Kind.ROWWISE, ("x",), _infer_range, _range, row=_row_range, cost=2, cases=_TENSORS,
        doc="the scale (f32) and the zero point (u8) of DynamicQuantizeLinear",
    )
)  # fmt: skip
