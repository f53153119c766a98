"""The pointwise operators: each entry has an expression (the lowering) and a numpy function (the reference).

The first argument ``p`` of both is the node's attributes. See docs/add-an-op.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from arcweld.compiler.bulk import converted
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.expr import Expr, binary, bitwise_not, cast, const, divisor, logical_not, unary, where
from arcweld.compiler.ir import Node, TensorType
from arcweld.compiler.ops import reference_math as rm
from arcweld.compiler.ops.elementwise import Attrs, boolean, pointwise, second
from arcweld.compiler.ops.registry import Attr, Case, Reader
from arcweld.compiler.ops.shapes import (
    ANY,
    BOOLS,
    INTS,
    NUMERIC,
    STORED,
    broadcast,
    check_dtype,
    read,
    same_dtype,
    show,
)

FLOAT_AND_INT = ("f32", "f16", "i32", "i64")
SIGNED_INT = ("i32", "i64")

# ------------------------------------------------------------------------------------ small pieces of expressions


def _max(a: Expr, b: Expr | float) -> Expr:
    return binary("max", a, b if isinstance(b, Expr) else const(b, a.dtype))


def _min(a: Expr, b: Expr | float) -> Expr:
    return binary("min", a, b if isinstance(b, Expr) else const(b, a.dtype))


def _less(a: Expr, b: float) -> Expr:
    return binary("lt", a, const(b, a.dtype))


def _greater(a: Expr, b: float) -> Expr:
    return binary("gt", a, const(b, a.dtype))


def _sigmoid(x: Expr) -> Expr:
    return unary("recip", unary("exp", -x) + 1.0)


def _softplus(x: Expr) -> Expr:
    return _max(x, 0.0) + unary("log1p", unary("exp", -unary("abs", x)))


def _clip(p: Attrs, x: Expr) -> Expr:
    lo, hi = _limits(p, x.dtype)
    x = x if lo is None else _max(x, lo)
    return x if hi is None else _min(x, hi)


def _limits(p: Attrs, dtype: DType) -> tuple[float | None, float | None]:
    """Clip's ``min`` and ``max``, clamped to the range of an integer type."""
    if dtype.is_float:
        return p["min"], p["max"]
    info = np.iinfo(dtype.numpy)
    lo = None if p["min"] is None else int(max(p["min"], int(info.min)))
    hi = None if p["max"] is None else int(min(p["max"], int(info.max)))
    return lo, hi


def _np_clip(p: Attrs, x: np.ndarray) -> np.ndarray:
    lo, hi = p["min"], p["max"]
    if lo is not None:
        x = np.where(x < lo, np.asarray(lo).astype(x.dtype), x)
    if hi is not None:
        x = np.where(x > hi, np.asarray(hi).astype(x.dtype), x)
    return x


def _gelu(p: Attrs, x: Expr) -> Expr:
    if p["approximate"] == "tanh":
        inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
        return x * 0.5 * (unary("tanh", inner) + 1.0)
    return x * 0.5 * (unary("erf", x * math.sqrt(0.5)) + 1.0)


def _np_gelu(p: Attrs, x: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    if p["approximate"] == "tanh":
        return np.asarray(wide / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3))))
    return np.asarray(wide / 2 * (1 + rm.erf(wide / np.sqrt(2))))


def _isinf(p: Attrs, x: Expr) -> Expr:
    if p["detect_negative"] and p["detect_positive"]:
        return unary("isinf", x)
    side = _greater(x, 0.0) if p["detect_positive"] else _less(x, 0.0)
    some = p["detect_negative"] or p["detect_positive"]
    return binary("and", unary("isinf", x), side) if some else const(False, DType.BOOL)


def _np_isinf(p: Attrs, x: np.ndarray) -> np.ndarray:
    return (bool(p["detect_negative"]) & np.isneginf(x)) | (bool(p["detect_positive"]) & np.isposinf(x))


