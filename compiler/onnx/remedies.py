"""Remedies: what a user can do about a node that cannot be imported, as data and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from arcweld.compiler import dims
from arcweld.compiler.errors import ModelError, UnsupportedError
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
    """What a user can do.

    ``symbols`` are the dimensions to fix, by name. ``subject`` is the input to fix, or the text of an advice.
    """

    action: Action
    symbols: frozenset[str] = frozenset()
    subject: str = ""

    def text(self, inputs: Sequence[Value] = ()) -> str:
        """The remedy as text. ``inputs`` are the model's, so that dimensions can be named as axes of them."""
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
    """The remedy of giving values to the symbolic dimensions in ``found``."""
    return Remedy(Action.FIX_DIMENSIONS, symbols_of(*found))


class ImportRefusal(UnsupportedError):
    """A valid node that cannot be imported, with a remedy."""

    def __init__(self, reason: str, *, node: str | None = None, remedy: Remedy | None = None) -> None:
        super().__init__(reason, node=node, hint=None if remedy is None else remedy.text())
        self.remedy = remedy


def remedy_of(error: UnsupportedError) -> Remedy | None:
    """The remedy of an error: an ImportRefusal's own, else its hint as advice, else None."""
    if isinstance(error, ImportRefusal):
        return error.remedy
    return None if error.hint is None else Remedy(Action.ADVICE, subject=error.hint)


def remedy_of_hint(error: ModelError) -> Remedy | None:
    """The hint of an error about a model as advice; None without one."""
    return None if error.hint is None else Remedy(Action.ADVICE, subject=error.hint)
