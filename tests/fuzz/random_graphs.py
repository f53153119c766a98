"""Random graphs for tests: one generator, whose every choice the caller makes (a random number or hypothesis)."""

from __future__ import annotations

from collections.abc import Callable

from maker import SIZES, Maker, feeds_of
from steps_compute import COMPUTE
from steps_movement import MOVEMENT
from steps_pointwise import POINTWISE

from arcweld.compiler.ir import Graph

STEPS = (*POINTWISE, *MOVEMENT, *COMPUTE)


def random_graph(pick: Callable[[int], int], steps: int) -> Graph:
    """A graph of about ``steps`` operators, which may turn out to have none. ``pick(n)`` chooses a number below n."""
    return Maker(pick, symbolic=bool(pick(2))).grow(steps, STEPS)


__all__ = ["SIZES", "feeds_of", "random_graph"]
