"""Scalar expressions: what a kernel computes for one element, as immutable operations that share equal operands.

An expression's dtype is the type in which it is computed: elements of f16 and bf16 are converted to f32 when loaded and
rounded when stored. ``interpret.py`` evaluates expressions with numpy.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy)
import numpy as np

from arcweld.compiler import dims
from arcweld.compiler.device_function import DeviceFunction
from arcweld.compiler.dims import Dim, Dyn, Sym
from arcweld.compiler.dtypes import DType
from arcweld.compiler.special_functions import SPECIAL

UNARY_FLOAT = (
    "exp", "log", "sqrt", "rsqrt", "erf", "tanh", "sin", "cos", "tan", "asin", "acos", "atan",
    "sinh", "cosh", "asinh", "acosh", "atanh", "recip", "log1p", "expm1",
)  # fmt: skip
UNARY_ANY = ("neg", "abs", "floor", "ceil", "round", "trunc", "sign")
UNARY_TEST = ("isnan", "isinf")
# an integer divisor: itself. 0 is an error in checked mode, and for ``strict_divisor`` everywhere.
DIVISOR = ("checked_divisor", "strict_divisor")
UNARY_FAST = ("fast_exp", "fast_erf", "fast_tanh")  # codegen.approximate's, for f32 results that are rounded to 16 bits
BINARY = ("add", "sub", "mul", "div", "mod", "fmod", "pow", "min", "max", "atan2")
# an i64 index and the extent of its axis: the index, which has to be in [0, extent). Another one is an error in checked
# mode, and for ``strict_index`` everywhere.
INDEX = ("index_in", "strict_index")
COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
LOGIC = ("and", "or", "xor")
BITS = ("bitand", "bitor", "bitxor", "shl", "shr", "gcd")
_UNARY = frozenset((*UNARY_FLOAT, *UNARY_ANY, *UNARY_TEST, *UNARY_FAST, *DIVISOR, *SPECIAL))
_BINARY = frozenset((*BINARY, *INDEX, *COMPARE, *LOGIC, *BITS, *SPECIAL))


# Operations in the text of an expression when each use of a shared operand is written out; with more than this, shared
# operands are written once and named.
MOST_REPEATED = 1 << 14


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Expr:
    """One operation with its operands ``args``; the functions of this module make them.

    op    ``const``, ``index``, ``load``, ``var``, ``cast``, ``reinterpret``, ``narrow``, ``pattern``, ``call``,
          ``where``, ``not``, ``bitnot``, or a name listed above
    attr  what is not an expression: a constant's value, an index's Dim, a load's (buffer, storage dtype, coordinates),
          a variable's name, the storage type of ``narrow`` and ``pattern``, the DeviceFunction of ``call``

    Equal expressions are the same object (hash consing), so ``is`` and ``==`` agree. Tables are keyed by the
    expression, never by its ``id``: an expression that nobody holds is freed, and its ``id`` is used again.
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

    def __rtruediv__(self, o: float) -> Expr:
        return binary("div", _like(o, self), self)

    def __rmul__(self, o: float) -> Expr:
        return binary("mul", _like(o, self), self)

    def __neg__(self) -> Expr:
        return unary("neg", self)

    def __repr__(self) -> str:
        return to_text(self)


# every live expression by its operation, operands, type and attribute; a key holds operands, which the expression
# holds too
_TABLE: WeakValueDictionary[Any, Expr] = WeakValueDictionary()
_INSERT = threading.Lock()
# a fork waits for it: its child would have a lock that nobody gives back
os.register_at_fork(before=_INSERT.acquire, after_in_parent=_INSERT.release, after_in_child=_INSERT.release)


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
    """A literal, of the type in which values of ``dtype`` are computed."""
    dtype = dtype.compute
    if dtype is DType.BOOL:
        return _intern("const", (), dtype, bool(value))
    return _intern("const", (), dtype, float(value) if dtype.is_float else int(value))


def index(value: Dim) -> Expr:
    """An integer expression over loop indices and symbols, as an i64 value."""
    return _intern("index", (), DType.I64, value) if not isinstance(value, int) else const(value, DType.I64)


def load(buffer: str, dtype: DType, coords: Sequence[Dim], mask: Expr | None = None) -> Expr:
    """The element of ``buffer`` (stored as ``dtype``) at ``coords``; 0 where ``mask`` is false, and then not read."""
    args = () if mask is None else (mask,)
    return _intern("load", args, dtype.compute, (buffer, dtype, tuple(coords)))


def variable(name: str, dtype: DType) -> Expr:
    """A value that the template provides, such as the accumulator or a statistic of the row."""
    return _intern("var", (), dtype.compute, name)


