"""The profiler: times each launch of an engine separately on a GPU, with the inputs of one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from arcweld.compiler.errors import UsageError
from arcweld.runtime.arrays import Taken
from arcweld.runtime.engine import Engine
from arcweld.runtime.executor import Shared
from arcweld.runtime.expressions import Expression
from arcweld.runtime.launch_list import LaunchListBuilder, compute_sizes, issue, prepare
from arcweld.runtime.stages import StagedCall, StagedContext
from arcweld.runtime.steps import Call, Read, Step

_T = TypeVar("_T")
HOST = "host"  # the template of what the host does
ROUNDS = 7


@dataclass(frozen=True, slots=True)
class LaunchTime:
    """What one launch took in a call, or a step of the host, all its ``runs`` in loops together.

    seconds  a launch's median, times ``runs``; a host step's own, with its copies
    mean     as ``seconds``, with the mean over the rounds instead of the median
    nbytes   of the tensors that it reads or writes; of a host step, what goes between the host and the device
    flops    floating-point operations
    """

    name: str
    kernel: str
    template: str
    seconds: float
    mean: float
    nbytes: int
    flops: int
    runs: int = 1

    def __add__(self, other: LaunchTime) -> LaunchTime:
        """Both together, under the first one's names."""
        return replace(
            self, seconds=self.seconds + other.seconds, mean=self.mean + other.mean,
            nbytes=self.nbytes + other.nbytes, flops=self.flops + other.flops, runs=self.runs + other.runs,
        )  # fmt: skip


def profile(
    engine: Engine, feeds: Mapping[str, np.ndarray], *, repeat: int = 20, rounds: int = ROUNDS
) -> list[LaunchTime]:
    """The time of every launch, in order: the median over ``rounds`` of the mean of ``repeat`` launches in one graph.

    Launches in a row find their operands in the L2 cache and hide launch latency. This suits comparisons of kernels and
    is optimistic for absolute times. Of an engine in stages, the steps of the host are among them (``HOST``). Raises
    UsageError on a device that cannot time launches, InputError for inputs that do not fit.
    """
    if not engine.device.measures_time:
        raise UsageError(f"device {engine.device.name} cannot be profiled", hint="profiling needs a GPU")
    token = engine.device.enter()
    try:
        taken = engine.take(feeds)
        if engine.staged is None:
            return _launches(engine.shared, taken, repeat, rounds)
        call = _ProfiledCall(StagedContext(engine.staged, 0), repeat, rounds)
        call.results(taken)
        return list(call.found.values())
    finally:
        engine.device.leave(token)


class _ProfiledCall(StagedCall):
    """A call of an engine in stages, whose launches and host steps are timed."""

    def __init__(self, context: StagedContext, repeat: int, rounds: int) -> None:
        super().__init__(context, "numpy")
        self.repeat, self.rounds = repeat, rounds
        self.found: dict[str, LaunchTime] = {}

    def _add(self, row: LaunchTime) -> None:
        known = self.found.get(row.name)
        self.found[row.name] = row if known is None else known + row

    def run_stage(self, stage: int, inputs: Sequence[Taken]) -> list[Taken]:
        for row in _launches(self.stages[stage].shared, inputs, self.repeat, self.rounds):
            self._add(row)
        return super().run_stage(stage, inputs)

    def step(self, step: Step) -> None:
        """Runs a step, and times it if the host reads or computes something."""
        if not isinstance(step, Read | Call):
            super().step(step)
            return
        copied = [step.tensor] if isinstance(step, Read) else [n for n in step.inputs if n]
        nbytes = sum(self.tensors[n].taken.nbytes for n in copied)
        _, seconds = self._timed(lambda: super(_ProfiledCall, self).step(step))
        if isinstance(step, Call):
            nbytes += sum(self.tensors[t.name].taken.nbytes for t in step.outputs)
        name = ", ".join(step.origin) or copied[0]
        kernel = step.op if isinstance(step, Call) else "read"
        self._add(LaunchTime(name, kernel, HOST, seconds, seconds, nbytes, 0))

    def decide(self, name: str, origin: Sequence[str]) -> np.generic:
        """Reads a condition, and times it."""
        found, seconds = self._timed(lambda: super(_ProfiledCall, self).decide(name, origin))
        self._add(LaunchTime(f"{', '.join(origin)}: {name}", "read", HOST, seconds, seconds, found.nbytes, 0))
        return found

    def _timed(self, work: Callable[[], _T]) -> tuple[_T, float]:
        """What the work returns, and its seconds; what was enqueued before it is waited for first."""
        self.device.synchronize(self.stream)
        started = time.perf_counter()
        found = work()
        return found, time.perf_counter() - started


def _launches(shared: Shared, inputs: Sequence[Taken], repeat: int, rounds: int) -> list[LaunchTime]:
    """Runs the launches in order and times each at its turn, so that its operands (indices above all) are valid."""
    device, program = shared.device, shared.plan.program
    env = shared.plan.bind_symbols(tuple(t.shape for t in inputs))
    part = shared.serving(env)
    plan, sizes = part.plan, compute_sizes(part.plan, env)
    memory = [device.allocate(max(sizes.nbytes[t.name], 1)) for t in (*program.inputs, *program.outputs)]
    for taken, place in zip(inputs, memory):  # a launch that is repeated may change them
        if taken.host is not None:
            device.upload(place.address, taken.host)
        elif taken.nbytes:
            device.copy(place.address, taken.address, taken.nbytes)
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
        times = _time(device, step.prepared, repeat, rounds)
        if step.zero:  # each repetition has added to the result: compute it once more
            issue([step], addresses, device, 0)
        found.append(
            LaunchTime(
                step.spec.name, launch.variant.entry, launch.launch.template, float(np.median(times)),
                float(np.mean(times)), sum(sizes.nbytes[t] for t in touched),
                Expression(launch.launch.flops)(sizes.env),
            )
        )  # fmt: skip
    device.synchronize()
    return found


def _time(device: Any, prepared: Any, repeat: int, rounds: int) -> list[float]:
    """The seconds of one launch among ``repeat`` in a graph, in each of the ``rounds``."""
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
    return times


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
