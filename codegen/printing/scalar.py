"""The CUDA text of each scalar operation, by the type it is computed in."""

from __future__ import annotations

import math

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr
from arcweld.compiler.special_functions import SPECIAL

# operation -> (f32 text, f64 text); the operands are filled in by position
FLOAT: dict[str, tuple[str, str]] = {
    "exp": ("expf({0})", "exp({0})"),
    "log": ("logf({0})", "log({0})"),
    "log1p": ("log1pf({0})", "log1p({0})"),
    "expm1": ("expm1f({0})", "expm1({0})"),
    "sqrt": ("sqrtf({0})", "sqrt({0})"),
    "rsqrt": ("rsqrtf({0})", "rsqrt_f64({0})"),
    "erf": ("erff({0})", "erf({0})"),
    "tanh": ("tanhf({0})", "tanh({0})"),
    "sin": ("sinf({0})", "sin({0})"),
    "cos": ("cosf({0})", "cos({0})"),
    "tan": ("tanf({0})", "tan({0})"),
    "asin": ("asinf({0})", "asin({0})"),
    "acos": ("acosf({0})", "acos({0})"),
    "atan": ("atanf({0})", "atan({0})"),
    "sinh": ("sinhf({0})", "sinh({0})"),
    "cosh": ("coshf({0})", "cosh({0})"),
    "asinh": ("asinhf({0})", "asinh({0})"),
    "acosh": ("acoshf({0})", "acosh({0})"),
    "atanh": ("atanhf({0})", "atanh({0})"),
    "recip": ("recip({0})", "recip({0})"),
    "abs": ("fabsf({0})", "fabs({0})"),
    "floor": ("floorf({0})", "floor({0})"),
    "ceil": ("ceilf({0})", "ceil({0})"),
    "round": ("rintf({0})", "rint({0})"),
    "trunc": ("truncf({0})", "trunc({0})"),
    "pow": ("powf({0}, {1})", "pow({0}, {1})"),
    "atan2": ("atan2f({0}, {1})", "atan2({0}, {1})"),
    "max": ("max_nan({0}, {1})", "max_nan({0}, {1})"),
    "min": ("min_nan({0}, {1})", "min_nan({0}, {1})"),
    # what ``approximate`` makes of them
    "fast_exp": ("__expf({0})", "exp({0})"),
    "fast_erf": ("fast_erf({0})", "erf({0})"),
    "fast_tanh": ("tanh_approx({0})", "tanh({0})"),
}
ANY: dict[str, str] = {
    "neg": "-{0}",
    "sign": "sign_of({0})",
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "mod": "floor_mod({0}, {1})",
    "checked_divisor": "checked_divisor({0})",
    "strict_divisor": "strict_divisor({0})",
    "index_in": "index_in({0}, {1})",
    "strict_index": "strict_index({0}, {1})",
    "fmod": "trunc_mod({0}, {1})",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "and": "{0} && {1}",
    "or": "{0} || {1}",
    "xor": "{0} != {1}",
    "not": "!{0}",
    "bitand": "{0} & {1}",
    "bitor": "{0} | {1}",
    "bitxor": "{0} ^ {1}",
    "bitnot": "~{0}",
    "shl": "{0} << {1}",
    "shr": "{0} >> {1}",
    "where": "{0} ? {1} : {2}",
    "isnan": "{0} != {0}",
}
INTEGER: dict[str, str] = {
    "div": "div_or_0({0}, {1})",
    "mod": "mod_or_0({0}, {1})",
    "fmod": "rem_or_0({0}, {1})",
    "abs": "abs_int({0})",
    "pow": "pow_int({0}, {1})",
    "max": "({0} < {1} ? {1} : {0})",
    "min": "({1} < {0} ? {1} : {0})",
    "gcd": "gcd_int({0}, {1})",
}
REINTERPRET: dict[tuple[DType, DType], str] = {
    (DType.F32, DType.I32): "__float_as_int({0})",
    (DType.F32, DType.U32): "__float_as_uint({0})",
    (DType.I32, DType.F32): "__int_as_float({0})",
    (DType.U32, DType.F32): "__uint_as_float({0})",
    (DType.F64, DType.I64): "__double_as_longlong({0})",
    (DType.F64, DType.U64): "(u64)__double_as_longlong({0})",
    (DType.I64, DType.F64): "__longlong_as_double({0})",
    (DType.U64, DType.F64): "__longlong_as_double((i64){0})",
}
CUDA_SPECIAL = ("erfc", "erfinv", "lgamma", "j0", "j1", "y0", "y1")  # special functions that CUDA has
F32_OVERFLOW = float(np.finfo(np.float32).max) + 2.0**103  # half a unit above the largest: rounds to infinity
_NARROW = (DType.I8, DType.I16, DType.U8, DType.U16)