def _pow(p: Attrs, a: Expr, b: Expr) -> Expr:
    simple = {2.0: lambda: a * a, 1.0: lambda: a, 3.0: lambda: a * a * a}
    if b.op == "const" and b.attr in simple:
        return simple[b.attr]()
    if not a.dtype.is_float and b.dtype.is_float:
        return cast(binary("pow", cast(a, DType.F64), cast(b, DType.F64)), a.dtype)
    if not a.dtype.is_float:
        return binary("pow", a, cast(b, a.dtype))  # exact, modulo the type's range
    if b.op == "const" and b.attr == 0.5:
        return unary("sqrt", a)
    if b.op == "const" and b.attr == -1.0:
        return unary("recip", a)
    return binary("pow", a, cast(b, a.dtype))


# ------------------------------------------------------------------------------------------------------- unary


def _unary_float(name: str, op: str, fn: np.ufunc, **more: object) -> None:
    """An operator that is one function of the expression language."""
    pointwise(name, "x", lambda p, x: unary(op, x), lambda p, x: fn(x), **more)  # type: ignore[arg-type]


_unary_float("Acos", "acos", np.arccos, low=-0.95, high=0.95, cost=20)
_unary_float("Acosh", "acosh", np.arccosh, low=1.1, high=4.0, cost=20)
_unary_float("Asin", "asin", np.arcsin, low=-0.95, high=0.95, cost=20)
_unary_float("Asinh", "asinh", np.arcsinh, cost=20)
_unary_float("Atan", "atan", np.arctan, cost=20)
_unary_float("Atanh", "atanh", np.arctanh, low=-0.9, high=0.9, cost=20)
_unary_float("Cos", "cos", np.cos, cost=12)
_unary_float("Cosh", "cosh", np.cosh, cost=16)
_unary_float("Exp", "exp", np.exp, cost=6)
_unary_float("Log", "log", np.log, low=0.1, high=4.0, cost=8)
_unary_float("Sin", "sin", np.sin, cost=12)
_unary_float("Sinh", "sinh", np.sinh, cost=16)
_unary_float("Sqrt", "sqrt", np.sqrt, low=0.0, high=4.0, cost=4)
_unary_float("Tan", "tan", np.tan, low=-1.2, high=1.2, cost=16)
_unary_float("Tanh", "tanh", np.tanh, cost=12)
_unary_float("Ceil", "ceil", np.ceil, low=-9.0, high=9.0)
_unary_float("Floor", "floor", np.floor, low=-9.0, high=9.0)
_unary_float("Round", "round", np.rint, low=-9.0, high=9.0)
_unary_float("Abs", "abs", np.abs, dtypes=NUMERIC, test=FLOAT_AND_INT, low=-9.0, high=9.0)
_unary_float("Neg", "neg", np.negative, dtypes=NUMERIC, test=FLOAT_AND_INT, low=-9.0, high=9.0)
_unary_float("Sign", "sign", np.sign, dtypes=NUMERIC, test=FLOAT_AND_INT, low=-3.0, high=3.0)

pointwise("Erf", "x", lambda p, x: unary("erf", x), lambda p, x: rm.erf(x), cost=16)
pointwise("Reciprocal", "x", lambda p, x: unary("recip", x), lambda p, x: 1 / x, low=0.2, high=4.0, cost=4)
pointwise(
    "Rsqrt", "x", lambda p, x: unary("rsqrt", x), lambda p, x: 1 / np.sqrt(x), low=0.2, high=4.0, cost=4,
    doc="1 / sqrt(x)",
)  # fmt: skip
pointwise(
    "Identity", "x", lambda p, x: x, lambda p, x: x, dtypes=(*ANY, *STORED), test=("f32", "f16", "i32", "bool"), cost=0,
)  # fmt: skip
pointwise(
    "IsInf", "x", _isinf, _np_isinf, result=boolean,
    attrs={"detect_negative": Attr("int", 1), "detect_positive": Attr("int", 1)},
    cases=[
        Case((np.array([1.0, np.inf, -np.inf, np.nan], np.float32),), {"detect_negative": n, "detect_positive": q})
        for n, q in ((1, 1), (0, 1), (1, 0))
    ],
)  # fmt: skip
pointwise(
    "IsNaN", "x", lambda p, x: unary("isnan", x), lambda p, x: np.isnan(x), result=boolean,
    cases=[Case((np.array([1.0, np.inf, -np.inf, np.nan], np.float32),))],
)  # fmt: skip
pointwise("Not", "x", lambda p, x: logical_not(x), lambda p, x: ~x, dtypes=BOOLS, test=("bool",))
pointwise(
    "BitwiseNot", "x", lambda p, x: bitwise_not(x), lambda p, x: ~x,
    dtypes=INTS, test=("i32", "i64", "u8"), low=0.0, high=90.0,
)  # fmt: skip


