"""Times calls of an engine from one or several streams, split into what trtexec's summary is split into."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from arcweld.cli.common import note
from arcweld.runtime.engine import Engine


@dataclass(frozen=True, slots=True)
class Sample:
    """Milliseconds of one call, None where the device has no such part.

    latency  from inputs in the host's memory to results there; without copies, from inputs to results on the device
    enqueue  of the host, until the call has been handed to the device
    h2d      copying the inputs to the device
    compute  all kernels
    d2h      copying the results back
    """

    latency: float
    enqueue: float | None = None
    h2d: float | None = None
    compute: float | None = None
    d2h: float | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """How to time: at least ``iterations`` calls and ``duration`` seconds for each stream, after ``warm_up`` seconds.

    ``sleep`` are seconds to wait before the first timed call, ``idle`` seconds to wait after each call.
    """

    iterations: int
    warm_up: float
    duration: float
    streams: int = 1
    sleep: float = 0.0
    idle: float = 0.0


@dataclass(frozen=True, slots=True)
class Timed:
    """The samples of all streams, and the seconds from the first timed call's begin to the last one's end."""

    samples: tuple[Sample, ...]
    seconds: float


Call = Callable[[], Sample]


def measure(make: Callable[[], Call], schedule: Schedule) -> Timed:
    """Times the call that ``make`` returns; each stream has one of its own, made and used in a thread of its own."""
    if schedule.streams == 1:
        return _one_stream(make, schedule, lambda: None, threading.Event())
    stop = threading.Event()
    together = threading.Barrier(schedule.streams)

    def work() -> Timed:
        try:
            return _one_stream(make, schedule, together.wait, stop)
        except BaseException:
            together.abort()
            raise

    begin = time.perf_counter()
    with ThreadPoolExecutor(schedule.streams) as pool:
        try:
            jobs = [pool.submit(work) for _ in range(schedule.streams)]
            failed = [e for j in jobs if (e := j.exception()) is not None]
        except BaseException:
            stop.set()
            raise
    for error in sorted(failed, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
        raise error
    parts = [j.result() for j in jobs]
    seconds = min(max(p.seconds for p in parts), time.perf_counter() - begin)
    return Timed(tuple(s for p in parts for s in p.samples), seconds)


def _one_stream(
    make: Callable[[], Call], schedule: Schedule, ready: Callable[[], object], stop: threading.Event
) -> Timed:
    call = make()
    end = time.perf_counter() + schedule.warm_up
    call()
    while time.perf_counter() < end and not stop.is_set():
        call()
    ready()
    time.sleep(schedule.sleep)
    samples: list[Sample] = []
    begin = time.perf_counter()
    while not stop.is_set():
        if len(samples) >= schedule.iterations and time.perf_counter() - begin >= schedule.duration:
            break
        samples.append(call())
        if schedule.idle:
            time.sleep(schedule.idle)
    return Timed(tuple(samples), time.perf_counter() - begin)


def engine_call(engine: Engine, feeds: Mapping[str, np.ndarray], copies: bool) -> Call:
    """The call of an engine to time; its inputs and results are in the host's memory if ``copies``."""
    if engine.device.gpu_index is None:
        if not copies:
            note("--noDataTransfers has no effect: there is nothing to copy to")
        return host_call(engine, feeds)
    if any(t.dtype == "bf16" for t in (*engine.inputs, *engine.outputs)):
        note("the parts of a call are not told apart: CuPy has no arrays of bfloat16")
        return host_call(engine, feeds)
    return gpu_call(engine, feeds, copies)


def by_host_clock(call: Call) -> Call:
    """The same call, whose latency is what the host's clock says until the results are there.

    Contestants of a comparison are timed by one clock. It includes what the host does for a call.
    """

    def timed() -> Sample:
        start = time.perf_counter()
        sample = call()
        return replace(sample, latency=(time.perf_counter() - start) * 1e3)

    return timed


def host_call(engine: Engine, feeds: Mapping[str, np.ndarray]) -> Call:
    """A call on a device that uses the host's memory: only its latency can be told."""

    def call() -> Sample:
        start = time.perf_counter()
        engine.run(feeds)
        return Sample((time.perf_counter() - start) * 1e3)

    return call


def gpu_call(engine: Engine, feeds: Mapping[str, np.ndarray], copies: bool) -> Call:
    """A call on a GPU on a stream of its own, whose parts are timed by events; ``copies`` as in ``Sample.latency``."""
    import cupy

    with cupy.cuda.Device(engine.device.gpu_index):
        stream = cupy.cuda.Stream(non_blocking=True)
        pinned = {name: _pinned(array) for name, array in feeds.items()}
        for name, array in feeds.items():
            pinned[name][...] = array
        with stream:
            there = {name: cupy.asarray(array) for name, array in feeds.items()}
            back = {name: _pinned(result) for name, result in engine.run_tensors(there).items()}
        stream.synchronize()
        events: Sequence[Any] = [cupy.cuda.Event() for _ in range(4)]

    def call() -> Sample:
        with cupy.cuda.Device(engine.device.gpu_index), stream:
            events[0].record(stream)
            for name, array in pinned.items() if copies else ():
                there[name].set(array, stream)
            events[1].record(stream)
            start = time.perf_counter()
            results = engine.run_tensors(there)
            enqueue = (time.perf_counter() - start) * 1e3
            events[2].record(stream)
            for name, array in results.items() if copies else ():
                array.get(stream=stream, out=back[name], blocking=False)
            events[3].record(stream)
            events[3].synchronize()
            h2d, compute, d2h = (cupy.cuda.get_elapsed_time(a, b) for a, b in pairwise(events))
        if not copies:
            return Sample(compute, enqueue, None, compute, None)
        return Sample(h2d + compute + d2h, enqueue, h2d, compute, d2h)

    return call


def _pinned(like: Any) -> np.ndarray:
    """An uninitialised array in page-locked memory, which a GPU copies from and to without the host's help."""
    import cupy

    memory = cupy.cuda.alloc_pinned_memory(max(like.nbytes, 1))
    return np.frombuffer(memory, like.dtype, like.size).reshape(like.shape)
