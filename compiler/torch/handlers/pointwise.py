"""ATen's elementwise operators: arithmetic with type promotion, comparisons, logic and activations.

Most are one line of a table; the others state torch's formula with the IR's operators.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from arcweld.compiler.dims import IntExpr
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.torch.context import AtenContext, Result, Scalar, aten
from arcweld.compiler.torch.types import from_torch, to_torch

UNARY = {
    "abs": "Abs", "acos": "Acos", "acosh": "Acosh", "asin": "Asin", "asinh": "Asinh", "atan": "Atan",
    "atanh": "Atanh", "ceil": "Ceil", "cos": "Cos", "cosh": "Cosh", "erf": "Erf", "exp": "Exp", "floor": "Floor",
    "log": "Log", "mish": "Mish", "neg": "Neg", "reciprocal": "Reciprocal", "relu": "Relu", "round": "Round",
    "rsqrt": "Rsqrt", "sigmoid": "Sigmoid", "sin": "Sin", "sinh": "Sinh",
    "sqrt": "Sqrt", "tan": "Tan", "tanh": "Tanh", "hardswish": "HardSwish", "silu": "Silu",
}  # fmt: skip
BINARY = {"maximum": "Max", "minimum": "Min"}
COMPARE = {"eq": "Equal", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "lt": "Less"}
LOGICAL = {"logical_and": "And", "logical_or": "Or", "logical_xor": "Xor"}
BITWISE = {"and": "And", "or": "Or", "xor": "Xor"}


def _unary(op: str) -> Any:
    def handler(c: AtenContext) -> Result:
        x = c.cast(c["self"], c.out.dtype)
        if op in ("Ceil", "Floor", "Round") and not x.dtype.is_float:
            return x
        return c.emit(op, x)

    return handler


def _binary(op: str) -> Any:
    return lambda c: c.apply(op, c["self"], c["other"])


def _compare(op: str, negate: bool = False) -> Any:
    def handler(c: AtenContext) -> Result:
        a, b = promoted(c, c["self"], c["other"])
        if a.dtype is DType.BOOL and op != "Equal":
            a, b = c.cast(a, DType.I32), c.cast(b, DType.I32)
        found = c.emit(op, a, b)
        return c.emit("Not", found) if negate else found

    return handler


def _logical(op: str) -> Any:
    return lambda c: c.emit(op, c.tensor(c["self"], DType.BOOL), c.tensor(c["other"], DType.BOOL))


def _bitwise(op: str) -> Any:
    def handler(c: AtenContext) -> Result:
        return c.apply(op if c.out.dtype is DType.BOOL else f"Bitwise{op}", c["self"], c["other"])

    return handler


def promoted(c: AtenContext, *xs: Value | Scalar) -> list[Value]:
    """Operands brought to their common type by torch's promotion rules."""

    def proxy(x: Value | Scalar) -> Any:
        if isinstance(x, Value):
            return torch.empty([1] * len(x.shape), dtype=to_torch(x.dtype), device="meta")
        return 1 if isinstance(x, IntExpr) else x

    dtype = from_torch(torch.result_type(*(proxy(x) for x in xs)))
    return [c.tensor(x, dtype) for x in xs]


for _name, _op in UNARY.items():
    aten(_name)(_unary(_op))
for _name, _op in BINARY.items():
    aten(_name)(_binary(_op))
for _name, _op in COMPARE.items():
    aten(f"{_name}.Tensor", f"{_name}.Scalar")(_compare(_op))
aten("ne.Tensor", "ne.Scalar")(_compare("Equal", negate=True))
for _name, _op in LOGICAL.items():
    aten(_name)(_logical(_op))
for _name, _op in BITWISE.items():
    aten(f"bitwise_{_name}.Tensor", f"bitwise_{_name}.Scalar", f"__{_name}__.Tensor", f"__{_name}__.Scalar")(
        _bitwise(_op)
    )
aten("max.other")(_binary("Max"))
aten("min.other")(_binary("Min"))