def unary(op: str, x: Expr) -> Expr:
    """A unary operation; ``isnan`` and ``isinf`` give bool, the rest the operand's type.

    Raises ValueError for an unknown operation, TypeError for one that the operand's type does not have.
    """
    if op not in _UNARY:
        raise ValueError(f"{op} is no unary operation")
    if op in UNARY_TEST:
        return _intern(op, (x,), DType.BOOL) if x.dtype.is_float else const(False, DType.BOOL)
    if (op in UNARY_FLOAT or op in SPECIAL) and not x.dtype.is_float:
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
    if op in SPECIAL and not a.dtype.is_float:
        raise TypeError(f"{op} needs floats, got {a.dtype.value}")
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


def call(function: DeviceFunction, args: Sequence[Expr]) -> Expr:
    """A call of ``function``, which gives an f32."""
    return _intern("call", tuple(args), DType.F32, function)


def both(a: Expr, b: Expr) -> Expr:
    """``a and b``, for bools."""
    return binary("and", a, b)


def all_of(conditions: Iterable[Expr | None]) -> Expr | None:
    """The conjunction of those that are not None; None if all are."""
    found = [c for c in conditions if c is not None]
    return functools.reduce(both, found) if found else None


def where(cond: Expr, a: Expr, b: Expr) -> Expr:
    """``a`` where ``cond`` is true, else ``b``; one of them itself for a constant ``cond``.

    Raises TypeError for ``a`` and ``b`` of different types.
    """
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
    """``not x``, for a bool."""
    return const(not x.attr, DType.BOOL) if x.op == "const" else _intern("not", (x,), DType.BOOL)


def bitwise_not(x: Expr) -> Expr:
    """An integer with every bit inverted."""
    return _intern("bitnot", (x,), x.dtype)


def cast(x: Expr, dtype: DType) -> Expr:
    """``x`` as ``dtype``: floats become integers by rounding towards zero, and bools by ``x != 0``.

    Values of a storage type are those that it can hold, as ``narrow`` says, in the type in which they are computed.
    """
    if dtype.is_storage:
        return narrow(x, dtype)
    dtype = dtype.compute
    if x.dtype is dtype:
        return x
    if x.op == "const" and (not dtype.is_int or _fits(x.attr, dtype)):
        return const(x.attr, dtype)
    return _intern("cast", (x,), dtype)


def reinterpret(x: Expr, dtype: DType) -> Expr:
    """The number of 32 or 64 bits whose bits are those of ``x``, a float as an integer or the reverse.

    Raises TypeError for other types.
    """
    if x.dtype.size != dtype.size or x.dtype.is_float == dtype.is_float or dtype.size < 4:
        raise TypeError(f"reinterpret of {x.dtype.value} as {dtype.value}")
    return _intern("reinterpret", (x,), dtype)


def narrow(x: Expr, dtype: DType) -> Expr:
    """What is left of ``x`` when it is stored as the storage type ``dtype`` and loaded again.

    Floats round to the nearest even; beyond the largest number they become infinity or NaN, or that number where the
    type has neither, as in ml_dtypes. Integers keep their lowest bits.
    """
    if x.dtype.is_float and dtype.is_int:
        x = cast(x, DType.I32)
    x = cast(x, dtype.compute)
    if x.op in ("narrow", "load") and (x.attr if x.op == "narrow" else x.attr[1]) is dtype:
        return x
    return _intern("narrow", (x,), dtype.compute, dtype)


def pattern(x: Expr, dtype: DType) -> Expr:
    """The bits of an element of the packed type ``dtype`` that holds ``x``, as u8."""
    return _intern("pattern", (cast(x, dtype.compute),), DType.U8, dtype)


def _fits(value: float, dtype: DType) -> bool:
    """Whether the integer type can hold ``value``. The device decides what a cast of any other value gives."""
    info = np.iinfo(dtype.numpy)
    return math.isfinite(value) and int(info.min) <= int(value) <= int(info.max)


def dynamic_index(value: Expr, extent: Dim, *, dtype: DType = DType.I64) -> Dim:
    """A run-time index with the value of ``value``, for an axis of ``extent`` elements, clamped to ``[0, extent)``.

    ``dtype``: the integers in which it is clamped; I32 costs less, where ``extent`` and ``value`` are within it.
    """
    most = cast(index(extent - 1), dtype)
    safe = cast(binary("max", const(0, dtype), binary("min", cast(value, dtype), most)), DType.I64)
    return dims.var(Dyn(_index_name(safe), safe, 0, extent - 1))


def wrapped_index(value: Expr, extent: Dim, mask: Expr | None, strict: bool) -> Expr:
    """The index ``value`` of an axis of ``extent`` elements as i64; a negative one counts from the end, as in numpy.

    It is an error, as INDEX says, if it is out of range although ``mask`` holds (None: always).
    """
    v = cast(value, DType.I64)
    at = where(binary("lt", v, const(0, DType.I64)), v + index(extent), v)
    return checked_index(at, extent, mask, strict)


def checked_index(at: Expr, extent: Dim, mask: Expr | None, strict: bool) -> Expr:
    """The i64 ``at`` itself, an index of an axis of ``extent`` elements that doesn't count from the end.

    It is an error, as INDEX says, if it is out of range although ``mask`` holds (None: always).
    """
    if mask is not None:
        at = where(mask, at, const(0, DType.I64))
    return binary("strict_index" if strict else "index_in", at, index(extent))


