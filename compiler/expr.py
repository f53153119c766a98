"""Scalar expressions: what a kernel computes for one element, as hash-consed immutable trees.

An expression's dtype is the type it is *computed* in: f16 and bf16 tensors are loaded to f32 and rounded when
stored. ``interpret.py`` evaluates expressions with numpy.
"""

from __future__ import annotations

import functools
import hashlib
import math
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

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


MOST_REPEATED = 1 << 14  # operations that an expression's text may write out, those that are shared once for each use


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Expr:
    """One operation. ``op`` is ``const``, ``index``, ``load``, ``var``, ``cast``, ``where``, ``not``, ``bitnot`` or
    a listed op.

    ``attr`` holds what is not an expression: the constant's value, the index's Dim, the load's (buffer, storage dtype,
    coordinates), the variable's name. Equal expressions are the same object (hash-consed), so ``is`` and ``==`` agree.
    Tables are keyed by the expression itself, never by its ``id``: an expression that nobody holds is freed.
    """

    op: str
    args: tuple[Expr, ...]
    dtype: DType
    attr: Any = None

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


# every expression that somebody holds, by its structure; the key's operands live as long as the expression itself
_TABLE: WeakValueDictionary[Any, Expr] = WeakValueDictionary()
_INSERT = threading.Lock()


def _intern(op: str, args: tuple[Expr, ...], dtype: DType, attr: Any = None) -> Expr:
    # repr() keeps 0.0 apart from -0.0, and NaN equal to itself
    key = (op, args, dtype, repr(attr) if op == "const" else attr)
    found = _TABLE.get(key)
    if found is None:
        with _INSERT:  # another thread may have made the same one since
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


def postorder(
    roots: Sequence[Expr], operands: Callable[[Expr], Sequence[Expr]], known: Container[Expr] = ()
) -> Iterator[Expr]:
    """Every distinct expression below ``roots``, after its ``operands``; nothing in ``known`` or below it.

    The order is that of a recursive depth-first search. Expressions may be deeper than Python's stack.
    """
    entered: set[Expr] = set()
    left: set[Expr] = set()
    stack = [*reversed(roots)]
    while stack:
        e = stack[-1]
        if e not in entered and e not in known:
            entered.add(e)
            stack += [a for a in reversed(operands(e)) if a not in entered]
            continue
        stack.pop()
        if e in entered and e not in left:
            left.add(e)
            yield e


def walk(roots: Sequence[Expr], known: Container[Expr] = ()) -> Iterator[Expr]:
    """Every distinct sub-expression, operands first. Expressions inside run-time indices are included."""
    return postorder(roots, _operands_and_indices, known)


def _operands_and_indices(e: Expr) -> Sequence[Expr]:
    return (*e.args, *run_time_indices(e)) if e.op in ("load", "index") else e.args


def run_time_indices(e: Expr) -> list[Expr]:
    """What the run-time indices in the coordinates of ``e`` itself are computed from, in the order of their names."""
    found: list[Expr] = []
    for d in coordinates(e):
        for dyn in sorted(dims.dynamic_atoms(d), key=lambda t: t.name):
            assert isinstance(dyn.payload, Expr)
            found.append(dyn.payload)
    return found


def coordinates(e: Expr) -> tuple[Dim, ...]:
    """The integer expressions in ``e`` itself, its operands aside: where a load reads, or an index's value."""
    if e.op == "load":
        return tuple(e.attr[2])
    return (e.attr,) if e.op == "index" else ()


def rebuild(e: Expr, args: Sequence[Expr]) -> Expr:
    """The same operation on other operands."""
    return e if all(a is b for a, b in zip(args, e.args)) else _intern(e.op, tuple(args), e.dtype, e.attr)


