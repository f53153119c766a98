"""How a weight was made from the model's weights: the record that the IR's weights and an engine's entries carry.

A record is a list of steps in postfix order, each (name, arguments), over a stack of arrays::

    ("source", (name, type))         push the model's weight of that name, such as "f32[64, 3]"
    ("constant", (type, values))     push an array written out, such as ("f32[2]", "(0.5, 1.0)")
    (operator, (n, attributes))      replace the n topmost arrays by the registered operator's result

``weights.py`` writes and replays records, for which it needs the operators; reading one needs nothing.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

Transform: TypeAlias = tuple[tuple[str, tuple[Any, ...]], ...]


class Recorded(Protocol):
    """A weight with the model's name for it and the record of how it was made; both may be empty."""

    @property
    def source(self) -> str: ...

    @property
    def transform(self) -> Transform: ...


def sources(weight: Recorded) -> tuple[str, ...]:
    """The model's weights that ``weight`` is made from, each once; none for a constant without a name in the model."""
    named = [str(args[0]) for step, args in weight.transform if step == "source" and args]
    return tuple(dict.fromkeys(named)) or ((weight.source,) if weight.source else ())
