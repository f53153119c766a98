"""Complex tensors: products, variances and norms of elements."""

from __future__ import annotations

import math

from arcweld.compiler.ir import Value
from arcweld.compiler.torch.context import AtenContext, Pair, Result, complex_aten
from arcweld.compiler.torch.handlers.complex_arithmetic import minus, operand, pair_of, result, times
from arcweld.compiler.torch.handlers.complex_functions import exponential, size


@complex_aten("prod", "prod.dim_int")
def prod(c: AtenContext) -> Result:
    """The product of an axis, or of all elements: halves times each other until one element is left."""
    x = pair_of(c, operand(c, c["self"]))
    if not x.shape:
        return x
    axis = 0 if c.get("dim") is None else c.axis(c["dim"])
    if c.get("dim") is None:
        x = Pair(*(c.reshape(p, (p.type.numel,)) for p in x.parts))
    n = x.shape[axis]
    if not isinstance(n, int):
        raise c.fail(f"the product of a symbolic number of complex elements, {n}")
    while isinstance(n, int) and n > 1:
        half = n // 2
        low, high, rest = (
            Pair(*(c.slice(p, axis, start, count) for p in x.parts))
            for start, count in ((0, half), (half, half), (2 * half, n - 2 * half))
        )
        x = pair_of(c, times(c, low, high))
        if n % 2:
            x = Pair(*(c.concat([a, b], axis) for a, b in zip(x.parts, rest.parts)))
        n = x.shape[axis]
    return Pair(*(c.reshape(p, c.out.shape) for p in x.parts))


@complex_aten("cumprod")
def cumprod(c: AtenContext) -> Result:
    """The running product: each turn multiplies by what lies 1, 2, 4, ... elements before, until all do."""
    x = pair_of(c, operand(c, c["self"]))
    if not x.shape:
        return x
    axis = c.axis(c["dim"])
    n, step = x.shape[axis], 1
    if not isinstance(n, int):
        raise c.fail(f"the running product of a symbolic number of complex elements, {n}")
    while step < n:
        first, late, early = (
            Pair(*(c.slice(p, axis, start, count) for p in x.parts))
            for start, count in ((0, step), (step, n - step), (0, n - step))
        )
        rest = pair_of(c, times(c, late, early))
        x = Pair(*(c.concat([a, b], axis) for a, b in zip(first.parts, rest.parts)))
        step *= 2
    return x


@complex_aten("var", "var.dim", "var.correction")
def var(c: AtenContext) -> Result:
    """The mean of the squared distance from the mean: the sum of both parts' variances."""
    return _variance(c)


@complex_aten("std", "std.dim", "std.correction")
def std(c: AtenContext) -> Result:
    return c.emit("Sqrt", _variance(c))


@complex_aten("var_mean", "var_mean.dim", "var_mean.correction")
def var_mean(c: AtenContext) -> Result:
    axes = c.get("dim")
    mean = [
        c.call("mean.dim", c.out, self=p, dim=axes, keepdim=c.get("keepdim", False), dtype=None)
        for p in c["self"].parts
    ]  # fmt: skip
    return _variance(c), Pair(*mean)


def _variance(c: AtenContext) -> Value:
    return c.emit("Add", *(c.call("var.correction", c.out, **{**c.args, "self": p}) for p in c["self"].parts))


@complex_aten("linalg_vector_norm", "norm.Scalar", "norm.ScalarOpt_dim")
def vector_norm(c: AtenContext) -> Result:
    return c.call("linalg_vector_norm", c.out, **{**c.args, "self": size(c, c["self"])})


@complex_aten("dist")
def dist(c: AtenContext) -> Result:
    difference = minus(c, operand(c, c["self"]), operand(c, c["other"]))
    distance = size(c, pair_of(c, difference))
    return c.call("dist", c.out, self=distance, other=c.scalar(0.0, distance.dtype), p=c["p"])


@complex_aten("ldexp.Tensor")
def ldexp(c: AtenContext) -> Result:
    """``self * 2 ** other``."""
    base, other = c.scalar(2.0, c.out.dtype), operand(c, c["other"])
    if isinstance(other, Value):
        return result(c, times(c, operand(c, c["self"]), c.emit("Pow", base, other)))
    turns = pair_of(c, times(c, other, c.scalar(math.log(2), c.out.dtype)))
    return result(c, times(c, operand(c, c["self"]), exponential(c, turns)))