def _check_cast(types: Sequence[TensorType], p: Attrs) -> None:
    if not isinstance(p["to"], DType):
        raise ModelError(f"Cast: {p['to']!r} is not an element type")


pointwise(
    "Cast", "x", lambda p, x: cast(x, p["to"]), lambda p, x: converted(x, p["to"].numpy),
    attrs={"to": Attr("dtype", required=True)}, result=lambda types, p: p["to"], check=_check_cast,
    cases=[
        Case(((3, 5),), {"to": to}, ("f32", "f16", "i32", "bool"), -4.0, 4.0)
        for to in (DType.F32, DType.F16, DType.BF16, DType.F64, DType.I32, DType.I64, DType.BOOL)
    ] + [
        Case(((3, 5),), {"to": DType.U8}, ("f32", "i64"), 0.0, 255.0),
        *(
            Case(((3, 7),), {"to": d}, ("f32", "f16", "i32", "u8"), -9.0 if d.is_signed else 0.0, 9.0)
            for d in STORED if d is not DType.F8E8M0
        ),
        Case(((3, 7),), {"to": DType.F8E8M0}, ("f32", "f16"), 0.1, 9.0),
        *(Case((np.linspace(-3, 3, 21).reshape(3, 7).astype(d.numpy),), {"to": DType.F32}) for d in STORED),
    ],
)  # fmt: skip

# -------------------------------------------------------------------------------------------------- activations

