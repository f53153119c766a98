"""Numpy convolutions and pools, fast enough to evaluate whole models.

Dense convolutions gather patches into a matrix and multiply (im2col); depthwise ones add shifted products. All tensors
are ``[N, C, spatial...]``: the entries transpose other layouts first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

Ints = Sequence[int]
PATCH_BYTES = 4 << 20  # bytes of patches that are gathered at a time: about a second-level cache


def to_channels_first(x: np.ndarray, layout: str) -> np.ndarray:
    """A view of ``x`` in the order N, C, spatial."""
    return x if layout == "NCHW" else np.moveaxis(x, -1, 1)


def from_channels_first(y: np.ndarray, layout: str) -> np.ndarray:
    """The inverse of ``to_channels_first``, as a row-major array."""
    return np.ascontiguousarray(y if layout == "NCHW" else np.moveaxis(y, 1, -1))


def pad_spatial(x: np.ndarray, pads: Ints, value: float = 0.0) -> np.ndarray:
    """Pads the spatial axes. ``pads`` lists elements at the begin of each axis, then at the end; negative ones crop."""
    rank = len(pads) // 2
    pairs = list(zip(pads[:rank], pads[rank:]))
    crop = tuple(slice(max(-b, 0), d - max(-e, 0)) for d, (b, e) in zip(x.shape[2:], pairs))
    x = x[:, :, *crop]
    grow = [(0, 0), (0, 0), *((max(b, 0), max(e, 0)) for b, e in pairs)]
    return x if not any(b or e for b, e in grow) else np.pad(x, grow, constant_values=value)


def extents(spatial: Ints, kernel: Ints, strides: Ints, dilations: Ints) -> tuple[int, ...]:
    """The number of positions of a window along each axis of padded ``spatial`` extents."""
    return tuple((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(spatial, kernel, strides, dilations))


def taps(
    x: np.ndarray, kernel: Ints, strides: Ints, dilations: Ints, out: Ints
) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """For each offset in the kernel, the view of padded ``x`` that it is multiplied with at all output positions."""
    for offset in product(*(range(k) for k in kernel)):
        # of no outputs, nothing: an end before the start would count from the other side
        ends = [o * d + max((m - 1) * s + 1, 0) for o, d, m, s in zip(offset, dilations, out, strides)]
        box = tuple(slice(o * d, end, s) for o, d, end, s in zip(offset, dilations, ends, strides))
        yield offset, x[:, :, *box]


def conv(x: np.ndarray, w: np.ndarray, strides: Ints, dilations: Ints, pads: Ints, group: int) -> np.ndarray:
    """The convolution of ``x`` ``[N, C, spatial]`` with ``w`` ``[O, C/group, kernel]``: ``[N, O, spatial']``."""
    x = pad_spatial(x, pads)
    out = extents(x.shape[2:], w.shape[2:], strides, dilations)
    n, c, o = x.shape[0], x.shape[1], w.shape[0]
    if group == c > 1:
        return _depthwise(x, w, strides, dilations, out)
    y = np.empty((n, o, *out), x.dtype)
    per_in, per_out = c // group, o // group
    for g in range(group):
        own_in, own_out = slice(g * per_in, (g + 1) * per_in), slice(g * per_out, (g + 1) * per_out)
        for b in range(n):
            _dense(x[b : b + 1, own_in], w[own_out], strides, dilations, y[b, own_out])
    return y


def _dense(x: np.ndarray, w: np.ndarray, strides: Ints, dilations: Ints, y: np.ndarray) -> None:
    """Convolves one group of one image into ``y`` ``[O, spatial']``, so many rows at a time that their patches fit the
    cache."""
    o, out, kernel = y.shape[0], y.shape[1:], w.shape[2:]
    # every extent is written out: -1 is ambiguous where there are no channels
    filters, places = w.reshape(o, math.prod(w.shape[1:])), math.prod(out)
    if all(k == 1 for k in kernel) and all(s == 1 for s in strides):
        np.matmul(filters, x.reshape(x.shape[1], places), out=y.reshape(o, places))
        return
    row = filters.shape[1] * math.prod(out[1:]) * x.itemsize
    height = max(1, min(out[0], PATCH_BYTES // max(row, 1)))
    patches = np.empty((x.shape[1], *kernel, height, *out[1:]), x.dtype)
    for top in range(0, out[0], height):
        rows = slice(top, min(top + height, out[0]))
        count = rows.stop - top
        for offset, view in taps(x, kernel, strides, dilations, out):
            at: tuple[Any, ...] = (slice(None), *offset, slice(count))
            patches[at] = view[0, :, rows]
        used = patches[(slice(None),) * (1 + len(kernel)) + (slice(count),)]
        y[:, rows] = (filters @ used.reshape(filters.shape[1], count * math.prod(out[1:]))).reshape(o, count, *out[1:])


def _depthwise(x: np.ndarray, w: np.ndarray, strides: Ints, dilations: Ints, out: Ints) -> np.ndarray:
    """A depthwise convolution with ``m`` filters for each channel: ``w`` is ``[C * m, 1, kernel]``."""
    n, c = x.shape[:2]
    m = w.shape[0] // c
    filters = w.reshape(c, m, *w.shape[2:])
    y = np.zeros((n, c, m, *out), x.dtype)
    for offset, view in taps(x, w.shape[2:], strides, dilations, out):
        at: tuple[Any, ...] = (slice(None), slice(None), *offset)
        y += view[:, :, None] * filters[at].reshape(c, m, *[1] * len(out))
    return y.reshape(n, c * m, *out)


def conv_transpose(
    x: np.ndarray, w: np.ndarray, strides: Ints, dilations: Ints, pads: Ints, output_padding: Ints, group: int
) -> np.ndarray:
    """The transposed convolution of ``x`` ``[N, C, spatial]`` with ``w`` ``[C, O/group, kernel]``.

    Each input element adds its multiple of the kernel to the output.
    """
    n, c, spatial, kernel = x.shape[0], x.shape[1], x.shape[2:], w.shape[2:]
    rank, per_in, per_out = len(kernel), c // group, w.shape[1]
    full = [
        (i - 1) * s + d * (k - 1) + 1 + p for i, s, d, k, p in zip(spatial, strides, dilations, kernel, output_padding)
    ]
    y = np.zeros((n, per_out * group, *full), x.dtype)
    for g in range(group):
        xg = x[:, g * per_in : (g + 1) * per_in].reshape(n, per_in, math.prod(spatial))
        wg = w[g * per_in : (g + 1) * per_in].reshape(per_in, per_out * math.prod(kernel))
        patches = (wg.T @ xg).reshape(n, per_out, *kernel, *spatial)
        yg = y[:, g * per_out : (g + 1) * per_out]
        for offset, view in taps(yg, kernel, strides, dilations, spatial):
            view += patches[:, :, *offset]
    return pad_spatial(y, [-p for p in pads[:rank]] + [-p for p in pads[rank:]])


def _covered(spatial: Ints, kernel: Ints, strides: Ints, dilations: Ints, pads: Ints, out: Ints) -> list[int]:
    """The padding at the end of each axis with which ``out`` windows fit: in ceil mode more than in ``pads``."""
    rank = len(kernel)
    need = [(m - 1) * s + d * (k - 1) + 1 for m, s, d, k in zip(out, strides, dilations, kernel)]
    return [max(pads[rank + a], need[a] - spatial[a] - pads[a]) for a in range(rank)]


def max_pool(x: np.ndarray, kernel: Ints, strides: Ints, dilations: Ints, pads: Ints, out: Ints) -> np.ndarray:
    """The maximum over windows; padding is less than every element."""
    least = -np.inf if np.issubdtype(x.dtype, np.floating) else np.iinfo(x.dtype).min
    ends = _covered(x.shape[2:], kernel, strides, dilations, pads, out)
    padded = pad_spatial(x, [*pads[: len(kernel)], *ends], least)
    y: np.ndarray | None = None
    for _, view in taps(padded, kernel, strides, dilations, out):
        y = view.copy() if y is None else np.maximum(y, view, out=y)
    assert y is not None
    return y


def average_pool(
    x: np.ndarray, kernel: Ints, strides: Ints, dilations: Ints, pads: Ints, out: Ints, count_include_pad: bool = False
) -> np.ndarray:
    """The mean over windows: of the data only, or with the declared padding as zeros."""
    rank = len(kernel)
    ends = _covered(x.shape[2:], kernel, strides, dilations, pads, out)
    padded = pad_spatial(x, [*pads[:rank], *ends])
    ones = np.ones((1, 1, *x.shape[2:]), x.dtype)
    counted = pad_spatial(ones, pads, 1.0) if count_include_pad else pad_spatial(ones, pads)
    counted = pad_spatial(counted, [0] * rank + [e - p for e, p in zip(ends, pads[rank:])])
    y = np.zeros((*x.shape[:2], *out), x.dtype)
    count = np.zeros((1, 1, *out), x.dtype)
    for _, view in taps(padded, kernel, strides, dilations, out):
        y += view
    for _, view in taps(counted, kernel, strides, dilations, out):
        count += view
    return y / count
