"""ATen's reductions, softmax, normalisations and running sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, IntExpr, product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.torch.context import AtenContext, Result, aten


def reduced_axes(c: AtenContext, dim: Any, rank: int | None = None) -> tuple[int, ...]:
    """A ``dim`` argument (int, list, None or empty for all) as sorted axes."""
    n = len(c["self"].shape) if rank is None else rank
    if dim is None or (isinstance(dim, Sequence) and not dim):
        return tuple(range(n))
    listed = dim if isinstance(dim, Sequence) else (dim,)
    return tuple(sorted(d + n if d < 0 else d for d in listed))


def reduce(c: AtenContext, op: str, x: Value, axes: Sequence[int], keepdim: bool) -> Value:
    """A reduction over ``axes``; a tensor of rank 0 is its own result."""
    if not x.shape:
        return x
    return c.emit(op, x, axes=tuple(axes), keepdims=int(keepdim))


def _reduction(op: str) -> Any:
    def handler(c: AtenContext) -> Result:
        x = c.cast(c["self"], c.out.dtype)
        return reduce(c, op, x, reduced_axes(c, c.get("dim")), bool(c.get("keepdim", False)))

    return handler


def _truth(op: str) -> Any:
    """A reduction of which elements are not 0. Of u8 the result is u8 too: 0 or 1."""

    def handler(c: AtenContext) -> Result:
        true = c.cast(c["self"], DType.BOOL)
        found = reduce(c, op, true, reduced_axes(c, c.get("dim")), bool(c.get("keepdim", False)))
        return c.cast(found, c.out.dtype)

    return handler


aten("sum", "sum.dim_IntList")(_reduction("ReduceSum"))
aten("prod", "prod.dim_int")(_reduction("ReduceProd"))
aten("mean", "mean.dim")(_reduction("ReduceMean"))
aten("amax", "max")(_reduction("ReduceMax"))
aten("amin", "min")(_reduction("ReduceMin"))
aten("any", "any.dim", "any.dims")(_truth("ReduceMax"))
aten("all", "all.dim", "all.dims")(_truth("ReduceMin"))


def _with_index(value: str, position: str) -> Any:
    def handler(c: AtenContext) -> Result:
        x, axis, keep = c["self"], c.axis(c["dim"]), int(c["keepdim"])
        if not x.shape:
            return x, c.scalar(0, DType.I64)
        values = c.emit(value, x, axes=(axis,), keepdims=keep) if 0 in c.used else None
        return values, c.emit(position, x, axis=axis, keepdims=keep) if 1 in c.used else None

    return handler


aten("max.dim")(_with_index("ReduceMax", "ArgMax"))
aten("min.dim")(_with_index("ReduceMin", "ArgMin"))


@aten("argmax")
def argmax(c: AtenContext) -> Result:
    return _arg(c, "ArgMax")


@aten("argmin")
def argmin(c: AtenContext) -> Result:
    return _arg(c, "ArgMin")


def _arg(c: AtenContext, op: str) -> Value:
    x, dim = c["self"], c["dim"]
    if not x.shape:
        return c.scalar(0, DType.I64)
    if dim is None:
        found = c.emit(op, c.reshape(x, (x.type.numel,)), axis=0, keepdims=0)
        return c.reshape(found, c.out.shape)
    return c.emit(op, x, axis=c.axis(dim), keepdims=int(c["keepdim"]))


# --------------------------------------------------------------------------------------------------- variances


def _variance(c: AtenContext, x: Value, axes: Sequence[int], keepdim: bool, correction: float) -> tuple[Value, Value]:
    """(variance, mean) by the two-pass formula, as torch computes them; 16-bit types in f32."""
    wide = c.cast(x, x.dtype.compute)
    mean = c.emit("ReduceMean", wide, axes=tuple(axes), keepdims=1)
    centred = c.emit("Sub", wide, mean)
    square = c.emit("Mul", centred, centred)
    count = product(x.shape[a] for a in axes)
    if correction == 0:
        var = c.emit("ReduceMean", square, axes=tuple(axes), keepdims=int(keepdim))
    else:
        total = c.emit("ReduceSum", square, axes=tuple(axes), keepdims=int(keepdim))
        var = c.emit("Div", total, _degrees(c, count, correction, wide.dtype))
    if not keepdim:
        mean = c.reshape(mean, tuple(d for k, d in enumerate(x.shape) if k not in axes))
    return c.result(var), c.result(mean)


def _degrees(c: AtenContext, count: Dim, correction: float, dtype: DType) -> Value:
    if isinstance(count, IntExpr):
        less = c.emit("Sub", c.scalar(count, dtype), c.scalar(float(correction), dtype))
        return c.emit("Max", less, c.scalar(0.0, dtype))
    return c.scalar(max(float(count) - correction, 0.0), dtype)


def _correction(c: AtenContext) -> float:
    if "unbiased" in c.args:
        return 1.0 if c["unbiased"] else 0.0
    given = c.get("correction")
    return 1.0 if given is None else float(given)


def _spread(c: AtenContext) -> tuple[Value, Value]:
    axes = reduced_axes(c, c.get("dim"))
    return _variance(c, c["self"], axes, bool(c.get("keepdim", False)), _correction(c))


@aten("var.correction", "var.dim", "var")
def var(c: AtenContext) -> Result:
    return _spread(c)[0]


@aten("std.correction", "std.dim", "std")
def std(c: AtenContext) -> Result:
    return c.emit("Sqrt", _spread(c)[0])


@aten("var_mean.correction", "var_mean.dim", "var_mean")
def var_mean(c: AtenContext) -> Result:
    return _spread(c)


@aten("logsumexp")
def logsumexp(c: AtenContext) -> Result:
    x = c.cast(c["self"], c.out.dtype)
    return reduce(c, "ReduceLogSumExp", x, reduced_axes(c, c["dim"]), bool(c["keepdim"]))


def _cumulative(op: str) -> Any:
    def handler(c: AtenContext) -> Result:
        x = c.cast(c["self"], c.out.dtype)
        return c.emit(op, x, axis=c.axis(c["dim"]), exclusive=0, reverse=0) if x.shape else x

    return handler


for _name, _op in (("cumsum", "CumSum"), ("cumprod", "CumProd")):
    aten(_name)(_cumulative(_op))


# ------------------------------------------------------------------------------------------------------ softmax


def _softmax(op: str) -> Any:
    def handler(c: AtenContext) -> Result:
        x = c.cast(c["self"], c.out.dtype)
        if not x.shape:
            return c.full(1.0 if op == "Softmax" else 0.0, (), x.dtype)
        return c.emit(op, x, axis=c.axis(c["dim"]))

    return handler


aten("softmax.int", "_softmax")(_softmax("Softmax"))
aten("log_softmax.int", "_log_softmax")(_softmax("LogSoftmax"))


@aten("_safe_softmax")
def safe_softmax(c: AtenContext) -> Result:
    """Softmax where a row of minus infinities gives zeros instead of NaN."""
    x, axis = c.cast(c["self"], c.out.dtype), c.axis(c["dim"])
    top = c.emit("ReduceMax", x, axes=(axis,), keepdims=1)
    empty = c.emit("IsInf", top, detect_negative=1, detect_positive=0)
    return c.emit("Where", empty, c.scalar(0.0, x.dtype), c.emit("Softmax", x, axis=axis))


# ----------------------------------------------------------------------------------------------- normalisations


@aten("layer_norm", "native_layer_norm")
def layer_norm(c: AtenContext) -> Result:
    x = c.get("input")
    axis = len(x.shape) - len(c["normalized_shape"])
    scale, bias = _affine(c, x)
    eps = float(c["eps"])
    y = c.emit("LayerNormalization", x, scale, bias, axis=axis, epsilon=eps)
    return y if len(c.outs) == 1 else (y, *_saved_moments(c, x, range(axis, len(x.shape)), eps))


def _affine(c: AtenContext, x: Value) -> tuple[Value | None, Value | None]:
    """Scale and bias in x's type; a bias alone gets a scale of ones, as operands are positional."""
    scale, bias = c.get("weight"), c.get("bias")
    scale = None if scale is None else c.cast(scale, x.dtype)
    bias = None if bias is None else c.cast(bias, x.dtype)
    if scale is None and bias is not None:
        scale = c.scalar(1.0, x.dtype)
    return scale, bias


