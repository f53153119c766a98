"""Finds the values of symbols from known sizes: each dimension of an array that is given makes one equation.

Nothing here looks inside an expression, so that Dims and the compiled expressions of an engine are solved alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from arcweld.compiler.dims import Dim, evaluate, free_symbols
from arcweld.compiler.errors import InputError

PROBES = (1, 2, 3, 1_000_003)  # a quotient, remainder, minimum or maximum gives itself away at one of these


class Function(Protocol):
    """An integer function of named symbols."""

    @property
    def names(self) -> frozenset[str]:
        """The symbols that it depends on."""

    def __call__(self, env: Mapping[str, int]) -> int:
        """Its value. Raises InputError or ZeroDivisionError where it has none."""


class DimFunction:
    """A dimension as a function of its symbols' names."""

    __slots__ = ("dim", "names")

    def __init__(self, dim: Dim) -> None:
        self.dim = dim
        self.names = frozenset(s.name for s in free_symbols(dim))

    def __call__(self, env: Mapping[str, int]) -> int:
        return evaluate(self.dim, env)


def solve(equations: Iterable[tuple[Function, int]], env: dict[str, int]) -> None:
    """Adds to ``env`` every symbol that ``equations`` (function, value) determine, one unknown after the other.

    An equation that has no solution among the numbers from 0 on adds nothing, nor does one that is not linear in its
    last unknown. Whether ``env`` fulfils the equations is left to the caller.
    """
    waiting = [(f, value) for f, value in equations if f.names]
    found = True
    while found:
        found = False
        for f, value in waiting:
            unknown = f.names - env.keys()
            if len(unknown) == 1:
                (name,) = unknown
                solution = _solution(f, value, name, env)
                if solution is not None:
                    env[name], found = solution, True
        waiting = [(f, value) for f, value in waiting if f.names - env.keys()]


def _solution(f: Function, value: int, name: str, env: Mapping[str, int]) -> int | None:
    line = linear(f, name, env)
    if line is None:
        return None
    start, slope = line
    whole, rest = divmod(value - start, slope)
    return whole if not rest and whole >= 0 else None


def linear(f: Function, name: str, env: Mapping[str, int]) -> tuple[int, int] | None:
    """(start, slope) where ``f`` is ``start + slope * name`` with the other symbols as in ``env`` and slope is not 0;
    None where it is not so.
    """
    try:
        at = [f({**env, name: n}) for n in PROBES[:3]]
        slope = at[1] - at[0]
        start = at[0] - slope * PROBES[0]
        if not slope or at[2] != start + slope * PROBES[2] or f({**env, name: PROBES[3]}) != start + slope * PROBES[3]:
            return None
    except (InputError, ZeroDivisionError):  # a line has a value everywhere
        return None
    return start, slope
