"""Steps of random graphs that compute element by element: floats, integers, conditions and casts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from maker import INTEGERS, Maker, Step, random_array

from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value

UNARY = ("Relu", "Sigmoid", "Tanh", "Gelu", "Abs", "Neg", "Erf", "Silu", "Softplus", "HardSwish", "Identity",
         "LeakyRelu", "Elu", "Mish", "Softsign")  # fmt: skip
BINARY = ("Add", "Sub", "Mul", "Max", "Min")
BITWISE = ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
COMPARE = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
LOGIC = ("And", "Or", "Xor")


def broadcastable(m: Maker, shape: Sequence[Dim]) -> list[Dim]:
    """A shape that broadcasts to ``shape``."""
    kept: list[Dim] = [1 if m.chance(3) else d for d in shape]
    return kept[m.pick(len(kept) + 1) if m.chance(2) else 0 :]


def _unary(m: Maker, x: Value) -> Value | None:
    if x.dtype is DType.BOOL:
        return m.make(m.one(("Not", "Identity")), [x])
    if x.dtype.is_float:
        # of a large rounded number the sine may be anything
        return m.make(m.one((*UNARY, "Sin") if m.exact(x) else UNARY), [x])
    signed = ("Neg", "Abs", "Sign") if x.dtype.is_signed else ()
    return m.make(m.one(("Identity", "Relu", "BitwiseNot", *signed)), [x])


def _clip(m: Maker, x: Value) -> Value | None:
    low = -1 if x.dtype.is_signed else 1
    limits = ((None, -0.5, 0.0), (None, 0.75)) if x.dtype.is_float else ((None, low, 0), (None, 2))
    return m.make("Clip", [x], min=m.one(limits[0]), max=m.one(limits[1])) if x.dtype is not DType.BOOL else None


def _binary(m: Maker, x: Value) -> Value | None:
    fitting = [v for v in m.values if v.dtype is x.dtype and v.shape == x.shape]
    y = m.one(fitting) if m.chance(2) else m.operand(broadcastable(m, x.shape), x.dtype)
    names = LOGIC if x.dtype is DType.BOOL else BINARY if x.dtype.is_float or m.pick(3) else BITWISE
    return m.make(m.one(names), [x, y] if m.pick(2) else [y, x])


def _sum(m: Maker, x: Value) -> Value | None:
    """Several operands of one operator."""
    more = [m.operand(broadcastable(m, x.shape), x.dtype) for _ in range(1 + m.pick(2))]
    names = ("Sum", "Mean", "Max") if x.dtype.is_float else ("Sum", "Min")
    return m.make(m.one(names), [x, *more])


def _divide(m: Maker, x: Value) -> Value | None:
    """By numbers far from 0."""
    if x.dtype is DType.BOOL:
        return None
    shape = [d for d in broadcastable(m, x.shape) if isinstance(d, int)]
    if len(shape) < x.type.rank:
        shape = []
    y = random_array(m.rng, tuple(int(d) for d in shape), x.dtype).astype(np.float32)
    divisor = m.weight(np.where(y < 0, y - 1, y + 1), x.dtype)
    if x.dtype.is_float or m.chance(2):
        return m.make("Div", [x, divisor])
    return m.make("Mod", [x, divisor], fmod=m.pick(2))


def _where(m: Maker, x: Value) -> Value | None:
    conditions = [v for v in m.values if v.dtype is DType.BOOL and v.shape == x.shape]
    if conditions and m.chance(2):
        cond = m.one(conditions)
    else:
        i = m.operand(broadcastable(m, x.shape), DType.I32)
        cond = m.make(m.one(("Greater", "LessOrEqual", "Equal")), [i, m.weight(np.asarray(0), DType.I32)])
    other = m.operand(broadcastable(m, x.shape), x.dtype)
    return None if cond is None else m.make("Where", [cond, x, other])


def _compare(m: Maker, x: Value) -> Value | None:
    if not m.exact(x) or x.dtype is DType.BOOL:
        return None
    y = m.operand(broadcastable(m, x.shape), x.dtype)
    return m.make(m.one(COMPARE), [x, y] if m.pick(2) else [y, x])


def _cast(m: Maker, x: Value) -> Value | None:
    if not x.dtype.is_float:
        return m.make("Cast", [x], to=m.one((DType.F32, DType.F32, DType.F16, *INTEGERS, DType.BOOL)))
    targets = [DType.F32] if x.dtype is not DType.F32 else [DType.F16, DType.BF16, DType.F64]
    return m.make("Cast", [x], to=m.one((*targets, DType.I32, DType.BOOL) if m.exact(x) else targets))


POINTWISE: tuple[Step, ...] = (
    _unary, _unary, _unary, _clip, _binary, _binary, _binary, _sum, _divide, _where, _compare, _cast, _cast,
)  # fmt: skip
