"""Times every launch of an engine by itself, on a GPU, with the inputs of one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from arcweld.compiler.errors import UsageError
from arcweld.runtime.bound import Binder, measure, prepare
from arcweld.runtime.engine import Engine
from arcweld.runtime.expressions import Expression


@dataclass(frozen=True, slots=True)
class LaunchTime:
    """One launch: its median seconds, the bytes of the arrays that it touches, and its floating-point operations."""

    name: str
    kernel: str
    template: str
    seconds: float
    nbytes: int
    flops: int


def profile(engine: Engine, feeds: Mapping[str, np.ndarray], *, repeat: int = 20, rounds: int = 7) -> list[LaunchTime]:
    """Launches every kernel ``repeat`` times in a row inside a CUDA graph, ``rounds`` times; the median is reported.

    Back-to-back repetition keeps operands in the cache and hides launch gaps: good for comparing kernels, a little
    optimistic for large ones. Raises UsageError on a device that is not a GPU.
    """
    if engine.device.name != "cuda":
        raise UsageError(f"device {engine.device.name} cannot be profiled", hint="profiling needs a GPU")
    import cupy

    shared = engine.shared
    plan, device = shared.plan, shared.device
    env = plan.bind_symbols(tuple(np.shape(feeds[t.name]) for t in engine.inputs))
    sizes = measure(plan, env)
    arena = device.allocate(max(sizes.arena_bytes, 256))
    inputs = [cupy.asarray(np.ascontiguousarray(feeds[t.name])) for t in engine.inputs]
    outputs = [device.allocate(max(sizes.nbytes[t.name], 1)) for t in engine.outputs]
    addresses = [*[a.data.ptr for a in inputs], *[m.address for m in outputs]]
    launches = {p.launch.name: p for p in plan.launches}
    found = []
    for step in Binder(plan, sizes, device, shared.kernels, shared.weights, arena.address).steps():
        prepare(step, addresses, device)
        # once in order first: operands of later launches must be real values
        device.launch(step.prepared)
    for step in Binder(plan, sizes, device, shared.kernels, shared.weights, arena.address).steps():
        prepare(step, addresses, device)
        launch = launches[step.spec.name]
        touched = dict.fromkeys((*launch.launch.reads, *launch.launch.writes))
        found.append(
            LaunchTime(
                step.spec.name, launch.variant.entry, launch.launch.template,
                _time(device, step.prepared, repeat, rounds, cupy), sum(sizes.nbytes[t] for t in touched),
                Expression(launch.launch.flops)(env),
            )
        )  # fmt: skip
    return found


def _time(device: Any, prepared: Any, repeat: int, rounds: int, cupy: Any) -> float:
    stream = device.begin_capture()
    for _ in range(repeat):
        device.launch(prepared, stream)
    graph = device.end_capture()
    external = cupy.cuda.ExternalStream(stream)
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    times = []
    for _ in range(rounds):
        start.record(external)
        device.replay(graph, stream)
        end.record(external)
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, end) * 1e-3 / repeat)
    return float(np.median(times))
