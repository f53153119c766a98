"""Handlers of normalisations and softmaxes."""

from __future__ import annotations

from collections.abc import Sequence

from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.base import Result, handles
from arcweld.compiler.onnx.handlers.reduce import reduce
from arcweld.compiler.onnx.operands import numel
from arcweld.compiler.onnx.proto import DTYPES


@handles("Softmax", "LogSoftmax", "Hardmax")
def _softmax(c: NodeContext) -> Result:
    x = c.value(0)
    rank = x.type.rank
    axis = c.axis(c.int_attr("axis", -1 if c.opset >= 13 else 1), rank)
    if c.opset >= 13 or axis == rank - 1:
        return c.emit(c.op, x, axis=axis)
    # before opset 13 the axes from `axis` on were one row
    flat = c.reshape(x, (numel(x.shape[:axis]), numel(x.shape[axis:])))
    return c.reshape(c.emit(c.op, flat, axis=1), x.shape)


@handles("LpNormalization")
def _lp(c: NodeContext) -> Result:
    p = c.int_attr("p", 2)
    if p not in (1, 2):
        c.broken(f"p is {p}")
    return c.emit("LpNormalization", c.value(0), axis=c.axis(c.int_attr("axis", -1), c.needs_rank(0, 1)), p=p)


@handles("BatchNormalization")
def _batch(c: NodeContext) -> Result:
    if c.opset < 9 and not c.int_attr("spatial", 1):
        c.unsupported("BatchNormalization that is not per channel")
    if c.int_attr("training_mode"):
        return _batch_in_training(c)
    if any(c.used[1:]):
        c.unsupported("the running statistics of BatchNormalization")
    x = c.value(0)
    params = [c.cast(c.value(i), x.dtype) for i in range(1, 5)]
    return c.emit("BatchNormalization", x, *params, epsilon=c.float_attr("epsilon", 1e-5))


def _batch_in_training(c: NodeContext) -> Result:
    """Normalises by the batch's statistics, and updates the running ones. Weight standardisation is exported so."""
    rank = c.needs_rank(0, 2)
    x, wide = c.value(0), c.cast(c.value(0), c.operand(0).dtype.compute)
    scale, bias, mean, variance = (c.cast(c.value(i), wide.dtype) for i in range(1, 5))
    axes = (0, *range(2, rank))
    own = c.emit("ReduceMean", wide, axes=axes, keepdims=1)
    centred = c.emit("Sub", wide, own)
    spread = c.emit("ReduceMean", c.emit("Mul", centred, centred), axes=axes, keepdims=1)
    epsilon = c.const(c.float_attr("epsilon", 1e-5), wide.dtype)
    y = c.emit("Div", centred, c.emit("Sqrt", c.emit("Add", spread, epsilon)))
    channels = (x.shape[1], *[1] * (rank - 2))
    y = c.emit("Add", c.emit("Mul", y, c.reshape(scale, channels)), c.reshape(bias, channels))
    keep = c.float_attr("momentum", 0.9)
    running = [
        c.emit("Add", c.scale(old, keep), c.scale(c.reshape(new, old.shape), 1 - keep))
        for old, new in ((mean, own), (variance, spread))
    ]
    return [c.cast(y, x.dtype), *(c.cast(r, c.operand(i).dtype) for i, r in enumerate(running, 3))]


@handles("InstanceNormalization")
def _instance(c: NodeContext) -> Result:
    return c.emit("InstanceNormalization", *c.values(), epsilon=c.float_attr("epsilon", 1e-5))


