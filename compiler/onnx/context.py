"""What an operator's handler sees: its operands, its attributes, and ways to emit IR nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from onnx import GraphProto

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, IntExpr
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx import scalars
from arcweld.compiler.onnx.deduce import pairs, require_agreement, require_at_least, require_multiple
from arcweld.compiler.onnx.folding import fold_value
from arcweld.compiler.onnx.operands import SHAPES_HINT, Builder, Items, Operand, elements, text
from arcweld.compiler.onnx.scalars import Undecided
from arcweld.compiler.onnx.symbols import sanitise
from arcweld.compiler.ops import registry

MAX_RANK = 32


class NodeContext:
    """One ONNX node under import: typed access to operands and attributes, and emission of IR nodes.

    Handlers raise UnsupportedError through ``unsupported`` (collected over the whole model) and ModelError for nodes
    that break the operator's specification.
    """

    def __init__(
        self,
        builder: Builder,
        op: str,
        opset: int,
        name: str,
        operands: Sequence[Operand | None],
        outputs: Sequence[str],
        attrs: Mapping[str, Any],
        used: Sequence[bool] | None = None,
    ) -> None:
        self.builder = builder
        self.op = op
        self.opset = opset
        self.name = name
        self.origin = (name,)
        self.operands = list(operands)
        self.outputs = list(outputs)
        self.attrs = attrs
        self.used = list(used) if used is not None else [True] * len(self.outputs)

    # -------------------------------------------------------------------------------------------------- operands

    def has(self, i: int) -> bool:
        """True if input ``i`` is present."""
        return i < len(self.operands) and self.operands[i] is not None

    def operand(self, i: int) -> Operand:
        found = self.operands[i] if i < len(self.operands) else None
        if found is None:
            raise ModelError(f"{self.op} lacks its input {i}", node=self.name)
        if isinstance(found, Items):
            raise ModelError(f"{self.op}: input {i} is a sequence", node=self.name)
        return found

    def value(self, i: int) -> Value:
        """Input ``i`` as a device value."""
        operand = self.operand(i)
        return self.builder.device(operand, self.origin, operand.source or f"{self.hint()}.in{i}")

    def optional(self, i: int) -> Value | None:
        return self.value(i) if self.has(i) else None

    def values(self) -> list[Value]:
        """All inputs as device values."""
        return [self.value(i) for i in range(len(self.operands))]

    def shape(self, i: int) -> tuple[Dim, ...]:
        return self.operand(i).shape

    def known(self, i: int) -> Operand:
        """Input ``i`` with its elements known on the host. Unsupported when they depend on the data."""
        operand = self.operand(i)
        if operand.known is None:
            assert operand.value is not None
            operand.known = fold_value(
                self.builder, operand.value, lambda why, remedy: self.unsupported(f"input {i}: {why}", remedy)
            )
        return operand

    def dims(self, i: int) -> list[Dim]:
        """Input ``i`` as a list of integers or dimensions (an integer tensor of rank 0 or 1)."""
        operand = self.known(i)
        if operand.rank > 1 or operand.dtype.is_float:
            raise ModelError(f"{self.op}: input {i} should be a list of integers", node=self.name)
        try:
            return [scalars.as_dim(x) for x in elements(operand).flat]
        except Undecided as why:
            self.unsupported(str(why))

    def ints(self, i: int) -> list[int]:
        """Input ``i`` as concrete integers."""
        return [self.concrete(d, f"input {i}") for d in self.dims(i)]

    def scalar(self, i: int) -> scalars.Scalar:
        """Input ``i``, one element, on the host."""
        flat = elements(self.known(i)).reshape(-1)
        if flat.size != 1:
            raise ModelError(f"{self.op}: input {i} should have one element, it has {flat.size}", node=self.name)
        found: scalars.Scalar = flat[0]
        return found

    def number(self, i: int) -> float:
        """Input ``i``, one concrete number."""
        x = self.scalar(i)
        if scalars.is_symbolic(x):
            self.unsupported(f"input {i} depends on the dimension {x}", SHAPES_HINT)
        return x  # type: ignore[return-value]

    def concrete(self, d: Dim, what: str) -> int:
        """``d`` as an int; unsupported when it is symbolic."""
        if isinstance(d, IntExpr):
            self.unsupported(f"{what} depends on the dimension {d}", SHAPES_HINT)
        return int(d)

    # ------------------------------------------------------------------------------------------------ attributes

    def _attr(self, name: str, kinds: tuple[type, ...], default: Any) -> Any:
        value = self.attrs.get(name)
        if value is None:
            return default
        if not isinstance(value, kinds):
            raise ModelError(f"{self.op}: attribute {name} has the wrong type", node=self.name)
        return value

    def int_attr(self, name: str, default: int = 0) -> int:
        return int(self._attr(name, (int,), default))

    def float_attr(self, name: str, default: float) -> float:
        return float(self._attr(name, (float,), default))

    def str_attr(self, name: str, default: str) -> str:
        return str(self._attr(name, (str,), default))

    def choice_attr(self, name: str, default: str, choices: Sequence[str]) -> str:
        """A string attribute that must be one of ``choices``."""
        value = self.str_attr(name, default)
        if value not in choices:
            raise ModelError(f"{self.op}: attribute {name} is {value[:40]!r}", node=self.name)
        return value

    def ints_attr(self, name: str) -> tuple[int, ...] | None:
        value = self._attr(name, (tuple,), None)
        if value is not None and not all(isinstance(v, int) for v in value):
            raise ModelError(f"{self.op}: attribute {name} has the wrong type", node=self.name)
        return None if value is None else tuple(int(v) for v in value)

    def graph_attr(self, name: str) -> GraphProto:
        value = self._attr(name, (GraphProto,), None)
        if value is None:
            raise ModelError(f"{self.op} lacks its attribute {name}", node=self.name)
        found: GraphProto = value
        return found

    def has_attr(self, name: str) -> bool:
        return name in self.attrs

    def axis(self, axis: int, rank: int, what: str = "axis") -> int:
        """``axis`` counted from the front. Raises ModelError when it is out of range."""
        if not -rank <= axis < rank:
            raise ModelError(f"{self.op}: {what} {axis} is out of range for rank {rank}", node=self.name)
        return axis % rank

    def axes(self, axes: Sequence[int], rank: int) -> list[int]:
        """Distinct axes counted from the front, in the order given."""
        out = [self.axis(a, rank) for a in axes]
        if len(set(out)) != len(out):
            raise ModelError(f"{self.op}: an axis is listed twice in {list(axes)}", node=self.name)
        return out

    # -------------------------------------------------------------------------------------------------- emission

    def hint(self) -> str:
        """A name for intermediate values."""
        return sanitise(next((o for o in self.outputs if o), self.name))

    def emit(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """Emits one IR node with inferred types and returns its output."""
        last = len(inputs)
        while last and inputs[last - 1] is None:
            last -= 1
        try:
            return registry.make(
                self.builder.rw, op, inputs[:last], attrs, origin=self.origin, hint=f"{self.hint()}.{op.lower()}"
            )
        except ModelError:
            found = pairs(op, [None if v is None else v.shape for v in inputs], attrs)
            for a, b in found:
                require_agreement(a, b)
            require_multiple(found, self.name)
            raise

    def const(self, data: Any, dtype: DType) -> Value:
        """A constant array made by the importer."""
        return self.builder.rw.constant(np.asarray(data, dtype.numpy), dtype, f"{self.hint()}.const")

    def cast(self, x: Value, dtype: DType) -> Value:
        return x if x.dtype is dtype else self.emit("Cast", x, to=dtype)

    def reshape(self, x: Value, shape: Sequence[Dim]) -> Value:
        return x if x.shape == tuple(shape) else self.emit("Reshape", x, shape=tuple(shape))

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        return x if tuple(perm) == tuple(range(x.type.rank)) else self.emit("Transpose", x, perm=tuple(perm))

    def expand(self, x: Value, shape: Sequence[Dim]) -> Value:
        return x if x.shape == tuple(shape) else self.emit("Expand", x, shape=tuple(shape))

    def slice(self, x: Value, axis: int, start: Dim, size: Dim) -> Value:
        """``size`` elements from ``start`` along one axis."""
        if start == 0 and size == x.shape[axis]:
            return x
        starts: list[Dim] = [0] * x.type.rank
        sizes = list(x.shape)
        starts[axis], sizes[axis] = start, size
        return self.emit("Slice", x, starts=tuple(starts), sizes=tuple(sizes), steps=(1,) * x.type.rank)

    def dim_value(self, d: Dim) -> Value:
        """A dimension as an i64 scalar on the device."""
        if isinstance(d, int):
            return self.const(d, DType.I64)
        return self.emit("Dims", values=(d,), shape=())

    def scale(self, x: Value, factor: float) -> Value:
        return x if factor == 1.0 else self.emit("Mul", x, self.const(factor, x.dtype))

    # ---------------------------------------------------------------------------------------------------- refusal

    def unsupported(self, reason: str, hint: str | None = None) -> NoReturn:
        raise UnsupportedError(reason, node=self.name, hint=hint)

    def broken(self, what: str) -> NoReturn:
        """The node breaks its operator's specification."""
        raise ModelError(f"{self.op}: {what}", node=self.name)

    def needs_rank(self, i: int, low: int, high: int = MAX_RANK) -> int:
        """The rank of input ``i``, checked."""
        rank = self.operand(i).rank
        if not low <= rank <= high:
            self.broken(f"input {i} has rank {rank}")
        return rank

    def at_least(self, a: Dim, b: Dim) -> None:
        """Checks that ``a >= b``; a symbol on whose size that depends gets a lower bound."""
        self.has_room(a, b)
        if dims.is_nonneg(a - b):
            return
        if isinstance(a - b, int):
            self.broken(f"{b} of {a} elements")
        self.unsupported(f"whether the dimension {a} is at least {b} is not known", SHAPES_HINT)

    def has_room(self, a: Dim, b: Dim) -> None:
        """Takes it that ``a >= b``, as the node demands: where ranges leave it open, a symbol gets a lower bound."""
        if not dims.is_nonneg(a - b):
            require_at_least(a - b, 0)

    def equal_dims(self, a: Dim, b: Dim) -> bool:
        """Whether two dimensions are equal; unsupported when that is not known."""
        try:
            return scalars.equal(a, b)
        except Undecided as why:
            self.unsupported(str(why), SHAPES_HINT)


def broadcast_shape(c: NodeContext, a: Sequence[Dim], b: Sequence[Dim]) -> tuple[Dim, ...]:
    """Numpy broadcasting of two shapes; unsupported when symbolic dimensions leave it open."""
    n = max(len(a), len(b))
    left, right = [1] * (n - len(a)) + list(a), [1] * (n - len(b)) + list(b)
    out: list[Dim] = []
    for x, y in zip(left, right):
        if y == 1 or x == y:
            out.append(x)
        elif x == 1:
            out.append(y)
        elif isinstance(x, int) and isinstance(y, int):
            c.broken(f"shapes {text(a)} and {text(b)} do not broadcast")
        else:
            require_agreement(x, y)
            require_multiple([(x, y)], c.name)
            c.unsupported(f"whether the dimensions {x} and {y} are equal is not known", SHAPES_HINT)
    return tuple(out)
