"""Pools: MaxPool and AveragePool over any number of spatial axes, in either layout.

Global pools are reductions and do not appear here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import TensorType
from arcweld.compiler.ops import reference_nn as nn
from arcweld.compiler.ops.elementwise import widen
from arcweld.compiler.ops.movement import operand
from arcweld.compiler.ops.registry import Attr, Case, Infer, Kind, OpDef, register
from arcweld.compiler.ops.shapes import (
    FLOATS,
    NUMERIC,
    check_dtype,
    check_length,
    check_rank,
    present,
    spatial_range,
    window_extent,
)

Attrs = Mapping[str, Any]

_ATTRS = {
    "kernel_shape": Attr("ints", required=True),
    "strides": Attr("ints", required=True),
    "dilations": Attr("ints", required=True),
    "pads": Attr("ints", required=True),
    "ceil_mode": Attr("int", 0),
    "layout": Attr("str", "NCHW"),
}


def _infer(op: str) -> Infer:
    def infer(types: Sequence[TensorType | None], attrs: Attrs) -> tuple[TensorType, ...]:
        (x,) = present(op, types, 1)
        check_dtype(op, x, NUMERIC if op == "MaxPool" else FLOATS)
        check_rank(op, x, 3, 5)
        rank = x.rank - 2
        for what, length in (("kernel_shape", rank), ("strides", rank), ("dilations", rank), ("pads", 2 * rank)):
            check_length(op, what, attrs[what], length)
        if any(v < 1 for what in ("kernel_shape", "strides", "dilations") for v in attrs[what]):
            raise ModelError(f"{op}: kernel_shape, strides and dilations must be positive")
        shape = list(x.shape)
        for k, a in enumerate(spatial_range(attrs["layout"], x.rank)):
            begin, end = attrs["pads"][k], attrs["pads"][rank + k]
            shape[a] = window_extent(
                x.shape[a], attrs["kernel_shape"][k], attrs["strides"][k], attrs["dilations"][k], begin + end,
                attrs["ceil_mode"], begin,
            )  # fmt: skip
            out = shape[a]
            if isinstance(out, int) and out < 1:
                raise ModelError(f"{op}: a window of {attrs['kernel_shape']} does not fit into {x}")
        return (x.with_shape(shape),)

    return infer


def _geometry(x: np.ndarray, op: str, attrs: Attrs) -> dict[str, Any]:
    (out,) = _infer(op)([TensorType(DType.F32, tuple(x.shape))], attrs)
    spatial = [out.shape[a] for a in spatial_range(attrs["layout"], x.ndim)]
    given = {what: attrs[what] for what in ("strides", "dilations", "pads")}
    return {"kernel": attrs["kernel_shape"], **given, "out": spatial}


def _max_pool(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = operand(arrays)
    y = nn.max_pool(nn.to_channels_first(widen(x), attrs["layout"]), **_geometry(x, "MaxPool", attrs))
    return (nn.from_channels_first(y, attrs["layout"]).astype(x.dtype, copy=False),)


def _average_pool(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = operand(arrays)
    wide, counted = nn.to_channels_first(widen(x), attrs["layout"]), bool(attrs["count_include_pad"])
    y = nn.average_pool(wide, **_geometry(x, "AveragePool", attrs), count_include_pad=counted)
    return (nn.from_channels_first(y, attrs["layout"]).astype(x.dtype, copy=False),)


def _attrs(kernel: tuple[int, ...], **changes: Any) -> dict[str, Any]:
    rank = len(kernel)
    return {
        "kernel_shape": kernel, "strides": (1,) * rank, "dilations": (1,) * rank, "pads": (0,) * (2 * rank), **changes,
    }  # fmt: skip


_CASES = (
    Case(((2, 3, 6, 7),), _attrs((3, 2), strides=(2, 2), pads=(1, 0, 1, 1)), ("f32", "f16")),
    Case(((1, 2, 7, 7),), _attrs((3, 3), strides=(2, 3), ceil_mode=1), ("f32",)),
    Case(((1, 2, 6, 6),), _attrs((3, 3), strides=(4, 4), ceil_mode=1, pads=(1, 1, 1, 1)), ("f32",)),
    Case(((1, 7, 8, 2),), _attrs((2, 2), layout="NHWC", dilations=(2, 1)), ("f32", "f16")),
    Case(((2, 3, 9),), _attrs((3,), strides=(2,)), ("f32",)),
    Case(((1, 2, 4, 5, 4),), _attrs((2, 2, 3), pads=(0, 1, 1, 0, 0, 1)), ("f32",)),
)
register(
    OpDef(
        "MaxPool", Kind.WINDOW, ("x",), _infer("MaxPool"), _max_pool, _ATTRS, cost=9,
        cases=(*_CASES, Case(((1, 1, 5, 5),), _attrs((3, 3), pads=(1, 1, 1, 1)), ("i8", "u8"), 0.0, 99.0)),
        doc="padding never wins; the indices of the maxima are ArgMax of WindowTaps",
    )
)  # fmt: skip
_PADDED = tuple(
    Case(((1, 2, 6, 6),), _attrs((3, 3), pads=(1,) * 4, strides=(2, 2), count_include_pad=1, ceil_mode=c), ("f32",))
    for c in (0, 1)
)
register(
    OpDef(
        "AveragePool", Kind.WINDOW, ("x",), _infer("AveragePool"), _average_pool,
        {**_ATTRS, "count_include_pad": Attr("int", 0)}, cases=(*_CASES, *_PADDED), cost=9,
        doc="the mean of the data under the window; with count_include_pad the declared padding counts as zeros",
    )
)  # fmt: skip
