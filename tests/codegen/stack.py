"""A stack on which recursion over a graph fails at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

FRAMES = 150  # more than building a model of one node needs, including the libraries that it calls


@contextmanager
def shallow_stack() -> Iterator[None]:
    """Leaves FRAMES frames above the caller's."""
    depth, frame = 0, sys._getframe()
    while (outer := frame.f_back) is not None:
        depth, frame = depth + 1, outer
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + FRAMES)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