pointwise(
    "Relu", "x", lambda p, x: _max(x, 0.0), lambda p, x: np.maximum(x, 0), dtypes=NUMERIC, test=("f32", "f16", "i32")
)
pointwise("Sigmoid", "x", lambda p, x: _sigmoid(x), lambda p, x: rm.sigmoid(x), low=-8.0, high=8.0, cost=10)
pointwise("Softplus", "x", lambda p, x: _softplus(x), lambda p, x: rm.softplus(x), low=-30.0, high=30.0, cost=18)
pointwise("Softsign", "x", lambda p, x: x / (unary("abs", x) + 1.0), lambda p, x: x / (1 + np.abs(x)), cost=6)
pointwise(
    "Celu", "x",
    lambda p, x: _max(x, 0.0) + _min(unary("expm1", x / p["alpha"]) * p["alpha"], 0.0),
    lambda p, x: np.where(x > 0, x, p["alpha"] * (np.exp(x / p["alpha"]) - 1)),
    attrs={"alpha": Attr("float", 1.0)}, cases=[Case(((4, 3),), {"alpha": 1.7}, ("f32",))], cost=12,
)  # fmt: skip
pointwise(
    "Clip", "x", _clip, _np_clip, dtypes=NUMERIC,
    attrs={"min": Attr("float", None), "max": Attr("float", None)}, cost=2,
    cases=[
        Case(((3, 5),), {"min": lo, "max": hi}, ("f32", "f16", "i32"))
        for lo, hi in ((0.0, 6.0), (None, 1.0), (-1.0, None))
    ],
    doc="min and max are floats or None (no bound)",
)  # fmt: skip
pointwise(
    "Elu", "x", lambda p, x: where(_less(x, 0.0), unary("expm1", x) * p["alpha"], x),
    lambda p, x: np.where(x < 0, p["alpha"] * (np.exp(x) - 1), x),
    attrs={"alpha": Attr("float", 1.0)}, cases=[Case(((4, 3),), {"alpha": 0.6}, ("f32",))], cost=10,
)  # fmt: skip
pointwise(
    "Gelu", "x", _gelu, _np_gelu, attrs={"approximate": Attr("str", "none")}, low=-4.0, high=4.0, cost=20,
    test=("f32", "f16", "bf16"),
    cases=[Case(((3, 5),), {"approximate": "tanh"}, ("f32", "f16"), -4.0, 4.0)],
)  # fmt: skip
pointwise(
    "HardSigmoid", "x", lambda p, x: _min(_max(x * p["alpha"] + p["beta"], 0.0), 1.0),
    lambda p, x: np.clip(p["alpha"] * x + p["beta"], 0, 1),
    attrs={"alpha": Attr("float", 0.2), "beta": Attr("float", 0.5)}, low=-6.0, high=6.0, cost=4,
    cases=[Case(((4, 3),), {"alpha": 1 / 6, "beta": 0.5}, ("f32",), -6.0, 6.0)],
)  # fmt: skip
pointwise(
    "HardSwish", "x", lambda p, x: x * _min(_max(x * (1 / 6) + 0.5, 0.0), 1.0),
    lambda p, x: x * np.clip(x + 3, 0, 6) / 6, low=-6.0, high=6.0, cost=5,
)  # fmt: skip
pointwise(
    "LeakyRelu", "x", lambda p, x: where(_less(x, 0.0), x * p["alpha"], x),
    lambda p, x: np.where(x < 0, p["alpha"] * x, x), attrs={"alpha": Attr("float", 0.01)}, cost=2,
    cases=[Case(((4, 3),), {"alpha": 0.2}, ("f32",))],
)  # fmt: skip
pointwise(
    "Mish", "x", lambda p, x: x * unary("tanh", _softplus(x)), lambda p, x: x * np.tanh(rm.softplus(x)),
    low=-6.0, high=6.0, cost=32,
)  # fmt: skip
pointwise(
    "Selu", "x", lambda p, x: where(_greater(x, 0.0), x, unary("expm1", x) * p["alpha"]) * p["gamma"],
    lambda p, x: p["gamma"] * (np.maximum(x, 0) + p["alpha"] * (np.exp(np.minimum(x, 0)) - 1)),
    attrs={"alpha": Attr("float", 1.6732632423543772), "gamma": Attr("float", 1.0507009873554805)}, cost=12,
    cases=[Case(((4, 3),), {"alpha": 1.3, "gamma": 0.9}, ("f32",))],
)  # fmt: skip
pointwise(
    "Silu", "x", lambda p, x: x * _sigmoid(x if p["alpha"] == 1.0 else x * p["alpha"]),
    lambda p, x: x * rm.sigmoid(p["alpha"] * x), attrs={"alpha": Attr("float", 1.0)}, low=-6.0, high=6.0, cost=11,
    cases=[Case(((4, 3),), {"alpha": 1.702}, ("f32",), -6.0, 6.0)], doc="x * sigmoid(alpha * x), also called Swish",
)  # fmt: skip
pointwise(
    "Shrink", "x",
    lambda p, x: where(_less(x, -p["lambd"]), x + p["bias"], where(_greater(x, p["lambd"]), x - p["bias"], x * 0.0)),
    lambda p, x: (x + p["bias"]) * (x < -p["lambd"]) + (x - p["bias"]) * (x > p["lambd"]),
    attrs={"bias": Attr("float", 0.0), "lambd": Attr("float", 0.5)}, cost=4,
    cases=[Case(((4, 3),), {"bias": 0.3, "lambd": 0.8}, ("f32",))],
)  # fmt: skip
pointwise(
    "ThresholdedRelu", "x", lambda p, x: where(_greater(x, p["alpha"]), x, const(0.0, x.dtype)),
    lambda p, x: x * (x > p["alpha"]), attrs={"alpha": Attr("float", 1.0)}, cost=2,
)  # fmt: skip

