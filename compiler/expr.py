"""Scalar expressions: what a kernel computes for one element, as hash-consed immutable trees.

An expression's dtype is the type it is *computed* in: f16 and bf16 tensors are loaded to f32 and rounded when
stored. The numpy interpreter below is the oracle for the CUDA printer in ``codegen``.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, Dyn, Sym
from arcweld.compiler.dtypes import DType

UNARY_FLOAT = (
    "exp", "log", "sqrt", "rsqrt", "erf", "tanh", "sin", "cos", "tan", "asin", "acos", "atan",
    "sinh", "cosh", "asinh", "acosh", "atanh", "recip", "log1p", "expm1",
)  # fmt: skip
UNARY_ANY = ("neg", "abs", "floor", "ceil", "round", "trunc", "sign")
UNARY_TEST = ("isnan", "isinf")
UNARY_FAST = ("fast_exp", "fast_erf", "fast_tanh")  # codegen.approximate's, for f32 results that are rounded to 16 bits
BINARY = ("add", "sub", "mul", "div", "mod", "fmod", "pow", "min", "max", "atan2")
COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
LOGIC = ("and", "or", "xor")
BITS = ("bitand", "bitor", "bitxor", "shl", "shr")
_UNARY = frozenset((*UNARY_FLOAT, *UNARY_ANY, *UNARY_TEST, *UNARY_FAST))
_BINARY = frozenset((*BINARY, *COMPARE, *LOGIC, *BITS))


@dataclass(frozen=True, slots=True, eq=False)
class Expr:
    """One operation. ``op`` is ``const``, ``index``, ``load``, ``var``, ``cast``, ``where``, ``not``, ``bitnot`` or
    a listed op.

    ``attr`` holds what is not an expression: the constant's value, the index's Dim, the load's (buffer, storage dtype,
    coordinates), the variable's name. Equal expressions are the same object (hash-consed), so ``is`` and ``==`` agree.
    """

    op: str
    args: tuple[Expr, ...]
    dtype: DType
    attr: Any = None

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __add__(self, o: Expr | float) -> Expr:
        return binary("add", self, _like(o, self))

    def __sub__(self, o: Expr | float) -> Expr:
        return binary("sub", self, _like(o, self))

    def __mul__(self, o: Expr | float) -> Expr:
        return binary("mul", self, _like(o, self))

    def __truediv__(self, o: Expr | float) -> Expr:
        return binary("div", self, _like(o, self))

    def __rsub__(self, o: float) -> Expr:
        return binary("sub", _like(o, self), self)

    def __radd__(self, o: float) -> Expr:
        return binary("add", _like(o, self), self)

    def __rmul__(self, o: float) -> Expr:
        return binary("mul", _like(o, self), self)

    def __neg__(self) -> Expr:
        return unary("neg", self)

    def __repr__(self) -> str:
        return to_text(self)


_TABLE: dict[Any, Expr] = {}


def _intern(op: str, args: tuple[Expr, ...], dtype: DType, attr: Any = None) -> Expr:
    # repr() keeps 0.0 apart from -0.0, and NaN equal to itself
    key = (op, tuple(id(a) for a in args), dtype, repr(attr) if op == "const" else attr)
    found = _TABLE.get(key)
    if found is None:
        found = Expr(op, args, dtype, attr)
        _TABLE[key] = found
    return found


def _like(value: Expr | float, other: Expr) -> Expr:
    return value if isinstance(value, Expr) else const(value, other.dtype)


def const(value: float | int | bool, dtype: DType) -> Expr:
    """A literal of the given type."""
    dtype = dtype.compute
    if dtype is DType.BOOL:
        return _intern("const", (), dtype, bool(value))
    return _intern("const", (), dtype, float(value) if dtype.is_float else int(value))


def index(value: Dim) -> Expr:
    """An integer expression over loop indices and dimensions, as an i64 value."""
    return _intern("index", (), DType.I64, value) if not isinstance(value, int) else const(value, DType.I64)


def load(buffer: str, dtype: DType, coords: Sequence[Dim], mask: Expr | None = None) -> Expr:
    """The element of ``buffer`` (stored as ``dtype``) at ``coords``; 0 where ``mask`` is false, and then not read."""
    args = () if mask is None else (mask,)
    return _intern("load", args, dtype.compute, (buffer, dtype, tuple(coords)))


def variable(name: str, dtype: DType) -> Expr:
    """A value the template provides: the accumulator, a row statistic, a reduction's operand."""
    return _intern("var", (), dtype.compute, name)


