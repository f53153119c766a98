"""Handlers of MaxPool, the indices of its maxima included, and of what undoes windows: MaxUnpool and Col2Im."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from arcweld.compiler.dims import Dim, product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.base import Result, handles
from arcweld.compiler.onnx.handlers.window import Window, pool, pool_window, positive
from arcweld.compiler.onnx.remedies import fix_dimensions


@handles("MaxPool")
def _max_pool(c: NodeContext) -> Result:
    x = c.value(0)
    most = pool(c, "MaxPool", x, -math.inf if x.dtype.is_float else float(np.iinfo(x.dtype.numpy).min))
    if len(c.used) < 2 or not c.used[1]:
        return most
    return [most, _indices(c, x, most.shape)]


def _indices(c: NodeContext, x: Value, pooled: Sequence[Dim]) -> Value:
    """The row-major place in ``x`` of each maximum; with ``storage_order`` 1 images are stored by columns."""
    win, rank = pool_window(c), x.type.rank - 2
    if not win.is_static:
        c.unsupported("auto_pad of MaxPool's indices depends on a dimension", fix_dimensions())
    taps = c.emit(
        "WindowTaps", x, kernel_shape=win.kernel, strides=win.strides, dilations=win.dilations, pads=win.pads,
        ceil_mode=int(bool(c.int_attr("ceil_mode"))),
    )  # fmt: skip
    tap = c.emit("ArgMax", taps, axis=rank + 2, keepdims=0)
    spatial, by_columns = x.shape[2:], bool(c.int_attr("storage_order"))
    images = c.emit("Range", length=product(x.shape[:2]), dtype=DType.I64)
    place = c.emit("Mul", images, c.dim_value(product(spatial)))
    place = c.reshape(place, (*x.shape[:2], *[1] * rank))
    for i in range(rank):
        at = _place(c, win, tap, i, spatial[i], pooled[2 + i])
        apart = product(spatial[:i] if by_columns else spatial[i + 1 :])
        place = c.emit("Add", place, c.emit("Mul", at, c.dim_value(apart)))
    return place


def _place(c: NodeContext, win: Window, tap: Value, i: int, size: Dim, pooled: Dim) -> Value:
    """The coordinate along spatial axis ``i`` that tap number ``tap`` of each window sees."""

    def number(d: Dim) -> Value:
        return c.dim_value(d)

    own = c.emit("Mod", c.emit("Div", tap, number(math.prod(win.kernel[i + 1 :]))), number(win.kernel[i]))
    start = c.emit("Range", start=0, step=win.strides[i], length=pooled, dtype=DType.I64)
    start = c.emit("Sub", c.reshape(start, (pooled, *[1] * (len(win.kernel) - 1 - i))), number(win.pads[i]))
    # a tap in the padding sees what the nearest tap inside does (see WindowTaps)
    stride = number(win.dilations[i])
    first = c.emit("Div", c.emit("Sub", number(win.dilations[i] - 1), start), stride)
    last = c.emit("Div", c.emit("Sub", number(size - 1), start), stride)
    own = c.emit("Min", c.emit("Max", own, first), last)
    return c.emit("Add", start, c.emit("Mul", own, stride))


@handles("MaxUnpool")
def _max_unpool(c: NodeContext) -> Result:
    rank = c.needs_rank(0, 3, 5)
    x, places = c.value(0), c.value(1)
    if x.shape != places.shape:
        c.broken(f"the indices have the shape {list(places.shape)}")
    kernel = c.ints_attr("kernel_shape") or ()
    strides = positive(c, "strides", rank - 2)
    pads = c.ints_attr("pads") or (0,) * (2 * (rank - 2))
    if len(kernel) != rank - 2 or len(pads) != 2 * (rank - 2) or any(not 1 <= k < 2**31 for k in kernel):
        c.broken(f"the kernel is {list(kernel)} and the pads are {list(pads)}")
    sizes = tuple(
        (d - 1) * s + k - pads[i] - pads[rank - 2 + i] for i, (d, s, k) in enumerate(zip(x.shape[2:], strides, kernel))
    )
    shape, flat = (*x.shape[:2], *sizes), (product(x.shape),)
    empty = c.emit("ConstantOfShape", shape=(product(shape),), value=0, dtype=x.dtype)
    y = c.emit("ScatterElements", empty, c.reshape(places, flat), c.reshape(x, flat), axis=0)
    y = c.reshape(y, shape)
    if not c.has(2):
        return y
    wanted = c.dims(2)
    if len(wanted) != rank:
        c.broken(f"output_shape is {wanted}")
    for have, want in zip(shape, wanted):
        c.at_least(want, have)
    more = tuple(want - have for have, want in zip(shape, wanted))
    return c.emit("Pad", y, pads=(*[0] * rank, *more), mode="constant", value=0.0)


@handles("Col2Im")
def _col2im(c: NodeContext) -> Result:
    c.needs_rank(0, 3, 3)
    image, block = c.dims(1), c.ints(2)
    rank = len(image)
    pads = c.ints_attr("pads") or (0,) * (2 * rank)
    if len(block) != rank or len(pads) != 2 * rank or any(not 0 <= p < 2**31 for p in pads):
        c.broken(f"the image is {image}, a block {block}, the pads {list(pads)}")
    terms = c.emit(
        "BlockTerms", c.value(0), image_shape=tuple(image), block_shape=tuple(block), pads=tuple(pads),
        strides=positive(c, "strides", rank), dilations=positive(c, "dilations", rank),
    )  # fmt: skip
    return c.emit("ReduceSum", terms, axes=(rank + 2,), keepdims=0)
