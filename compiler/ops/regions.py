"""RoiAlign and deformable convolutions for importers: an image read between its pixels, by GridSample in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from arcweld.compiler.dims import Dim, product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.ops.emit import Emitter

# ------------------------------------------------------------------------------------------------------- RoiAlign


def roi_align(
    c: Emitter, x: Value, rois: Value, images: Value, *, bins: tuple[int, ...], samples: int, scale: float, half: bool,
    mode: str = "avg",
) -> Value:  # fmt: skip
    """The mean or maximum (``mode``) of samples in the ``bins`` of each region: [regions, channels, *bins].

    rois     [regions, 4]: x and y where a region begins and ends, times ``scale`` in pixels
    images   [regions]: the image that each region is of
    samples  along each axis of a bin; 0: as many as it has pixels (for means only)
    half     positions are half a pixel less; else regions have at least the size of a pixel
    """
    corners = c.scale(c.cast(rois, DType.F32), scale)
    if half:
        corners = c.emit("Sub", corners, c.const(0.5, DType.F32))
    axes = [_bins(c, corners, axis, bins[axis], least=None if half else 1.0) for axis in (0, 1)]
    if samples == 0:
        return _adaptive(c, x, images, axes, bins)
    at = [_samples(c, start, size, n, samples) for (start, size), n in zip(axes, bins)]
    return _pooled(c, x, images, at, bins, samples, mode)


def _bins(c: Emitter, corners: Value, axis: int, count: int, least: float | None) -> tuple[Value, Value]:
    """The begin of each region along an axis (0: y) and the size of its ``count`` bins, in pixels: [regions, 1]."""
    begin, end = (c.slice(corners, 1, 1 - axis + k, 1) for k in (0, 2))
    size = c.emit("Sub", end, begin)
    if least is not None:
        size = c.emit("Max", size, c.const(least, DType.F32))
    return begin, c.emit("Div", size, c.const(float(count), DType.F32))


def _samples(c: Emitter, begin: Value, size: Value, count: int, samples: int) -> Value:
    """Where the samples of all bins along an axis are: [regions, count * samples]."""
    steps = (np.arange(count * samples) + 0.5) / samples
    return c.emit("Add", begin, c.emit("Mul", size, c.const(steps, DType.F32)))


def _inside(c: Emitter, at: Value, n: Dim) -> Value:
    """1 for positions at most one pixel before the first of ``n`` pixels and behind the last one, else 0."""
    low = c.emit("GreaterOrEqual", at, c.const(-1.0, DType.F32))
    high = c.emit("LessOrEqual", at, c.dim_value(n, DType.F32))
    return c.cast(c.emit("And", low, high), DType.F32)


def _in_image(c: Emitter, at: Value, n: Dim) -> Value:
    last = c.dim_value(n - 1, DType.F32)
    return c.emit("Min", c.emit("Max", at, c.const(0.0, DType.F32)), last)


def _grid(c: Emitter, ys: Value, xs: Value) -> Value:
    """The positions [regions, rows, columns, 2] of all pairs of ``ys`` [regions, rows] and ``xs``, x first."""
    shape = (ys.shape[0], ys.shape[1], xs.shape[1], 1)
    wide_x = c.expand(c.reshape(xs, (shape[0], 1, shape[2], 1)), shape)
    wide_y = c.expand(c.reshape(ys, (shape[0], shape[1], 1, 1)), shape)
    return c.concat([wide_x, wide_y], 3)


def _pooled(
    c: Emitter, x: Value, images: Value, at: list[Value], bins: tuple[int, ...], samples: int, mode: str
) -> Value:
    """The mean or maximum of ``samples`` by ``samples`` samples in each bin."""
    sizes = x.shape[2:]
    seen = [_inside(c, p, n) for p, n in zip(at, sizes)]
    both = c.emit("Mul", _rows(c, seen[0]), _columns(c, seen[1]))
    if mode == "avg":
        y = c.emit("GridSample", x, _grid(c, *at), images, mode="linear", padding_mode="border", pixels=1)
        y = c.emit("Mul", y, c.cast(both, x.dtype))
    else:
        y = c.emit("Mul", _largest_term(c, x, images, at), c.cast(both, x.dtype))
    y = c.reshape(y, (y.shape[0], x.shape[1], bins[0], samples, bins[1], samples))
    return c.emit("ReduceMean" if mode == "avg" else "ReduceMax", y, axes=(3, 5), keepdims=0)


def _rows(c: Emitter, v: Value) -> Value:
    return c.reshape(v, (v.shape[0], 1, v.shape[1], 1))


def _columns(c: Emitter, v: Value) -> Value:
    return c.reshape(v, (v.shape[0], 1, 1, v.shape[1]))


def _largest_term(c: Emitter, x: Value, images: Value, at: list[Value]) -> Value:
    """The standard's maximum is that of the four pixels around a sample, each times its weight in the interpolation."""
    sides = []  # of each axis: the two neighbours and their weights
    for place, n in zip(at, x.shape[2:]):
        place = _in_image(c, place, n)
        low = c.emit("Floor", place)
        part = c.emit("Sub", place, low)
        rest = c.emit("Sub", c.const(1.0, DType.F32), part)
        sides.append(((low, rest), (c.emit("Add", low, c.const(1.0, DType.F32)), part)))
    terms = []
    for y, wy in sides[0]:
        for column, wx in sides[1]:
            at_pixels = _grid(c, y, column)
            pixel = c.emit("GridSample", x, at_pixels, images, mode="nearest", padding_mode="border", pixels=1)
            weight = c.emit("Mul", _rows(c, wy), _columns(c, wx))
            terms.append(c.emit("Mul", pixel, c.cast(weight, x.dtype)))
    return c.emit("Max", *terms)