# ------------------------------------------------------------------------------------------ binary and variadic


def _binary(name: str, op: str, fn: np.ufunc, **more: object) -> None:
    """A binary operator that is one function of the expression language."""
    pointwise(name, "a b", lambda p, a, b: binary(op, a, b), lambda p, a, b: fn(a, b), **more)  # type: ignore[arg-type]


_ORDERED = Case((np.arange(6.0, dtype=np.float32), np.array([0.0, 3, 2, 1, 4, 9], np.float32)))
_binary("Add", "add", np.add, dtypes=NUMERIC, test=(*FLOAT_AND_INT, "bf16", "f64"))
_binary("Sub", "sub", np.subtract, dtypes=NUMERIC, test=FLOAT_AND_INT)
_binary("Mul", "mul", np.multiply, dtypes=NUMERIC, test=(*FLOAT_AND_INT, "bf16"))
_binary("And", "and", np.logical_and, dtypes=BOOLS, test=("bool",))
_binary("Or", "or", np.logical_or, dtypes=BOOLS, test=("bool",))
_binary("Xor", "xor", np.logical_xor, dtypes=BOOLS, test=("bool",))
_binary("BitwiseAnd", "bitand", np.bitwise_and, dtypes=INTS, test=("i32", "u8"), low=0.0, high=99.0)
_binary("BitwiseOr", "bitor", np.bitwise_or, dtypes=INTS, test=("i32", "u8"), low=0.0, high=99.0)
_binary("BitwiseXor", "bitxor", np.bitwise_xor, dtypes=INTS, test=("i32", "u8"), low=0.0, high=99.0)
_binary("Equal", "eq", np.equal, dtypes=ANY, result=boolean, test=("i32", "bool"), cases=[_ORDERED])
_binary("Greater", "gt", np.greater, dtypes=NUMERIC, result=boolean, test=FLOAT_AND_INT, cases=[_ORDERED])
_binary("GreaterOrEqual", "ge", np.greater_equal, dtypes=NUMERIC, result=boolean, test=SIGNED_INT, cases=[_ORDERED])
_binary("Less", "lt", np.less, dtypes=NUMERIC, result=boolean, test=FLOAT_AND_INT, cases=[_ORDERED])
_binary("LessOrEqual", "le", np.less_equal, dtypes=NUMERIC, result=boolean, test=SIGNED_INT, cases=[_ORDERED])


