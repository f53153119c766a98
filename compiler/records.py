"""Records of how a weight was made from the model's weights, which the IR and engine files keep beside its data.

A record is a list of steps, each (name, arguments), that work on a stack of arrays::

    ("source", (name, type))         push the model's weight of that name, such as "f32[64, 3]"
    ("constant", (type, values))     push an array written out, such as ("f32[2]", "(0.5, 1.0)")
    (operator, (n, attributes))      replace the n topmost arrays by the registered operator's result (n is 0 for Range)

``weights.py`` writes and replays records with the operator registry. This module needs no registry, so the runtime can
import it.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

Transform: TypeAlias = tuple[tuple[str, tuple[Any, ...]], ...]


class Recorded(Protocol):
    """A weight of a graph or of an engine, as far as its record is concerned."""

    @property
    def source(self) -> str:
        """The model's name for the weight; empty if it has none."""

    @property
    def transform(self) -> Transform:
        """The record; empty if the data is the model's own."""


def sources(weight: Recorded) -> tuple[str, ...]:
    """The names of the model's weights that ``weight`` is made from, each once; none for an unnamed constant."""
    named = [str(args[0]) for step, args in weight.transform if step == "source" and args]
    return tuple(dict.fromkeys(named)) or ((weight.source,) if weight.source else ())