def divisor(value: Expr, mask: Expr | None, strict: bool) -> Expr:
    """An integer that something is divided by. 0 is an error, as DIVISOR says, if ``mask`` holds (None: always)."""
    if value.op == "const" and value.attr != 0:
        return value
    given = value if mask is None else where(mask, value, const(1, value.dtype))
    return unary("strict_divisor" if strict else "checked_divisor", given)


def _index_name(payload: Expr) -> str:
    """A name for a run-time index, derived from what it computes: equal indices have equal names."""
    return f"gather_{hashlib.sha256(to_text(payload).encode()).hexdigest()[:8]}"


# --------------------------------------------------------------------------------------------------- traversal


def postorder(
    roots: Sequence[Expr], operands: Callable[[Expr], Sequence[Expr]], known: Container[Expr] = ()
) -> Iterator[Expr]:
    """Yields ``roots`` and what they are made of, each expression once and after its ``operands``.

    Expressions in ``known`` are neither yielded nor entered. The order is that of a recursive depth-first search,
    without its limit of depth.
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
    """``postorder`` over operands and over what run-time indices are computed from."""
    return postorder(roots, _operands_and_indices, known)


def _operands_and_indices(e: Expr) -> Sequence[Expr]:
    return (*e.args, *run_time_indices(e)) if e.op in ("load", "index") else e.args


def run_time_indices(e: Expr) -> list[Expr]:
    """The expressions of the run-time indices in ``coordinates(e)``, in the order of the indices' names."""
    found: list[Expr] = []
    for d in coordinates(e):
        for dyn in sorted(dims.dynamic_atoms(d), key=lambda t: t.name):
            assert isinstance(dyn.payload, Expr)
            found.append(dyn.payload)
    return found


def coordinates(e: Expr) -> tuple[Dim, ...]:
    """The coordinates of a load, or the value of an index; none for any other operation."""
    if e.op == "load":
        return tuple(e.attr[2])
    return (e.attr,) if e.op == "index" else ()


def rebuild(e: Expr, args: Sequence[Expr]) -> Expr:
    """The same operation on other operands."""
    return e if all(a is b for a, b in zip(args, e.args)) else _intern(e.op, tuple(args), e.dtype, e.attr)


def substitute(e: Expr, leaf: Callable[[Expr], Expr | None], memo: dict[Expr, Expr] | None = None) -> Expr:
    """``e`` with every sub-expression for which ``leaf`` returns another one replaced by that.

    ``leaf`` is not asked about what is inside a replaced sub-expression, nor inside run-time indices. Calls that share
    ``memo`` must share ``leaf``.
    """
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
    """``d`` with atoms replaced as ``table`` says, also in the expressions of its run-time indices."""
    dyn: dict[Any, Dim] = {}
    for a in dims.dynamic_atoms(d):
        assert isinstance(a.payload, Expr)
        payload = substitute_index(a.payload, table, memo)
        if payload is not a.payload:
            dyn[a] = dims.var(Dyn(_index_name(payload), payload, a.lo, a.hi))
    return dims.substitute(d, {**table, **dyn})


def substitute_index(e: Expr, table: Mapping[Any, Dim], memo: dict[Expr, Expr] | None = None) -> Expr:
    """``e`` with atoms replaced as ``table`` says in all coordinates, those of run-time indices included.

    Calls that share ``memo`` must share ``table``.
    """
    memo = {} if memo is None else memo
    if e in memo:
        return memo[e]
    for x in walk([e], memo):  # the expressions of run-time indices come before the loads that use them
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
    """True if ``sym`` occurs in any coordinate of ``e``, those of run-time indices included."""
    return any(dims.mentions(d, sym) for x in walk([e]) for d in coordinates(x))


def loads(roots: Sequence[Expr]) -> list[Expr]:
    """The loads in ``roots``, each once, those in run-time indices included."""
    return [e for e in walk(roots) if e.op == "load"]


def to_text(e: Expr) -> str:
    """Text for dumps, comments and hashes; equal expressions have equal text.

    A text of more than ``MOST_REPEATED`` operations becomes ``t0 = ...; t1 = ...; ...``, with each shared operand
    written once.
    """
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


def _narrowed(e: Expr) -> str:
    if e.op == "call":
        return f"<{e.attr.name} {hashlib.sha256(e.attr.source.encode()).hexdigest()[:16]}>"
    return f"<{e.attr.value}>" if e.op in ("narrow", "pattern") else ""


def _written(e: Expr, names: Mapping[Expr, str]) -> str:
    """The text of ``e``, in which expressions in ``names`` are written by name."""
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
            typed = x.op in ("cast", "reinterpret")
            out.append(f"{x.op}<{x.dtype.value}>(" if typed else f"{x.op}{_narrowed(x)}(")
            stack.append(")")
            for k, a in reversed(list(enumerate(x.args))):
                stack += [a, ", "] if k else [a]
    return "".join(out)
