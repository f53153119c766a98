"""The argument of an ATen operator's handler: the call's arguments by name, torch's result types, and the graph.

A handler returns the Value of the result. For several results it returns a tuple, with None for one not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from arcweld.compiler.dims import Dim, IntExpr
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.ir import Rewriter, TensorType, Value
from arcweld.compiler.ops.emit import Emitter
from arcweld.compiler.torch.types import exactly, from_torch

Result: TypeAlias = "Value | tuple[Value | None, ...]"
Scalar: TypeAlias = "int | float | bool | IntExpr"

HANDLERS: dict[str, Callable[[AtenContext], Result]] = {}


def aten(*names: str) -> Callable[[Callable[[AtenContext], Result]], Callable[[AtenContext], Result]]:
    """Registers a handler for ATen overloads such as ``add.Tensor``; a bare name means its ``default`` overload.

    Operators of other namespaces are written in full: ``prims.iota.default``, which some of torch's decompositions
    contain, torchvision's, and ``arcweld.lstm.default``.
    """

    def register(fn: Callable[[AtenContext], Result]) -> Callable[[AtenContext], Result]:
        for name in names:
            full = name if "." in name else f"{name}.default"
            key = full if full.startswith(("prims.", "torchvision.", "arcweld.")) else f"aten.{full}"
            if key in HANDLERS:
                raise ValueError(f"{key} has two handlers")
            HANDLERS[key] = fn
        return fn

    return register


class AtenContext(Emitter):
    """One call of an ATen operator; ``call["self"]`` is the argument of that name in the operator's schema.

    Tensors are Values, sizes are dimensions, absent tensors are None, and everything else is as torch passes it.
    ``outs`` are the types that torch gives the results, None for one that is no tensor. ``used`` are the indices of the
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
    ) -> None:
        super().__init__(rw, origin)
        self.hint = hint
        self.args = args
        self.outs = tuple(outs)
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
        return from_torch(given) if given is not None else (default or self.out.dtype)

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
