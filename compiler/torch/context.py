"""The argument of an ATen operator's handler: the call's arguments by name, torch's result types, and the graph.

A handler returns the Value of the result. For several results it returns a tuple, with None for one not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from arcweld.compiler.dims import Dim, IntExpr
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.ir import Rewriter, TensorType, Value
from arcweld.compiler.ops.emit import Emitter
from arcweld.compiler.torch.types import exactly, part_type


@dataclass(frozen=True, slots=True)
class Pair:
    """A complex tensor: its real and its imaginary part, which have one shape and one type."""

    re: Value
    im: Value

    @property
    def dtype(self) -> DType:
        """The element type of either part."""
        return self.re.dtype

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The dimensions."""
        return self.re.shape

    @property
    def parts(self) -> tuple[Value, Value]:
        """Both parts."""
        return self.re, self.im


Result: TypeAlias = "Value | Pair | tuple[Value | Pair | None, ...]"
Scalar: TypeAlias = "int | float | bool | IntExpr"
Handler: TypeAlias = "Callable[[AtenContext], Result]"

HANDLERS: dict[str, Handler] = {}
COMPLEX: dict[str, Handler] = {}  # of calls with a complex operand or result


def aten(*names: str) -> Callable[[Callable[[AtenContext], Result]], Callable[[AtenContext], Result]]:
    """Registers a handler for ATen overloads such as ``add.Tensor``; a bare name means its ``default`` overload.

    Operators of other namespaces are written in full: ``prims.iota.default``, which some of torch's decompositions
    contain, those of other libraries (``torchvision.roi_align.default``), and ``arcweld.lstm.default``.
    """

    return _register(HANDLERS, names)


def complex_aten(*names: str) -> Callable[[Handler], Handler]:
    """Registers a handler for calls that read or return complex tensors; names are written as for ``aten``.

    Complex operands are Pairs, and the types in ``outs`` are those of parts.
    """
    return _register(COMPLEX, names)


def _register(table: dict[str, Handler], names: Sequence[str]) -> Callable[[Handler], Handler]:
    def register(fn: Handler) -> Handler:
        for name in names:
            key = full_name(name)
            if key in table:
                raise ValueError(f"{key} has two handlers")
            table[key] = fn
        return fn

    return register


def full_name(name: str) -> str:
    """``add.Tensor`` as ``aten.add.Tensor``, ``exp`` as ``aten.exp.default``."""
    full = name if "." in name else f"{name}.default"
    return full if full.count(".") == 2 else f"aten.{full}"


