"""What a user can do about a node that cannot be imported: data, which one place turns into words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from arcweld.compiler import dims
from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.scalars import Scalar, symbols_of


class Action(Enum):
    """A kind of remedy."""

    FIX_DIMENSIONS = "give dimensions a value"
    FIX_INPUT = "make an input a constant"
    OPTIMISE_LESS = "save the file for any processor"
    ADVICE = "what a part below the importer advises"


@dataclass(frozen=True, slots=True)
class Remedy:
    """What to do. ``symbols`` are the dimensions in question, ``subject`` the input, or the advice itself."""

    action: Action
    symbols: frozenset[str] = frozenset()
    subject: str = ""

    def text(self, inputs: Sequence[Value] = ()) -> str:
        """The remedy in words; ``inputs`` are the model's, whose axes are named where dimensions are meant."""
        if self.action is Action.FIX_DIMENSIONS:
            advice = "give the dimension a value with --shapes (or inputs= in Python)"
            axes = [
                f"{d} is axis {k} of input {v.name}"
                for v in inputs
                for k, d in enumerate(v.shape)
                if self.symbols & {s.name for s in dims.free_symbols(d)}
            ]
            return f"{advice}: {', '.join(axes)}" if axes else advice
        if self.action is Action.FIX_INPUT:
            constant = f"--values {self.subject}:VALUE (or Input({self.subject!r}, value=…) in Python)"
            return f"if it never changes, make it a constant with {constant}"
        if self.action is Action.OPTIMISE_LESS:
            return "the file was optimised for one kind of CPU: save it with ORT_ENABLE_EXTENDED or less"
        return self.subject


def fix_dimensions(*found: Scalar) -> Remedy:
    """The remedy where ``found`` are too open: the dimensions that they are made of get values."""
    return Remedy(Action.FIX_DIMENSIONS, symbols_of(*found))


class Refusal(UnsupportedError):
    """A node that is valid and cannot be imported, with the remedy as data."""

    def __init__(self, reason: str, *, node: str | None = None, remedy: Remedy | None = None) -> None:
        super().__init__(reason, node=node, hint=None if remedy is None else remedy.text())
        self.remedy = remedy


def remedy_of(error: UnsupportedError) -> Remedy | None:
    """The remedy of a refusal by the importer, or by a part below it."""
    if isinstance(error, Refusal):
        return error.remedy
    return None if error.hint is None else Remedy(Action.ADVICE, subject=error.hint)
