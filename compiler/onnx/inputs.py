"""One ONNX node's operands, read by position: as device values, or as elements that the host knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from arcweld.compiler.dims import Dim, IntExpr
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx import scalars
from arcweld.compiler.onnx.attributes import Attributes
from arcweld.compiler.onnx.folding import fold_value
from arcweld.compiler.onnx.operands import Builder, Items, Operand, elements
from arcweld.compiler.onnx.remedies import fix_dimensions
from arcweld.compiler.onnx.scalars import Undecided
from arcweld.compiler.onnx.symbols import sanitise

MAX_RANK = 32


class Inputs(Attributes):
    """A node's operands beside its attributes; a missing one is None."""

    def __init__(
        self,
        builder: Builder,
        op: str,
        opset: int,
        name: str,
        operands: Sequence[Operand | None],
        outputs: Sequence[str],
        attrs: Mapping[str, Any],
    ) -> None:
        super().__init__(op, opset, name, attrs)
        self.builder = builder
        self.operands = list(operands)
        self.outputs = list(outputs)
        self.origin: tuple[str, ...] = (name,)

    @cached_property
    def hint(self) -> str:
        """What the names of emitted values begin with."""
        return sanitise(next((o for o in self.outputs if o), self.name))

    def has(self, i: int) -> bool:
        """True if input ``i`` is present."""
        return i < len(self.operands) and self.operands[i] is not None

    def operand(self, i: int) -> Operand:
        found = self.operands[i] if i < len(self.operands) else None
        if found is None:
            raise ModelError(f"{self.op} lacks its input {i}", node=self.name)
        if isinstance(found, Items):
            self.broken(f"input {i} is a sequence")
        return found

    def value(self, i: int) -> Value:
        """Input ``i`` as a device value."""
        operand = self.operand(i)
        return self.builder.device(operand, self.origin, operand.source or f"{self.hint}.in{i}")

    def optional(self, i: int) -> Value | None:
        return self.value(i) if self.has(i) else None

    def values(self) -> list[Value]:
        """All inputs as device values."""
        return [self.value(i) for i in range(len(self.operands))]

    def shape(self, i: int) -> tuple[Dim, ...]:
        return self.operand(i).shape

    def needs_rank(self, i: int, low: int, high: int = MAX_RANK) -> int:
        """The rank of input ``i``, checked."""
        rank = self.operand(i).rank
        if not low <= rank <= high:
            self.broken(f"input {i} has rank {rank}")
        return rank

    # --------------------------------------------------------------------------------------- elements on the host

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
            self.broken(f"input {i} should be a list of integers")
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
            self.broken(f"input {i} should have one element, it has {flat.size}")
        found: scalars.Scalar = flat[0]
        return found

    def number(self, i: int) -> float:
        """Input ``i``, one concrete number."""
        x = self.scalar(i)
        if scalars.is_symbolic(x):
            self.unsupported(f"input {i} depends on the dimension {x}", fix_dimensions(x))
        return x  # type: ignore[return-value]

    def concrete(self, d: Dim, what: str) -> int:
        """``d`` as an int; unsupported when it is symbolic."""
        if isinstance(d, IntExpr):
            self.unsupported(f"{what} depends on the dimension {d}", fix_dimensions(d))
        return int(d)