def _saved_moments(c: AtenContext, x: Value, axes: Sequence[int], eps: float) -> tuple[Value | None, Value | None]:
    """The mean and the reciprocal standard deviation, which only backward graphs read."""
    if not {1, 2} & c.used:
        return None, None
    wide = c.cast(x, x.dtype.compute)
    mean = c.emit("ReduceMean", wide, axes=tuple(axes), keepdims=1)
    centred = c.emit("Sub", wide, mean)
    var = c.emit("ReduceMean", c.emit("Mul", centred, centred), axes=tuple(axes), keepdims=1)
    rstd = c.emit("Rsqrt", c.emit("Add", var, c.scalar(eps, wide.dtype)))
    return _saved(c, 1, mean), _saved(c, 2, rstd)


def _saved(c: AtenContext, result: int, v: Value) -> Value:
    """``v`` in the shape and type that torch gives this result."""
    out = c.outs[result]
    assert out is not None
    return c.reshape(c.cast(v, out.dtype), out.shape)


@aten("rms_norm", "_fused_rms_norm")
def rms_norm(c: AtenContext) -> Result:
    x = c["input"]
    axis = len(x.shape) - len(c["normalized_shape"])
    eps = c["eps"]
    if eps is None:
        eps = float(np.finfo(np.float32).eps) if x.dtype is not DType.F64 else float(np.finfo(np.float64).eps)
    weight = c.get("weight")
    weight = None if weight is None else c.cast(weight, x.dtype)
    y = c.emit("RMSNormalization", x, weight, axis=axis, epsilon=float(eps))
    if len(c.outs) == 1:
        return y
    if 1 not in c.used:
        return y, None
    wide = c.cast(x, x.dtype.compute)
    square = c.emit("ReduceMean", c.emit("Mul", wide, wide), axes=tuple(range(axis, len(x.shape))), keepdims=1)
    return y, _saved(c, 1, c.emit("Rsqrt", c.emit("Add", square, c.scalar(float(eps), wide.dtype))))


