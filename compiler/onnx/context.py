"""The argument of an ONNX operator's handler: its operands, its attributes, and methods that emit IR nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx import scalars
from arcweld.compiler.onnx.deduce import Requirement, pairs, to_agree, to_be_at_least, to_be_at_most
from arcweld.compiler.onnx.host import agreeing, depends_on_data, require_zero
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
        """The hint for the name of a node's result."""
        return f"{self.hint}.{op.lower()}"

    def const_name(self) -> str:
        """The hint for the name of a constant."""
        return f"{self.hint}.const"

    def emit(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """Emits one IR node and returns its first output; operands that are None at the end are left out.

        Raises ModelError where operands do not fit. If a requirement of open dimensions can make them fit, it is noted
        for the next round first.
        """
        last = len(inputs)
        while last and inputs[last - 1] is None:
            last -= 1
        try:
            return super().emit(op, *inputs[:last], **attrs)
        except ModelError:
            demanded = pairs(op, [None if v is None else v.shape for v in inputs], attrs)
            equal = agreeing(self, inputs[:last], demanded)
            if equal is not None:
                return super().emit(op, *equal, **attrs)
            self.narrow(to_agree(demanded, self.name))
            raise

    # ------------------------------------------------------------------------------------ what dimensions have to be

    def narrow(self, found: Requirement | None) -> None:
        """Notes a requirement that lets this node, which fails, be imported in the next round.

        It is dropped if there are requirements already, because the node may not fail when those are met.
        """
        if found is not None and not self.builder.requirements:
            self.builder.requirements.append(found)

    def has_room(self, a: Dim, b: Dim) -> bool:
        """Whether ``a >= b``, which the node needs, is proved or can be required of a symbol.

        In the second case a bound of the symbol is noted for the next round.
        """
        if dims.is_nonneg(a - b):
            return True
        found = to_be_at_least(a - b, 0) or to_be_at_most(b - a, 0)
        if found is not None:
            self.builder.requirements.append(found)
        return found is not None

    def at_least(self, a: Dim, b: Dim) -> None:
        """Requires ``a >= b``, as ``has_room`` does.

        Where they depend on data the host checks it. Raises ModelError where it is false, UnsupportedError where it is
        unknown.
        """
        if self.has_room(a, b):
            return
        if depends_on_data(self.builder, [a, b]):
            require_zero(self, dims.minimum(a - b, 0), f"{b} of {a} elements are taken")
            return
        if isinstance(a - b, int):
            self.broken(f"{b} of {a} elements")
        self.unsupported(f"whether the dimension {a} is at least {b} is not known", fix_dimensions(a, b))

    def equal_dims(self, a: Dim, b: Dim) -> bool:
        """Whether two dimensions are equal. Raises UnsupportedError where their ranges do not decide it."""
        try:
            return scalars.equal(a, b)
        except Undecided as why:
            self.unsupported(str(why), fix_dimensions(a, b))


def broadcast_shape(c: NodeContext, a: Sequence[Dim], b: Sequence[Dim]) -> tuple[Dim, ...]:
    """The broadcast shape of two shapes by numpy's rule.

    Raises UnsupportedError where the ranges of symbolic dimensions do not decide it.
    """
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
