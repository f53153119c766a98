"""MatMul, Conv and ConvTranspose.

Kernels and references accumulate in f32 for f16, bf16 and f32 operands, and in f64 for f64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, divides_exactly
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import Node, TensorType
from arcweld.compiler.ops import reference_nn as nn
from arcweld.compiler.ops.elementwise import widen
from arcweld.compiler.ops.movement import operand
from arcweld.compiler.ops.registry import Attr, Case, Kind, OpDef, register
from arcweld.compiler.ops.shapes import (
    FLOATS,
    NUMERIC,
    broadcast,
    channel_axis,
    check_dtype,
    check_equal,
    check_length,
    check_rank,
    image_shape,
    present,
    same_dtype,
    show,
    spatial_range,
    split_optional,
    window_extent,
)

Attrs = Mapping[str, Any]
Types = Sequence[TensorType | None]
Arrays = Sequence[np.ndarray | None]

# ------------------------------------------------------------------------------------------------------ MatMul


def _infer_matmul(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    a, b = present("MatMul", types, 2)
    same_dtype("MatMul", [a, b])
    check_dtype("MatMul", a, NUMERIC)
    check_rank("MatMul", a, 2)
    check_rank("MatMul", b, 2)
    check_equal("MatMul", f"inner dimensions of {show(a.shape)} and {show(b.shape)}", a.shape[-1], b.shape[-2])
    batch = broadcast("MatMul", [a.shape[:-2], b.shape[:-2]])
    return (a.with_shape((*batch, a.shape[-2], b.shape[-1])),)


def _matmul(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    a, b = operand(arrays), operand(arrays, 1)
    return (np.matmul(widen(a), widen(b)).astype(a.dtype, copy=False),)


register(
    OpDef(
        "MatMul", Kind.CONTRACT, ("a", "b"), _infer_matmul, _matmul, tolerance=1e-5, cost=64,
        cases=(
            Case(((5, 7), (7, 3)), {}, ("f32", "f16", "bf16")),
            Case(((2, 4, 6), (6, 5)), {}, ("f32",)),
            Case(((2, 1, 4, 6), (3, 6, 5)), {}, ("f32",)),
            Case(((3, 4), (4, 2)), {}, ("f64", "i32"), -9.0, 9.0),
        ),
        doc="numpy's matmul for operands of rank 2 and more",
    )
)  # fmt: skip

# --------------------------------------------------------------------------------------------- Conv, ConvTranspose

# of Conv and its variants; the layout is that of x and y
CONV_ATTRS = {
    "strides": Attr("ints", required=True),
    "dilations": Attr("ints", required=True),
    "pads": Attr("dims", required=True),
    "group": Attr("int", 1),
    "layout": Attr("str", "NCHW"),
}


def _check_conv(op: str, x: TensorType, w: TensorType, b: TensorType | None, attrs: Attrs, out: Dim) -> None:
    given = [x, w] if b is None else [x, w, b]
    same_dtype(op, given)
    check_dtype(op, x, FLOATS)
    check_rank(op, x, 3, 5)
    check_rank(op, w, x.rank, x.rank)
    spatial = x.rank - 2
    for what, length in (("strides", spatial), ("dilations", spatial), ("pads", 2 * spatial)):
        check_length(op, what, attrs[what], length)
    if any(not isinstance(s, int) or s < 1 for s in (*attrs["strides"], *attrs["dilations"], attrs["group"])):
        raise ModelError(f"{op}: strides, dilations and group must be positive")
    if b is not None:
        check_rank(op, b, 1, 1)
        check_equal(op, "output channels and bias", out, b.shape[0])


def _infer_conv(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x, w), (b,) = split_optional("Conv", types, 2, 3)
    _check_conv("Conv", x, w, b, attrs, w.shape[0])
    axes, layout = spatial_range(attrs["layout"], x.rank), attrs["layout"]
    channels = x.shape[channel_axis(layout, x.rank)]
    check_equal("Conv", f"input channels of {x} and {w}", channels, w.shape[1] * attrs["group"])
    if divides_exactly(w.shape[0], attrs["group"]) is None:
        raise ModelError(f"Conv: {w.shape[0]} output channels in {attrs['group']} groups")
    rank = len(axes)
    spatial = [
        window_extent(x.shape[a], w.shape[2 + k], attrs["strides"][k], attrs["dilations"][k],
                      attrs["pads"][k] + attrs["pads"][rank + k])
        for k, a in enumerate(axes)
    ]  # fmt: skip
    _check_positive("Conv", spatial, x, w)
    return (x.with_shape(image_shape(layout, x.shape[0], w.shape[0], spatial)),)


def _check_positive(op: str, spatial: Sequence[Dim], x: TensorType, w: TensorType) -> None:
    if any(isinstance(d, int) and d < 1 for d in spatial):
        raise ModelError(f"{op}: the kernel of {w} does not fit into {x}")


def _finish(y: np.ndarray, b: np.ndarray | None, layout: str, dtype: np.dtype) -> tuple[np.ndarray, ...]:
    if b is not None:
        y += widen(b).reshape(-1, *[1] * (y.ndim - 2))
    return (nn.from_channels_first(y, layout).astype(dtype, copy=False),)


def _conv(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, w, b = operand(arrays), operand(arrays, 1), [*arrays, None][2]
    wide = nn.to_channels_first(widen(x), attrs["layout"])
    y = nn.conv(wide, widen(w), attrs["strides"], attrs["dilations"], attrs["pads"], attrs["group"])
    return _finish(y, b, attrs["layout"], x.dtype)


def _infer_conv_transpose(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x, w), (b,) = split_optional("ConvTranspose", types, 2, 3)
    out = w.shape[1] * attrs["group"] if w.rank > 1 else 0
    _check_conv("ConvTranspose", x, w, b, attrs, out)
    axes, layout = spatial_range(attrs["layout"], x.rank), attrs["layout"]
    check_length("ConvTranspose", "output_padding", attrs["output_padding"], len(axes))
    channels = x.shape[channel_axis(layout, x.rank)]
    check_equal("ConvTranspose", f"input channels of {x} and {w}", channels, w.shape[0])
    if divides_exactly(channels, attrs["group"]) is None:
        raise ModelError(f"ConvTranspose: {channels} input channels in {attrs['group']} groups")
    spatial: list[Dim] = []
    for k, a in enumerate(axes):
        reach = attrs["dilations"][k] * (w.shape[2 + k] - 1) + 1
        cut = attrs["pads"][k] + attrs["pads"][len(axes) + k]
        spatial.append(attrs["strides"][k] * (x.shape[a] - 1) + attrs["output_padding"][k] + reach - cut)
    _check_positive("ConvTranspose", spatial, x, w)
    return (x.with_shape(image_shape(layout, x.shape[0], out, spatial)),)


def _conv_transpose(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, w, b = operand(arrays), operand(arrays, 1), [*arrays, None][2]
    wide = nn.to_channels_first(widen(x), attrs["layout"])
    y = nn.conv_transpose(
        wide, widen(w), attrs["strides"], attrs["dilations"], attrs["pads"], attrs["output_padding"], attrs["group"]
    )
    return _finish(y, b, attrs["layout"], x.dtype)


def static_kernel(node: Node) -> str | None:
    """Why a convolution cannot be compiled: its filter's size is not constant."""
    w = node.operands()[1]
    if any(not isinstance(d, int) for d in w.shape):
        return f"{node.op} with a weight of symbolic shape {show(w.shape)} is not implemented"
    return None


