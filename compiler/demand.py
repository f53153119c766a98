"""Computes expressions of graph elements from those of their operands without recursion, however deep the graph is.

A lowering asks for elements of its operands. For an element whose expression is not known yet it gets a stand-in, and
the request is noted. Then the noted requests are computed, and the lowering runs again.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import TypeAlias

from arcweld.compiler.dims import Dim, dynamic_atoms
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, variable, walk

# the name of a value, the coordinates of an element, and the condition under which it is read (None: always)
Request: TypeAlias = tuple[str, tuple[Dim, ...], Expr | None]
STAND_IN = "?"  # the name of the variable that stands for an unknown element


class Missing(Exception):
    """Tells ``demand`` that ``requests`` must be computed first. It is control flow, never an error that users see."""

    def __init__(self, requests: Sequence[Request]) -> None:
        super().__init__(requests)
        self.requests = requests


class Notes:
    """The requests of one run of a lowering whose expressions are not known yet."""

    def __init__(self) -> None:
        self.missing: list[Request] = []

    def stand_in(self, request: Request, dtype: DType) -> Expr:
        """Notes ``request`` and returns a stand-in for its element.

        A request whose coordinates or mask hold a stand-in is not noted: the next run makes it with real ones.
        """
        if not self.missing or not _depends(request):
            self.missing.append(request)
        return variable(STAND_IN, dtype)

    def checked(self, found: Expr) -> Expr:
        """``found``, the lowering's result. Raises Missing if the run got stand-ins."""
        if self.missing:
            raise Missing(self.missing)
        return found


def _depends(request: Request) -> bool:
    _, coords, mask = request
    roots = [a.payload for d in coords for a in dynamic_atoms(d)] + ([] if mask is None else [mask])
    return any(e.op == "var" and e.attr == STAND_IN for e in walk([r for r in roots if isinstance(r, Expr)]))


def demand(request: Request, memo: MutableMapping[Request, Expr], compute: Callable[[Request], Expr]) -> Expr:
    """The expression of the element that ``request`` asks for: from ``memo``, or computed and added to it.

    ``compute`` gives the expression of one request, or raises Missing with the requests that it needs first.
    """
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
