"""A model's inputs and outputs that are sequences or optional values, as the tensors that they are made of.

The k-th item of a sequence ``x`` is the tensor ``x.k``. Shapes that are given for items say how many there are; a
constant list says both. Whether an optional value is there is said by a constant that is None or empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from arcweld.compiler.errors import ModelError, UnsupportedError, UsageError
from arcweld.compiler.onnx.operands import Items, Nothing, Operand, Unavailable
from arcweld.compiler.onnx.sequences import MAX_ITEMS
from arcweld.compiler.onnx.symbols import Shapes
from arcweld.compiler.signature import Argument, stated


@dataclass(frozen=True, slots=True)
class Declared:
    """What a model declares of an input: a tensor, or the items of a sequence, which may be missing (``optional``)."""

    name: str
    type: onnx.TypeProto
    is_sequence: bool
    optional: bool

    @staticmethod
    def of(info: onnx.ValueInfoProto) -> Declared:
        """The declaration of an input."""
        inner, optional = info.type, info.type.HasField("optional_type")
        if optional:
            inner = inner.optional_type.elem_type
        sequence = inner.HasField("sequence_type")
        return Declared(info.name, inner.sequence_type.elem_type if sequence else inner, sequence, optional)

    @property
    def is_known(self) -> bool:
        """Whether it is made of tensors, and not of maps or of further sequences."""
        return bool(self.type.HasField("tensor_type"))

    def tensor(self, name: str) -> onnx.ValueInfoProto:
        """The declaration of a tensor that it is made of. Items of a sequence may differ in a size with one name."""
        info = onnx.ValueInfoProto(name=name, type=self.type)
        for d in info.type.tensor_type.shape.dim if self.is_sequence else ():
            d.ClearField("dim_param")
        return info

    def items(self, shapes: Shapes) -> list[onnx.ValueInfoProto]:
        """The tensors: of a sequence, as many as shapes are given for. Raises UsageError for a shape of all of it."""
        if not self.is_sequence:
            return [self.tensor(self.name)]
        if self.name in shapes:
            hint = f"its items are {self.name}.0, {self.name}.1, …"
            raise UsageError(f"input {self.name!r} is a sequence", hint=hint)
        count = 1 + max((k for k in map(self.place, shapes) if k is not None), default=-1)
        if count > MAX_ITEMS:
            raise UsageError(f"input {self.name!r} has more than {MAX_ITEMS} items")
        return [self.tensor(f"{self.name}.{k}") for k in range(count)]

    def place(self, name: str) -> int | None:
        """The place of the item called ``name``; None for another name."""
        number = name.removeprefix(f"{self.name}.")
        return int(number) if self.is_sequence and number != name and re.fullmatch(r"0|[1-9]\d{0,8}", number) else None

    def constants(self, value: Any) -> list[np.ndarray] | None:
        """The arrays of a constant; None for an optional value that is empty. Raises UsageError for another one."""
        if self.optional and (value is None or (not np.isscalar(value) and len(value) == 0)):
            return None
        if value is None:
            raise UsageError(f"the value of input {self.name!r} is None, and it is not optional")
        if not self.is_sequence:
            return [value]
        if not isinstance(value, list | tuple | np.ndarray) or (isinstance(value, np.ndarray) and not value.ndim):
            raise UsageError(f"input {self.name!r} is a sequence", hint="its value is a list of arrays")
        return list(value)


def outputs_of(
    names: Sequence[str], results: Mapping[str, Operand | Items | Nothing | Unavailable]
) -> tuple[list[tuple[str, Operand]], tuple[Argument, ...]]:
    """The tensors of a model's outputs with their labels, and which of them are lists, if any.

    Raises UnsupportedError where no output has a tensor, ModelError where two tensors would have one name.
    """
    tensors: list[tuple[str, Operand]] = []
    arguments = []
    for name in names:
        found = results[name]
        assert not isinstance(found, Unavailable)  # which was reported before
        own = list(_tensors(name, found))
        kind = "sequence" if isinstance(found, Items) else "none" if isinstance(found, Nothing) else "tensor"
        arguments.append(Argument(name, kind, tuple(label for label, _ in own)))  # type: ignore[arg-type]
        tensors += own
    if not tensors:
        raise UnsupportedError("the outputs are empty sequences or optional values: there is nothing to compute")
    labels = [label for label, _ in tensors]
    twice = next((n for n in labels if labels.count(n) > 1), None) if len(arguments) < len(tensors) else None
    if twice is not None:
        raise ModelError(f"two outputs of the model are called {twice!r}, an item of a sequence among them")
    return tensors, stated(arguments)


def _tensors(name: str, found: Operand | Items | Nothing) -> Iterator[tuple[str, Operand]]:
    if isinstance(found, Items):
        yield from ((f"{name}.{k}", item) for k, item in enumerate(found))
    elif not isinstance(found, Nothing):
        yield name, found
