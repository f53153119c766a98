"""The places of the maxima of a pool's windows, for importers: ArgMax over the taps of each window."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from arcweld.compiler.dims import Dim, product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.ops.emit import Emitter


def places_of_maxima(c: Emitter, x: Value, window: Mapping[str, Any], by_columns: bool = False) -> Value:
    """The row-major place of each maximum in its image [*spatial] of ``x``; ``by_columns``: stored by columns.

    ``window`` are the attributes of WindowTaps.
    """
    taps = c.emit("WindowTaps", x, **window)
    rank, spatial, pooled = x.type.rank - 2, x.shape[2:], taps.shape[2:-1]
    tap = c.emit("ArgMax", taps, axis=rank + 2, keepdims=0)
    place: Value | None = None
    for i in range(rank):
        apart = product(spatial[:i] if by_columns else spatial[i + 1 :])
        term = c.emit("Mul", _place(c, window, tap, i, spatial[i], pooled[i]), c.dim_value(apart))
        place = term if place is None else c.emit("Add", place, term)
    assert place is not None
    return place


def _place(c: Emitter, window: Mapping[str, Any], tap: Value, i: int, size: Dim, pooled: Dim) -> Value:
    """The coordinate along spatial axis ``i`` that tap number ``tap`` of each window sees."""
    kernel, number = window["kernel_shape"], c.dim_value
    own = c.emit("Mod", c.emit("Div", tap, number(math.prod(kernel[i + 1 :]))), number(kernel[i]))
    start = c.emit("Range", start=0, step=window["strides"][i], length=pooled, dtype=DType.I64)
    start = c.emit("Sub", c.reshape(start, (pooled, *[1] * (len(kernel) - 1 - i))), number(window["pads"][i]))
    # a tap in the padding sees what the nearest tap inside does (see WindowTaps)
    stride = number(window["dilations"][i])
    first = c.emit("Div", c.emit("Sub", number(window["dilations"][i] - 1), start), stride)
    last = c.emit("Div", c.emit("Sub", number(size - 1), start), stride)
    own = c.emit("Min", c.emit("Max", own, first), last)
    return c.emit("Add", start, c.emit("Mul", own, stride))
