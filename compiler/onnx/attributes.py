"""One ONNX node's attributes, read by name and checked, and the errors that a handler raises for the node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np
from onnx import GraphProto

from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.onnx.remedies import ImportRefusal, Remedy

T = TypeVar("T")


class Attributes:
    """A node's operator, operator set version, name and attributes.

    Reading an attribute raises ModelError where it has the wrong type or value.
    """

    def __init__(self, op: str, opset: int, name: str, attrs: Mapping[str, Any]) -> None:
        self.op = op
        self.opset = opset
        self.name = name
        self.attrs = attrs

    def unsupported(self, reason: str, remedy: Remedy | None = None) -> NoReturn:
        """Raises ImportRefusal: the node is valid, but cannot be imported for this reason."""
        raise ImportRefusal(reason, node=self.name, remedy=remedy)

    def broken(self, what: str) -> NoReturn:
        """Raises ModelError: the node breaks its operator's specification."""
        raise ModelError(f"{self.op}: {what}", node=self.name)

    def has_attr(self, name: str) -> bool:
        """True if the node has the attribute ``name``."""
        return name in self.attrs

    def _attr(self, name: str, kinds: tuple[type, ...], default: Any) -> Any:
        value = self.attrs.get(name)
        if value is None:
            return default
        if not isinstance(value, kinds):
            self.broken(f"attribute {name} has the wrong type")
        return value

    def int_attr(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        return int(self._attr(name, (int,), default))

    def float_attr(self, name: str, default: float) -> float:
        """A float attribute."""
        return float(self._attr(name, (float,), default))

    def str_attr(self, name: str, default: str) -> str:
        """A string attribute."""
        return str(self._attr(name, (str,), default))

    def choice_attr(self, name: str, default: str, choices: Sequence[str]) -> str:
        """A string attribute that must be one of ``choices``."""
        value = self.str_attr(name, default)
        if value not in choices:
            self.broken(f"attribute {name} is {value[:40]!r}")
        return value

    def ints_attr(self, name: str) -> tuple[int, ...] | None:
        """A list of integers; None where the attribute is missing."""
        return self._list_attr(name, int)

    def floats_attr(self, name: str) -> tuple[float, ...] | None:
        """A list of floats; None where the attribute is missing."""
        return self._list_attr(name, float)

    def strings_attr(self, name: str) -> tuple[str, ...] | None:
        """A list of strings; None where the attribute is missing."""
        return self._list_attr(name, str)

    def _list_attr(self, name: str, kind: type[T]) -> tuple[T, ...] | None:
        value = self._attr(name, (tuple,), None)
        if value is not None and not all(isinstance(v, kind) for v in value):
            self.broken(f"attribute {name} has the wrong type")
        found: tuple[T, ...] | None = value
        return found

    def tensor_attr(self, name: str) -> tuple[np.ndarray, DType] | None:
        """A tensor and its element type; None where the attribute is missing."""
        value = self._attr(name, (tuple,), None)
        if value is not None and not (len(value) == 2 and isinstance(value[0], np.ndarray)):
            self.broken(f"attribute {name} should be a tensor")
        found: tuple[np.ndarray, DType] | None = value
        return found

    def graph_attr(self, name: str) -> GraphProto:
        """A subgraph. Raises ModelError where the attribute is missing."""
        value = self._attr(name, (GraphProto,), None)
        if value is None:
            raise ModelError(f"{self.op} lacks its attribute {name}", node=self.name)
        found: GraphProto = value
        return found

    def axis(self, axis: int, rank: int, what: str = "axis") -> int:
        """``axis`` counted from the front. Raises ModelError where it is out of range."""
        if not -rank <= axis < rank:
            self.broken(f"{what} {axis} is out of range for rank {rank}")
        return axis % rank

    def axes(self, axes: Sequence[int], rank: int) -> list[int]:
        """``axes`` counted from the front. Raises ModelError for repeated ones and ones out of range."""
        out = [self.axis(a, rank) for a in axes]
        if len(set(out)) != len(out):
            self.broken(f"an axis is listed twice in {list(axes)}")
        return out