@aten("group_norm", "native_group_norm")
def group_norm(c: AtenContext) -> Result:
    x = c["input"]
    groups = c.get("num_groups", c.get("group"))
    scale, bias = (c.get(k) for k in ("weight", "bias"))
    channels = x.shape[1]
    scale = c.full(1.0, (channels,), x.dtype) if scale is None else c.cast(scale, x.dtype)
    bias = c.full(0.0, (channels,), x.dtype) if bias is None else c.cast(bias, x.dtype)
    y = c.emit("GroupNormalization", x, scale, bias, epsilon=float(c["eps"]), num_groups=groups)
    if len(c.outs) == 1:
        return y
    rows = c.reshape(x, (x.shape[0], groups, product((channels // groups, *x.shape[2:]))))
    return (y, *_saved_moments(c, rows, [2], float(c["eps"])))


@aten("instance_norm")
def instance_norm(c: AtenContext) -> Result:
    if not c["use_input_stats"]:
        return batch_norm(c)
    x = c["input"]
    channels = x.shape[1]
    scale = c.full(1.0, (channels,), x.dtype) if c["weight"] is None else c.cast(c["weight"], x.dtype)
    bias = c.full(0.0, (channels,), x.dtype) if c["bias"] is None else c.cast(c["bias"], x.dtype)
    return c.emit("InstanceNormalization", x, scale, bias, epsilon=float(c["eps"]))


_NO_TRAINING = ("_native_batch_norm_legit_no_training", "_batch_norm_no_update")


@aten("batch_norm", *_NO_TRAINING, "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
def batch_norm(c: AtenContext) -> Result:
    if c.get("training", False):
        raise c.fail("batch normalisation in training mode")
    x = c["input"]
    eps = float(c.get("eps", c.get("epsilon")))
    mean, var = c["running_mean"], c["running_var"]
    scale = c.full(1.0, mean.shape, mean.dtype) if c["weight"] is None else c["weight"]
    bias = c.full(0.0, mean.shape, mean.dtype) if c["bias"] is None else c["bias"]
    dtype = x.dtype if mean.dtype is x.dtype else DType.F32  # 16-bit data usually comes with f32 statistics
    operands = [c.cast(v, dtype) for v in (x, scale, bias, mean, var)]
    y = c.result(c.emit("BatchNormalization", *operands, epsilon=eps))
    if len(c.outs) == 1:
        return y
    c.require_unused(*range(1, len(c.outs)))
    return (y, *[None] * (len(c.outs) - 1))


@aten("_native_batch_norm_legit.no_stats")
def batch_norm_without_statistics(c: AtenContext) -> Result:
    """Normalises each channel over the batch: standardised convolution weights are written so."""
    x = c["input"]
    c.require_unused(1, 2)
    wide = c.cast(x, DType.F32) if x.dtype.is_half else x
    axes = tuple(a for a in range(len(x.shape)) if a != 1)
    centred = c.emit("Sub", wide, c.emit("ReduceMean", wide, axes=axes, keepdims=1))
    variance = c.emit("ReduceMean", c.emit("Mul", centred, centred), axes=axes, keepdims=1)
    y = c.emit("Mul", centred, c.emit("Rsqrt", c.emit("Add", variance, c.full(float(c["eps"]), (), wide.dtype))))
    for op, name in (("Mul", "weight"), ("Add", "bias")):
        if c[name] is not None:
            shape = (c[name].shape[0], *(1,) * (len(x.shape) - 2))
            y = c.emit(op, y, c.emit("Reshape", c.cast(c[name], wide.dtype), shape=shape))
    return c.cast(y, x.dtype), None, None