# -------------------------------------------------------------------------------------------------- arithmetic


def scaled(c: AtenContext, x: Value | Scalar, factor: Scalar) -> Value | Scalar:
    """``x * factor`` in the result's type; ``x`` itself for the factor 1."""
    if isinstance(factor, IntExpr) or factor != 1:
        return c.apply("Mul", x, factor)
    return x


def _sum(c: AtenContext, a: Value | Scalar, b: Value | Scalar, op: str) -> Value:
    if c.out.dtype is DType.BOOL:
        if op == "Sub":
            raise c.fail("subtraction of bool tensors")
        return c.apply("Or", a, b)
    return c.apply(op, a, scaled(c, b, c.get("alpha", 1)))


@aten("add.Tensor", "add.Scalar")
def add(c: AtenContext) -> Result:
    return _sum(c, c["self"], c["other"], "Add")


@aten("sub.Tensor", "sub.Scalar")
def sub(c: AtenContext) -> Result:
    return _sum(c, c["self"], c["other"], "Sub")


@aten("mul.Tensor", "mul.Scalar")
def mul(c: AtenContext) -> Result:
    return c.apply("And" if c.out.dtype is DType.BOOL else "Mul", c["self"], c["other"])


@aten("rsub.Tensor", "rsub.Scalar")
def rsub(c: AtenContext) -> Result:
    return c.apply("Sub", c["other"], scaled(c, c["self"], c.get("alpha", 1)))


@aten("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")
def power(c: AtenContext) -> Result:
    return c.apply("Pow", c["self"], c["exponent"])


@aten("square")
def square(c: AtenContext) -> Result:
    return c.emit("Mul", c["self"], c["self"])


@aten("addcmul")
def addcmul(c: AtenContext) -> Result:
    return _added(c, "Mul")


@aten("addcdiv")
def addcdiv(c: AtenContext) -> Result:
    return _added(c, "Div")


def _added(c: AtenContext, op: str) -> Value:
    """``self + value * tensor1 op tensor2``, from left to right and rounded once, as eager computes it."""
    dtype = DType.F32 if c.out.dtype.is_half else c.out.dtype
    x, a, b = (c.cast(c[name], dtype) for name in ("self", "tensor1", "tensor2"))
    if isinstance(c["value"], IntExpr) or c["value"] != 1:
        a = c.emit("Mul", a, c.scalar(c["value"], dtype))
    return c.result(c.emit("Add", x, c.emit(op, a, b)))


@aten("lerp.Scalar", "lerp.Tensor")
def lerp(c: AtenContext) -> Result:
    dtype = DType.F32 if c.out.dtype.is_half else c.out.dtype
    x, end, weight = (c.tensor(c[name], dtype) for name in ("self", "end", "weight"))
    return c.result(c.emit("Add", x, c.emit("Mul", weight, c.emit("Sub", end, x))))


@aten("exp2")
def exp2(c: AtenContext) -> Result:
    return c.apply("Pow", 2.0, c["self"])


@aten("log2")
def log2(c: AtenContext) -> Result:
    return c.apply("Mul", c.apply("Log", c["self"]), 1 / math.log(2))


@aten("log10")
def log10(c: AtenContext) -> Result:
    return c.apply("Mul", c.apply("Log", c["self"]), 1 / math.log(10))


@aten("log1p")
def log1p(c: AtenContext) -> Result:
    """``log(u) * x / (u - 1)`` with ``u = 1 + x``, and ``x`` where u rounds to 1 (Higham, problem 1.5)."""
    x = c.cast(c["self"], c.out.dtype.compute)
    one = c.scalar(1.0, x.dtype)
    u = c.emit("Add", x, one)
    near = c.emit("Equal", u, one)
    safe = c.emit("Where", near, c.scalar(2.0, u.dtype), u)
    value = c.emit("Mul", c.emit("Log", u), c.emit("Div", x, c.emit("Sub", safe, one)))
    infinite = c.emit("IsInf", u, detect_negative=0, detect_positive=1)
    return c.result(c.emit("Where", c.emit("Or", near, infinite), x, value))


