"""The table from ONNX operators to their handlers: what the importer can turn into IR nodes.

A handler takes a NodeContext and returns its outputs; leaving later outputs out says that they are not supported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias, Union

from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext, Operand

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


def handler(domain: str, op: str) -> Handler | None:
    """The handler of an operator, or None."""
    # the files register themselves on import; the table must be complete before it is asked
    from arcweld.compiler.onnx import (  # noqa: F401
        handlers_attention,
        handlers_contrib,
        handlers_matmul,
        handlers_movement,
        handlers_norm,
        handlers_pointwise,
        handlers_qlinear,
        handlers_quant,
        handlers_recurrent,
        handlers_reduce,
        handlers_resize,
        handlers_spectral,
        handlers_window,
    )

    return HANDLERS.get((domain, op))
