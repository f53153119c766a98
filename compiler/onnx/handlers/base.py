"""Registration of handlers of ONNX operators; importing ``table`` registers them all.

A handler takes a NodeContext and returns the node's outputs. Outputs that it leaves out at the end are not supported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, Union

from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.operands import Operand

Result: TypeAlias = Union[Value, Operand, "Sequence[Value | Operand | None]"]
Handler: TypeAlias = Callable[[NodeContext], Result]

MICROSOFT = "com.microsoft"
HANDLERS: dict[tuple[str, str], Handler] = {}


def handles(*ops: str, domain: str = "") -> Callable[[Handler], Handler]:
    """Registers a handler for operators of one domain. Raises ValueError when an operator has one already."""

    def add(fn: Handler) -> Handler:
        for op in ops:
            if (domain, op) in HANDLERS:
                raise ValueError(f"operator {domain}.{op} has two handlers")
            HANDLERS[domain, op] = fn
        return fn

    return add