@aten("expm1")
def expm1(c: AtenContext) -> Result:
    """``exp(x) - 1`` as ``2 t / (1 - t)`` with ``t = tanh(x / 2)`` near zero, where the difference cancels."""
    x = c.cast(c["self"], c.out.dtype.compute)
    one = c.scalar(1.0, x.dtype)
    near = c.emit("Less", c.emit("Abs", x), one)
    inner = c.emit("Where", near, x, c.scalar(0.0, x.dtype))
    t = c.emit("Tanh", c.emit("Mul", inner, c.scalar(0.5, x.dtype)))
    small = c.emit("Div", c.emit("Add", t, t), c.emit("Sub", one, t))
    return c.result(c.emit("Where", near, small, c.emit("Sub", c.emit("Exp", x), one)))


def truncated(c: AtenContext, x: Value) -> Value:
    if not x.dtype.is_float:
        return x
    negative = c.emit("Less", x, c.scalar(0.0, x.dtype))
    return c.emit("Where", negative, c.emit("Ceil", x), c.emit("Floor", x))


@aten("sign", "sgn")
def sign(c: AtenContext) -> Result:
    """-1, 0 or 1; of NaN 0."""
    x = c["self"]
    y = c.emit("Sign", x)
    return c.emit("Where", c.emit("IsNaN", x), c.scalar(0.0, x.dtype), y) if x.dtype.is_float else y


@aten("trunc", "fix")
def trunc(c: AtenContext) -> Result:
    return truncated(c, c["self"])


@aten("frac")
def frac(c: AtenContext) -> Result:
    return c.emit("Sub", c["self"], truncated(c, c["self"]))


@aten("clamp", "clamp_min", "clamp_max", "hardtanh", "relu6")
def clamp(c: AtenContext) -> Result:
    least, most = c.get("min", c.get("min_val")), c.get("max", c.get("max_val"))
    if "min" not in c.args and "max" not in c.args and "min_val" not in c.args:
        least, most = 0.0, 6.0
    if any(isinstance(b, IntExpr) for b in (least, most)):
        return _clamp_tensor(c, least, most)
    if not c.out.dtype.is_float and not all(b is None or _holds(c.out.dtype, b) for b in (least, most)):
        if c.out.dtype.is_signed or any(b is not None and b >= 0 and not _holds(c.out.dtype, b) for b in (least, most)):
            raise c.fail(f"clamp to [{least}, {most}] of {c.out.dtype.value} elements: eager refuses such numbers")
        return _clamp_tensor(c, least, most)  # eager takes negative numbers modulo the unsigned type's size
    return c.emit(
        "Clip",
        c.cast(c["self"], c.out.dtype),
        min=None if least is None else float(least),
        max=None if most is None else float(most),
    )


def _holds(dtype: DType, number: float) -> bool:
    """True if an integer type has room for ``number``."""
    info = torch.iinfo(to_torch(dtype))
    return bool(info.min <= number <= info.max)


@aten("clamp.Tensor", "clamp_min.Tensor", "clamp_max.Tensor")
def clamp_tensor(c: AtenContext) -> Result:
    return _clamp_tensor(c, c.get("min"), c.get("max"))


def _clamp_tensor(c: AtenContext, least: Value | Scalar | None, most: Value | Scalar | None) -> Value:
    x = c.cast(c["self"], c.out.dtype)
    x = x if least is None else c.emit("Max", x, c.tensor(least, x.dtype))
    return x if most is None else c.emit("Min", x, c.tensor(most, x.dtype))


# ------------------------------------------------------------------------------------------- tests and selection


@aten("logical_not")
def logical_not(c: AtenContext) -> Result:
    return c.emit("Not", c.cast(c["self"], DType.BOOL))


