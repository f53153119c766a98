"""Handlers of RoiAlign and DeformConv, which read an image between its pixels, and of MaxRoiPool."""

from __future__ import annotations

from math import prod

import numpy as np

from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.base import Result, handles
from arcweld.compiler.onnx.handlers.window import positive
from arcweld.compiler.ops.regions import deform_conv, roi_align

_MOST_BINS = 65_535  # of a region along each axis
_MOST_SAMPLES = 64  # along each axis of a bin

# ------------------------------------------------------------------------------------------------------- RoiAlign


@handles("RoiAlign")
def _roi_align(c: NodeContext) -> Result:
    c.needs_rank(0, 4, 4)
    c.needs_rank(1, 2, 2)
    x, rois, images = c.values()
    mode = c.choice_attr("mode", "avg", ("avg", "max"))
    # before operator set 16 there was no shift by half a pixel
    transform = c.choice_attr(
        "coordinate_transformation_mode", "half_pixel" if c.opset >= 16 else "output_half_pixel",
        ("half_pixel", "output_half_pixel"),
    )  # fmt: skip
    samples, scale = c.int_attr("sampling_ratio"), c.float_attr("spatial_scale", 1.0)
    bins = tuple(c.int_attr(k, 1) for k in ("output_height", "output_width"))
    if samples < 0 or not all(1 <= n <= _MOST_BINS for n in bins):
        c.broken(f"{bins[0]} by {bins[1]} bins with {samples} samples")
    if samples > _MOST_SAMPLES:
        c.unsupported(f"a sampling_ratio of {samples} (up to {_MOST_SAMPLES})")
    if samples == 0 and mode == "max":
        c.unsupported("the maximum of as many samples as a region has pixels (sampling_ratio 0)")
    half = transform == "half_pixel"
    return roi_align(c, x, rois, images, bins=bins, samples=samples, scale=scale, half=half, mode=mode)


# ------------------------------------------------------------------------------------------------------ MaxRoiPool


@handles("MaxRoiPool")
def _max_roi_pool(c: NodeContext) -> Result:
    """The maximum of whole pixels in each bin of a region, along one axis after the other; 0 in a bin of none."""
    c.needs_rank(0, 4, 4)
    c.needs_rank(1, 2, 2)
    x, rois = c.value(0), c.value(1)
    bins = c.ints_attr("pooled_shape") or ()
    if len(bins) != 2 or not all(1 <= n <= _MOST_BINS for n in bins):
        c.broken(f"pooled_shape is {list(bins)}")
    corners = c.scale(c.cast(rois, DType.F32), c.float_attr("spatial_scale", 1.0))
    # the number of the image, x1, y1, x2, y2, to the nearest pixel
    nearest = c.emit("Floor", c.emit("Add", corners, c.const(0.5, DType.F32)))
    regions, (channels, height, width) = rois.shape[0], x.shape[1:]
    image = c.cast(c.reshape(c.slice(rois, 1, 0, 1), (regions,)), DType.I64)
    pixels = c.emit("Gather", c.cast(x, DType.F32), image, axis=0)
    lowest = c.const(-np.inf, DType.F32)
    inside = [_in_bins(c, nearest, axis, bins[axis], size) for axis, size in enumerate((height, width))]
    across = c.reshape(inside[1], (regions, 1, 1, bins[1], width))
    rows = c.emit("Where", across, c.reshape(pixels, (regions, channels, height, 1, width)), lowest)
    rows = c.emit("ReduceMax", rows, axes=(4,), keepdims=0)
    down = c.reshape(inside[0], (regions, 1, bins[0], height, 1))
    found = c.emit("Where", down, c.reshape(rows, (regions, channels, 1, height, bins[1])), lowest)
    found = c.emit("ReduceMax", found, axes=(3,), keepdims=0)
    zero = c.const(0.0, DType.F32)
    return c.cast(c.emit("Where", c.emit("Equal", found, lowest), zero, found), x.dtype)


def _in_bins(c: NodeContext, corners: Value, axis: int, count: int, size: Dim) -> Value:
    """Whether each pixel along an axis (0: y) is in each bin of each region: [regions, count, size]."""
    regions = corners.shape[0]
    begin, end = (c.reshape(c.slice(corners, 1, 2 - axis + k, 1), (regions, 1, 1)) for k in (0, 2))
    one = c.const(1.0, DType.F32)
    whole = c.emit("Max", c.emit("Add", c.emit("Sub", end, begin), one), one)
    step = c.emit("Div", whole, c.const(float(count), DType.F32))
    number = c.const(np.arange(count, dtype=np.float32).reshape(1, count, 1), DType.F32)
    first = c.emit("Add", c.emit("Floor", c.emit("Mul", number, step)), begin)
    last = c.emit("Add", c.emit("Ceil", c.emit("Mul", c.emit("Add", number, one), step)), begin)
    pixel = c.cast(c.reshape(c.emit("Range", start=0, step=1, length=size, dtype=DType.I64), (1, 1, size)), DType.F32)
    return c.emit("And", c.emit("GreaterOrEqual", pixel, first), c.emit("Less", pixel, last))


# ------------------------------------------------------------------------------------------------------- DeformConv


@handles("DeformConv")
def _deform_conv(c: NodeContext) -> Result:
    rank = c.needs_rank(0, 3, 5) - 2
    c.needs_rank(1, rank + 2, rank + 2)
    c.needs_rank(2, rank + 2, rank + 2)
    x, weights, offset = (c.value(i) for i in range(3))
    kernel = tuple(c.concrete(d, "the kernel's shape") for d in weights.shape[2:])
    group, own = c.int_attr("group", 1), c.int_attr("offset_group", 1)
    channels, results = (c.concrete(d, "the number of channels") for d in (x.shape[1], weights.shape[0]))
    if c.ints_attr("kernel_shape") not in (None, kernel) or group < 1 or own < 1:
        c.broken(f"the kernel {list(kernel)} in {group} groups, with {own} groups of offsets")
    if channels % group or channels % own or results % group or weights.shape[1] != channels // group:
        c.broken(f"{channels} channels and {results} results in {group} groups, with {own} groups of offsets")
    taps = prod(kernel)
    if c.has(4):
        c.needs_rank(4, rank + 2, rank + 2)
    if offset.shape[1] != own * taps * rank or (c.has(4) and c.shape(4)[1] != own * taps):
        c.broken(f"{offset.shape[1]} offsets of {own} groups of {taps} taps")
    strides, dilations = positive(c, "strides", rank), positive(c, "dilations", rank)
    pads = c.ints_attr("pads") or (0,) * (2 * rank)
    if len(pads) != 2 * rank or any(not 0 <= p < 2**31 for p in pads):
        c.broken(f"the pads are {list(pads)}")
    return deform_conv(
        c, x, weights, offset, c.value(4) if c.has(4) else None, c.optional(3), strides=strides, dilations=dilations,
        pads=pads, group=group, own=own,
    )  # fmt: skip
