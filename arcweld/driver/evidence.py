"""Verification of a build: every distinct kernel once, then the whole engine, against the registry's references.

What comes out is evidence, stored in the engine: what was compared, on which device, with which inputs and error,
and what was not compared and why. A build above tolerance refuses to give an engine.
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
from arcweld.driver.build import Build
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
# relative error ‖got - want‖ / ‖want‖ that is rounding for one kernel, by the coarsest type among the values it
# computes: the reference rounds each of them, a fused kernel only what it stores
KERNEL_TOLERANCE = {"f64": 1e-6, "f32": 1e-4, "f16": 5e-3, "bf16": 4e-2}
MAX_ROUNDING = 0.1  # an error that is rounding and yet larger than this proves nothing
ENGINE_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 8e-2}
# what the simulator manages on one core; only used to decide what fits the budget
SIM_FLOPS, SIM_ELEMENTS = 1.5e9, 30e6


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """``level`` off, quick (inside ``budget`` seconds) or full; ``tolerance`` None takes the precision's own."""

    level: str = "quick"
    budget: float = 20.0
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise UsageError(f"unknown verification level {self.level!r}", hint=f"one of {', '.join(LEVELS)}")
        for name, number in (("budget", self.budget), ("tolerance", self.tolerance)):
            # NaN compares with nothing: as a tolerance it would allow everything
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
) -> dict[str, Any]:
    """Compares kernels and engine with the references on ``feeds``; returns the evidence.

    Raises AccuracyError, naming the kernel or the output and its error, where something is above tolerance.
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
    evidence["kernels"] += [{**c.label(), "status": "skipped", "reason": reason} for c, reason in skipped]
    evidence["outputs"] = _check_outputs(build, engine, feeds, sizes, options, precision, end)
    return evidence


@dataclass(frozen=True, slots=True)
class _Check:
    """One distinct kernel, to be run as the first launch that uses it."""

    planned: PlannedLaunch
    source: KernelSource

    def launches(self) -> list[PlannedLaunch]:
        return [*self.planned.before, self.planned]

    def tensors(self) -> set[str]:
        return {t for p in self.launches() for t in p.bound.tensors.values()}

    def label(self) -> dict[str, Any]:
        return {"kernel": self.source.entry, "arch": self.source.arch, "launch": self.planned.name}


def _select(
    build: Build, sizes: Mapping[str, int], device: Device, options: VerifyOptions
) -> tuple[list[_Check], list[tuple[_Check, str]]]:
    """Every distinct kernel that the device can run, and those left out with the reason.

    A budget covers as many as it can: the cheapest first, and none where the reference itself is too slow.
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
    """The checks in the order in which the reference reaches them, with the values that they need.

    Values are freed as soon as no later node and no later check needs them, so that a large model fits.
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
    """Seconds that the simulator needs for a launch, roughly."""
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
        if error > limit > 0:  # a difference of nearly equal numbers, say: the references round differently too
            limit = rounding_error(region.nodes, values, build.fused.graph.weights, sizes, tensor)
            found["rounding"] = limit
        if error > limit:
            raise AccuracyError(
                f"kernel {check.source.entry} computes {tensor} with relative error {error:.2e}, above {limit:.0e}",
                node=", ".join(p.bound.origin[:6]) or p.name,
                hint="this is a defect of Arcweld: please report it; `--disable fusion` may go round it",
            )
        if error > MAX_ROUNDING:
            found["status"] = "skipped"
            found["reason"] = f"rounding alone may change {tensor} by {100 * limit:.0f} %"
    return found


def run_launch(
    check: _Check, data: EngineData, values: Mapping[str, np.ndarray], sizes: Mapping[str, int], device: Device
) -> dict[str, np.ndarray]:
    """Runs one kernel on ``device``, after those that must come before it; its operands come from ``values``.

    Returns what it wrote, by tensor name.
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
                hint=f"{remedy}raise --tolerance if the model bears it, or report a defect",
            )
        found.append({"output": label, "status": "verified", "error": error, "tolerance": limit})
        odd = _nonfinite(want[o.name])
        if odd:
            found[-1]["nonfinite"] = odd
            text = f"output {label} is NaN or infinite in {odd:.3g} of its elements, in the reference too"
            warnings.warn(f"{text}: only their places could be compared", RuntimeWarning, stacklevel=2)
    return found


def engine_tolerance(graph: Graph, precision: str) -> float:
    """The bound of the outputs' error: the precision's, or that of the coarsest type in which the model computes.

    A model in f16 rounds every value; kernels round only what they store.
    """
    own = {DType.F16: "fp16", DType.BF16: "bf16"}
    used = {own[o.dtype] for n in graph.nodes for o in n.outputs if o.dtype in own}
    return max(ENGINE_TOLERANCE[p] for p in (precision, *used))


def _nonfinite(array: np.ndarray) -> float:
    """The share of elements that are NaN or infinite."""
    if not array.size or array.dtype.kind in "biu":
        return 0.0
    return float(np.mean(~np.isfinite(array.astype(np.float64))))