@aten("bitwise_not")
def bitwise_not(c: AtenContext) -> Result:
    return c.emit("Not" if c.out.dtype is DType.BOOL else "BitwiseNot", c["self"])


@aten("isnan")
def isnan(c: AtenContext) -> Result:
    return c.emit("IsNaN", c["self"]) if c["self"].dtype.is_float else c.full(False, c.out.shape, DType.BOOL)


@aten("isinf")
def isinf(c: AtenContext) -> Result:
    return _isinf(c, c["self"], negative=True, positive=True)


aten("isposinf")(lambda c: _isinf(c, c["self"], negative=False, positive=True))
aten("isneginf")(lambda c: _isinf(c, c["self"], negative=True, positive=False))


def _isinf(c: AtenContext, x: Value, *, negative: bool, positive: bool) -> Value:
    if not x.dtype.is_float:
        return c.full(False, c.out.shape, DType.BOOL)
    return c.emit("IsInf", x, detect_negative=int(negative), detect_positive=int(positive))


@aten("isfinite")
def isfinite(c: AtenContext) -> Result:
    x = c["self"]
    if not x.dtype.is_float:
        return c.full(True, x.shape, DType.BOOL)
    return c.emit("Not", c.emit("Or", c.emit("IsNaN", x), _isinf(c, x, negative=True, positive=True)))


@aten("nan_to_num")
def nan_to_num(c: AtenContext) -> Result:
    x: Value = c["self"]
    if not x.dtype.is_float:
        return x
    limits = torch.finfo(to_torch(x.dtype))
    nan, high, low = (c[k] for k in ("nan", "posinf", "neginf"))
    y = c.emit("Where", c.emit("IsNaN", x), c.scalar(0.0 if nan is None else nan, x.dtype), x)
    top = c.scalar(limits.max if high is None else high, x.dtype)
    y = c.emit("Where", _isinf(c, x, negative=False, positive=True), top, y)
    bottom = c.scalar(limits.min if low is None else low, x.dtype)
    return c.emit("Where", _isinf(c, x, negative=True, positive=False), bottom, y)