def unary(op: str, x: Expr) -> Expr:
    """A unary operation; ``isnan`` and ``isinf`` give bool, the rest the operand's type.

    Raises ValueError for an unknown operation, TypeError for one that the operand's type does not have.
    """
    if op not in _UNARY:
        raise ValueError(f"{op} is no unary operation")
    if op in UNARY_TEST:
        return _intern(op, (x,), DType.BOOL) if x.dtype.is_float else const(False, DType.BOOL)
    if op in UNARY_FLOAT and not x.dtype.is_float:
        raise TypeError(f"{op} needs a floating-point operand, got {x.dtype.value}")
    if op in ("floor", "ceil", "round", "trunc") and not x.dtype.is_float:
        return x
    return _intern(op, (x,), x.dtype)


def binary(op: str, a: Expr, b: Expr) -> Expr:
    """A binary operation on two operands of one type; comparisons and logic give bool.

    Raises ValueError for an unknown operation, TypeError for operands of different types.
    """
    if op not in _BINARY:
        raise ValueError(f"{op} is no binary operation")
    if a.dtype is not b.dtype:
        raise TypeError(f"{op} of {a.dtype.value} and {b.dtype.value}: cast one of them first")
    if op in COMPARE:
        return _intern(op, (a, b), DType.BOOL)
    if op in LOGIC:
        if op == "and":
            for x, y in ((a, b), (b, a)):
                if x.op == "const":
                    return y if x.attr else x
            if a is b:
                return a
        return _intern(op, (a, b), DType.BOOL)
    return _intern(op, (a, b), a.dtype)


def both(a: Expr, b: Expr) -> Expr:
    """Conjunction of two bools."""
    return binary("and", a, b)


def all_of(conditions: Iterable[Expr | None]) -> Expr | None:
    """Conjunction of the bools that are there; None for none."""
    found = [c for c in conditions if c is not None]
    return functools.reduce(both, found) if found else None


def where(cond: Expr, a: Expr, b: Expr) -> Expr:
    """``a`` where ``cond`` holds, else ``b``; a constant condition decides at once."""
    if cond.op == "const":
        return a if cond.attr else b
    if a.op == "where" and a.args[0] is cond:
        a = a.args[1]
    if b.op == "where" and b.args[0] is cond:
        b = b.args[2]
    if a is b:
        return a
    if a.dtype is not b.dtype:
        raise TypeError(f"where of {a.dtype.value} and {b.dtype.value}")
    return _intern("where", (cond, a, b), a.dtype)


def logical_not(x: Expr) -> Expr:
    """Negation of a bool."""
    return const(not x.attr, DType.BOOL) if x.op == "const" else _intern("not", (x,), DType.BOOL)


def bitwise_not(x: Expr) -> Expr:
    """One's complement of an integer."""
    return _intern("bitnot", (x,), x.dtype)


def cast(x: Expr, dtype: DType) -> Expr:
    """Conversion: floats to integers round towards zero, anything to bool is ``x != 0``."""
    dtype = dtype.compute
    if x.dtype is dtype:
        return x
    if x.op == "const" and (not dtype.is_int or _fits(x.attr, dtype)):
        return const(x.attr, dtype)
    return _intern("cast", (x,), dtype)


def _fits(value: float, dtype: DType) -> bool:
    """Whether the integer type holds ``value``: what a cast of anything else gives is left to the device."""
    info = np.iinfo(dtype.numpy)
    return math.isfinite(value) and int(info.min) <= int(value) <= int(info.max)


