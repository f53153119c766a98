"""The names that nodes see, what is reported of each, and how control flow asks for a subgraph's nodes.

Scopes nest as in ONNX: a branch of an If sees the names outside it, a function sees only its own inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

from onnx import GraphProto, NodeProto

from arcweld.compiler.onnx.operands import Builder, Operand, Unavailable
from arcweld.compiler.onnx.remedies import Remedy


@dataclass(frozen=True, slots=True)
class Finding:
    """A visited node; ``reason`` says why it cannot be imported, and is empty when it can."""

    node: str
    op: str
    reason: str = ""
    remedy: Remedy | None = None


@dataclass(slots=True)
class Scope:
    """The names visible to a list of nodes."""

    names: dict[str, Any]
    opsets: Mapping[str, int]
    outer: Scope | None = None
    prefix: str = ""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    depth: int = 0

    def inside(self, names: dict[str, Any], prefix: str) -> Scope:
        """The scope of a subgraph: it sees this one."""
        return Scope(names, self.opsets, self, prefix, self.attrs, self.depth + 1)

    def function(
        self, names: dict[str, Any], opsets: Mapping[str, int], prefix: str, attrs: Mapping[str, Any]
    ) -> Scope:
        """The scope of a function's body: it sees its inputs only."""
        return Scope(names, opsets, None, prefix, attrs, self.depth + 1)

    def lookup(self, name: str) -> Operand | Unavailable | None:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                found: Operand | Unavailable = scope.names[name]
                return found
            scope = scope.outer
        return None


def normal_domain(domain: str) -> str:
    """The default domain has two spellings."""
    return "" if domain == "ai.onnx" else domain


class Walker(Protocol):
    """What importing a subgraph asks of the visitor that met the node."""

    builder: Builder

    def visit_all(
        self, nodes: Sequence[NodeProto], scope: Scope, outputs: Sequence[str], used: Set[str] | None = None
    ) -> list[Any]:
        """Visits ``nodes`` in order and returns the operands called ``outputs``."""

    def names_used(self, graph: GraphProto) -> Set[str]:
        """The names that a subgraph reads or returns."""
