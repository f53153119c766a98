"""Finds the values of symbols from the shapes of arrays: each dimension of an array gives one equation.

Expressions are only evaluated, never inspected: Dims and an engine's compiled expressions are solved by the same code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from arcweld.compiler.dims import Dim, evaluate, free_symbols
from arcweld.compiler.errors import InputError

# values of a symbol at which a function is evaluated to see whether it is linear; a quotient, remainder, minimum or
# maximum leaves the line at one of them
PROBES = (1, 2, 3, 1_000_003)


class Function(Protocol):
    """An integer function of named symbols."""

    @property
    def names(self) -> frozenset[str]:
        """The symbols that it depends on."""

    def __call__(self, env: Mapping[str, int]) -> int:
        """Its value. Raises InputError or ZeroDivisionError where it has none."""


class DimFunction:
    """A dimension as a ``Function``: its value for given values of its symbols."""

    __slots__ = ("dim", "names")

    def __init__(self, dim: Dim) -> None:
        self.dim = dim
        self.names = frozenset(s.name for s in free_symbols(dim))

    def __call__(self, env: Mapping[str, int]) -> int:
        """The dimension's value. Raises KeyError for a symbol that ``env`` lacks."""
        return evaluate(self.dim, env)


def solve(equations: Iterable[tuple[Function, int]], env: dict[str, int]) -> None:
    """Adds to ``env`` the symbols that ``equations`` determine: pairs of a function and the value that it must have.

    Equations with one unknown symbol are solved, again and again, until none is left. An equation adds nothing if it is
    not linear in its unknown, or if no integer from 0 on solves it. The caller checks whether ``env`` satisfies all
    equations.
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
    """(start, slope) if ``f`` is ``start + slope * name`` with a slope other than 0, else None.

    The other symbols have their values from ``env``. Linearity is tested at ``PROBES`` only.
    """
    try:
        at = [f({**env, name: n}) for n in PROBES[:3]]
        slope = at[1] - at[0]
        start = at[0] - slope * PROBES[0]
        if not slope or at[2] != start + slope * PROBES[2] or f({**env, name: PROBES[3]}) != start + slope * PROBES[3]:
            return None
    except (InputError, ZeroDivisionError):  # a linear function has a value everywhere
        return None
    return start, slope
