"""Runs work in a forked child process: a kernel that crashes or never ends takes down the child, not the caller.

The simulator runs kernels as host code. One with a wrong address can end its process, one with a wrong loop can hang.
"""

from __future__ import annotations

import faulthandler
import math
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeVar

from arcweld.compiler.errors import AccuracyError, ArcweldError, EnvironmentError_, InternalError

T = TypeVar("T")


class Notes(Protocol):
    """How work in a child tells its parent where it is."""

    def __call__(self, doing: str, seconds: float) -> None:
        """Says what comes next. It may take ``seconds`` of CPU time; a child that takes more is ended."""


def ignore_notes(doing: str, seconds: float) -> None:
    """For work that runs in the process itself."""


def in_child(
    work: Callable[[Notes], T], told: Callable[[str], None] | None = None, *, memory: int | None = None,
    lost: Callable[[int, str, float], Exception] | None = None,
) -> T:  # fmt: skip
    """The result of ``work`` in a forked child process, which must be picklable.

    told    called with each note
    memory  bytes of address space that the work may take; it gets a MemoryError for more
    lost    makes the error for a child that ended without a result, of its exit status (negative: a signal), the last
            note and the seconds noted; by default as if a kernel was at fault

    Exceptions and warnings of the work are raised and given here. Raises AccuracyError, or what ``lost`` makes, if a
    signal ends the child: it crashed, or took more CPU time than it noted.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # other threads hold no lock that the child needs: those of Arcweld wait for the fork, the C library's do too
        warnings.filterwarnings("ignore", "This process.*is multi-threaded", DeprecationWarning)
        child = os.fork()
    if child == 0:
        receiver.close()
        _be_child(work, sender, memory)
    sender.close()
    try:
        result: T = _listen(receiver, child, told, lost or _lost)
        return result
    finally:
        receiver.close()


def _listen(
    receiver: Connection, child: int, told: Callable[[str], None] | None, lost: Callable[[int, str, float], Exception]
) -> Any:
    doing, limit = "verification", math.inf
    ended = False
    try:
        while True:
            try:
                kind, *content = receiver.recv()
            except EOFError:
                _, status = os.waitpid(child, 0)
                ended = True
                raise lost(os.waitstatus_to_exitcode(status), doing, limit) from None
            if kind == "note":
                doing, limit = content
                if told is not None:
                    told(doing)
            elif kind == "warning":
                warnings.warn(content[0], content[1], stacklevel=4)
            elif kind == "error":
                raise content[0]
            else:
                return content[0]
    finally:
        if not ended:
            os.kill(child, signal.SIGKILL)  # it may still be running where the caller was interrupted
            os.waitpid(child, 0)


def _lost(code: int, doing: str, limit: float) -> ArcweldError:
    """The error for a child that ended without a result."""
    report = "this is a defect of Arcweld: please report it; leaving out the pass fusion may go round it"
    if code == -signal.SIGKILL:
        return EnvironmentError_(f"the process was killed in {doing}", hint="it may have needed too much memory")
    if code == -signal.SIGXCPU:
        return AccuracyError(f"{doing} does not end: it took more than {limit:.0f} s of CPU time", hint=report)
    what = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    return AccuracyError(f"{doing} ended its process with {what}", hint=report)


# ------------------------------------------------------------------------------------------------------ in the child


def _be_child(work: Callable[[Notes], Any], sender: Connection, memory: int | None) -> None:
    """Never returns: buffers, exit handlers and threads of the parent are not the child's to end."""
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory is not None:
        _limit_memory(memory)

    def note(doing: str, seconds: float) -> None:
        sender.send(("note", doing, seconds))
        # whole seconds of this process; the limit's own signal ends it
        last = math.ceil(time.process_time() + seconds) if math.isfinite(seconds) else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_CPU, (last, resource.getrlimit(resource.RLIMIT_CPU)[1]))

    try:
        with warnings.catch_warnings(record=True) as caught:
            message = _outcome(work, note)
        for w in caught:
            sender.send(("warning", str(w.message), w.category))
        sender.send(message)
    finally:
        sys.stderr.flush()
        os._exit(0)


def _limit_memory(more: int) -> None:
    """Lets this process' address space grow by ``more`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm", encoding="ascii") as sizes:
        most = int(sizes.read().split()[0]) * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (most if soft == resource.RLIM_INFINITY else min(most, soft), hard))


def _outcome(work: Callable[[Notes], Any], note: Notes) -> tuple[str, Any]:
    """("done", result) or ("error", exception)."""
    try:
        return "done", work(note)
    except ArcweldError as error:
        return "error", error
    except (MemoryError, KeyboardInterrupt) as error:
        return "error", type(error)(*map(str, error.args))
    except BaseException:
        return "error", InternalError(f"verification failed:\n{traceback.format_exc()}")