def dynamic_index(value: Expr, extent: Dim) -> Dim:
    """An integer expression that stands for a loaded index, brought into ``[0, extent)``: negative ones count from
    the end."""
    v = cast(value, DType.I64)
    n = index(extent)
    wrapped = where(binary("lt", v, const(0, DType.I64)), v + n, v)
    safe = binary("max", const(0, DType.I64), binary("min", wrapped, index(extent - 1)))
    return dims.var(Dyn(_index_name(safe), safe, 0, extent - 1))


def _index_name(payload: Expr) -> str:
    """A name for a run-time index, derived from what it computes: equal indices have equal names."""
    return f"gather_{hashlib.sha256(to_text(payload).encode()).hexdigest()[:8]}"


# --------------------------------------------------------------------------------------------------- traversal


def walk(roots: Sequence[Expr]) -> Iterator[Expr]:
    """Every distinct sub-expression, operands first. Expressions inside run-time indices are included."""
    seen: set[int] = set()
    out: list[Expr] = []

    def visit(e: Expr) -> None:
        if id(e) in seen:
            return
        seen.add(id(e))
        for a in e.args:
            visit(a)
        for d in coordinates(e):
            for dyn in sorted(dims.dynamic_atoms(d), key=lambda t: t.name):
                assert isinstance(dyn.payload, Expr)
                visit(dyn.payload)
        out.append(e)

    for r in roots:
        visit(r)
    return iter(out)


def coordinates(e: Expr) -> tuple[Dim, ...]:
    """The integer expressions in ``e`` itself, its operands aside: where a load reads, or an index's value."""
    if e.op == "load":
        return tuple(e.attr[2])
    return (e.attr,) if e.op == "index" else ()


def rebuild(e: Expr, args: Sequence[Expr]) -> Expr:
    """The same operation on other operands."""
    return e if all(a is b for a, b in zip(args, e.args)) else _intern(e.op, tuple(args), e.dtype, e.attr)


def transform(e: Expr, leaf: Callable[[Expr], Expr | None], memo: dict[int, Expr] | None = None) -> Expr:
    """Rewrites bottom-up: where ``leaf`` returns an expression it replaces that sub-tree, otherwise operands are
    rebuilt."""
    memo = {} if memo is None else memo
    found = memo.get(id(e))
    if found is None:
        new = leaf(e)
        found = new if new is not None else rebuild(e, [transform(a, leaf, memo) for a in e.args])
        memo[id(e)] = found
    return found


def substitute_dim(d: Dim, table: Mapping[Any, Dim], memo: dict[int, Expr] | None = None) -> Dim:
    """Replaces loop indices in ``d`` and in what its run-time indices are computed from."""
    dyn: dict[Any, Dim] = {}
    for a in dims.dynamic_atoms(d):
        assert isinstance(a.payload, Expr)
        payload = substitute_index(a.payload, table, memo)
        if payload is not a.payload:
            dyn[a] = dims.var(Dyn(_index_name(payload), payload, a.lo, a.hi))
    return dims.substitute(d, {**table, **dyn})


def substitute_index(e: Expr, table: Mapping[Any, Dim], memo: dict[int, Expr] | None = None) -> Expr:
    """Replaces loop indices in every load, index and mask of ``e`` (run-time indices are rebuilt too).

    Calls that share ``memo`` must share ``table``.
    """
    memo = {} if memo is None else memo

    def dim(d: Dim) -> Dim:
        return substitute_dim(d, table, memo)

    def leaf(x: Expr) -> Expr | None:
        if x.op == "load":
            buffer, dtype, coords = x.attr
            mask = sub(x.args[0]) if x.args else None
            return load(buffer, dtype, [dim(c) for c in coords], mask)
        return index(dim(x.attr)) if x.op == "index" else None

    def sub(x: Expr) -> Expr:
        return transform(x, leaf, memo)

    return sub(e)


