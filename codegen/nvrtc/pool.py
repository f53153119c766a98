"""Compiles many kernels in a pool of compiler processes; identical jobs are compiled once, and results cached.

NVRTC compiles one program at a time in a process, so threads would gain nothing.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from arcweld.codegen.nvrtc import worker
from arcweld.codegen.nvrtc.cache import DiskCache
from arcweld.codegen.nvrtc.compiler import (
    Compiled,
    Job,
    check_arch,
    compile_job,
    death,
    finish,
    from_cache,
    library,
    require_clean,
)
from arcweld.codegen.nvrtc.process import CompilerProcess
from arcweld.compiler.cpus import available_cpus

log = logging.getLogger("arcweld.nvrtc")

Progress = Callable[[int, int, str], None]  # (jobs done, jobs in all, name of the last one)

# Fewer jobs than this are compiled by the one process that ``compile_job`` uses: starting more takes as long.
FEW_JOBS = 4


class CompilePool:
    """Compiler processes that are started on first use and kept until ``close`` or the end of the process.

    ``workers`` defaults to the number of CPUs that this process may use, at most 16. Several threads may use one pool.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers if workers is not None else min(available_cpus(), 16)
        self._idle: list[CompilerProcess] = []
        self._lock = threading.Lock()

    def run(
        self,
        jobs: Sequence[Job],
        *,
        strict: bool = False,
        cache: DiskCache | None = None,
        progress: Progress | None = None,
    ) -> list[Compiled]:
        """Compiles every job; the results are in the order of ``jobs``.

        ``progress`` is called in the caller's thread as distinct jobs finish. Raises the first CompileError or
        EnvironmentError_ that occurs, after the jobs that are under way have ended; with ``strict``, CompileError for
        register spills and ptxas' performance warnings too.
        """
        for arch in sorted({j.arch for j in jobs}):
            check_arch(arch)
        unique = list(dict.fromkeys(jobs))
        results: dict[Job, Compiled] = {}
        todo: list[Job] = []
        for job in unique:
            hit = from_cache(job, cache)
            if hit is None:
                todo.append(job)
                continue
            results[job] = hit
            if progress is not None:
                progress(len(results), len(unique), job.name)
        for job, done in self._compile(todo, cache):
            results[job] = done
            log.debug("%s for %s: %d bytes, %d spilled", job.name, job.arch, len(done.code), done.spill_bytes)
            if progress is not None:
                progress(len(results), len(unique), job.name)
        if strict:
            for job in unique:
                require_clean(results[job])
        return [results[j] for j in jobs]

    def _compile(self, jobs: list[Job], cache: DiskCache | None) -> Iterator[tuple[Job, Compiled]]:
        if self.workers < 2 or (len(jobs) < FEW_JOBS and not self._idle):
            for job in jobs:
                yield job, compile_job(job, cache=cache)
        else:
            yield from self._in_workers(jobs, cache)

    def _in_workers(self, jobs: list[Job], cache: DiskCache | None) -> Iterator[tuple[Job, Compiled]]:
        todo: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in jobs:
            todo.put(job)
        replies: queue.SimpleQueue[tuple[Job, worker.Reply | BaseException]] = queue.SimpleQueue()
        threads = [
            threading.Thread(target=self._serve, args=(todo, replies), daemon=True)
            for _ in range(min(self.workers, len(jobs)))
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in jobs:
                job, reply = replies.get()
                if isinstance(reply, BaseException):
                    raise reply
                yield job, finish(job, reply, cache)
        finally:
            _drain(todo)
            for thread in threads:
                thread.join()

    def _serve(self, todo: queue.SimpleQueue[Job], replies: queue.SimpleQueue[tuple[Job, Any]]) -> None:
        """One thread: feeds one worker until no job is left, and replaces a worker that died."""
        process: CompilerProcess | None = None
        while (job := _next(todo)) is not None:
            try:
                process = process or self._take()
                replies.put((job, process.ask(job.request())))
            except EOFError as error:
                if process is not None:
                    process.close()
                process = None
                replies.put((job, death(job, str(error))))
            except BaseException as error:
                replies.put((job, error))
        if process is not None:
            with self._lock:
                self._idle.append(process)

    def _take(self) -> CompilerProcess:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return CompilerProcess(library())

    def close(self) -> None:
        """Ends every idle worker. The pool can be used again."""
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.close()


def _next(todo: queue.SimpleQueue[Job]) -> Job | None:
    try:
        return todo.get_nowait()
    except queue.Empty:
        return None


def _drain(todo: queue.SimpleQueue[Job]) -> None:
    while _next(todo) is not None:
        pass


_shared: CompilePool | None = None
_shared_lock = threading.Lock()


def shared_pool() -> CompilePool:
    """The pool of this process; its workers end with the process."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = CompilePool()
            atexit.register(_shared.close)
        return _shared


def _forget_shared() -> None:
    """A forked child must not talk to its parent's compiler processes."""
    global _shared
    _shared = None


os.register_at_fork(after_in_child=_forget_shared)


def compile_many(
    jobs: Sequence[Job],
    *,
    strict: bool = False,
    cache: DiskCache | None = None,
    progress: Progress | None = None,
) -> list[Compiled]:
    """``CompilePool.run`` on the shared pool."""
    return shared_pool().run(jobs, strict=strict, cache=cache, progress=progress)
