"""ATen's norms of vectors, the distances that they measure, and sums of products that are no matrix products."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.torch.context import AtenContext, Result, aten
from arcweld.compiler.torch.handlers.reduce import reduce, reduced_axes


@aten("linalg_vector_norm", "norm.Scalar", "norm.ScalarOpt_dim")
def vector_norm(c: AtenContext) -> Result:
    order = c.get("ord", c.get("p"))
    axes, keep = reduced_axes(c, c.get("dim")), bool(c.get("keepdim", False))
    return norm(c, c.cast(c["self"], c.out.dtype), 2.0 if order is None else float(order), axes, keep)


def norm(c: AtenContext, x: Value, order: float, axes: Sequence[int], keep: bool) -> Value:
    """``sum(|x| ^ order) ^ (1 / order)``; order 0 counts elements that are not 0, infinite ones give extrema."""
    if order in (1.0, 2.0) and x.shape:
        return c.emit("ReduceL1" if order == 1.0 else "ReduceL2", x, axes=tuple(axes), keepdims=int(keep))
    size = c.emit("Abs", c.cast(x, x.dtype.compute))
    if math.isinf(order):
        return c.cast(reduce(c, "ReduceMax" if order > 0 else "ReduceMin", size, axes, keep), x.dtype)
    if order == 0:
        zero = c.emit("Equal", size, c.scalar(0.0, size.dtype))
        return c.cast(reduce(c, "ReduceSum", c.cast(c.emit("Not", zero), size.dtype), axes, keep), x.dtype)
    if not x.shape and order > 0:
        return c.cast(size, x.dtype)
    total = reduce(c, "ReduceSum", c.emit("Pow", size, c.scalar(order, size.dtype)), axes, keep)
    return c.cast(c.emit("Pow", total, c.scalar(1 / order, size.dtype)), x.dtype)


@aten("dist")
def dist(c: AtenContext) -> Result:
    difference = c.apply("Sub", c["self"], c["other"])
    return norm(c, difference, float(c["p"]), range(len(difference.shape)), keep=False)


@aten("_cdist_forward")
def cdist(c: AtenContext) -> Result:
    """The distances of all rows of one matrix from all rows of another, from differences."""
    a, b = c["x1"], c["x2"]
    mine = c.reshape(a, (*a.shape[:-1], 1, a.shape[-1]))
    other = c.reshape(b, (*b.shape[:-2], 1, *b.shape[-2:]))
    difference = c.emit("Sub", mine, other)
    return norm(c, difference, float(c["p"]), [len(difference.shape) - 1], keep=False)


_MOST_PAIRS = 1 << 16


@aten("_pdist_forward")
def pdist(c: AtenContext) -> Result:
    """The distance of each row from every later one."""
    x: Value = c["self"]
    n = x.shape[0]
    if not isinstance(n, int) or n * n > 2 * _MOST_PAIRS:
        raise c.fail(f"the distances between {n} rows")
    pairs = list(itertools.combinations(range(n), 2))
    first, second = (c.emit("Gather", x, c.const([p[k] for p in pairs], DType.I64), axis=0) for k in (0, 1))
    return norm(c, c.emit("Sub", first, second), float(c["p"]), [1], keep=False)


@aten("_trilinear")
def trilinear(c: AtenContext) -> Result:
    """The product of three tensors, each with axes of 1 put in, summed over some axes."""
    factors = []
    for k in (1, 2, 3):
        x: Value = c[f"i{k}"]
        shape = list(x.shape)
        for axis in sorted(c[f"expand{k}"]):
            shape.insert(axis, 1)
        factors.append(c.reshape(x, shape))
    product = c.emit("Mul", c.emit("Mul", c.wide(factors[0]), c.wide(factors[1])), c.wide(factors[2]))
    return c.result(c.emit("ReduceSum", product, axes=tuple(sorted(c["sumdim"])), keepdims=0))
