"""Evaluates scalar expressions with numpy: the tests compare generated CUDA and operators' lowerings with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, to_text, walk
from arcweld.compiler.special_functions import BINARY, UNARY, meaning


def _c_div(a: Any, b: Any) -> Any:
    if np.issubdtype(np.asarray(a).dtype, np.integer):
        q = np.floor_divide(a, b)
        return np.where((q < 0) & (q * b != a), q + 1, q).astype(np.asarray(a).dtype)
    return np.divide(a, b)


def _erf(x: Any) -> Any:
    return np.vectorize(math.erf, otypes=[np.float64])(x).astype(np.asarray(x).dtype)


def _power(a: Any, b: Any) -> Any:
    """``a ** b``. numpy refuses negative exponents of integers: those give the result rounded towards zero."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.kind == "f":
        return np.power(a, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = np.trunc(np.power(a.astype(np.float64), np.minimum(b, 0).astype(np.float64)))
    return np.where(b < 0, np.where(a == 0, 0, fraction).astype(a.dtype), np.power(a, np.maximum(b, 0)))


NUMPY: dict[str, Callable[..., Any]] = {
    "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "erf": _erf, "tanh": np.tanh,
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan,
    "sinh": np.sinh, "cosh": np.cosh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
    "recip": lambda x: 1 / x, "log1p": np.log1p, "expm1": np.expm1, "neg": np.negative, "abs": np.abs,
    "floor": np.floor, "ceil": np.ceil, "round": np.rint, "trunc": np.trunc, "sign": np.sign, "isnan": np.isnan,
    "isinf": np.isinf, "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": _c_div, "mod": np.mod,
    "checked_divisor": lambda v: v, "strict_divisor": lambda v: v,
    "index_in": lambda v, n: v, "strict_index": lambda v, n: v,
    "fmod": np.fmod, "pow": _power, "min": np.minimum, "max": np.maximum, "atan2": np.arctan2, "eq": np.equal,
    "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not,
    "bitand": np.bitwise_and, "bitor": np.bitwise_or, "bitxor": np.bitwise_xor, "bitnot": np.bitwise_not,
    "shl": np.left_shift, "shr": np.right_shift, "where": np.where, "gcd": np.gcd,
    **{name: meaning(fn) for name, fn in (*UNARY.items(), *BINARY.items())},
}  # fmt: skip
DIM_CALLS = {  # of dimensions, on arrays
    "floordiv": np.floor_divide, "mod": np.mod, "max": np.maximum, "min": np.minimum,
}  # fmt: skip


def interpret(
    e: Expr,
    buffers: Mapping[str, np.ndarray],
    indices: Mapping[str, np.ndarray | int],
    variables: Mapping[str, np.ndarray] | None = None,
    memo: dict[Expr, Any] | None = None,
) -> np.ndarray:
    """The value of ``e`` for all given values of the loop indices at once.

    buffers    the arrays that loads read
    indices    loop indices and symbols by name: numbers, or arrays that broadcast together
    variables  the values of ``var`` expressions
    memo       the values of expressions evaluated before, to which this call adds

    The result has the broadcast shape of what ``e`` mentions. A load is 0 where its mask is false, whatever its
    coordinates; elsewhere coordinates out of range raise IndexError.
    """
    memo = {} if memo is None else memo

    def dim(d: Dim) -> Any:
        if isinstance(d, int):
            return d
        env = dict(indices)
        for dyn in dims.dynamic_atoms(d):
            env[dyn.name] = memo[dyn.payload]  # type: ignore[index]
        return dims.evaluate_with(d, env, DIM_CALLS)

    def step(x: Expr, args: Sequence[Any]) -> Any:
        dt = x.dtype.numpy
        if x.op == "const":
            return np.asarray(x.attr, dt)
        if x.op == "index":
            return np.asarray(dim(x.attr), np.int64)
        if x.op == "var":
            return (variables or {})[x.attr]
        if x.op == "load":
            buffer, _, coords = x.attr
            array, where_ = buffers[buffer], args[0] if args else None
            at = [np.asarray(dim(c)) for c in coords]
            if where_ is not None:
                at = [np.where(where_, a, 0) for a in at]
            if any((a < 0).any() for a in at):
                raise IndexError(f"negative coordinate in {to_text(x)}")
            if where_ is not None and not np.any(where_):  # nothing is read, not even of an empty buffer
                return np.zeros(np.broadcast_shapes(np.shape(where_), *(a.shape for a in at)), dt)
            value = array[tuple(at)] if at else array[()]
            value = np.asarray(value).astype(dt)
            return value if where_ is None else np.where(where_, value, dt.type(0))
        if x.op == "cast":
            return args[0] != 0 if x.dtype is DType.BOOL else np.asarray(args[0]).astype(dt)
        if x.op == "reinterpret":
            return np.asarray(args[0]).view(dt)
        with np.errstate(all="ignore"):
            if x.op == "call":
                return np.asarray(x.attr.meaning(*args)).astype(dt)
            if x.op == "narrow":
                return np.asarray(args[0]).astype(x.attr.numpy).astype(dt)
            if x.op == "pattern":
                return np.asarray(args[0]).astype(x.attr.numpy).view(dt)
            return np.asarray(NUMPY[x.op](*args)).astype(dt)

    for x in walk([e], memo):
        memo[x] = step(x, [memo[a] for a in x.args])
    return np.asarray(memo[e])
