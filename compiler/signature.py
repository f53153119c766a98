"""What a caller passes and gets as one: a tensor, or a list of tensors (ONNX's sequences).

A graph and an engine have tensors only. How many a list holds is known when a model is compiled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from arcweld.compiler.errors import InputError

T = TypeVar("T")


class Argument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output of the model: ``items`` names its tensors.

    kind  ``tensor``: an array, the one item; ``sequence``: a list of arrays; ``none``: None, an optional value that is
          empty
    """

    name: str
    kind: Literal["tensor", "sequence", "none"]
    items: tuple[str, ...]

    @property
    def is_valid(self) -> bool:
        """Whether there are as many items as the kind says."""
        return self.kind == "sequence" or len(self.items) == (1 if self.kind == "tensor" else 0)


def described(argument: Argument, types: Mapping[str, str]) -> str:
    """An argument for messages: ``x: f32[n, 3]``, or ``parts: [f32[2], f32[3]]``."""
    listed = [types[n] for n in argument.items]
    text = f"[{', '.join(listed)}]" if argument.kind == "sequence" else listed[0] if listed else "None"
    return f"{argument.name}: {text}"


def plain(names: Iterable[str]) -> tuple[Argument, ...]:
    """Arguments that are a tensor each."""
    return tuple(Argument(n, "tensor", (n,)) for n in names)


def stated(arguments: Sequence[Argument]) -> tuple[Argument, ...]:
    """The arguments as graphs and programs keep them: none where each is a tensor of its own name."""
    return () if all(a.kind == "tensor" and a.items == (a.name,) for a in arguments) else tuple(arguments)


def spread(arguments: Sequence[Argument], given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given by arguments' names, by tensors' names. Other names stay as they are, those of items among them.

    Raises InputError for what is no list, or one of another length.
    """
    lists = {a.name: a for a in arguments if a.kind == "sequence"}
    found: dict[str, Any] = {}
    for name, value in given.items():
        argument = lists.get(name)
        if argument is None:
            found[name] = value
            continue
        wanted = f"input {name!r} is a sequence of {len(argument.items)} tensors"
        if not isinstance(value, list | tuple):
            raise InputError(f"{wanted}, not a {type(value).__name__}", hint=f"pass {name}=[…], a list of arrays")
        if len(value) != len(argument.items):
            raise InputError(f"{wanted}, {len(value)} were given", hint="the number of items is fixed when compiling")
        found.update(zip(argument.items, value))
    return found


def gathered(arguments: Sequence[Argument], tensors: Mapping[str, T]) -> dict[str, T | list[T] | None]:
    """What a caller gets, by arguments' names, of tensors by their names."""
    def one(a: Argument) -> T | list[T] | None:
        if a.kind == "none":
            return None
        return tensors[a.items[0]] if a.kind == "tensor" else [tensors[n] for n in a.items]

    return {a.name: one(a) for a in arguments}
