"""A call's timeline in the Trace Event Format, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

The format is that of Google's "Trace Event Format" document, its JSON object form: ``X`` for slices, ``C`` for counters
and ``M`` for names. Times are microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from arcweld.compiler.logs import printable
from arcweld.driver.estimate import Arena
from arcweld.report.timeline import Slice, Timeline

PROCESS = 1
HOST = 1  # the thread of the host; stages of the engine are the threads from 2 on
FIRST_STAGE = 2
BEGINNING = "beginning of the CUDA graph (assumed)"


def trace(timeline: Timeline, name: str) -> dict[str, Any]:
    """The trace of an engine or a model that is called ``name``."""
    estimate = timeline.estimate
    events = [*_names(timeline, name), *_slices(timeline), *_counters(timeline)]
    return {
        "traceEvents": events, "displayTimeUnit": "ns",
        "otherData": {
            "times": timeline.times, "card": printable(estimate.card.title),
            "sizes": ", ".join(f"{printable(n)}={v}" for n, v in estimate.sizes.items()),
            "not in it": "; ".join(estimate.beside),
        },
    }  # fmt: skip


def _names(timeline: Timeline, name: str) -> Iterator[dict[str, Any]]:
    """What the rows are called, and their order."""
    yield _name("process_name", 0, f"{printable(name)}: {timeline.times}")
    threads = {FIRST_STAGE + x.stage: f"stage {x.stage}" for x in timeline.estimate.launches}
    if len(threads) <= 1:
        threads = dict.fromkeys(threads or [FIRST_STAGE], "kernels")
    if any(s.on_host for s in timeline.slices):
        threads[HOST] = "host"
    for thread, title in sorted(threads.items()):
        yield _name("thread_name", thread, title)
        yield {"ph": "M", "name": "thread_sort_index", "pid": PROCESS, "tid": thread, "args": {"sort_index": thread}}


def _name(kind: str, thread: int, title: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": PROCESS, "tid": thread, "args": {"name": title}}


def _slices(timeline: Timeline) -> Iterator[dict[str, Any]]:
    """One slice after another: where kernels overlap, the modelled times are without the overlap."""
    if timeline.before:
        first = next((s.launch.stage for s in timeline.slices if s.launch is not None), 0)
        yield {
            "ph": "X", "name": BEGINNING, "cat": "assumed", "pid": PROCESS, "tid": FIRST_STAGE + first, "ts": 0.0,
            "dur": timeline.before, "args": {},
        }  # fmt: skip
    stage = 0
    for s, begin in _begun(timeline):
        stage = stage if s.launch is None else s.launch.stage
        yield {
            "ph": "X", "name": s.name if s.launch is None else _title(s.launch.origin, s.name),
            "cat": "host" if s.on_host else "kernel" if s.launch is None else printable(s.launch.template),
            "pid": PROCESS, "tid": HOST if s.on_host else FIRST_STAGE + stage, "ts": begin, "dur": s.us,
            "args": _arguments(s),
        }  # fmt: skip


def _begun(timeline: Timeline) -> Iterator[tuple[Slice, float]]:
    """Each slice with the time at which it begins."""
    begin = timeline.before
    for s in timeline.slices:
        yield s, begin
        begin += s.us


def _title(origin: Sequence[str], name: str) -> str:
    return " + ".join(map(printable, origin)) or name


def _arguments(s: Slice) -> dict[str, Any]:
    x = s.launch
    if x is None:
        return {}
    return {
        "launch": s.name, "kernel": printable(x.kernel), "nodes": ", ".join(map(printable, x.origin)),
        "modelled us": x.modelled.us, "floor us": x.modelled.floor, "share of roofline": x.modelled.share,
        "bound by": x.modelled.bound, "bytes": x.nbytes, "FLOPs": x.flops, "grid": "x".join(map(str, x.grid)),
        "block": "x".join(map(str, x.block)), "shared bytes": x.shared_bytes, "types": ", ".join(x.types),
        "multiplies": x.multiplies,
    }  # fmt: skip


def _counters(timeline: Timeline) -> Iterator[dict[str, Any]]:
    """Rates of each kernel, and the bytes of the workspace that hold something then."""
    end, numbers = timeline.before, dict[int, int]()
    for s, begin in _begun(timeline):
        end = begin + s.us
        if s.launch is None:
            continue
        number = numbers.setdefault(s.launch.stage, 0)
        numbers[s.launch.stage] += 1
        rates = (s.launch.nbytes / s.us / 1e3, s.launch.flops / s.us / 1e6) if s.us else (0.0, 0.0)
        yield _counter("GB/s", begin, rates[0])
        yield _counter("TFLOP/s", begin, rates[1])
        if s.launch.stage < len(timeline.estimate.arenas) and not timeline.count:
            yield _counter("workspace bytes", begin, _held(timeline.estimate.arenas[s.launch.stage], number))
    for name in ("GB/s", "TFLOP/s"):
        yield _counter(name, end, 0.0)


def _held(arena: Arena, launch: int) -> int:
    return sum(t.nbytes for t in arena.temporaries if t.first <= launch <= t.last)


def _counter(name: str, at: float, value: float) -> dict[str, Any]:
    return {"ph": "C", "name": name, "pid": PROCESS, "tid": 0, "ts": at, "args": {"value": value}}
