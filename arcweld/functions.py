"""Functions of expressions, for the operators of users (``arcweld.custom_op``), named as numpy names them.

Python's ``+ - * /`` work on expressions as they are. Numbers stand for constants of the other operand's type.
Comparisons give bools, which ``where`` takes. All raise TypeError for operands of different types, and for types that
lack the function.
"""

from __future__ import annotations

from collections.abc import Callable

from arcweld.compiler import expr
from arcweld.compiler.expr import Expr


def _unary(op: str) -> Callable[[Expr], Expr]:
    return lambda x: expr.unary(op, x)


def _binary(op: str) -> Callable[[Expr | float, Expr | float], Expr]:
    return lambda a, b: expr.binary(op, *_alike(a, b))


def _alike(a: Expr | float, b: Expr | float) -> tuple[Expr, Expr]:
    """Both as expressions of one type."""
    if isinstance(a, Expr):
        return a, b if isinstance(b, Expr) else expr.const(b, a.dtype)
    if isinstance(b, Expr):
        return expr.const(a, b.dtype), b
    raise TypeError("two numbers: one operand has to be an expression")


def where(condition: Expr, a: Expr | float, b: Expr | float) -> Expr:
    """``a`` where the bool ``condition`` holds, else ``b``."""
    return expr.where(condition, *_alike(a, b))


exp = _unary("exp")
log = _unary("log")
log1p = _unary("log1p")
expm1 = _unary("expm1")
sqrt = _unary("sqrt")
rsqrt = _unary("rsqrt")
reciprocal = _unary("recip")
erf = _unary("erf")
sin = _unary("sin")
cos = _unary("cos")
tan = _unary("tan")
arcsin = _unary("asin")
arccos = _unary("acos")
arctan = _unary("atan")
sinh = _unary("sinh")
cosh = _unary("cosh")
tanh = _unary("tanh")
arcsinh = _unary("asinh")
arccosh = _unary("acosh")
arctanh = _unary("atanh")
absolute = _unary("abs")
floor = _unary("floor")
ceil = _unary("ceil")
rint = _unary("round")
trunc = _unary("trunc")
sign = _unary("sign")
isnan = _unary("isnan")
isinf = _unary("isinf")
maximum = _binary("max")
minimum = _binary("min")
power = _binary("pow")
arctan2 = _binary("atan2")
less = _binary("lt")
less_equal = _binary("le")
greater = _binary("gt")
greater_equal = _binary("ge")
equal = _binary("eq")
not_equal = _binary("ne")
logical_and = _binary("and")
logical_or = _binary("or")
