"""Verifies a build: compares every distinct kernel, then the engine's outputs, with the registry's numpy references.

The result is the evidence, which the engine stores: what was compared, on which device, with inputs of which shapes,
the errors, and what was skipped for which reason. An error above tolerance fails the build.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arcweld.codegen.kernel import KernelSource
from arcweld.compiler.archs import runs_on
from arcweld.compiler.dims import Dim, evaluate
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import AccuracyError, UsageError
from arcweld.compiler.ir import Graph
from arcweld.compiler.reference import run_reference, stream_reference
from arcweld.compiler.region import Region
from arcweld.driver.build import Build, Progress
from arcweld.driver.conditioning import rounding_error
from arcweld.driver.metrics import REFERENCE_FLOPS, relative_error
from arcweld.driver.object_code import PlannedLaunch
from arcweld.driver.promotion import Promotion
from arcweld.driver.single_launch import launch_of, single_launch
from arcweld.runtime.device import Device
from arcweld.runtime.engine import Engine
from arcweld.runtime.engine_file import EngineData

log = logging.getLogger("arcweld.verify")

LEVELS = ("off", "quick", "full")
# Largest relative error ‖got - want‖ / ‖want‖ of a kernel, by the coarsest type among the values that it computes. The
# type of its outputs is not enough: the reference rounds every intermediate value, a fused kernel only what it stores.
KERNEL_TOLERANCE = {"f64": 1e-6, "f32": 1e-4, "f16": 5e-3, "bf16": 4e-2}
MAX_ROUNDING = 0.1  # above this relative error, rounding could hide a defect: the kernel is recorded as skipped
ENGINE_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 8e-2}
# operations and stored elements a second on the simulator, on one core; only used to decide what fits the budget
SIM_FLOPS, SIM_ELEMENTS = 1.5e9, 30e6


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """How to verify. Raises UsageError for an unknown level, and for numbers that are negative or NaN.

    level      off, quick (as much as ``budget`` allows) or full
    budget     seconds
    tolerance  largest relative error of an output; None: that of the precision
    """

    level: str = "quick"
    budget: float = 20.0
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise UsageError(f"unknown verification level {self.level!r}", hint=f"one of {', '.join(LEVELS)}")
        for name, number in (("budget", self.budget), ("tolerance", self.tolerance)):
            # comparisons with NaN are false: as a tolerance it would allow everything
            good = isinstance(number, int | float) and number >= 0
            if not good and (number is not None or name == "budget"):
                raise UsageError(f"{number!r} is no {name} of verification", hint="a number from 0 on")


def verify_build(
    build: Build,
    engine: Engine,
    feeds: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    options: VerifyOptions,
    precision: str,
    promotion: Promotion | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compares kernels and outputs with the references on ``feeds``; returns the evidence as a JSON value.

    ``sizes`` are those of all symbols. Raises AccuracyError, with the kernel or output and its error, for an error
    above tolerance.
    """
    if options.level == "off":
        return {"level": "off", "device": engine.device.name, "kernels": [], "outputs": []}
    end = time.monotonic() + (options.budget if options.level == "quick" else float("inf"))
    evidence: dict[str, Any] = {
        "level": options.level, "device": f"{engine.device.name} {engine.device.arch}",
        "metric": "norm(got - want) / norm(want)",
        "shapes": {k: list(v.shape) for k, v in feeds.items()}, "kernels": [], "outputs": [],
    }  # fmt: skip
    if promotion is not None:
        evidence["promotion"] = {"note": promotion.note, "f32": sorted(promotion.origins)}
    checks, skipped = _select(build, sizes, engine.device, options)
    regions = {r.name: r for r in build.fused.regions}
    for check, values in _with_values(build, checks, feeds, sizes):
        found = _check_kernel(check, regions[check.planned.name], build, values, sizes, engine.device)
        evidence["kernels"].append(found)
        if progress is not None:
            progress("verify", len(evidence["kernels"]), len(checks))
    evidence["kernels"] += [{**c.label(), "status": "skipped", "reason": reason} for c, reason in skipped]
    evidence["outputs"] = _check_outputs(build, engine, feeds, sizes, options, precision, end)
    return evidence