@handles("GroupNormalization")
def _group(c: NodeContext) -> Result:
    x, scale, bias = c.value(0), c.value(1), c.value(2)
    groups = c.int_attr("num_groups", 1)
    channels = x.shape[1] if x.type.rank > 1 else 0
    if not isinstance(channels, int) or groups < 1 or channels % groups:
        c.broken(f"{channels} channels cannot form {groups} groups")
    if c.opset < 21:  # the affine parameters were one for each group
        scale, bias = (_repeat(c, p, groups, channels // groups) for p in (scale, bias))
    return c.emit("GroupNormalization", x, scale, bias, epsilon=c.float_attr("epsilon", 1e-5), num_groups=groups)


def _repeat(c: NodeContext, p: Value, groups: int, times: int) -> Value:
    return c.reshape(c.expand(c.reshape(p, (groups, 1)), (groups, times)), (groups * times,))


@handles("LayerNormalization")
def _layer(c: NodeContext) -> Result:
    x = c.value(0)
    rank = c.needs_rank(0, 1)
    axis = c.axis(c.int_attr("axis", -1), rank)
    epsilon = c.float_attr("epsilon", 1e-5)
    bias = c.optional(2)
    rows = x.shape[axis:]
    y = c.emit(
        "LayerNormalization",
        x,
        _affine(c, c.value(1), rows),
        None if bias is None else _affine(c, bias, rows),
        axis=axis,
        epsilon=epsilon,
    )
    if not any(c.used[1:]):
        return y
    return [y, *statistics(c, x, list(range(axis, rank)), epsilon)]


def _affine(c: NodeContext, p: Value, rows: Sequence[Dim]) -> Value:
    """A scale or bias with exactly the shape of the normalised axes."""
    lead = p.type.rank - len(rows)
    if lead > 0 and all(d == 1 for d in p.shape[:lead]):
        p = c.reshape(p, p.shape[lead:])
    return c.expand(p, rows)


def statistics(c: NodeContext, x: Value, axes: list[int], epsilon: float) -> list[Value]:
    """The mean and the reciprocal standard deviation, the optional outputs of LayerNormalization."""
    x = c.cast(x, DTYPES.get(c.int_attr("stash_type", 1), DType.F32))
    mean = reduce(c, "ReduceMean", x, axes)
    centred = c.emit("Sub", x, mean)
    variance = reduce(c, "ReduceMean", c.emit("Mul", centred, centred), axes)
    deviation = c.emit("Sqrt", c.emit("Add", variance, c.const(epsilon, x.dtype)))
    return [mean, c.emit("Reciprocal", deviation)]


@handles("RMSNormalization")
def _rms(c: NodeContext) -> Result:
    x = c.value(0)
    axis = c.axis(c.int_attr("axis", -1), c.needs_rank(0, 1))
    scale = _affine(c, c.value(1), x.shape[axis:])
    return c.emit("RMSNormalization", x, c.cast(scale, x.dtype), axis=axis, epsilon=c.float_attr("epsilon", 1e-5))


@handles("MeanVarianceNormalization")
def _mean_variance(c: NodeContext) -> Result:
    axes = c.ints_attr("axes")
    return c.emit(
        "MeanVarianceNormalization",
        c.value(0),
        axes=tuple(sorted(c.axes(axes if axes is not None else (0, 2, 3), c.operand(0).rank))),
    )


@handles("LRN")
def _local_response(c: NodeContext) -> Result:
    x = c.value(0)
    rank = c.needs_rank(0, 3)
    size = c.int_attr("size")
    if not 1 <= size <= 4096:
        c.broken(f"size is {size}")
    alpha, beta, bias = c.float_attr("alpha", 1e-4), c.float_attr("beta", 0.75), c.float_attr("bias", 1.0)
    before = (size - 1) // 2
    squares = c.emit("Mul", x, x)
    # the window runs over channels: seen as an image of height C, it is a pool
    image = c.reshape(squares, (x.shape[0], 1, x.shape[1], numel(x.shape[2:])))
    mean = c.emit(
        "AveragePool", image, kernel_shape=(size, 1), strides=(1, 1), dilations=(1, 1),
        pads=(before, 0, size - 1 - before, 0), ceil_mode=0, count_include_pad=1, layout="NCHW",
    )  # fmt: skip
    assert rank >= 3
    scaled = c.emit("Add", c.scale(c.reshape(mean, x.shape), alpha), c.const(bias, x.dtype))
    return c.emit("Div", x, c.emit("Pow", scaled, c.const(beta, x.dtype)))