# The samples of a bin are at most one pixel apart, and more than half of one where there are several. So at most 4 of
# them are less than a pixel from a given pixel; the 2 more are for positions that rounding moves across that limit.
_NEAR = 6


def _adaptive(
    c: Emitter, x: Value, images: Value, axes: list[tuple[Value, Value]], bins: tuple[int, ...]
) -> Value:
    """The mean of samples at most a pixel apart, whose number only the regions know.

    Interpolation is a product of weights along y and x, and so is its mean over a grid of samples. The weights of all
    pixels along an axis are sums over the few samples near each pixel; two matrix products apply them.
    """
    weights = [_mean_weights(c, *axis, n, size) for axis, n, size in zip(axes, bins, x.shape[2:])]
    own = c.emit("Gather", x, images, axis=0)
    down, across = (c.reshape(c.cast(w, x.dtype), (w.shape[0], 1, *w.shape[1:])) for w in weights)
    across = c.transpose(across, (0, 1, 3, 2))
    return c.emit("MatMul", down, c.emit("MatMul", own, across))


def _mean_weights(c: Emitter, begin: Value, size: Value, bins: int, n: Dim) -> Value:
    """The share of each of ``n`` pixels in the mean of each bin's samples along an axis: [regions, bins, n]."""

    def number(v: float) -> Value:
        return c.const(v, DType.F32)

    one, regions = number(1.0), begin.shape[0]
    count = c.emit("Max", c.emit("Ceil", size), number(0.0))
    apart = c.emit("Div", size, c.emit("Max", count, one))
    first = c.emit("Add", begin, c.emit("Mul", size, c.const(np.arange(bins), DType.F32)))
    first = c.emit("Add", first, c.emit("Mul", apart, number(0.5)))  # the first sample of each bin: [regions, bins]
    first, apart, count = (c.reshape(v, (regions, v.shape[1], 1, 1)) for v in (first, apart, count))
    pixel = c.reshape(c.emit("Range", length=n, dtype=DType.F32), (n, 1))
    before = c.emit("Sub", c.emit("Sub", pixel, one), first)
    # regions without a size have no samples: their distance is of no account, but must not be 0
    step = c.emit("Where", c.emit("Greater", apart, number(0.0)), apart, one)
    nearest = c.emit("Max", c.emit("Floor", c.emit("Div", before, step)), number(0.0))
    which = c.emit("Add", nearest, c.const(np.arange(_NEAR), DType.F32))
    at = c.emit("Add", first, c.emit("Mul", which, apart))
    reach = c.emit("Sub", one, c.emit("Abs", c.emit("Sub", _in_image(c, at, n), pixel)))
    share = c.emit("Mul", c.emit("Max", reach, number(0.0)), _inside(c, at, n))
    counted = c.cast(c.emit("Less", which, count), DType.F32)
    total = c.emit("ReduceSum", c.emit("Mul", share, counted), axes=(3,), keepdims=0)
    return c.emit("Div", total, c.reshape(c.emit("Max", count, one), (regions, 1, 1)))


# ------------------------------------------------------------------------------------------------------- DeformConv


def deform_conv(
    c: Emitter, x: Value, weights: Value, offset: Value, mask: Value | None, bias: Value | None, *,
    strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int], group: int, own: int,
) -> Value:  # fmt: skip
    """The product of the weights with the image read at each tap's own place: one matrix for each of ``group`` groups.

    ``own`` is the number of groups of channels that have offsets of their own.
    """
    kernel, n, channels, results = weights.shape[2:], x.shape[0], x.shape[1], weights.shape[0]
    taps, out = prod(kernel), offset.shape[2:]  # type: ignore[arg-type]
    grid = _deformed(c, offset, kernel, own, strides, dilations, pads)  # type: ignore[arg-type]
    read = c.emit(
        "GridSample", c.reshape(x, (n * own, channels // own, *x.shape[2:])), grid, mode="linear", pixels=1
    )  # zeros outside
    places = product(out)
    if mask is not None:
        read = c.reshape(read, (n, own, channels // own, taps, places))
        read = c.emit("Mul", read, c.reshape(mask, (n, own, 1, taps, places)))
    read = c.reshape(read, (n, group, channels // group * taps, places))
    y = c.emit("MatMul", c.reshape(weights, (group, results // group, channels // group * taps)), read)
    y = c.reshape(y, (n, results, *out))
    return y if bias is None else c.emit("Add", y, c.reshape(bias, (results, *[1] * len(kernel))))


def _deformed(
    c: Emitter, offset: Value, kernel: tuple[int, ...], own: int, strides: Sequence[int], dilations: Sequence[int],
    pads: Sequence[int],
) -> Value:  # fmt: skip
    """Where each tap of each output reads, as GridSample takes it: [n * own, taps * out0, out1.., axes]."""
    rank, taps, out = len(kernel), prod(kernel), offset.shape[2:]
    moved = c.reshape(c.cast(offset, DType.F32), (offset.shape[0] * own, taps, rank, *out))
    numbers = np.stack(np.unravel_index(np.arange(taps), kernel), -1)
    axes = []
    for i in reversed(range(rank)):
        place = c.emit("Range", start=-pads[i], step=strides[i], length=out[i], dtype=DType.F32)
        place = c.reshape(place, (out[i], *[1] * (rank - 1 - i)))
        tap = c.const((numbers[:, i] * dilations[i]).reshape(taps, *[1] * rank), DType.F32)
        at = c.reshape(c.slice(moved, 2, i, 1), (moved.shape[0], taps, *out))
        at = c.emit("Add", at, c.emit("Add", place, tap))
        axes.append(c.reshape(at, (moved.shape[0], taps * out[0], *out[1:], 1)))
    return c.concat(axes, rank + 1)
