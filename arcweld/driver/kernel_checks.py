"""Compares single kernels with the reference, on the reference's own values for what they read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arcweld.codegen.kernel import KernelSource
from arcweld.compiler.dtypes import FLOATS8, from_numpy
from arcweld.compiler.errors import AccuracyError
from arcweld.compiler.ir import Node, Weight
from arcweld.compiler.reference import stream_reference
from arcweld.compiler.region import Region
from arcweld.compiler.size_ranges import SizeRange
from arcweld.driver.build import Build
from arcweld.driver.conditioning import rounding_error
from arcweld.driver.metrics import largest_error, relative_error
from arcweld.driver.object_code import PlannedLaunch
from arcweld.driver.single_launch import launch_of, single_launch
from arcweld.runtime.device import Device
from arcweld.runtime.engine import Engine
from arcweld.runtime.engine_file import EngineData

# Largest relative error ‖got - want‖ / ‖want‖ of a kernel, by the coarsest type among the values that it computes. The
# type of its outputs is not enough: the reference rounds every intermediate value, a fused kernel only what it stores.
KERNEL_TOLERANCE = {"f64": 1e-6, "f32": 1e-4, "f16": 5e-3, "bf16": 4e-2, "f4e2m1": 2e-1}
# an element that lies between two numbers of a narrow type may become either of them
KERNEL_TOLERANCE |= {d.value: 5e-2 for d in FLOATS8} | {"f8e8m0": 2e-1}
OUTLIER = 20.0  # times the tolerance: the largest difference of one element, relative to the largest element
MAX_ROUNDING = 0.1  # above this relative error, rounding could hide a defect: the kernel is recorded as skipped


@dataclass(frozen=True, slots=True, eq=False)
class KernelCheck:
    """The comparison of one kernel, run as one launch that uses it, at sizes in the range that the launch is for."""

    planned: PlannedLaunch
    source: KernelSource
    sizes: SizeRange | None = None

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """True if the launch may run at these sizes."""
        return self.sizes is None or self.sizes.holds(sizes)

    def launches(self) -> list[PlannedLaunch]:
        """The launches to run: those that write the same tensor before it, then the one with the kernel."""
        return [*self.planned.before, self.planned]

    def tensors(self) -> set[str]:
        """The graph's names of all tensors that these launches read or write."""
        return {t for p in self.launches() for t in (*p.bound.tensors.values(), *p.in_place.values())}

    def label(self) -> dict[str, Any]:
        """The evidence's entries that say which kernel this is."""
        return {"kernel": self.source.entry, "arch": self.source.arch, "launch": self.planned.name}

    def is_symbolic(self) -> bool:
        """True if the kernel depends on a symbol's size."""
        shapes = [d for b in self.planned.bound.kernel.buffers for d in b.shape]
        return any(not isinstance(d, int) for d in (*shapes, *self.source.grid))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison that did not fail found.

    error     the largest relative error of a result
    rounding  the error that rounding alone may cause, where ``error`` needed that explanation
    doubt     why the comparison says nothing, or an empty string
    """

    error: float
    rounding: float | None = None
    doubt: str = ""


def every_check(build: Build) -> list[KernelCheck]:
    """All checks of a build: of each kernel its first launch, in order, then the other launches."""
    parts = sorted(build.parts, key=lambda part: part.sizes is not None)  # kernels of both have the larger range
    found = [KernelCheck(p, s, part.sizes) for part in parts for p in part.launches for s in p.sources]
    first = {c.source.entry: c for c in reversed(found)}
    return [*(c for c in found if first[c.source.entry] is c), *(c for c in found if first[c.source.entry] is not c)]


def with_values(
    build: Build, checks: Sequence[KernelCheck], feeds: Mapping[str, np.ndarray], sizes: Mapping[str, int],
    watch: Callable[[Node, Mapping[str, np.ndarray]], None] | None = None,
) -> Iterator[tuple[KernelCheck, Mapping[str, np.ndarray]]]:  # fmt: skip
    """Each check with the reference's values for it, in the order in which the reference computes them.

    A value is freed after the last node and the last check that need it, which bounds the peak memory. ``watch`` is
    called after each node of the graph; without it, the reference ends with the last check. Each check's values are its
    own, so that a caller may take the next check before it is done with one.
    """
    graph = build.fused.graph
    position = {o.name: i for i, n in enumerate(graph.nodes) for o in n.outputs}
    due: dict[int, list[KernelCheck]] = {}
    hold: dict[str, int] = {}
    for c in checks:
        at = max((position.get(t, -1) for t in c.tensors()), default=-1)
        due.setdefault(at, []).append(c)
        for t in c.tensors() - set(graph.weights):
            hold[t] = max(hold.get(t, -1), at)
    if not due and watch is None:
        return
    last = len(graph.nodes) if watch is not None else max(due)
    for i, values in stream_reference(graph, feeds, hold=hold, bind=sizes):
        if watch is not None and i >= 0:
            watch(graph.nodes[i], values)
        for c in due.get(i, ()):
            yield c, dict(values)
        if i >= last:
            return


def check_kernel(
    check: KernelCheck, region: Region, build: Build, values: Mapping[str, np.ndarray], sizes: Mapping[str, int],
    device: Device,
) -> Verdict:  # fmt: skip
    """Runs the kernel and compares its results with ``values``. Raises AccuracyError, DeviceError if the run fails."""
    p, data = check.planned, build.data
    outs = [p.bound.tensors[b.name] for b in p.bound.kernel.buffers if b.written]
    got = run_launch(check, data, values, sizes, device)
    worst, rounding, doubt = 0.0, None, ""
    for tensor, written in zip(outs, launch_of(data, p.name).writes):
        found = judge(region.nodes, tensor, got[written], values, build.fused.graph.weights, sizes)
        worst = max(worst, found.norm)
        rounding = found.limit if found.rounding else rounding
        if found.wrong:
            at = f" at {_listed(sizes)}" if sizes else ""
            raise AccuracyError(
                f"kernel {check.source.entry} computes {tensor} with relative error {found.error:.2e}, above "
                f"{found.limit:.0e}{at}",
                node=", ".join(p.bound.origin[:6]) or p.name,
                hint="this is a defect of Arcweld: please report it; leaving out the pass fusion may go round it",
            )
        if found.error > MAX_ROUNDING:
            doubt = f"rounding alone may change {tensor} by {100 * found.limit:.0f} %"
    return Verdict(worst, rounding, doubt)


@dataclass(frozen=True, slots=True)
class Judgement:
    """How far one result of a kernel is from its reference.

    norm      the relative error
    error     that, or the largest difference of one element by ``OUTLIER``, whichever is larger
    limit     what is allowed
    rounding  whether it is allowed because rounding alone may cause that much
    """

    norm: float
    error: float
    limit: float
    rounding: bool

    @property
    def wrong(self) -> bool:
        """True if the error is above what is allowed."""
        return self.error > self.limit


def judge(
    nodes: Sequence[Node], tensor: str, got: np.ndarray, values: Mapping[str, np.ndarray],
    weights: Mapping[str, Weight], sizes: Mapping[str, int],
) -> Judgement:  # fmt: skip
    """Compares ``got`` with the reference's ``values``, which has what ``nodes`` read and ``tensor``, their result."""
    want = values[tensor]
    norm = error = relative_error(got, want)
    is_float = from_numpy(want.dtype).is_float
    coarsest = max(KERNEL_TOLERANCE.get(o.dtype.value, 0.0) for n in nodes for o in n.outputs)
    limit, rounding = coarsest if is_float else 0.0, False
    if is_float and error <= limit:  # a single wrong row of a thousand hardly changes the norm
        error = max(error, largest_error(got, want) / OUTLIER)
    # ill-conditioned (a difference of nearly equal numbers, a float between two steps that is quantised), or wrong
    if error > limit and (is_float or any(n.op == "QuantizeLinear" for n in nodes)):
        limit, rounding = max(limit, rounding_error(nodes, values, weights, sizes, tensor)), True
    return Judgement(norm, error, limit, rounding)


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{k} = {v}" for k, v in sizes.items())


