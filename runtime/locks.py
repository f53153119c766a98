"""A lock for many readers or one writer: calls of an engine, or the replacement of its weights."""

from __future__ import annotations

import threading


class SharedLock:
    """Readers share it, a writer has it alone. A writer that waits goes before new readers, so that it is not starved.

    A thread must not ask for it again while it has it.
    """

    __slots__ = ("_condition", "_readers", "_writers", "_writing")

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._readers = self._writers = 0  # those that read; those that write or wait for it
        self._writing = False

    def acquire_read(self) -> None:
        """Waits until nobody writes or wants to."""
        with self._condition:
            while self._writers:
                self._condition.wait()
            self._readers += 1

    def release_read(self) -> None:
        """Ends what ``acquire_read`` began."""
        with self._condition:
            self._readers -= 1
            if not self._readers and self._writers:
                self._condition.notify_all()

    def __enter__(self) -> None:
        """Waits until nobody reads or writes, and keeps everybody else out."""
        with self._condition:
            self._writers += 1
            try:
                while self._readers or self._writing:
                    self._condition.wait()
                self._writing = True
            except BaseException:
                self._writers -= 1
                self._condition.notify_all()
                raise

    def __exit__(self, *_: object) -> None:
        with self._condition:
            self._writing = False
            self._writers -= 1
            self._condition.notify_all()