@dataclass(frozen=True, slots=True)
class _Check:
    """The comparison of one distinct kernel, run as the first launch that uses it."""

    planned: PlannedLaunch
    source: KernelSource

    def launches(self) -> list[PlannedLaunch]:
        """The launches to run: those that write the same tensor before it, then the one with the kernel."""
        return [*self.planned.before, self.planned]

    def tensors(self) -> set[str]:
        """The graph's names of all tensors that these launches read or write."""
        return {t for p in self.launches() for t in p.bound.tensors.values()}

    def label(self) -> dict[str, Any]:
        """The evidence's entries that say which kernel this is."""
        return {"kernel": self.source.entry, "arch": self.source.arch, "launch": self.planned.name}


def _select(
    build: Build, sizes: Mapping[str, int], device: Device, options: VerifyOptions
) -> tuple[list[_Check], list[tuple[_Check, str]]]:
    """The kernels to compare, and those to skip with the reason.

    Kernels for another architecture are skipped. A budget is spent on the cheapest kernels first, after the time that
    the reference itself takes.
    """
    first: dict[str, _Check] = {}
    for p in build.planned:
        for s in p.sources:
            first.setdefault(s.entry, _Check(p, s))
    checks = sorted(first.values(), key=lambda c: _cost(c.planned, sizes))
    chosen, skipped = [], []
    spent = sum(evaluate(p.bound.flops, sizes) for p in build.planned) / REFERENCE_FLOPS
    for c in checks:
        if not runs_on(c.source.arch, device.arch):
            skipped.append((c, f"it is for {c.source.arch}, the device is {device.arch}"))
            continue
        spent += _cost(c.planned, sizes) if device.is_simulator else 0.01
        if options.level == "quick" and spent > options.budget:
            skipped.append((c, f"beyond the budget of {options.budget:g} s"))
        else:
            chosen.append(c)
    return chosen, skipped


def _with_values(
    build: Build, checks: Sequence[_Check], feeds: Mapping[str, np.ndarray], sizes: Mapping[str, int]
) -> Iterator[tuple[_Check, Mapping[str, np.ndarray]]]:
    """Each check with the reference's values for it, in the order in which the reference computes them.

    A value is freed after the last node and the last check that need it, which bounds the peak memory.
    """
    graph = build.fused.graph
    position = {o.name: i for i, n in enumerate(graph.nodes) for o in n.outputs}
    due: dict[int, list[_Check]] = {}
    hold: dict[str, int] = {}
    for c in checks:
        at = max((position.get(t, -1) for t in c.tensors()), default=-1)
        due.setdefault(at, []).append(c)
        for t in c.tensors() - set(graph.weights):
            hold[t] = max(hold.get(t, -1), at)
    last = max(due, default=-2)
    for i, values in stream_reference(graph, feeds, hold=hold, bind=sizes):
        for c in due.get(i, ()):
            yield c, values
        if i >= last:
            return


def _cost(p: PlannedLaunch, sizes: Mapping[str, int]) -> float:
    """A rough estimate of the seconds that the simulator needs for a launch."""
    elements = sum(_numel(b.shape, sizes) for b in p.bound.kernel.buffers if b.written)
    return evaluate(p.bound.flops, sizes) / SIM_FLOPS + elements / SIM_ELEMENTS


def _numel(shape: tuple[Dim, ...], sizes: Mapping[str, int]) -> int:
    return int(np.prod([evaluate(d, sizes) for d in shape], dtype=np.int64))