def mentions(e: Expr, sym: Sym) -> bool:
    """True if the value of ``e`` depends on the index ``sym``."""
    return any(dims.mentions(d, sym) for x in walk([e]) for d in coordinates(x))


def loads(roots: Sequence[Expr]) -> list[Expr]:
    """All distinct loads below ``roots``."""
    return [e for e in walk(roots) if e.op == "load"]


def to_text(e: Expr) -> str:
    """Readable text, for dumps and comments."""
    if e.op == "const":
        return repr(e.attr)
    if e.op == "index":
        return f"[{e.attr}]"
    if e.op == "var":
        return str(e.attr)
    if e.op == "load":
        mask = f" if {to_text(e.args[0])}" if e.args else ""
        return f"{e.attr[0]}[{', '.join(str(c) for c in e.attr[2])}{mask}]"
    name = f"cast<{e.dtype.value}>" if e.op == "cast" else e.op
    return f"{name}({', '.join(to_text(a) for a in e.args)})"


# ------------------------------------------------------------------------------------------------- interpreter


def _c_div(a: Any, b: Any) -> Any:
    if np.issubdtype(np.asarray(a).dtype, np.integer):
        q = np.floor_divide(a, b)
        return np.where((q < 0) & (q * b != a), q + 1, q).astype(np.asarray(a).dtype)
    return np.divide(a, b)


def _erf(x: Any) -> Any:
    return np.vectorize(math.erf, otypes=[np.float64])(x).astype(np.asarray(x).dtype)


def _power(a: Any, b: Any) -> Any:
    """numpy's, and for integers what is left of the fraction where the exponent is negative, which numpy refuses."""
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
    "fmod": np.fmod, "pow": _power, "min": np.minimum, "max": np.maximum, "atan2": np.arctan2, "eq": np.equal,
    "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not,
    "bitand": np.bitwise_and, "bitor": np.bitwise_or, "bitxor": np.bitwise_xor, "bitnot": np.bitwise_not,
    "shl": np.left_shift, "shr": np.right_shift, "where": np.where,
}  # fmt: skip
_DIM_CALLS = {"floordiv": np.floor_divide, "mod": np.mod, "max": np.maximum, "min": np.minimum}


def interpret(
    e: Expr,
    buffers: Mapping[str, np.ndarray],
    indices: Mapping[str, np.ndarray | int],
    variables: Mapping[str, np.ndarray] | None = None,
    memo: dict[int, Any] | None = None,
) -> np.ndarray:
    """Evaluates ``e`` with numpy for all values of the loop indices at once (arrays that broadcast together).

    Loads whose mask is false give 0 and are not range-checked; other loads out of range raise IndexError.
    """
    memo = {} if memo is None else memo

    def dim(d: Dim) -> Any:
        if isinstance(d, int):
            return d
        env = dict(indices)
        for dyn in dims.dynamic_atoms(d):
            env[dyn.name] = run(dyn.payload)  # type: ignore[arg-type]
        return dims.evaluate_with(d, env, _DIM_CALLS)

    def run(x: Expr) -> Any:
        if id(x) not in memo:
            memo[id(x)] = step(x)
        return memo[id(x)]

    def step(x: Expr) -> Any:
        dt = x.dtype.numpy
        if x.op == "const":
            return np.asarray(x.attr, dt)
        if x.op == "index":
            return np.asarray(dim(x.attr), np.int64)
        if x.op == "var":
            return (variables or {})[x.attr]
        if x.op == "load":
            buffer, _, coords = x.attr
            array, where_ = buffers[buffer], run(x.args[0]) if x.args else None
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
        args = [run(a) for a in x.args]
        if x.op == "cast":
            return args[0] != 0 if x.dtype is DType.BOOL else np.asarray(args[0]).astype(dt)
        with np.errstate(all="ignore"):
            return np.asarray(NUMPY[x.op](*args)).astype(dt)

    return np.asarray(run(e))
