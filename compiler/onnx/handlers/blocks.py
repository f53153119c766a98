"""Handlers of MaxPool, the indices of its maxima included, and of what undoes windows: MaxUnpool and Col2Im."""

from __future__ import annotations

import math

import numpy as np

from arcweld.compiler.dims import product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.base import Result, handles
from arcweld.compiler.onnx.handlers.window import pool, pool_window, positive
from arcweld.compiler.onnx.remedies import fix_dimensions
from arcweld.compiler.ops.maxima import places_of_maxima
from arcweld.compiler.ops.shapes import NUMERIC, check_dtype


@handles("MaxPool")
def _max_pool(c: NodeContext) -> Result:
    x = c.value(0)
    check_dtype(c.op, x.type, NUMERIC)
    most = pool(c, "MaxPool", x, -math.inf if x.dtype.is_float else float(np.iinfo(x.dtype.numpy).min))
    if len(c.used) < 2 or not c.used[1]:
        return most
    return [most, _indices(c, x)]


def _indices(c: NodeContext, x: Value) -> Value:
    """The row-major place in ``x`` of each maximum; with ``storage_order`` 1 images are stored by columns."""
    win, rank = pool_window(c), x.type.rank - 2
    if not win.is_static:
        c.unsupported("auto_pad of MaxPool's indices depends on a dimension", fix_dimensions())
    taps = {
        "kernel_shape": win.kernel, "strides": win.strides, "dilations": win.dilations, "pads": win.pads,
        "ceil_mode": int(bool(c.int_attr("ceil_mode"))),
    }  # fmt: skip
    place = places_of_maxima(c, x, taps, by_columns=bool(c.int_attr("storage_order")))
    images = c.emit("Range", length=product(x.shape[:2]), dtype=DType.I64)
    before = c.emit("Mul", images, c.dim_value(product(x.shape[2:])))
    return c.emit("Add", c.reshape(before, (*x.shape[:2], *[1] * rank)), place)


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
