"""Scopes of names, findings about nodes, and the interface by which control flow imports a subgraph.

Scopes nest as in ONNX: a subgraph sees the names outside it, a function sees only its own inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

from onnx import GraphProto, NodeProto

from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.onnx.operands import Builder, Operand, Unavailable
from arcweld.compiler.onnx.remedies import Remedy


class BodyRefused(UnsupportedError):
    """A body holds nodes that cannot be imported, which are listed by themselves."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A node that was visited, with the reason why it cannot be imported; empty if it can."""

    node: str
    op: str
    reason: str = ""
    remedy: Remedy | None = None


@dataclass(slots=True)
class Scope:
    """The names that a list of nodes sees, with their operands.

    opsets  operator set versions by domain
    outer   the scope around it, None for a model's graph and for a function
    prefix  what the names of its nodes begin with in messages and origins
    attrs   the attributes of the enclosing function's call
    depth   the number of enclosing subgraphs and functions
    """

    names: dict[str, Any]
    opsets: Mapping[str, int]
    outer: Scope | None = None
    prefix: str = ""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    depth: int = 0

    def inside(self, names: dict[str, Any], prefix: str) -> Scope:
        """A scope for a subgraph, which sees this one."""
        return Scope(names, self.opsets, self, prefix, self.attrs, self.depth + 1)

    def function(
        self, names: dict[str, Any], opsets: Mapping[str, int], prefix: str, attrs: Mapping[str, Any]
    ) -> Scope:
        """A scope for a function's body, which sees only its inputs."""
        return Scope(names, opsets, None, prefix, attrs, self.depth + 1)

    def lookup(self, name: str) -> Operand | Unavailable | None:
        """The operand called ``name`` in this scope or one around it; None if there is none."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                found: Operand | Unavailable = scope.names[name]
                return found
            scope = scope.outer
        return None


def normal_domain(domain: str) -> str:
    """``domain`` with the empty string for ONNX's own domain, which has two spellings."""
    return "" if domain == "ai.onnx" else domain


class Walker(Protocol):
    """The part of ``Visitor`` that the import of a subgraph uses."""

    builder: Builder
    findings: list[Finding]

    def visit_all(
        self, nodes: Sequence[NodeProto], scope: Scope, outputs: Sequence[str], used: Set[str] | None = None
    ) -> list[Any]:
        """Imports ``nodes`` in order and returns the operands called ``outputs``."""

    def reserve(self, nodes: Sequence[NodeProto], depth: int, times: int = 1) -> None:
        """Raises ModelError if visiting ``nodes`` at ``depth`` so many times makes too many nodes."""

    def names_used(self, graph: GraphProto) -> Set[str]:
        """The names that a subgraph reads or returns."""
