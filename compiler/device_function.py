"""A CUDA function of a user's, as expressions call it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class DeviceFunction:
    """A function that users write in CUDA: ``source`` defines ``float name(...)`` of one element of each operand.

    ``meaning`` is the same of numpy arrays.
    """

    name: str
    source: str
    meaning: Callable[..., Any] = field(compare=False)