def _attrs(rank: int, **changes: Any) -> dict[str, Any]:
    return {"strides": (1,) * rank, "dilations": (1,) * rank, "pads": (0,) * (2 * rank), **changes}


_DTYPES = ("f32", "f16")
register(
    OpDef(
        "Conv", Kind.CONV, ("x", "w", "b?"), _infer_conv, _conv, CONV_ATTRS, supports=static_kernel, cost=64,
        cases=(
            Case(((2, 3, 7, 6), (4, 3, 3, 3), (4,)), _attrs(2, pads=(1, 1, 1, 1)), _DTYPES),
            Case(((1, 4, 8, 9), (6, 2, 3, 2)), _attrs(2, strides=(2, 1), dilations=(1, 2), group=2), _DTYPES[:1]),
            Case(((2, 6, 6, 6), (6, 1, 3, 3), (6,)), _attrs(2, pads=(1, 0, 0, 1), group=6), _DTYPES),
            Case(((1, 3, 5, 5), (6, 1, 3, 3)), _attrs(2, group=3), _DTYPES[:1]),
            Case(((2, 5, 6, 3), (4, 3, 1, 1), (4,)), _attrs(2, layout="NHWC"), _DTYPES),
            Case(((2, 7, 6, 4), (4, 1, 3, 3)), _attrs(2, layout="NHWC", group=4, strides=(2, 2)), _DTYPES[:1]),
            Case(((2, 3, 9), (4, 3, 3)), _attrs(1, strides=(2,)), _DTYPES[:1]),
            Case(((1, 2, 4, 5, 4), (3, 2, 2, 3, 2), (3,)), _attrs(3, pads=(1, 0, 0, 0, 1, 0)), _DTYPES[:1]),
        ),
        doc='w is O, I/group, kernel in either layout; layout gives the order of x and y ("NCHW" or "NHWC")',
    )
)  # fmt: skip
register(
    OpDef(
        "ConvTranspose", Kind.CONV, ("x", "w", "b?"), _infer_conv_transpose, _conv_transpose,
        {**CONV_ATTRS, "output_padding": Attr("ints", required=True)}, supports=static_kernel, cost=64,
        cases=(
            Case(((1, 3, 4, 5), (3, 4, 2, 2), (4,)), _attrs(2, strides=(2, 2), output_padding=(0, 0)), _DTYPES),
            Case(
                ((2, 4, 4, 3), (4, 3, 3, 3)),
                _attrs(2, strides=(2, 3), pads=(1, 0, 1, 2), output_padding=(1, 0), group=2), _DTYPES[:1],
            ),
            Case(
                ((1, 4, 4, 3), (3, 2, 3, 3)),
                _attrs(2, dilations=(2, 1), output_padding=(0, 0), layout="NHWC"), _DTYPES,
            ),
            Case(((2, 3, 5), (3, 2, 4)), _attrs(1, strides=(2,), pads=(1, 1), output_padding=(0,)), _DTYPES[:1]),
        ),
        doc="w is I, O/group, kernel in either layout",
    )
)  # fmt: skip
