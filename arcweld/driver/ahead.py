"""Work on a second thread while the caller does something else: numpy and the simulator run beside each other.

The order of results, and which error is raised, do not depend on which of the two is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def ahead(work: Callable[[], T]) -> Iterator[Future[T]]:
    """What ``work`` returns, or raises, as a future: a thread computes it from now on.

    Leaving waits for the thread. An error of ``work``, which the caller asked for first, goes before the caller's own.
    """
    with ThreadPoolExecutor(1, "arcweld-ahead") as pool:
        future = pool.submit(work)
        try:
            yield future
        except Exception:  # none is swallowed: that of ``work`` or the caller's own goes on
            future.result()
            raise


@contextmanager
def each_ahead(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """The same items, of which a thread makes the next one while the caller has the last one."""
    with ThreadPoolExecutor(1, "arcweld-ahead") as pool:

        def taken() -> Iterator[T]:
            coming = pool.submit(next, items, _END)
            while (item := coming.result()) is not _END:
                coming = pool.submit(next, items, _END)
                yield item  # type: ignore[misc]

        yield taken()


_END = object()