def run_launch(
    check: KernelCheck, data: EngineData, values: Mapping[str, np.ndarray], sizes: Mapping[str, int], device: Device
) -> dict[str, np.ndarray]:
    """Runs one kernel on ``device`` as ``run_launches`` does; ``values`` gives its operands by the graph's names."""
    names: dict[str, str] = {}  # the program calls outputs by their labels
    for p in check.launches():
        read = [p.bound.tensors[b.name] for b in p.bound.kernel.buffers if not b.written]
        names |= zip(launch_of(data, p.name).reads, read)
    launches = [p.name for p in check.launches()]
    return run_launches(data, launches, check.source.entry, lambda t: values[names.get(t, t)], sizes, device)


def run_launches(
    data: EngineData, launches: Sequence[str], entry: str, value: Callable[[str], np.ndarray],
    sizes: Mapping[str, int], device: Device,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Runs the kernel ``entry`` of the last of ``launches``, after the others, which write the same tensor.

    ``value`` gives the operands by the program's names. Returns what was written, by these names. Outputs begin as NaN
    (all bits set), so that an element that is not stored is seen. On the simulator, warps take turns in a random order,
    so that a missing barrier is seen.
    """
    single = single_launch(data, launches, entry, sizes)
    feeds = {t.name: np.require(value(t.name), requirements="C") for t in single.program.inputs}
    feeds |= {s.input: feeds[s.input].copy() for s in single.program.state}  # which the run changes
    return Engine(single, device.adversary(), graphs=False, poison=True, borrow=True).run(feeds)