@aten("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def where(c: AtenContext) -> Result:
    condition = c.cast(c["condition"], DType.BOOL)
    return c.emit("Where", condition, c.tensor(c["self"], c.out.dtype), c.tensor(c["other"], c.out.dtype))


@aten("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(c: AtenContext) -> Result:
    return c.emit("Where", c["mask"], c.tensor(c["value"], c.out.dtype), c["self"])


# -------------------------------------------------------------------------------------------------- activations


@aten("gelu")
def gelu(c: AtenContext) -> Result:
    return c.emit("Gelu", c["self"], approximate=c["approximate"])


@aten("elu")
def elu(c: AtenContext) -> Result:
    """``scale * (max(x, 0) + alpha * (exp(min(x, 0) * input_scale) - 1))``: ELU, SELU and CELU in one."""
    x, alpha, scale, inner = c["self"], float(c["alpha"]), float(c["scale"]), float(c["input_scale"])
    if inner == 1.0:
        return c.emit("Selu", x, alpha=alpha, gamma=scale) if scale != 1.0 else c.emit("Elu", x, alpha=alpha)
    if scale == 1.0 and math.isclose(alpha * inner, 1.0, rel_tol=1e-9):
        return c.emit("Celu", x, alpha=alpha)
    raise c.fail(f"elu with alpha {alpha}, scale {scale} and input_scale {inner}")


@aten("selu")
def selu(c: AtenContext) -> Result:
    return c.emit("Selu", c["self"], alpha=1.6732632423543772, gamma=1.0507009873554805)


@aten("celu")
def celu(c: AtenContext) -> Result:
    return c.emit("Celu", c["self"], alpha=float(c["alpha"]))


@aten("leaky_relu")
def leaky_relu(c: AtenContext) -> Result:
    return c.emit("LeakyRelu", c["self"], alpha=float(c["negative_slope"]))


@aten("hardsigmoid")
def hardsigmoid(c: AtenContext) -> Result:
    return c.emit("HardSigmoid", c["self"], alpha=1 / 6, beta=0.5)


@aten("softplus")
def softplus(c: AtenContext) -> Result:
    """``log(1 + exp(beta x)) / beta``; above the threshold torch returns x, as that formula does after rounding."""
    beta, threshold = float(c["beta"]), float(c["threshold"])
    wide = c.apply("Mul", c["self"], beta) if beta != 1 else c["self"]
    soft = c.emit("Softplus", wide)
    soft = c.apply("Div", soft, beta) if beta != 1 else soft
    if threshold >= 20:
        return soft
    linear = c.emit("Greater", wide, c.scalar(threshold, wide.dtype))
    return c.emit("Where", linear, c["self"], soft)


@aten("log_sigmoid_forward", "log_sigmoid")
def log_sigmoid(c: AtenContext) -> Result:
    value = c.emit("Neg", c.emit("Softplus", c.emit("Neg", c["self"])))
    if len(c.outs) == 1:
        return value
    c.require_unused(1)
    return value, None


@aten("threshold")
def threshold(c: AtenContext) -> Result:
    x = c["self"]
    below = c.emit("LessOrEqual", x, c.scalar(c["threshold"], x.dtype))  # false for NaN, which stays
    return c.emit("Where", below, c.scalar(c["value"], x.dtype), x)


@aten("softshrink")
def softshrink(c: AtenContext) -> Result:
    return c.emit("Shrink", c["self"], bias=float(c["lambd"]), lambd=float(c["lambd"]))


@aten("hardshrink")
def hardshrink(c: AtenContext) -> Result:
    return c.emit("Shrink", c["self"], bias=0.0, lambd=float(c["lambd"]))


@aten("prelu", "_prelu_kernel")
def prelu(c: AtenContext) -> Result:
    """The slope of channel 1, or one slope for all."""
    x, weight = c["self"], c["weight"]
    if len(weight.shape) == 1 and len(x.shape) > 1:
        weight = c.reshape(weight, (weight.shape[0],) + (1,) * (len(x.shape) - 2))
    return c.emit("PRelu", x, weight)


@aten("glu")
def glu(c: AtenContext) -> Result:
    x = c["self"]
    axis = c.axis(c["dim"])
    half = x.shape[axis] // 2
    gate = c.emit("Sigmoid", c.slice(x, axis, half, half))
    return c.emit("Mul", c.slice(x, axis, 0, half), gate)


@aten("logit")
def logit(c: AtenContext) -> Result:
    x, eps = c["self"], c["eps"]
    if eps is not None:
        x = c.emit("Clip", x, min=float(eps), max=1 - float(eps))
    return c.emit("Log", c.emit("Div", x, c.emit("Sub", c.scalar(1.0, x.dtype), x)))


# ------------------------------------------------------------------------------------------- copies and casts

COPIES = (
    "clone",
    "contiguous",
    "alias",
    "detach",
    "lift",
    "lift_fresh",
    "lift_fresh_copy",
    "positive",
    "resolve_conj",
    "resolve_neg",
    "alias_copy",
    "detach_copy",
)


@aten(*COPIES, "_to_copy", "to.dtype", "to.dtype_layout", "to.device", "to.other", "type_as", "_conj_physical")
def copy(c: AtenContext) -> Result:
    return c.cast(c["self"], c.out.dtype)


@aten("prims.convert_element_type.default")
def convert_element_type(c: AtenContext) -> Result:
    return c.cast(c["a"], c.out.dtype)


@aten("dropout", "feature_dropout", "alpha_dropout")
def dropout(c: AtenContext) -> Result:
    if c.get("train", True) and c.get("p", 0.0) != 0:
        raise c.fail("random numbers (dropout in training mode)")
    x: Value = c["input"]
    return x


@aten("copy")
def copy_into(c: AtenContext) -> Result:
    return c.expand(c.cast(c["src"], c.out.dtype), c.out.shape)
