"""Keeps numpy's matrix products on the calling thread while other cores have other work.

OpenBLAS, which numpy's wheels bring, lets its threads spin for some time after each product. Beside a simulator that
has work for every core, that only takes time from others.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np

_LOCK = threading.Lock()
# A fork waits for a change that another thread makes: its child would have a lock that nobody gives back.
os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)
_users = 0
_threads: list[int] = []  # of each library before the first of the users


@contextmanager
def one_thread() -> Iterator[None]:
    """Products of numpy run on the thread that asks for them, in this process and its forks, until the last user ends.

    Does nothing where numpy has another BLAS than OpenBLAS.
    """
    global _users, _threads
    with _LOCK:
        if _users == 0:
            _threads = [count() for count, _ in _libraries()]
            for _, limit in _libraries():
                limit(1)
        _users += 1
    try:
        yield
    finally:
        with _LOCK:
            _users -= 1
            if _users == 0:
                for (_, limit), threads in zip(_libraries(), _threads, strict=True):
                    limit(threads)


@cache
def _libraries() -> tuple[tuple[Callable[[], int], Callable[[int], object]], ...]:
    """The functions that tell and set the number of threads, of each OpenBLAS that numpy has loaded."""
    np.dot(np.ones((1, 1)), np.ones((1, 1)))  # numpy has loaded it then
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:  # a system without it: the threads stay as they are
        return ()
    paths = {line.split(maxsplit=5)[5] for line in maps.splitlines() if "openblas" in line and line.count("/")}
    found = []
    for path in sorted(paths):
        library = ctypes.CDLL(path)
        # builds add their name in front, and the width of their integers behind
        for before, behind in product(("scipy_", ""), ("64_", "")):
            get = getattr(library, f"{before}openblas_get_num_threads{behind}", None)
            limit = getattr(library, f"{before}openblas_set_num_threads{behind}", None)
            if get is not None and limit is not None:
                found.append((get, limit))
                break
    return tuple(found)
