"""The profiler: times each launch of an engine separately on a GPU, with the inputs of one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from arcweld.compiler.errors import UsageError
from arcweld.runtime.engine import Engine
from arcweld.runtime.expressions import Expression
from arcweld.runtime.launch_list import LaunchListBuilder, compute_sizes, issue, prepare


@dataclass(frozen=True, slots=True)
class LaunchTime:
    """One launch: median seconds, bytes of the tensors that it reads or writes, floating-point operations."""

    name: str
    kernel: str
    template: str
    seconds: float
    nbytes: int
    flops: int


def profile(engine: Engine, feeds: Mapping[str, np.ndarray], *, repeat: int = 20, rounds: int = 7) -> list[LaunchTime]:
    """The time of every launch, in order: the median over ``rounds`` of the mean of ``repeat`` launches in one graph.

    Launches in a row find their operands in the L2 cache and hide launch latency. This suits comparisons of kernels and
    is optimistic for absolute times. Raises UsageError on a device that cannot time launches, or for a wrong type.
    """
    if not engine.device.measures_time:
        raise UsageError(f"device {engine.device.name} cannot be profiled", hint="profiling needs a GPU")
    token = engine.device.enter()
    try:
        return _profile(engine, feeds, repeat, rounds)
    finally:
        engine.device.leave(token)


def _profile(engine: Engine, feeds: Mapping[str, np.ndarray], repeat: int, rounds: int) -> list[LaunchTime]:
    """Runs the launches in order and times each at its turn, so that its operands (indices above all) are valid."""
    shared = engine.shared
    device = shared.device
    env = shared.plan.bind_symbols(tuple(np.shape(feeds[t.name]) for t in engine.inputs))
    part = shared.serving(env)
    plan, sizes = part.plan, compute_sizes(part.plan, env)
    memory = [device.allocate(max(sizes.nbytes[t.name], 1)) for t in (*engine.inputs, *engine.outputs)]
    for tensor, place in zip(engine.inputs, memory):
        array = np.ascontiguousarray(feeds[tensor.name])
        if array.dtype != plan.tensors[tensor.name].dtype.numpy:
            raise UsageError(f"input {tensor.name!r} must be {tensor.dtype}, got {array.dtype}")
        device.upload(place.address, array)
    arena, counters = device.allocate(sizes.arena_bytes), device.allocate(sizes.counter_bytes)
    device.fill(counters.address, sizes.counter_bytes, 0)
    addresses = [m.address for m in memory]
    launches = {p.launch.name: p for p in plan.launches}
    found = []
    builder = LaunchListBuilder(
        plan, sizes, device, part.kernels, shared.weights, arena.address, counters.address
    )  # fmt: skip
    for step in builder.steps():
        prepare(step, addresses, device)
        issue([step], addresses, device, 0)
        if step.prepared is None:  # only clears memory
            continue
        launch = launches[step.spec.name]
        touched = dict.fromkeys((*launch.launch.reads, *launch.launch.writes))
        seconds = _time(device, step.prepared, repeat, rounds)
        if step.zero:  # each repetition has added to the result: compute it once more
            issue([step], addresses, device, 0)
        found.append(
            LaunchTime(
                step.spec.name, launch.variant.entry, launch.launch.template, seconds,
                sum(sizes.nbytes[t] for t in touched), Expression(launch.launch.flops)(sizes.env),
            )
        )  # fmt: skip
    device.synchronize()
    return found


def _time(device: Any, prepared: Any, repeat: int, rounds: int) -> float:
    """Median over ``rounds`` of the seconds of one launch among ``repeat`` in a graph."""
    import cupy

    device.synchronize()
    stream = device.begin_capture()
    for _ in range(repeat):
        device.launch(prepared, stream)
    graph = device.end_capture()
    external = cupy_stream(stream)
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    times = []
    for _ in range(rounds):
        start.record(external)
        device.replay(graph, stream)
        end.record(external)
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, end) * 1e-3 / repeat)
    return float(np.median(times))


@dataclass(frozen=True, slots=True)
class _Handle:
    """A CUDA stream as an object with the ``__cuda_stream__`` protocol."""

    handle: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


def cupy_stream(handle: int) -> Any:
    """CuPy's object for a stream that it does not own."""
    import cupy

    if hasattr(cupy.cuda.Stream, "from_external"):
        return cupy.cuda.Stream.from_external(_Handle(handle))
    return cupy.cuda.ExternalStream(handle)
