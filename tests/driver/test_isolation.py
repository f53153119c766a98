"""Work in a child process: results, errors and warnings come back; crashes and endless loops become errors."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
import warnings
from typing import Any

import numpy as np
import pytest

from arcweld.compiler.errors import AccuracyError, EnvironmentError_, InternalError, UsageError
from arcweld.driver.isolation import in_child


def test_the_result_and_the_warnings_come_back() -> None:
    def work(note: Any) -> tuple[int, np.ndarray]:
        warnings.warn("careful", RuntimeWarning, stacklevel=1)
        return os.getpid(), np.arange(3)

    with pytest.warns(RuntimeWarning, match="careful"):
        child, array = in_child(work)
    assert child != os.getpid()
    assert array.tolist() == [0, 1, 2]


def test_errors_keep_their_type_and_hint() -> None:
    def work(note: Any) -> None:
        raise UsageError("wrong", node="here", hint="do right")

    with pytest.raises(UsageError) as caught:
        in_child(work)
    assert str(caught.value) == "wrong [at here]\n  hint: do right"

    def defect(note: Any) -> None:
        raise KeyError("unexpected")

    with pytest.raises(InternalError, match=r"(?s)defect.*KeyError: 'unexpected'"):
        in_child(defect)


def test_a_crash_names_what_was_done() -> None:
    def work(note: Any) -> None:
        note("kernel k", 60.0)
        ctypes.memset(8, 0, 1)

    with pytest.raises(AccuracyError, match="kernel k ended its process with SIGSEGV"):
        in_child(work)


def test_an_endless_loop_is_ended() -> None:
    def work(note: Any) -> None:
        note("kernel k", 0.2)
        while True:
            pass

    with pytest.raises(AccuracyError, match="kernel k does not end: it took more than"):
        in_child(work)


def test_a_killed_child_is_not_called_inaccurate() -> None:
    with pytest.raises(EnvironmentError_, match="killed"):
        in_child(lambda note: os.kill(os.getpid(), signal.SIGKILL))


def test_notes_are_told() -> None:
    told: list[str] = []
    in_child(lambda note: [note(f"step {k}", 9.0) for k in range(3)], told.append)
    assert told == ["step 0", "step 1", "step 2"]


def test_the_child_ends_with_its_parent_s_patience() -> None:
    """An interrupt in the parent leaves no process behind."""
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    seen: list[str] = []

    def work(note: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        note(str(os.getpid()), 60.0)
        time.sleep(30)

    with pytest.raises(KeyboardInterrupt):
        in_child(work, seen.append)
    with pytest.raises(ProcessLookupError):
        os.kill(int(seen[0]), 0)
