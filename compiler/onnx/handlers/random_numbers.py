"""Handlers of random numbers: uniform, normal, Bernoulli and multinomial ones, all made of Uniform (Philox).

An engine's numbers are the same in every run: those of the node's seed, or of its name where it has none.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Sequence

from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.base import Result, handles
from arcweld.compiler.onnx.proto import element_type


def seed_of(c: NodeContext) -> int:
    """The node's seed, of a float its bits; without one a checksum of its name: no two nodes share their numbers."""
    given = c.attrs.get("seed")
    if given is None:
        return zlib.crc32(c.name.encode())
    if isinstance(given, int):
        return given % (1 << 64)
    if not isinstance(given, float):
        c.broken("attribute seed has the wrong type")
    return int.from_bytes(struct.pack("<f", given), "little")


def uniform(c: NodeContext, shape: Sequence[Dim], dtype: DType, half: int = 0) -> Value:
    """Numbers in [0, 1): in f64 for f64, else in f32."""
    wide = DType.F64 if dtype is DType.F64 else DType.F32
    return c.emit("Uniform", shape=tuple(shape), seed=seed_of(c), half=half, dtype=wide)


def _shape_and_type(c: NodeContext) -> tuple[tuple[Dim, ...], DType]:
    """Of the operand, or of the attributes where there is none."""
    like = bool(c.operands)
    shape: tuple[Dim, ...] = c.shape(0) if like else (c.ints_attr("shape") or ())
    given = element_type(c.int_attr("dtype", 1)) if c.has_attr("dtype") or not like else c.operand(0).dtype
    if not given.is_float or given.is_storage or any(isinstance(d, int) and d < 0 for d in shape):
        c.broken(f"{given.value} numbers of the shape {list(shape)}")
    return shape, given


@handles("RandomUniform", "RandomUniformLike")
def _uniform(c: NodeContext) -> Result:
    shape, dtype = _shape_and_type(c)
    low, high = c.float_attr("low", 0.0), c.float_attr("high", 1.0)
    y = uniform(c, shape, dtype)
    if low == 0 and high == 1:
        return c.cast(y, dtype)
    return c.cast(c.emit("Add", c.scale(y, high - low), c.const(low, y.dtype)), dtype)


@handles("RandomNormal", "RandomNormalLike")
def _normal(c: NodeContext) -> Result:
    """By Box and Muller, of 1 - u, which is never 0."""
    shape, dtype = _shape_and_type(c)
    mean, scale = c.float_attr("mean", 0.0), c.float_attr("scale", 1.0)
    first, second = (uniform(c, shape, dtype, half) for half in (0, 1))
    rest = c.emit("Sub", c.const(1.0, first.dtype), first)
    radius = c.emit("Sqrt", c.scale(c.emit("Log", rest), -2.0))
    y = c.emit("Mul", radius, c.emit("Cos", c.scale(second, 2 * math.pi)))
    return c.cast(c.emit("Add", c.scale(y, scale), c.const(mean, y.dtype)), dtype)


@handles("Bernoulli")
def _bernoulli(c: NodeContext) -> Result:
    p = c.value(0)
    to = element_type(c.int_attr("dtype")) if c.has_attr("dtype") else p.dtype
    u = uniform(c, p.shape, p.dtype)
    return c.cast(c.emit("Less", u, c.cast(p, u.dtype)), to)


@handles("Multinomial")
def _multinomial(c: NodeContext) -> Result:
    """The class of a sample is the number of classes whose cumulative probability it has passed."""
    c.needs_rank(0, 2, 2)
    x, count, to = c.value(0), c.int_attr("sample_size", 1), element_type(c.int_attr("dtype", 6))
    if count < 1 or to not in (DType.I32, DType.I64):
        c.broken(f"{count} samples as {to.value}")
    rows, classes = x.shape
    c.at_least(classes, 1)
    u = uniform(c, (rows, count, 1), x.dtype)
    upto = c.emit("CumSum", c.emit("Softmax", c.cast(x, u.dtype), axis=1), axis=1)
    total = c.reshape(c.slice(upto, 1, classes - 1, 1), (rows, 1, 1))
    passed = c.emit("LessOrEqual", c.reshape(upto, (rows, 1, classes)), c.emit("Mul", u, total))
    chosen = c.emit("ReduceSum", c.cast(passed, DType.I64), axes=(2,), keepdims=0)
    return c.cast(c.emit("Min", chosen, c.dim_value(classes - 1)), to)  # a product may round up to the total


def dropped(c: NodeContext, x: Value, ratio: float) -> tuple[Value, Value]:
    """``x`` with elements dropped with the probability ``ratio``, the others scaled; and which are kept."""
    if not 0 <= ratio <= 1:
        c.broken(f"the ratio is {ratio}")
    u = uniform(c, x.shape, x.dtype)
    kept = c.emit("GreaterOrEqual", u, c.const(ratio, u.dtype))
    y = c.scale(x, 1 / (1 - ratio)) if ratio < 1 else x
    return c.emit("Where", kept, y, c.const(0.0, x.dtype)), kept
