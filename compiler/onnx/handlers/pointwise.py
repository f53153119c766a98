"""Handlers of elementwise operators: activations, arithmetic, comparisons, casts, Clip, Dropout."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from arcweld.compiler.dtypes import FLOATS8, DType
from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext, broadcast_shape
from arcweld.compiler.onnx.handlers.base import Result, handles
from arcweld.compiler.onnx.handlers.random_numbers import dropped
from arcweld.compiler.onnx.operands import Operand
from arcweld.compiler.onnx.proto import element_type
from arcweld.compiler.ops import registry

# operators whose ONNX attributes, names and defaults are the registry's own
SAME = (
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd", "BitwiseNot",
    "BitwiseOr", "BitwiseXor", "Ceil", "Celu", "Cos", "Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu",
    "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual",
    "Log", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "Reciprocal", "Relu", "Round", "Selu", "Shrink",
    "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Tan", "Tanh", "ThresholdedRelu", "Where",
    "Xor",
)  # fmt: skip

_KINDS: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool}


def same_attrs(c: NodeContext, ir_op: str) -> dict[str, Any]:
    """The node's attributes, checked against the registry's schema; the registry knows the defaults of the others."""
    schema = registry.opdef(ir_op).attrs
    attrs: dict[str, Any] = {}
    for name, value in c.attrs.items():
        if name not in schema:
            c.broken(f"unknown attribute {name}")
        kind = _KINDS.get(schema[name].kind)
        if kind is bool and value in (0, 1):  # ONNX has no attributes that are bools
            value = bool(value)
        if kind is None or not isinstance(value, kind):
            c.broken(f"attribute {name} has the wrong type")
        attrs[name] = value
    return attrs


@handles(*SAME)
def _same(c: NodeContext) -> Result:
    return c.emit(c.op, *c.values(), **same_attrs(c, c.op))


@handles("PRelu")
def _prelu(c: NodeContext) -> Result:
    """A slope for each channel had one axis before operator set 7; ONNX's version converter leaves it so."""
    x, slope = c.values()
    channels = slope.type.rank == 1 and x.type.rank > 2 and slope.shape[0] not in (1, x.shape[-1])
    if channels and slope.shape[0] == x.shape[1]:
        slope = c.reshape(slope, (slope.shape[0], *[1] * (x.type.rank - 2)))
    return c.emit("PRelu", x, slope)


@handles("Max", "Min", "Sum", "Mean")
def _variadic(c: NodeContext) -> Result:
    return c.operand(0) if len(c.operands) == 1 else c.emit(c.op, *c.values())


@handles("Identity")
def _identity(c: NodeContext) -> Result:
    return c.operand(0)


@handles("Pow")
def _pow(c: NodeContext) -> Result:
    base, exponent = c.value(0), c.value(1)
    if base.dtype is exponent.dtype:
        return c.emit("Pow", base, exponent)
    if base.dtype.is_float:
        return c.emit("Pow", base, c.cast(exponent, base.dtype))
    wide = exponent.dtype if exponent.dtype.is_float else DType.I64
    return c.cast(c.emit("Pow", c.cast(base, wide), c.cast(exponent, wide)), base.dtype)


@handles("Cast")
def _cast(c: NodeContext) -> Result:
    return _converted(c, element_type(c.int_attr("to")))


@handles("CastLike")
def _cast_like(c: NodeContext) -> Result:
    return _converted(c, c.operand(1).dtype)


# A factor before rounding to the nearest power of two, ties up: then it rounds up, or down. The first is the f32 below
# 1.5, so that a power of two itself stays below the tie.
_ROUNDING = {"up": float(np.nextafter(np.float32(1.5), np.float32(1))), "down": 0.75, "nearest": 1.0}


def _converted(c: NodeContext, to: DType) -> Value:
    x = c.value(0)
    if to is DType.F8E8M0:
        x = c.emit("Mul", c.emit("Abs", c.cast(x, DType.F32)), c.const(_ROUNDING[_round_mode(c)], DType.F32))
        if c.int_attr("saturate", 1):
            x = c.emit("Clip", x, min=2.0**-127, max=2.0**127)
    elif to in FLOATS8 and c.int_attr("saturate", 1):
        most = float(ml_dtypes.finfo(to.numpy).max)
        x = c.emit("Clip", x if x.dtype is DType.F64 else c.cast(x, DType.F32), min=-most, max=most)
    return c.cast(x, to)


def _round_mode(c: NodeContext) -> str:
    mode = c.str_attr("round_mode", "up")
    if mode not in _ROUNDING:
        c.broken(f"the rounding {mode!r} is none of {', '.join(_ROUNDING)}")
    return mode


@handles("Clip")
def _clip(c: NodeContext) -> Result:
    x = c.value(0)
    if c.opset < 11:
        bounds: list[Any] = [c.float_attr("min", -math.inf), c.float_attr("max", math.inf)]
        return c.emit("Clip", x, min=_finite(bounds[0]), max=_finite(bounds[1]))
    known = [_bound(c, i) for i in (1, 2)]
    if x.dtype.is_float and all(k is not Ellipsis for k in known):
        return c.emit("Clip", x, min=known[0], max=known[1])
    if c.has(1):
        x = c.emit("Max", x, c.value(1))
    return c.emit("Min", x, c.value(2)) if c.has(2) else x


def _finite(x: float) -> float | None:
    return None if math.isinf(x) else x


def _bound(c: NodeContext, i: int) -> Any:
    """A Clip bound: a number, None where there is none, Ellipsis where the host does not know it."""
    if not c.has(i):
        return None
    try:
        return _finite(float(c.number(i)))
    except UnsupportedError:
        return Ellipsis


@handles("Dropout")
def _dropout(c: NodeContext) -> Result:
    training = c.has(2) and bool(c.number(2))
    ratio = c.number(1) if c.has(1) else 0.5
    if training and ratio != 0:
        return dropped(c, c.value(0), float(ratio))
    if len(c.used) < 2 or not c.used[1]:
        return c.operand(0)
    x = c.value(0)
    return [x, c.emit("ConstantOfShape", shape=x.shape, value=1, dtype=DType.BOOL)]


@handles("Swish")
def _swish(c: NodeContext) -> Result:
    return c.emit("Silu", c.value(0), alpha=c.float_attr("alpha", 1.0))


@handles("BitCast")
def _bitcast(c: NodeContext) -> Result:
    to, operand = element_type(c.int_attr("to")), c.operand(0)
    if operand.dtype.bits != to.bits:
        c.broken(f"{operand.dtype.value} has not the bits of {to.value}")
    if operand.known is not None and not operand.is_symbolic:
        return Operand(to, operand.shape, known=operand.known.view(to.numpy), source=operand.source)
    if operand.dtype is DType.BOOL and to.is_int:
        return c.cast(c.value(0), to)
    if any(d is DType.BOOL or d.is_half or d.is_storage for d in (operand.dtype, to)):
        c.unsupported(f"the bits of {operand.dtype.value} as {to.value}, unless they are constants")
    return c.emit("BitCast", c.value(0), to=to)


def bias_add(c: NodeContext, x: Value, bias: Value | None) -> Value:
    """``x + bias``, or ``x`` without one."""
    if bias is None:
        return x
    broadcast_shape(c, x.shape, bias.shape)
    return c.emit("Add", x, bias)
