"""ATen's pools: windows with an equal extent and adaptive boxes, and the places of their maxima."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from arcweld.compiler.dims import Dim, divides_exactly
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.ops.maxima import places_of_maxima
from arcweld.compiler.torch.context import AtenContext, Result, aten
from arcweld.compiler.torch.handlers.nn import repeated

# -------------------------------------------------------------------------------------------------------- pools


def _window(c: AtenContext, rank: int) -> dict[str, Any]:
    kernel = repeated(c["kernel_size"], rank)
    strides = repeated(c["stride"], rank) if c["stride"] else kernel
    pads = repeated(c["padding"], rank)
    return {
        "kernel_shape": kernel,
        "strides": strides,
        "dilations": repeated(c.get("dilation", 1), rank),
        "pads": (*pads, *pads),
        "ceil_mode": int(c["ceil_mode"]),
        "layout": "NCHW",
    }


def _pooled(c: AtenContext, op: str, rank: int, **attrs: Any) -> Value:
    x = c["self"]
    batched = len(x.shape) == rank + 2
    y = c.emit(op, x if batched else c.reshape(x, (1, *x.shape)), **_window(c, rank), **attrs)
    return y if batched else c.reshape(y, y.shape[1:])


def _max_pool(rank: int) -> Any:
    def handler(c: AtenContext) -> Result:
        if len(c.outs) == 1:
            return _pooled(c, "MaxPool", rank)
        most = _pooled(c, "MaxPool", rank) if 0 in c.used else None
        return most, _indices(c, rank) if 1 in c.used else None

    return handler


def _indices(c: AtenContext, rank: int) -> Value:
    """The row-major place in its image of each maximum."""
    x = c["self"]
    batched = len(x.shape) == rank + 2
    x = x if batched else c.reshape(x, (1, *x.shape))
    places = places_of_maxima(c, x, {k: v for k, v in _window(c, rank).items() if k != "layout"})
    return places if batched else c.reshape(places, places.shape[1:])


def _avg_pool(rank: int) -> Any:
    def handler(c: AtenContext) -> Result:
        include = int(c["count_include_pad"])
        divisor = c.get("divisor_override")
        if divisor is None:
            return _pooled(c, "AveragePool", rank, count_include_pad=include)
        window = _window(c, rank)
        taps = math.prod(window["kernel_shape"])
        if window["ceil_mode"]:
            return c.emit("Mul", _whole_windows(c, rank, window), c.scalar(taps / divisor, c.out.dtype))
        mean = _pooled(c, "AveragePool", rank, count_include_pad=1)
        return c.apply("Mul", mean, taps / divisor)

    return handler


def _whole_windows(c: AtenContext, rank: int, window: dict[str, Any]) -> Value:
    """The mean of each window of ``ceil_mode``, with zeros wherever it lies outside."""
    x, kernel, strides, pads = c["self"], window["kernel_shape"], window["strides"], window["pads"]
    x = x if len(x.shape) == rank + 2 else c.reshape(x, (1, *x.shape))
    ends = [
        (c.out.shape[k - rank] - 1) * strides[k] + kernel[k] - x.shape[2 + k] - pads[k] for k in range(rank)
    ]
    if any(not isinstance(e, int) or e < 0 for e in ends):
        raise c.fail("average pooling with a divisor and ceil_mode of symbolic sizes")
    x = c.emit("Pad", x, pads=(0, 0, *pads[:rank], 0, 0, *ends), mode="constant", value=0.0)
    plain = {**window, "pads": (0,) * (2 * rank), "ceil_mode": 0}
    return c.reshape(c.emit("AveragePool", x, **plain, count_include_pad=1), c.out.shape)


aten("max_pool1d")(_max_pool(1))
aten("max_pool2d", "max_pool2d_with_indices")(_max_pool(2))
aten("max_pool3d", "max_pool3d_with_indices")(_max_pool(3))
aten("avg_pool1d")(_avg_pool(1))
aten("avg_pool2d")(_avg_pool(2))
aten("avg_pool3d")(_avg_pool(3))


def _adaptive(rank: int, pool: str, fold: str) -> Any:
    def handler(c: AtenContext) -> Result:
        if len(c.outs) == 1:
            return _adaptive_pool(c, rank, pool, fold)
        return _adaptive_maxima(c, rank)

    return handler


def _adaptive_pool(c: AtenContext, rank: int, pool: str, fold: str) -> Value:
    """Windows of equal extent where the sizes divide; else, for means of static sizes, a product for each axis."""
    x: Value = c["self"]
    spatial, sizes = x.shape[-rank:], c.out.shape[-rank:]
    if all(s == 1 for s in sizes):
        axes = tuple(range(len(x.shape) - rank, len(x.shape)))
        return c.emit(fold, x, axes=axes, keepdims=1)
    windows = [divides_exactly(d, s) for d, s in zip(spatial, sizes)]
    kernel = tuple(w for w in windows if isinstance(w, int))
    if len(kernel) < rank:
        return _unequal_means(c, x, rank) if pool == "AveragePool" else _refuse_adaptive(c, spatial, sizes)
    batched = len(x.shape) == rank + 2
    y = c.emit(
        pool, x if batched else c.reshape(x, (1, *x.shape)),
        kernel_shape=kernel, strides=kernel, dilations=(1,) * rank, pads=(0,) * (2 * rank), layout="NCHW",
    )  # fmt: skip
    return y if batched else c.reshape(y, y.shape[1:])


def _adaptive_maxima(c: AtenContext, rank: int) -> tuple[Value | None, Value | None]:
    """The maximum of each box and its row-major place: every box is gathered, its last tap several times."""
    x: Value = c["self"]
    spatial, sizes = x.shape[-rank:], c.out.shape[-rank:]
    if not all(isinstance(d, int) for d in (*spatial, *sizes)):
        return (_adaptive_pool(c, rank, "MaxPool", "ReduceMax"), None) if 1 not in c.used else _refuse_adaptive(
            c, spatial, sizes)  # fmt: skip
    places = np.zeros((1, 1), np.int64)
    for n, m in zip(map(int, spatial), map(int, sizes)):  # type: ignore[arg-type]
        boxes = [range(j * n // m, -(-(j + 1) * n // m)) for j in range(m)]
        longest = max(len(b) for b in boxes)
        rows = np.array([[b[min(t, len(b) - 1)] for t in range(longest)] for b in boxes])
        # [boxes, taps] of all axes so far, each with each of this one
        both = places[:, None, :, None] * n + rows[None, :, None, :]
        places = both.reshape(places.shape[0] * m, -1)
    lead = x.shape[:-rank]
    flat = c.reshape(x, (*lead, math.prod(spatial)))
    taps = c.emit("Gather", flat, c.const(places, DType.I64), axis=len(lead))
    last = len(lead) + 1
    most = c.reshape(c.emit("ReduceMax", taps, axes=(last,), keepdims=0), c.out.shape) if 0 in c.used else None
    if 1 not in c.used:
        return most, None
    tap = c.emit("ArgMax", taps, axis=last, keepdims=0)
    row = c.emit("Range", start=0, step=places.shape[1], length=places.shape[0], dtype=DType.I64)
    found = c.emit("Gather", c.const(places.reshape(-1), DType.I64), c.emit("Add", tap, row), axis=0)
    return most, c.reshape(found, c.out.shape)


def _refuse_adaptive(c: AtenContext, spatial: Sequence[Dim], sizes: Sequence[Dim]) -> NoReturn:
    shown = [f"[{', '.join(map(str, s))}]" for s in (spatial, sizes)]
    raise c.fail(f"adaptive pooling of {shown[0]} to {shown[1]}: windows of unequal size")


def _unequal_means(c: AtenContext, x: Value, rank: int) -> Value:
    """The mean over a box is the mean of means along each axis, and those are a product with a matrix of weights."""
    last, x = len(x.shape) - 1, c.wide(x)
    for axis in range(len(x.shape) - rank, len(x.shape)):
        n, m = x.shape[axis], c.out.shape[axis]
        if not isinstance(n, int) or not isinstance(m, int):
            return _refuse_adaptive(c, x.shape[-rank:], c.out.shape[-rank:])
        perm = [k for k in range(last + 1) if k != axis] + [axis]
        y = c.emit("MatMul", c.transpose(x, perm), c.const(window_means(n, m), x.dtype))
        x = c.transpose(y, [perm.index(k) for k in range(last + 1)])
    return c.result(x)


def window_means(n: int, m: int) -> np.ndarray:
    """[n, m]: column j has equal weights for the elements ``floor(j n / m)`` to ``ceil((j + 1) n / m)``."""
    weights = np.zeros((n, m))
    for j in range(m):
        begin, end = j * n // m, -(-(j + 1) * n // m)
        weights[begin:end, j] = 1 / (end - begin)
    return weights


for _rank in (1, 2, 3):
    _names = [f"adaptive_avg_pool{_rank}d", *([f"_adaptive_avg_pool{_rank}d"] if _rank > 1 else [])]
    aten(*_names)(_adaptive(_rank, "AveragePool", "ReduceMean"))
    aten(f"adaptive_max_pool{_rank}d")(_adaptive(_rank, "MaxPool", "ReduceMax"))
