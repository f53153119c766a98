"""Evaluation on demand with an explicit stack: what recursion over a graph computes, however deep the graph is.

A computation asks for what it needs with ``need``, which gives up where that is not known yet; ``demand`` then computes
the missing part first and starts the computation again. Each is started once more for every part that was missing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, MutableMapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Found = TypeVar("Found")


class Missing(Exception):
    """Control flow between ``need`` and ``demand``, never an error."""

    def __init__(self, key: Hashable) -> None:
        super().__init__(key)
        self.key = key


def need(key: Key, memo: Mapping[Key, Found]) -> Found:
    """The value of ``key``, for a computation that ``demand`` runs."""
    try:
        return memo[key]
    except KeyError:
        raise Missing(key) from None


def demand(key: Key, memo: MutableMapping[Key, Found], compute: Callable[[Key], Found]) -> Found:
    """The value of ``key``: from ``memo``, or computed and kept there with all that it needs."""
    stack = [key]
    while stack:
        top = stack[-1]
        if top not in memo:
            try:
                memo[top] = compute(top)
            except Missing as missing:
                stack.append(missing.key)  # type: ignore[arg-type]
                continue
        stack.pop()
    return memo[key]
