"""What an operator's handler sees: its operands, its attributes, and ways to emit IR nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx import scalars
from arcweld.compiler.onnx.deduce import Requirement, pairs, to_agree, to_be_at_least
from arcweld.compiler.onnx.inputs import Inputs
from arcweld.compiler.onnx.operands import Builder, Operand, text
from arcweld.compiler.onnx.remedies import fix_dimensions
from arcweld.compiler.onnx.scalars import Undecided
from arcweld.compiler.ops.emit import Emitter


class NodeContext(Inputs, Emitter):
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
        Inputs.__init__(self, builder, op, opset, name, operands, outputs, attrs)
        Emitter.__init__(self, builder.rw, self.origin)
        self.used = list(used) if used is not None else [True] * len(self.outputs)

    def result_name(self, op: str) -> str:
        return f"{self.hint}.{op.lower()}"

    def const_name(self) -> str:
        return f"{self.hint}.const"

    def emit(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """Emits one IR node with inferred types and returns its output; operands left out at the end are not listed.

        Where open dimensions disagree, what they have to be is noted before the ModelError says so.
        """
        last = len(inputs)
        while last and inputs[last - 1] is None:
            last -= 1
        try:
            return super().emit(op, *inputs[:last], **attrs)
        except ModelError:
            self.narrow(to_agree(pairs(op, [None if v is None else v.shape for v in inputs], attrs), self.name))
            raise

    # ------------------------------------------------------------------------------------ what dimensions have to be

    def narrow(self, found: Requirement | None) -> None:
        """Notes what a dimension has to be so that this node, which fails, can be imported in the next pass.

        Where something was noted before, that comes first: with it the node may not fail.
        """
        if found is not None and not self.builder.requirements:
            self.builder.requirements.append(found)

    def has_room(self, a: Dim, b: Dim) -> bool:
        """Takes it that ``a >= b``, as the node demands; False if nothing that can be said of a symbol makes it so.

        Where ranges leave it open, a lower bound of a symbol is noted for the next pass.
        """
        if dims.is_nonneg(a - b):
            return True
        found = to_be_at_least(a - b, 0)
        if found is not None:
            self.builder.requirements.append(found)
        return found is not None

    def at_least(self, a: Dim, b: Dim) -> None:
        """Checks that ``a >= b``; a symbol on whose size that depends gets a lower bound."""
        if self.has_room(a, b):
            return
        if isinstance(a - b, int):
            self.broken(f"{b} of {a} elements")
        self.unsupported(f"whether the dimension {a} is at least {b} is not known", fix_dimensions(a, b))

    def equal_dims(self, a: Dim, b: Dim) -> bool:
        """Whether two dimensions are equal; unsupported when that is not known."""
        try:
            return scalars.equal(a, b)
        except Undecided as why:
            self.unsupported(str(why), fix_dimensions(a, b))


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
            c.narrow(to_agree([(x, y)], c.name))
            c.unsupported(f"whether the dimensions {x} and {y} are equal is not known", fix_dimensions(x, y))
    return tuple(out)
