"""ATen's backward operators of convolutions, pools and interpolation, for graphs that train.

The gradient of a convolution is convolutions; that of whatever is linear along each axis, a product with a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim
from arcweld.compiler.ir import Value
from arcweld.compiler.ops.registry import opdef
from arcweld.compiler.ops.resampling import resampling_matrix
from arcweld.compiler.torch.context import AtenContext, Result, aten
from arcweld.compiler.torch.handlers.nn import NEAREST, NEAREST_EXACT, repeated, scale_factors
from arcweld.compiler.torch.handlers.pool import window_means


def _static(c: AtenContext, *shapes: Sequence[Dim]) -> None:
    if any(not isinstance(d, int) for shape in shapes for d in shape):
        raise c.fail("the gradient of a window over symbolic sizes")


# ---------------------------------------------------------------------------------------------------- convolution


@aten("convolution_backward")
def convolution_backward(c: AtenContext) -> Result:
    """The gradients of the input, the weights and the bias, as far as each is wanted."""
    grad, weight = c["grad_output"], c["weight"]
    rank, mask = len(weight.shape) - 2, c["output_mask"]
    _static(c, grad.shape[2:], weight.shape, c["input"].shape[1:])
    of_input = _input_gradient(c, rank) if mask[0] and 0 in c.used else None
    of_weight = _weight_gradient(c, rank) if mask[1] and 1 in c.used else None
    axes = (0, *range(2, rank + 2))
    of_bias = c.emit("ReduceSum", grad, axes=axes, keepdims=0) if mask[2] and 2 in c.used else None
    return of_input, of_weight, of_bias


def _geometry(c: AtenContext, rank: int) -> tuple[tuple[int, ...], ...]:
    return tuple(repeated(c[k], rank) for k in ("stride", "padding", "dilation"))


def _input_gradient(c: AtenContext, rank: int) -> Value:
    """The transposed convolution with the same weights, or of a transposed one the convolution."""
    grad, x, weight = c["grad_output"], c["input"], c["weight"]
    strides, pads, dilations = _geometry(c, rank)
    attrs: dict[str, Any] = {
        "strides": strides, "dilations": dilations, "pads": (*pads, *pads), "group": c["groups"], "layout": "NCHW",
    }  # fmt: skip
    if c["transposed"]:
        y = c.emit("Conv", grad, weight, **attrs)
        return y if y.shape == x.shape else _cropped(c, y, x.shape)
    least = [
        (grad.shape[2 + k] - 1) * strides[k] - 2 * pads[k] + dilations[k] * (weight.shape[2 + k] - 1) + 1
        for k in range(rank)
    ]
    more = tuple(x.shape[2 + k] - least[k] for k in range(rank))
    return c.emit("ConvTranspose", grad, weight, **attrs, output_padding=more)


def _weight_gradient(c: AtenContext, rank: int) -> Value:
    """A convolution whose channels are the batch: what is shifted is the input, and the kernel is the gradient."""
    groups = c["groups"]
    shifted, kernel = c["input"], c["grad_output"]
    if c["transposed"]:
        shifted, kernel = kernel, shifted
    strides, pads, dilations = _geometry(c, rank)
    n, space = shifted.shape[0], shifted.shape[2:]
    inner, outer = shifted.shape[1] // groups, kernel.shape[1] // groups
    # [inner, groups * batch, *space] with the kernels [groups * outer, batch, *positions]
    x = c.transpose(c.reshape(shifted, (n, groups, inner, *space)), (2, 1, 0, *range(3, 3 + rank)))
    x = c.reshape(x, (inner, groups * n, *space))
    w = c.transpose(kernel, (1, 0, *range(2, 2 + rank)))
    y = c.emit(
        "Conv", x, w, strides=dilations, dilations=strides, pads=(*pads, *pads), group=groups, layout="NCHW"
    )
    y = _cropped(c, y, (*y.shape[:2], *c["weight"].shape[2:]))
    return c.transpose(c.reshape(y, (inner, groups * outer, *y.shape[2:])), (1, 0, *range(2, 2 + rank)))


def _cropped(c: AtenContext, y: Value, shape: Sequence[Dim]) -> Value:
    for axis, d in enumerate(shape):
        y = c.slice(y, axis, 0, d)
    return y


# ----------------------------------------------------------------------------------------------------------- pools


@aten("max_pool2d_with_indices_backward", "max_pool3d_with_indices_backward")
def max_pool_backward(c: AtenContext) -> Result:
    return _to_places(c, len(c["kernel_size"]))


@aten("adaptive_max_pool2d_backward")
def adaptive_max_pool2d_backward(c: AtenContext) -> Result:
    return _to_places(c, 2)


@aten("adaptive_max_pool3d_backward")
def adaptive_max_pool3d_backward(c: AtenContext) -> Result:
    return _to_places(c, 3)


def _to_places(c: AtenContext, rank: int) -> Value:
    """Each gradient added at the place of its maximum in the image."""
    x, places = c["self"], c["indices"]
    lead = math.prod(x.shape[:-rank])
    flat = c.full(0, (lead, math.prod(x.shape[-rank:])), c.out.dtype)
    updates = (lead, math.prod(places.shape[-rank:]))
    at, grad = c.reshape(places, updates), c.reshape(c["grad_output"], updates)
    return c.reshape(c.emit("ScatterElements", flat, at, grad, axis=1, reduction="add"), x.shape)


@aten("avg_pool2d_backward", "avg_pool3d_backward")
def avg_pool_backward(c: AtenContext) -> Result:
    """The sum of what all windows over each element got, each divided by what it counted."""
    grad, x = c["grad_output"], c["self"]
    rank = len(c["kernel_size"])
    _static(c, x.shape, grad.shape)
    kernel = repeated(c["kernel_size"], rank)
    strides = repeated(c["stride"], rank) if c["stride"] else kernel
    pads = repeated(c["padding"], rank)
    space, windows = x.shape[-rank:], grad.shape[-rank:]
    counts = np.ones(())
    for n, m, k, s, p in zip(space, windows, kernel, strides, pads):
        begin = np.arange(m) * s - p
        end = np.minimum(begin + k, n + p)
        if not c["count_include_pad"]:
            begin, end = np.maximum(begin, 0), np.minimum(end, n)
        counts = np.multiply.outer(counts, end - begin)
    if c["divisor_override"] is not None:
        counts = np.full(counts.shape, float(c["divisor_override"]))
    lead, taps = math.prod(x.shape[:-rank]), math.prod(kernel)
    share = c.emit("Div", grad, c.const(counts, grad.dtype))
    blocks = c.expand(c.reshape(share, (lead, 1, math.prod(windows))), (lead, taps, math.prod(windows)))
    behind = tuple((m - 1) * s + k - n - p for n, m, k, s, p in zip(space, windows, kernel, strides, pads))
    ends = tuple(max(b, 0) for b in behind)
    # no window reaches what is behind these
    covered = tuple(n + min(b, 0) for n, b in zip(space, behind))
    terms = c.emit(
        "BlockTerms", blocks, image_shape=covered, block_shape=kernel, pads=(*pads, *ends), strides=strides,
        dilations=(1,) * rank,
    )  # fmt: skip
    y = c.emit("ReduceSum", terms, axes=(rank + 2,), keepdims=0)
    rest = tuple(n - d for n, d in zip(space, covered))
    if any(rest):
        y = c.emit("Pad", y, pads=(0,) * (rank + 2) + (0, 0, *rest), mode="constant", value=0.0)
    return c.reshape(y, x.shape)


def _adaptive_avg_pool(c: AtenContext, rank: int) -> Value:
    shape, grad = c["self"].shape, c["grad_output"]
    _static(c, shape[-rank:], grad.shape[-rank:])
    pairs = zip(shape[-rank:], grad.shape[-rank:])
    return _spread(c, grad, [window_means(n, m).T for n, m in pairs])


aten("_adaptive_avg_pool2d_backward")(lambda c: _adaptive_avg_pool(c, 2))
aten("_adaptive_avg_pool3d_backward")(lambda c: _adaptive_avg_pool(c, 3))


def _spread(c: AtenContext, grad: Value, matrices: Sequence[np.ndarray]) -> Value:
    """The product with a matrix [gradients, elements] along each of the last axes."""
    last, x = len(grad.shape) - 1, c.cast(grad, grad.dtype.compute)
    for k, matrix in enumerate(matrices):
        axis = last + 1 - len(matrices) + k
        perm = [a for a in range(last + 1) if a != axis] + [axis]
        y = c.emit("MatMul", c.transpose(x, perm), c.const(matrix, x.dtype))
        x = c.transpose(y, [perm.index(a) for a in range(last + 1)])
    return c.cast(x, grad.dtype)


# --------------------------------------------------------------------------------------------------- interpolation


def _interpolated(rank: int, mode: str, fixed: dict[str, str] | None = None, antialias: bool = False) -> Any:
    """The transposed interpolation: with the matrix that each axis is interpolated by."""

    def handler(c: AtenContext) -> Result:
        sizes, grad = c["input_size"][2:], c["grad_output"]
        _static(c, sizes, grad.shape[2:])
        scales = scale_factors(c, rank) or (None,) * (rank + 2)
        attrs = dict(fixed or {})
        if fixed is None:
            aligned = c["align_corners"]
            attrs["coordinate_transformation_mode"] = "align_corners" if aligned else "half_pixel"
        matrices = []
        for n, m, scale in zip(sizes, grad.shape[2:], scales[2:]):
            if antialias:
                if c["align_corners"]:
                    raise c.fail("the gradient of antialiased resizing with align_corners")
                matrices.append(resampling_matrix(
                    n, m, scale, mode=mode, transform="half_pixel", coefficient=-0.5, clipped=True))  # fmt: skip
                continue
            given = None if scale is None else (1.0, 1.0, scale)
            matrices.append(_resize_matrix(n, m, mode, given, attrs))
        return _spread(c, grad, matrices)

    return handler


def _resize_matrix(n: int, m: int, mode: str, scales: tuple[float, ...] | None, attrs: dict[str, str]) -> np.ndarray:
    """[m, n]: what resizing makes of each unit vector."""
    resize = opdef("Resize")
    full = {k: v.default for k, v in resize.attrs.items()} | attrs
    full |= {"sizes": (n, 1, m), "mode": mode, "scales": scales}
    (found,) = resize.reference([np.eye(n)[:, None, :]], full)
    return np.ascontiguousarray(found[:, 0, :].T)


for _rank, _linear in ((1, "linear"), (2, "bilinear"), (3, "trilinear")):
    aten(f"upsample_nearest{_rank}d_backward")(_interpolated(_rank, "nearest", NEAREST))
    aten(f"_upsample_nearest_exact{_rank}d_backward")(_interpolated(_rank, "nearest", NEAREST_EXACT))
    aten(f"upsample_{_linear}{_rank}d_backward")(_interpolated(_rank, "linear"))
aten("upsample_bicubic2d_backward")(_interpolated(2, "cubic"))
aten("_upsample_bilinear2d_aa_backward")(_interpolated(2, "linear", antialias=True))
aten("_upsample_bicubic2d_aa_backward")(_interpolated(2, "cubic", antialias=True))
