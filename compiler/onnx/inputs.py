"""One ONNX node's operands, read by position: as device values, or as elements that the host knows.

A read raises ModelError where the operand breaks the operator's specification, and UnsupportedError where its elements
must be known and are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from arcweld.compiler.dims import Dim, IntExpr
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx import scalars
from arcweld.compiler.onnx.attributes import Attributes
from arcweld.compiler.onnx.folding import fold_value
from arcweld.compiler.onnx.operands import Builder, Growing, Items, Nothing, Operand, Rows, elements
from arcweld.compiler.onnx.remedies import fix_dimensions
from arcweld.compiler.onnx.scalars import Undecided
from arcweld.compiler.onnx.sizes import is_joined, sizes_of
from arcweld.compiler.ops.registry import make
from arcweld.compiler.text import sanitize

MAX_RANK = 32


class Inputs(Attributes):
    """The operands and attributes of a node; a missing operand is None."""

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
        """What the names of emitted values begin with: the node's first output, or the node's name."""
        return sanitize(next((o for o in self.outputs if o), self.name))

    def has(self, i: int) -> bool:
        """True if input ``i`` is present."""
        return i < len(self.operands) and self.operands[i] is not None

    def operand(self, i: int) -> Operand:
        """Input ``i``. Raises ModelError where it is missing or a sequence."""
        found = self.operands[i] if i < len(self.operands) else None
        if found is None:
            raise ModelError(f"{self.op} lacks its input {i}", node=self.name)
        if isinstance(found, Items | Nothing):
            self.broken(f"input {i} is {'a sequence' if isinstance(found, Items) else 'an empty optional value'}")
        if isinstance(found, Growing | Rows):
            self.unsupported(f"input {i} is a sequence whose length depends on the data")
        return found

    def present(self, i: int) -> Operand | Items | Nothing:
        """Input ``i``, which may be a sequence or an optional value. Raises ModelError where it is missing."""
        found = self.operands[i] if i < len(self.operands) else None
        return found if isinstance(found, Items | Nothing) else self.operand(i)

    def value(self, i: int) -> Value:
        """Input ``i`` as a device value."""
        operand = self.operand(i)
        return self.builder.device(operand, self.origin, operand.source or f"{self.hint}.in{i}")

    def optional(self, i: int) -> Value | None:
        """Input ``i`` as a device value, or None where it is missing."""
        return self.value(i) if self.has(i) else None

    def values(self) -> list[Value]:
        """All inputs as device values."""
        return [self.value(i) for i in range(len(self.operands))]

    def shape(self, i: int) -> tuple[Dim, ...]:
        """The shape of input ``i``."""
        return self.operand(i).shape

    def needs_rank(self, i: int, low: int, high: int = MAX_RANK) -> int:
        """The rank of input ``i``. Raises ModelError if it is not between ``low`` and ``high``, both inclusive."""
        rank = self.operand(i).rank
        if not low <= rank <= high:
            self.broken(f"input {i} has rank {rank}")
        return rank

    # --------------------------------------------------------------------------------------- elements on the host

    def known(self, i: int) -> Operand:
        """Input ``i`` with its elements known on the host. Raises UnsupportedError where they depend on data."""
        operand = self.operand(i)
        if operand.known is None:
            assert operand.value is not None
            operand.known = fold_value(
                self.builder, operand.value, lambda why, remedy: self.unsupported(f"input {i}: {why}", remedy)
            )
        return operand

    def dims(self, i: int, read: bool = True) -> list[Dim]:
        """Input ``i``, an integer tensor of rank 0 or 1, as a list of dimensions.

        With ``read``, what the model computes on the device becomes symbols, whose values the host reads there.
        """
        if self.operand(i).rank > 1 or self.operand(i).dtype.is_float:
            self.broken(f"input {i} should be a list of integers")
        found = self._computed_sizes(i) if read else None
        if found is not None:
            return found
        operand = self.known(i)
        try:
            return [scalars.as_dim(x) for x in elements(operand).flat]
        except Undecided as why:
            self.unsupported(str(why))

    def ints(self, i: int) -> list[int]:
        """Input ``i``, a list of integers that the host knows."""
        self.known(i)
        return [self.concrete(d, f"input {i}") for d in self.dims(i)]

    def is_known(self, i: int) -> bool:
        """Whether the elements of input ``i`` are known on the host while compiling."""
        try:
            return self.known(i).known is not None
        except UnsupportedError:
            return False

    def is_seen(self, i: int) -> bool:
        """Whether the host sees the elements of input ``i``, a list of integers, at run time only, all of them."""
        operand = self.operand(i)
        if self.is_known(i) or operand.value is None or is_joined(self.builder, operand.value):
            return False
        return operand.rank == 1 and isinstance(operand.shape[0], int) and operand.shape[0] <= MAX_RANK

    def _computed_sizes(self, i: int) -> list[Dim] | None:
        """The elements of input ``i`` where the model computes them on the device, as far as the host may read them."""
        operand = self.operand(i)
        if self.is_known(i) or operand.value is None:
            return None
        return sizes_of(self.builder, operand.value, self.hint, self.origin)

    def size(self, i: int) -> scalars.Scalar:
        """The one element of input ``i``, as ``dims`` reads integers, and floats that hold one."""
        operand = self.operand(i)
        if operand.dtype.is_float and operand.value is not None and not self.is_known(i):
            whole = make(self.builder.rw, "Cast", [operand.value], {"to": DType.I64}, origin=self.origin)
            sizes = sizes_of(self.builder, whole, self.hint, self.origin)
            if sizes is not None and len(sizes) == 1:
                return sizes[0]
        found = self._computed_sizes(i)
        return found[0] if found is not None and len(found) == 1 else self.scalar(i)

    def scalar(self, i: int) -> scalars.Scalar:
        """The one element of input ``i``, which may be symbolic."""
        flat = elements(self.known(i)).reshape(-1)
        if flat.size != 1:
            self.broken(f"input {i} should have one element, it has {flat.size}")
        found: scalars.Scalar = flat[0]
        return found

    def number(self, i: int) -> float:
        """The one element of input ``i`` as a number."""
        x = self.scalar(i)
        if scalars.is_symbolic(x):
            self.unsupported(f"input {i} depends on the dimension {x}", fix_dimensions(x))
        return x  # type: ignore[return-value]

    def integer(self, i: int) -> int:
        """The one element of input ``i``, an integer tensor. Raises ModelError for another type."""
        if not self.operand(i).dtype.is_int:
            self.broken(f"input {i} should be an integer, it is {self.operand(i).dtype.value}")
        return int(self.number(i))

    def concrete(self, d: Dim, what: str) -> int:
        """``d`` as an int. Raises UnsupportedError, which says ``what`` it is, where it is symbolic."""
        if isinstance(d, IntExpr):
            self.unsupported(f"{what} depends on the dimension {d}", fix_dimensions(d))
        return int(d)
