"""Runs the host C++ compiler in a folder of its own, which is removed in the end, and tells its failures apart."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from arcweld.compiler.errors import ArcweldError, CompileError, EnvironmentError_

_NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded|File too large|File size limit|signal (?:7|25)\b")
_NO_MEMORY = re.compile(
    r"[Cc]annot allocate memory|out of memory|virtual memory exhausted|bad_alloc|Killed signal|failed to map segment"
)
_SPARE = 1 << 20  # bytes; a disk with less is full


class Compilers:
    """The compilers of one caller, which stops all of them, those too that its threads are about to start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def start(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
        """Starts a compiler in a process group of its own. Raises EnvironmentError_ after ``stop``."""
        with self._lock:
            if self._stopped:
                raise EnvironmentError_("compiling was interrupted")
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                errors="replace", env=environment, process_group=0,
            )  # fmt: skip
            self._running.add(process)
            return process

    def ended(self, process: subprocess.Popen[str]) -> None:
        """Forgets a compiler that has ended."""
        with self._lock:
            self._running.discard(process)

    def stop(self) -> None:
        """Ends all compilers that run; no further one starts."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                _kill(process)


@contextlib.contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """A new folder beside ``target``, removed at the end; those that killed processes left behind are removed too.

    Raises EnvironmentError_ where it cannot be made.
    """
    folder = target.parent / f".work-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except OSError as error:
        raise EnvironmentError_(
            f"{target} cannot be written: {error.strerror}",
            hint="check permissions and disk space; ARCWELD_CACHE_DIR names another folder",
        ) from error
    try:
        _sweep(target.parent)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(parent: Path) -> None:
    for left in parent.glob(".work-*-*"):
        pid = left.name.split("-")[1]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def run_compiler(command: list[str], what: str, stdin: str, folder: Path, compilers: Compilers | None = None) -> None:
    """Runs the compiler, whose temporary files are in ``folder`` too.

    Raises CompileError for a source that does not compile, EnvironmentError_ for a full disk or too little memory. An
    interruption ends the compiler and its children first.
    """
    environment = {**os.environ, "TMPDIR": str(folder), "LC_ALL": "C"}
    compilers = compilers or Compilers()
    try:
        process = compilers.start(command, environment)
    except OSError as error:
        raise EnvironmentError_(f"the C++ compiler cannot be started: {error.strerror}") from error
    try:
        _, shown = process.communicate(stdin)
    except BaseException:
        _kill(process)
        process.wait()
        raise
    finally:
        compilers.ended(process)
    if process.returncode:
        raise _failure(what, shown, process.returncode, folder)


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _failure(what: str, shown: str, code: int, folder: Path) -> ArcweldError:
    place = folder.parent
    space = os.statvfs(folder)
    if _NO_SPACE.search(shown) or space.f_bavail * space.f_frsize < _SPARE:
        return EnvironmentError_(
            f"{what} cannot be compiled: there is no space left in {place}",
            hint="make room there, or name another folder by ARCWELD_CACHE_DIR",
        )
    if _NO_MEMORY.search(shown) or code == -signal.SIGKILL:
        return EnvironmentError_(
            f"{what} cannot be compiled: the C++ compiler ran out of memory", hint="check `ulimit -v` and free memory"
        )
    lines = [line for line in shown.splitlines() if "error" in line] or shown.splitlines()
    return CompileError(f"{what} does not compile for the sim device: " + "\n".join(lines[:8]), node=what)