def _check_kernel(
    check: _Check, region: Region, build: Build, values: Mapping[str, np.ndarray], sizes: Mapping[str, int],
    device: Device,
) -> dict[str, Any]:  # fmt: skip
    p, data = check.planned, build.data
    outs = {b.name: p.bound.tensors[b.name] for b in p.bound.kernel.buffers if b.written}
    got = run_launch(check, data, values, sizes, device)
    found: dict[str, Any] = {**check.label(), "status": "verified", "error": 0.0}
    coarsest = max(KERNEL_TOLERANCE.get(o.dtype.value, 0.0) for n in region.nodes for o in n.outputs)
    for (name, tensor), written in zip(outs.items(), launch_of(data, p.name).writes):
        error = relative_error(got[written], values[tensor])
        limit = coarsest if p.bound.kernel.buffer(name).dtype.is_float else 0.0
        found["error"] = max(found["error"], error)
        if error > limit > 0:  # ill-conditioned (say, a difference of nearly equal numbers), or wrong
            limit = rounding_error(region.nodes, values, build.fused.graph.weights, sizes, tensor)
            found["rounding"] = limit
        if error > limit:
            raise AccuracyError(
                f"kernel {check.source.entry} computes {tensor} with relative error {error:.2e}, above {limit:.0e}",
                node=", ".join(p.bound.origin[:6]) or p.name,
                hint="this is a defect of Arcweld: please report it; leaving out the pass fusion may go round it",
            )
        if error > MAX_ROUNDING:
            found["status"] = "skipped"
            found["reason"] = f"rounding alone may change {tensor} by {100 * limit:.0f} %"
    return found


def run_launch(
    check: _Check, data: EngineData, values: Mapping[str, np.ndarray], sizes: Mapping[str, int], device: Device
) -> dict[str, np.ndarray]:
    """Runs one kernel on ``device``, after the launches that write the same tensor before it.

    ``values`` gives its operands by the graph's names. Returns what it wrote, by the program's names.
    """
    single = single_launch(data, [p.name for p in check.launches()], check.source.entry, sizes)
    names: dict[str, str] = {}  # the program calls outputs by their labels
    for p in check.launches():
        read = [p.bound.tensors[b.name] for b in p.bound.kernel.buffers if not b.written]
        names |= zip(launch_of(data, p.name).reads, read)
    feeds = {t.name: np.require(values[names[t.name]], requirements="C") for t in single.program.inputs}
    return Engine(single, device, graphs=False).run(feeds)


def _check_outputs(
    build: Build, engine: Engine, feeds: Mapping[str, np.ndarray], sizes: Mapping[str, int], options: VerifyOptions,
    precision: str, end: float,
) -> list[dict[str, Any]]:  # fmt: skip
    labels = build.imported.labels()
    cost = sum(_cost(p, sizes) for p in build.planned)
    if engine.device.is_simulator and time.monotonic() + cost > end:
        reason = f"about {cost:.0f} s on the simulator, beyond the budget"
        return [{"output": n, "status": "skipped", "reason": reason} for n in labels]
    want = run_reference(build.imported, feeds, bind=sizes)
    got = engine.run(dict(feeds))
    limit = options.tolerance if options.tolerance is not None else engine_tolerance(build.imported, precision)
    remedy = "" if precision == "fp32" else "try precision fp32, "
    found = []
    for label, o in zip(labels, build.imported.outputs):
        error = relative_error(got[label], want[o.name])
        if error > limit:
            raise AccuracyError(
                f"output {label} has relative error {error:.2e} against the reference, above {limit:.0e}",
                node=label,
                hint=f"{remedy}raise the tolerance if the model bears it, or report a defect",
            )
        found.append({"output": label, "status": "verified", "error": error, "tolerance": limit})
        odd = _nonfinite(want[o.name])
        if odd:
            found[-1]["nonfinite"] = odd
            text = f"output {label} is NaN or infinite in {odd:.3g} of its elements, in the reference too"
            warnings.warn(f"{text}: only their places could be compared", RuntimeWarning, stacklevel=2)
    return found


def engine_tolerance(graph: Graph, precision: str) -> float:
    """The largest relative error of an output: by the coarser of ``precision`` and the types in the model.

    A model in f16 rounds every value in the reference, while kernels round only what they store.
    """
    own = {DType.F16: "fp16", DType.BF16: "bf16"}
    used = {own[o.dtype] for n in graph.nodes for o in n.outputs if o.dtype in own}
    return max(ENGINE_TOLERANCE[p] for p in (precision, *used))


def _nonfinite(array: np.ndarray) -> float:
    """The share of elements that are NaN or infinite."""
    if not array.size or array.dtype.kind in "biu":
        return 0.0
    return float(np.mean(~np.isfinite(array.astype(np.float64))))