def transform(e: Expr, leaf: Callable[[Expr], Expr | None], memo: dict[Expr, Expr] | None = None) -> Expr:
    """Rewrites bottom-up: where ``leaf`` returns an expression it replaces that sub-tree, otherwise operands are
    rebuilt."""
    memo = {} if memo is None else memo

    def operands(x: Expr) -> Sequence[Expr]:
        new = leaf(x)
        if new is None:
            return x.args
        memo[x] = new
        return ()

    for x in postorder([e], operands, memo):
        if x not in memo:
            memo[x] = rebuild(x, [memo[a] for a in x.args])
    return memo[e]


def substitute_dim(d: Dim, table: Mapping[Any, Dim], memo: dict[Expr, Expr] | None = None) -> Dim:
    """Replaces loop indices in ``d`` and in what its run-time indices are computed from."""
    dyn: dict[Any, Dim] = {}
    for a in dims.dynamic_atoms(d):
        assert isinstance(a.payload, Expr)
        payload = substitute_index(a.payload, table, memo)
        if payload is not a.payload:
            dyn[a] = dims.var(Dyn(_index_name(payload), payload, a.lo, a.hi))
    return dims.substitute(d, {**table, **dyn})


def substitute_index(e: Expr, table: Mapping[Any, Dim], memo: dict[Expr, Expr] | None = None) -> Expr:
    """Replaces loop indices in every load, index and mask of ``e`` (run-time indices are rebuilt too).

    Calls that share ``memo`` must share ``table``.
    """
    memo = {} if memo is None else memo
    if e in memo:
        return memo[e]
    for x in walk([e], memo):  # what run-time indices are computed from comes before what reads there
        args = [memo[a] for a in x.args]
        if x.op == "load":
            buffer, dtype, coords = x.attr
            memo[x] = load(buffer, dtype, [substitute_dim(c, table, memo) for c in coords], args[0] if args else None)
        elif x.op == "index":
            memo[x] = index(substitute_dim(x.attr, table, memo))
        else:
            memo[x] = rebuild(x, args)
    return memo[e]


def mentions(e: Expr, sym: Sym) -> bool:
    """True if the value of ``e`` depends on the index ``sym``."""
    return any(dims.mentions(d, sym) for x in walk([e]) for d in coordinates(x))


def loads(roots: Sequence[Expr]) -> list[Expr]:
    """All distinct loads below ``roots``."""
    return [e for e in walk(roots) if e.op == "load"]


def to_text(e: Expr) -> str:
    """Readable text, for dumps and comments. Of a large expression, what is used several times is written once."""
    repeated: dict[Expr, int] = {}  # how many operations the text of each has
    uses: dict[Expr, int] = {}
    for x in postorder([e], lambda x: x.args):
        repeated[x] = 1 + sum(repeated[a] for a in x.args)
        for a in x.args:
            uses[a] = uses.get(a, 0) + 1
    if repeated[e] <= MOST_REPEATED:
        return _written(e, {})
    names: dict[Expr, str] = {}
    lines: list[str] = []
    for x in repeated:  # operands first
        if uses.get(x, 0) > 1 and x.args:
            lines.append(f"t{len(names)} = {_written(x, names)}")
            names[x] = f"t{len(names)}"
    return "; ".join([*lines, _written(e, names)])


def _written(e: Expr, names: Mapping[Expr, str]) -> str:
    """The text of one expression, the names of those that have one in their place."""
    out: list[str] = []
    stack: list[Expr | str] = [e]
    while stack:
        x = stack.pop()
        if isinstance(x, str) or x in names:
            out.append(x if isinstance(x, str) else names[x])
        elif x.op == "const":
            out.append(repr(x.attr))
        elif x.op == "index":
            out.append(f"[{x.attr}]")
        elif x.op == "var":
            out.append(str(x.attr))
        elif x.op == "load":
            out.append(f"{x.attr[0]}[{', '.join(str(c) for c in x.attr[2])}")
            stack += ["]", x.args[0], " if "] if x.args else ["]"]
        else:
            out.append(f"cast<{x.dtype.value}>(" if x.op == "cast" else f"{x.op}(")
            stack.append(")")
            for k, a in reversed(list(enumerate(x.args))):
                stack += [a, ", "] if k else [a]
    return "".join(out)
