"""Reading through a graph with an explicit stack: what recursion over its nodes computes, however deep the graph is.

A lowering asks for elements of its operands. Those that are not known yet are noted, and a stand-in takes their place;
then they are computed, and the lowering is run once more.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import TypeAlias

from arcweld.compiler.dims import Dim, dynamic_atoms
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, variable, walk

# the name of a value, the coordinates of an element, and the mask under which it is read
Request: TypeAlias = tuple[str, tuple[Dim, ...], Expr | None]
STAND_IN = "?"


class Missing(Exception):
    """Control flow between a computation and ``demand``, never an error: ``requests`` must be known first."""

    def __init__(self, requests: Sequence[Request]) -> None:
        super().__init__(requests)
        self.requests = requests


class Notes:
    """What one run of a lowering asks for and does not get."""

    def __init__(self) -> None:
        self.missing: list[Request] = []

    def stand_in(self, request: Request, dtype: DType) -> Expr:
        """Notes ``request``, unless where or whether it reads depends on another element that is not known yet."""
        if not self.missing or not _depends(request):
            self.missing.append(request)
        return variable(STAND_IN, dtype)

    def checked(self, found: Expr) -> Expr:
        """The lowering's result. Raises Missing if stand-ins were used."""
        if self.missing:
            raise Missing(self.missing)
        return found


def _depends(request: Request) -> bool:
    _, coords, mask = request
    roots = [a.payload for d in coords for a in dynamic_atoms(d)] + ([] if mask is None else [mask])
    return any(e.op == "var" and e.attr == STAND_IN for e in walk([r for r in roots if isinstance(r, Expr)]))


def demand(request: Request, memo: MutableMapping[Request, Expr], compute: Callable[[Request], Expr]) -> Expr:
    """What ``request`` asks for: from ``memo``, or computed and kept there with all that it needs."""
    stack = [request]
    while stack:
        top = stack[-1]
        if top not in memo:
            try:
                memo[top] = compute(top)
            except Missing as missing:
                stack += reversed(missing.requests)
                continue
        stack.pop()
    return memo[request]