class AtenContext(Emitter):
    """One call of an ATen operator; ``call["self"]`` is the argument of that name in the operator's schema.

    Tensors are Values, complex ones Pairs, sizes are dimensions, absent tensors are None, and everything else is as
    torch passes it.
    ``outs`` are the types that torch gives the results or their parts, None for one that is no tensor; ``complex_outs``
    says which results are complex. ``used`` are the indices of the
    results that are read.
    """

    def __init__(
        self,
        rw: Rewriter,
        args: Mapping[str, Any],
        outs: Sequence[TensorType | None],
        *,
        origin: tuple[str, ...] = (),
        hint: str = "",
        constants: dict[tuple[Any, ...], Value] | None = None,
        used: Sequence[int] = (0,),
        complex_outs: Sequence[bool] = (),
    ) -> None:
        super().__init__(rw, origin)
        self.hint = hint
        self.args = args
        self.outs = tuple(outs)
        self.complex_outs = tuple(complex_outs) or (False,) * len(self.outs)
        self.used = frozenset(used)  # indices of the results that some node reads
        self._constants = {} if constants is None else constants

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The argument ``name``, or ``default`` where the call lacks it."""
        return self.args.get(name, default)

    @property
    def out(self) -> TensorType:
        """The type of the first result."""
        first = self.outs[0]
        assert first is not None
        return first

    def fail(self, reason: str) -> UnsupportedError:
        """The error for a handler to raise where arguments cannot be compiled."""
        return UnsupportedError(reason)

    @property
    def involves_complex(self) -> bool:
        """True if an operand or a result is complex."""
        return any(self.complex_outs) or any(_is_complex(x) for x in self.args.values())

    def derived(self, args: Mapping[str, Any], outs: Sequence[TensorType | None] | None = None) -> AtenContext:
        """A call with these arguments in place of this one, without complex results."""
        return AtenContext(
            self.rw, args, self.outs if outs is None else outs, origin=self.origin, hint=self.hint,
            constants=self._constants, used=tuple(self.used),
        )  # fmt: skip

    def call(self, name: str, out: TensorType, /, **args: Any) -> Value:
        """The result of another operator's handler, of type ``out``."""
        found = HANDLERS[full_name(name)](self.derived(args, (out,)))
        assert isinstance(found, Value)
        return found

    def require_unused(self, *results: int) -> None:
        """Raises UnsupportedError if one of these results, given by index, is read."""
        for r in results:
            if r in self.used:
                raise self.fail(f"result {r} is used and is not computed")

    # ------------------------------------------------------------------------------------------------- emission

    def result_name(self, op: str) -> str:
        """The hint for the name of every emitted node's result."""
        return self.hint

    def scalar(self, x: Scalar, dtype: DType) -> Value:
        """A number as a tensor of rank 0, one constant for equal numbers; a symbolic one is computed on the host."""
        if isinstance(x, IntExpr):
            return self.dim_value(x, dtype)
        key = (repr(x), dtype)
        if key not in self._constants:
            with np.errstate(over="ignore"):
                data = np.asarray(x).astype(dtype.numpy)
            self._constants[key] = self.rw.constant(data, dtype, "scalar")
        return self._constants[key]

    def tensor(self, x: Value | Scalar, dtype: DType) -> Value:
        """A tensor or a number as a tensor of ``dtype``."""
        return self.cast(x, dtype) if isinstance(x, Value) else self.scalar(x, dtype)

    def expand(self, x: Value, shape: Sequence[Dim]) -> Value:
        """``x`` broadcast to ``shape``; a Reshape adds the leading axes that it lacks first."""
        if x.shape == tuple(shape):
            return x
        return super().expand(self.reshape(x, (1,) * (len(shape) - len(x.shape)) + x.shape), shape)

    def full(self, value: Scalar, shape: Sequence[Dim], dtype: DType) -> Value:
        """A tensor of shape ``shape`` whose elements are all ``value``."""
        if isinstance(value, IntExpr):
            return self.expand(self.scalar(value, dtype), shape)
        number = float(value) if dtype.is_float else int(value)
        return self.emit("ConstantOfShape", shape=tuple(shape), value=number, dtype=dtype)

    def dtype(self, name: str = "dtype", default: DType | None = None) -> DType:
        """The argument ``name`` as a DType; where it is None ``default``, or else the result's type."""
        given = self.get(name)
        return part_type(given) if given is not None else (default or self.out.dtype)

    def axis(self, dim: int, rank: int | None = None) -> int:
        """``dim`` counted from the front, for a tensor of ``rank`` axes, by default the argument ``self``."""
        n = len(self["self"].shape) if rank is None else rank
        return dim + n if dim < 0 else dim

    # -------------------------------------------------------------------------------------------- element types

    def arithmetic(self, *xs: Value | Scalar) -> tuple[DType, list[Value]]:
        """The type in which an arithmetic operation on ``xs`` is computed, and ``xs`` as tensors of that type.

        It is the result's type; but f32 where a 16-bit type would round a number such as 0.1, with which torch computes
        unrounded.
        """
        dtype = self.out.dtype
        if dtype.is_half and any(not isinstance(x, Value | IntExpr) and not exactly(x, dtype) for x in xs):
            dtype = DType.F32
        return dtype, [self.tensor(x, dtype) for x in xs]

    def result(self, v: Value) -> Value:
        """``v`` in the result's element type."""
        return self.cast(v, self.out.dtype)

    def apply(self, op: str, *xs: Value | Scalar, **attrs: Any) -> Value:
        """One arithmetic operation on tensors and numbers, with torch's type promotion."""
        return self.result(self.emit(op, *self.arithmetic(*xs)[1], **attrs))


def _is_complex(x: Any) -> bool:
    return isinstance(x, Pair | complex) or (isinstance(x, list | tuple) and any(_is_complex(i) for i in x))


def parted(e: Emitter, whole: Value) -> Pair:
    """A tensor whose last axis holds real and imaginary part, as a Pair."""
    last = whole.type.rank - 1
    re, im = (e.reshape(e.slice(whole, last, k, 1), whole.shape[:-1]) for k in (0, 1))
    return Pair(re, im)


def joined(e: Emitter, pair: Pair) -> Value:
    """A Pair as one tensor whose last axis holds real and imaginary part."""
    shape = (*pair.shape, 1)
    return e.concat([e.reshape(pair.re, shape), e.reshape(pair.im, shape)], len(shape) - 1)