def scalar_text(e: Expr, args: list[str]) -> str:
    """CUDA text of one operation on operand texts. Raises KeyError for an operation that the type does not have."""
    operand = e.args[0].dtype if e.args else e.dtype
    args = [f"({text})" if _is_signed(a) else text for a, text in zip(e.args, args, strict=True)]
    if e.op == "cast":
        return _cast_text(operand, e.dtype, args[0])
    if e.op == "reinterpret":
        return REINTERPRET[operand, e.dtype].format(args[0])
    if e.op == "narrow":
        return f"narrow<{e.attr.cuda}>({args[0]})"
    if e.op == "call":
        return f"{e.attr.name}({', '.join(args)})"
    if e.op == "pattern":
        return f"(u8)field_of({args[0]}, ScalarTag<{e.attr.cuda}>())"
    if e.op == "isinf":
        return f"{'fabsf' if operand is DType.F32 else 'fabs'}({args[0]}) == ({operand.cuda})INFINITY"
    if e.op in SPECIAL:
        wide = ", ".join(f"(double){a}" for a in args)
        return f"({e.dtype.cuda}){e.op if e.op in CUDA_SPECIAL else f'special::{e.op}'}({wide})"
    if operand.is_float and e.op in FLOAT:
        return FLOAT[e.op][operand is DType.F64].format(*args)
    table = INTEGER if e.op in INTEGER and not operand.is_float and not _divides_safely(e) else ANY
    text = table[e.op].format(*args)
    # C computes narrow integers as int: bring the result back so that overflow wraps as in numpy
    return f"({e.dtype.cuda})({text})" if e.dtype in _NARROW and e.op != "where" else text


def _divides_safely(e: Expr) -> bool:
    """True for a division by a constant that can neither be zero nor overflow."""
    return e.op in ("div", "mod", "fmod") and e.args[1].op == "const" and e.args[1].attr not in (0, -1)


def _is_signed(e: Expr) -> bool:
    """True for a constant that is printed with a minus sign, and without a cast before it."""
    return e.op == "const" and e.dtype not in _NARROW and math.isfinite(e.attr) and math.copysign(1.0, e.attr) < 0


def _cast_text(src: DType, dst: DType, x: str) -> str:
    if dst is DType.BOOL:
        return f"{x} != {src.cuda}(0)"
    return f"({dst.cuda}){x}"


def literal(e: Expr) -> str:
    """C text of a constant."""
    v = e.attr
    if e.dtype is DType.BOOL:
        return "true" if v else "false"
    if e.dtype.is_float:
        suffix = "f" if e.dtype is DType.F32 else ""
        if math.isnan(v):
            return f"({e.dtype.cuda})NAN"
        if math.isinf(v) or (e.dtype is DType.F32 and abs(v) >= F32_OVERFLOW):
            return f"({e.dtype.cuda}){'-' if v < 0 else ''}INFINITY"
        text = repr(float(v)) if e.dtype is DType.F64 else _shortest_f32(v)
        return (text if any(ch in text for ch in ".en") else text + ".0") + suffix
    if e.dtype in (DType.I64, DType.U64):
        if v == -(1 << 63):
            return "(-9223372036854775807ll - 1)"
        return f"{v}{'ull' if e.dtype is DType.U64 else 'll'}"
    if e.dtype is DType.I32 and v == -(1 << 31):
        return "(-2147483647 - 1)"
    return f"{v}u" if e.dtype is DType.U32 else (f"({e.dtype.cuda}){v}" if e.dtype in _NARROW else str(v))


def _shortest_f32(v: float) -> str:
    return np.format_float_scientific(np.float32(v), trim="-") if v and not 1e-4 <= abs(v) < 1e7 else str(np.float32(v))
