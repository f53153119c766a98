"""Products of 8-bit floats: MatMulFloat8 and ConvFloat8, exact products with f32 sums.

The operands are f8e4m3fn or f8e5m2, also one of each. Scales are not part of the operators: they multiply the sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Node, TensorType
from arcweld.compiler.ops import reference_nn as nn
from arcweld.compiler.ops.contract import CONV_ATTRS, static_kernel
from arcweld.compiler.ops.movement import operand
from arcweld.compiler.ops.registry import Case, Kind, OpDef, infer_types, register
from arcweld.compiler.ops.shapes import check_dtype, present

Attrs = Mapping[str, Any]
Types = Sequence[TensorType | None]
Arrays = Sequence[np.ndarray | None]
FACTORS = (DType.F8E4M3FN, DType.F8E5M2)  # the 8-bit floats that tensor cores multiply
PRODUCTS = ("MatMulFloat8", "ConvFloat8")


def is_float8_product(node: Node) -> bool:
    """True for a product or convolution of 8-bit floats."""
    return node.op in PRODUCTS


def _inferred(op: str, like: str, types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """The result of ``op``, whose shapes are those of ``like``."""
    given = present(op, types, 2)
    for t in given:
        check_dtype(op, t, FACTORS)
    return infer_types(like, [t.with_dtype(DType.F32) for t in given], attrs)


def _infer_matmul(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    return _inferred("MatMulFloat8", "MatMul", types, {})


def _infer_conv(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    return _inferred("ConvFloat8", "Conv", types, attrs)


def _matmul(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    a, b = operand(arrays), operand(arrays, 1)
    return (np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(np.float32),)


def _conv(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, w = operand(arrays), operand(arrays, 1)
    wide = nn.to_channels_first(x.astype(np.float64), attrs["layout"])
    window = (attrs[name] for name in ("strides", "dilations", "pads", "group"))
    y = nn.conv(wide, w.astype(np.float64), *window)
    return (nn.from_channels_first(y, attrs["layout"]).astype(np.float32),)


def _window(rank: int, **kw: Any) -> dict[str, Any]:
    return {"strides": (1,) * rank, "dilations": (1,) * rank, "pads": (0,) * 2 * rank, **kw}


_TYPES = tuple(d.value for d in FACTORS)
_RIGHT = np.random.default_rng(8).normal(0, 20, (6, 4)).astype(DType.F8E5M2.numpy)
_FILTER = np.random.default_rng(9).normal(0, 20, (3, 2, 3, 3)).astype(DType.F8E5M2.numpy)
register(
    OpDef(
        "MatMulFloat8", Kind.CONTRACT, ("a", "b"), _infer_matmul, _matmul, tolerance=1e-5, cost=64,
        cases=(
            Case(((3, 6), (6, 4)), {}, _TYPES, -9.0, 9.0),
            Case(((2, 3, 6), _RIGHT), {}, _TYPES, -9.0, 9.0),
            Case(((2, 1, 3, 5), (2, 5, 4)), {}, _TYPES[:1], -400.0, 400.0),
            Case(((20, 96), (96, 16)), {}, _TYPES[:1], -9.0, 9.0),
        ),
        doc="8-bit floats (f8e4m3fn, f8e5m2, also one of each); products are exact, the sums are f32",
    )
)  # fmt: skip
register(
    OpDef(
        "ConvFloat8", Kind.CONV, ("x", "w"), _infer_conv, _conv, CONV_ATTRS, supports=static_kernel, tolerance=1e-5,
        cost=64,
        cases=(
            Case(((1, 2, 5, 5), (3, 2, 3, 3)), _window(2, pads=(1, 1, 1, 1)), _TYPES, -9.0, 9.0),
            Case(((2, 5, 4, 2), _FILTER), _window(2, pads=(1, 0, 2, 1), layout="NHWC"), _TYPES, -9.0, 9.0),
            Case(((1, 2, 5, 5), (2, 1, 2, 2)), _window(2, strides=(2, 2), group=2), _TYPES[:1], -9.0, 9.0),
            Case(((2, 3, 9), (4, 3, 3)), _window(1, dilations=(2,), pads=(1, 1)), _TYPES[:1], -9.0, 9.0),
        ),
        doc="8-bit floats as in MatMulFloat8; no bias; layout as Conv's",
    )
)  # fmt: skip