def _lower_division(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    a, b = (read(reader, v, coords) for v in node.operands())
    name = "div" if node.op == "Div" else "fmod" if node.attrs["fmod"] else "mod"
    return binary(name, a, b if b.dtype.is_float else divisor(b, reader.mask, strict=False))


pointwise(
    "Div", "a b", lambda p, a, b: binary("div", a, b), lambda p, a, b: rm.truncating_divide(a, b), dtypes=NUMERIC,
    test=("f32", "f16"), low=0.5, high=4.0, cost=4, lower=_lower_division,
    cases=[
        Case((np.array([-7, 7, -8, 8, 0], np.int32), np.array([2, -2, 3, 3, 5], np.int32))),
        Case((np.array([-7, 7, -8, 8, 0], np.int64), np.array([2, -2, 3, 3, 5], np.int64))),
    ], doc="integers round towards zero",
)  # fmt: skip
pointwise(
    "Mod", "a b", lambda p, a, b: binary("fmod" if p["fmod"] else "mod", a, b),
    lambda p, a, b: np.fmod(a, b) if p["fmod"] else np.mod(a, b), dtypes=NUMERIC, attrs={"fmod": Attr("int", 0)},
    test=("i32", "i64"), low=1.0, high=9.0, cost=12, lower=_lower_division,
    cases=[
        Case((np.array([-7, 7, -8, 8, 0], np.int32), np.array([2, -2, 3, 3, 5], np.int32)), {"fmod": f}) for f in (0, 1)
    ] + [Case(((2, 6), (6,)), {"fmod": 1}, ("f32",), 1.0, 5.0)],
    doc="fmod=0: the result has the divisor's sign; fmod=1: C's fmod",
)  # fmt: skip


def _nonzero(a: np.ndarray) -> np.ndarray:
    if not np.all(a):
        raise ValueError("an integer is divided by zero")
    return a


def _lower_divisor(reader: Reader, node: Node, coords: tuple[Dim, ...]) -> Expr:
    return divisor(read(reader, node.operands()[0], coords), reader.mask, strict=True)


pointwise(
    "Divisor", "x", lambda p, x: divisor(x, None, strict=True), lambda p, x: _nonzero(x), dtypes=INTS,
    test=("i32", "u8"), low=1.0, high=9.0, lower=_lower_divisor, doc="x itself; a 0 stops the kernel with an error",
)  # fmt: skip


def _check_pow(types: Sequence[TensorType], p: Attrs) -> None:
    for t in types:
        check_dtype("Pow", t, NUMERIC)


pointwise(
    "Pow", "a b", _pow, lambda p, a, b: rm.power(a, b), check=_check_pow, cost=24,
    cases=[
        Case(((3, 5), (5,)), {}, ("f32", "f16"), 0.3, 2.0),
        *(Case((np.linspace(0.5, 3, 6, dtype=np.float32), np.array(e, np.float32))) for e in (2, 3, 0.5, -1, 1)),
        Case((np.array([-2.0, 3, 0.5], np.float32), np.array([2, 3, -1], np.int64))),
        Case((np.array([-2, 3, 5], np.int64), np.array([2, 3, 0], np.int64))),
    ], doc="in the base's type; the exponent may have another type",
)  # fmt: skip


def _check_prelu(types: Sequence[TensorType], p: Attrs) -> None:
    same_dtype("PRelu", types)
    for t in types:
        check_dtype("PRelu", t, NUMERIC)
    if broadcast("PRelu", [t.shape for t in types]) != types[0].shape:
        raise ModelError(f"PRelu: slope {show(types[1].shape)} does not broadcast to {show(types[0].shape)}")


pointwise(
    "PRelu", "x slope", lambda p, x, s: where(_less(x, 0.0), x * s, x), lambda p, x, s: np.where(x < 0, x * s, x),
    check=_check_prelu, cost=2, cases=[Case(((2, 3, 4), (3, 1)), {}, ("f32", "f16"))],
)  # fmt: skip
pointwise(
    "Max", "x*", lambda p, *x: functools.reduce(_max, x), lambda p, *x: functools.reduce(np.maximum, x),
    dtypes=NUMERIC, test=FLOAT_AND_INT,
)  # fmt: skip
pointwise(
    "Min", "x*", lambda p, *x: functools.reduce(_min, x), lambda p, *x: functools.reduce(np.minimum, x),
    dtypes=NUMERIC, test=FLOAT_AND_INT,
)  # fmt: skip
pointwise(
    "Sum", "x*", lambda p, *x: functools.reduce(lambda a, b: a + b, x), lambda p, *x: functools.reduce(np.add, x),
    dtypes=NUMERIC,
)  # fmt: skip
pointwise(
    "Mean", "x*", lambda p, *x: functools.reduce(lambda a, b: a + b, x) * (1.0 / len(x)),
    lambda p, *x: np.mean(np.stack(np.broadcast_arrays(*x)), axis=0),
)  # fmt: skip


def _check_where(types: Sequence[TensorType], p: Attrs) -> None:
    check_dtype("Where", types[0], BOOLS)
    same_dtype("Where", types[1:])


pointwise(
    "Where", "cond x y", lambda p, c, x, y: where(c, x, y), lambda p, c, x, y: np.asarray(np.where(c, x, y)),
    check=_check_where, result=second,
    cases=[
        Case((np.array([[True], [False], [True]]), (2, 3, 4), (4,)), {}, ("f32", "f16", "i32", "bool")),
        Case((np.array([True, False, True]), (3,), ()), {}, ("i64",)),
    ],
)  # fmt: skip
