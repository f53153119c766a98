"""Movement operators whose last axis lists the taps of a window or block, for a reduction to follow.

WindowTaps is what each position of a window sees; BlockTerms what blocks add to each pixel of an image (Col2Im).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from arcweld.compiler.dims import (
    Dim,
    ceildiv,
    flat_index,
    floordiv,
    is_nonneg,
    maximum,
    minimum,
    mod,
    product,
)
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.expr import Expr, all_of, binary, const, index
from arcweld.compiler.ir import Node, TensorType
from arcweld.compiler.ops.movement import movement, operand
from arcweld.compiler.ops.registry import Attr, Case, Reader, infer_types
from arcweld.compiler.ops.shapes import check_equal, check_length, check_rank, if_any, inside, present, window_extent

Attrs = Mapping[str, Any]
Arrays = Sequence[np.ndarray | None]
Types = Sequence[TensorType | None]


def _each_tap(tap: Dim, kernel: Sequence[int]) -> list[Dim]:
    """The tap along each axis, of a row-major number."""
    return [mod(floordiv(tap, prod(kernel[i + 1 :])), k) for i, k in enumerate(kernel)]


# --------------------------------------------------------------------------------------------------- WindowTaps


def _infer_taps(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = present("WindowTaps", types, 1)
    (pooled,) = infer_types("MaxPool", [x.with_dtype(DType.F32)], {**attrs, "layout": "NCHW"})
    return (x.with_shape((*pooled.shape, prod(attrs["kernel_shape"]))),)


def _taps(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = operand(arrays)
    (out,) = _infer_taps([TensorType(DType.F32, tuple(x.shape))], attrs)
    rank = x.ndim - 2
    places = []  # of each axis: [positions, taps]
    for i in range(rank):
        n, count = x.shape[2 + i], int(out.shape[2 + i])  # type: ignore[arg-type]
        rows = np.zeros((count, attrs["kernel_shape"][i]), np.int64)
        for o in range(count):
            start = o * attrs["strides"][i] - attrs["pads"][i]
            seen = [start + t * attrs["dilations"][i] for t in range(rows.shape[1])]
            data = [p for p in seen if 0 <= p < n] or list(range(n))
            rows[o] = [min(data, key=lambda d: abs(d - p)) for p in seen]
        places.append(rows)
    y = np.empty([int(d) for d in out.shape], x.dtype)  # type: ignore[arg-type]
    for at in np.ndindex(*out.shape[2:-1]):  # type: ignore[arg-type]
        window = x[(slice(None), slice(None), *np.ix_(*(places[i][o] for i, o in enumerate(at))))]
        y[(slice(None), slice(None), *at)] = window.reshape(*x.shape[:2], -1)
    return (y,)


def _lower_taps(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    (x,) = node.operands()
    n, c, *outs, tap = coords
    attrs, at = node.attrs, []
    for i, (o, t) in enumerate(zip(outs, _each_tap(tap, attrs["kernel_shape"]))):
        size, dilation = x.shape[2 + i], attrs["dilations"][i]
        start = o * attrs["strides"][i] - attrs["pads"][i]
        end = (node.output.shape[2 + i] - 1) * attrs["strides"][i] - attrs["pads"][i]
        reach = (attrs["kernel_shape"][i] - 1) * dilation
        padded = attrs["pads"][i] > 0 or not is_nonneg(size - 1 - end - reach)
        if padded:
            first = maximum(ceildiv(-start, dilation), 0)
            last = minimum(floordiv(size - 1 - start, dilation), attrs["kernel_shape"][i] - 1)
            t = minimum(maximum(t, first), last)
        place = start + t * dilation
        at.append(minimum(maximum(place, 0), size - 1) if padded else place)
    return reader.read(x, (n, c, *at), if_any(x.shape[2:]))


def _window(kernel: tuple[int, ...], **changes: Any) -> dict[str, Any]:
    rank = len(kernel)
    return {
        "kernel_shape": kernel, "strides": (1,) * rank, "dilations": (1,) * rank, "pads": (0,) * (2 * rank), **changes,
    }  # fmt: skip


_WINDOW = {
    "kernel_shape": Attr("ints", required=True),
    "strides": Attr("ints", required=True),
    "dilations": Attr("ints", required=True),
    "pads": Attr("ints", required=True),
    "ceil_mode": Attr("int", 0),
}
movement(
    "WindowTaps", "x", _infer_taps, _taps, _lower_taps, _WINDOW,
    [
        Case(((2, 3, 6, 7),), _window((3, 2), strides=(2, 2), pads=(1, 0, 1, 1)), ("f32", "f16")),
        Case(((1, 2, 7, 7),), _window((3, 3), strides=(2, 3), ceil_mode=1), ("f32",)),
        Case(((1, 7, 8),), _window((3,), dilations=(2,), pads=(1, 3)), ("f32", "u8"), 0.0, 99.0),
        Case(((1, 2, 4, 5, 4),), _window((2, 2, 3), pads=(0, 1, 1, 0, 0, 1)), ("f32",)),
    ],
    needs=lambda node: node.operands()[0].shape[2:],
    doc="x [N,C,*spatial] to [N,C,*pooled,taps]; a tap outside sees what the nearest tap inside does",
)  # fmt: skip

# --------------------------------------------------------------------------------------------------- BlockTerms


def _blocks(attrs: Attrs) -> list[Dim]:
    """The number of blocks along each axis of the image."""
    rank, pads = len(attrs["block_shape"]), attrs["pads"]
    sizes = zip(attrs["image_shape"], attrs["block_shape"], attrs["strides"], attrs["dilations"])
    return [window_extent(d, b, s, e, pads[i] + pads[rank + i]) for i, (d, b, s, e) in enumerate(sizes)]


def _infer_terms(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = present("BlockTerms", types, 1)
    check_rank("BlockTerms", x, 3, 3)
    rank, taps = len(attrs["block_shape"]), prod(attrs["block_shape"])
    for what, length in (("image_shape", rank), ("strides", rank), ("dilations", rank), ("pads", 2 * rank)):
        check_length("BlockTerms", what, attrs[what], length)
    if any(v < 1 for what in ("block_shape", "strides", "dilations") for v in attrs[what]):
        raise ModelError("BlockTerms: block_shape, strides and dilations must be positive")
    check_equal("BlockTerms", "blocks", x.shape[2], product(_blocks(attrs)))
    channels = floordiv(x.shape[1], taps)
    check_equal("BlockTerms", "elements of the blocks", x.shape[1], channels * taps)
    return (x.with_shape((x.shape[0], channels, *attrs["image_shape"], taps)),)


def _terms(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    """Each block puts its elements where they belong."""
    x, taps, rank = operand(arrays), prod(attrs["block_shape"]), len(attrs["block_shape"])
    y = np.zeros((x.shape[0], x.shape[1] // taps, *attrs["image_shape"], taps), x.dtype)
    rows = x.reshape(x.shape[0], -1, taps, x.shape[2])
    for k, block in enumerate(np.ndindex(*_blocks(attrs))):  # type: ignore[arg-type]
        for t, tap in enumerate(np.ndindex(*attrs["block_shape"])):
            at = [
                block[i] * attrs["strides"][i] + tap[i] * attrs["dilations"][i] - attrs["pads"][i] for i in range(rank)
            ]
            if all(0 <= p < n for p, n in zip(at, attrs["image_shape"])):
                y[(slice(None), slice(None), *at, t)] = rows[:, :, t, k]
    return (y,)


def _lower_terms(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    (x,) = node.operands()
    attrs, (n, c, *pixel, tap) = node.attrs, coords
    counts, block, seen = _blocks(attrs), [], []
    for i, (p, t) in enumerate(zip(pixel, _each_tap(tap, attrs["block_shape"]))):
        moved, stride = p + attrs["pads"][i] - t * attrs["dilations"][i], attrs["strides"][i]
        block.append(floordiv(moved, stride))
        seen.append(inside(block[-1], 0, counts[i]))
        if stride > 1:
            seen.append(binary("eq", index(mod(moved, stride)), const(0, DType.I64)))
    return reader.read(x, (n, c * prod(attrs["block_shape"]) + tap, flat_index(block, counts)), all_of(seen))


def _image(image: tuple[int, ...], block: tuple[int, ...], **changes: Any) -> dict[str, Any]:
    rank = len(image)
    plain = {"strides": (1,) * rank, "dilations": (1,) * rank, "pads": (0,) * (2 * rank)}
    return {"image_shape": image, "block_shape": block, **plain, **changes}


movement(
    "BlockTerms", "x", _infer_terms, _terms, _lower_terms,
    {
        "image_shape": Attr("dims", required=True),
        "block_shape": Attr("ints", required=True),
        "strides": Attr("ints", required=True),
        "dilations": Attr("ints", required=True),
        "pads": Attr("ints", required=True),
    },
    [
        Case(((2, 12, 12),), _image((4, 5), (2, 2)), ("f32", "f16", "i32")),
        Case(((1, 9, 4),), _image((5, 5), (3, 3), strides=(2, 2)), ("f32",)),
        Case(((1, 12, 15),), _image((5, 6), (3, 2), pads=(1, 1, 1, 1), dilations=(2, 3), strides=(1, 1)), ("f32",)),
        Case(((1, 6, 6),), _image((6, 5), (2, 3), pads=(1, 2, 0, 1), strides=(3, 2)), ("f32",)),
    ],
    doc="x [N, C taps, blocks] to [N, C, *image, taps]: the sum over the last axis is ONNX's Col2Im",
)  # fmt: skip
