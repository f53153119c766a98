"""Verifies a build: compares the engine's outputs, then its kernels one by one, with the registry's numpy references.

The result is the evidence, which the engine stores: what was compared at which sizes and on which device, the errors,
and what was skipped for which reason. An error above tolerance fails the build.
"""

from __future__ import annotations

import logging
import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arcweld.compiler.archs import runs_on
from arcweld.compiler.dtypes import DType, from_numpy
from arcweld.compiler.errors import AccuracyError, EnvironmentError_, InputError, ModelError, UsageError
from arcweld.compiler.ir import Graph
from arcweld.compiler.reference import run_reference
from arcweld.driver.ahead import ahead, each_ahead
from arcweld.driver.build import Build
from arcweld.driver.conditioning import rounding_errors
from arcweld.driver.costs import LAUNCH_SECONDS, Costs
from arcweld.driver.draws import Sample
from arcweld.driver.headroom import Headroom
from arcweld.driver.isolation import Notes, ignore_notes, in_child
from arcweld.driver.kernel_checks import MAX_ROUNDING, KernelCheck, check_kernel, every_check, with_values
from arcweld.driver.metrics import nonfinite_share, relative_error, rounded_up
from arcweld.driver.object_code import Planned
from arcweld.driver.points import Point, beyond, borders, goals, small_points, within
from arcweld.driver.promotion import Promotion
from arcweld.driver.samples import Draw, sample_inputs
from arcweld.runtime.engine import Engine

log = logging.getLogger("arcweld.verify")

LEVELS = ("off", "quick", "full")
ENGINE_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 8e-2}
# What sizes beside those asked for may cost in quick verification: this share of what the base did, or these seconds
EXTRA_SHARE, EXTRA_SECONDS = 0.3, 0.5
MAX_ELEMENTS = 1 << 27  # of all values together, at sizes that verification adds by itself
HANG_FACTOR, HANG_SECONDS = 50.0, 10.0  # a launch that takes more than this times its estimate, and this, does not end


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """How to verify. Raises UsageError for an unknown level, and for numbers that are negative or NaN.

    level      off, quick (as much as ``budget`` allows) or full
    budget     seconds of CPU time, by estimate
    tolerance  largest relative error of an output; None: that of the precision
    points     whether sizes beside those of the sample are tried: not where sizes depend on each other
    """

    level: str = "quick"
    budget: float = 20.0
    tolerance: float | None = None
    points: bool = True

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise UsageError(f"unknown verification level {self.level!r}", hint=f"one of {', '.join(LEVELS)}")
        for name, number in (("budget", self.budget), ("tolerance", self.tolerance)):
            # comparisons with NaN are false: as a tolerance it would allow everything
            good = isinstance(number, int | float) and number >= 0
            if not good and (number is not None or name == "budget"):
                raise UsageError(f"{number!r} is no {name} of verification", hint="a number from 0 on")


def verify_build(
    build: Build, engine: Engine, sample: Sample, options: VerifyOptions, precision: str,
    promotion: Promotion | None = None, told: Callable[[str], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Compares outputs and kernels with the references on ``sample``; returns the evidence as a JSON value.

    Outputs are compared at other sizes too, unless the user gave the inputs. ``told`` is called with what is being
    done. On a simulator, everything runs in a child process.

    Raises AccuracyError, with the kernel or output and its error, for an error above tolerance, and for a kernel that
    crashes or does not end.
    """
    if options.level == "off":
        return {"level": "off", "device": engine.device.name, "kernels": [], "outputs": []}

    def work(note: Notes) -> dict[str, Any]:
        return _Verification(build, engine, sample, options, precision, note).run(promotion)

    return in_child(work, told) if engine.device.is_simulator else work(ignore_notes)


class _Verification:
    """One verification, in the process that runs the kernels."""

    def __init__(
        self, build: Build, engine: Engine, sample: Sample, options: VerifyOptions, precision: str, note: Notes
    ) -> None:
        self.build, self.engine, self.device = build, engine, engine.device
        self.sample, self.feeds, self.base = sample, dict(sample.feeds), Point("base", dict(sample.sizes))
        self.options, self.precision, self.note = options, precision, note
        self.costs = Costs.of(build.fused.graph, build.all_planned())
        self.positions = {o.name: i for i, n in enumerate(build.fused.graph.nodes) for o in n.outputs}
        self.regions = {r.name: r for part in build.parts for r in part.fused.regions}
        self.used = 0.0  # seconds of the budget, by estimate
        self.rows: dict[str, dict[str, Any]] = {}  # by kernel
        self.outputs: list[dict[str, Any]] = []
        self.points: list[dict[str, Any]] = []
        self.headroom = Headroom.of(build.fused.graph)

    def run(self, promotion: Promotion | None) -> dict[str, Any]:
        """The evidence. Raises as ``verify_build``."""
        checks = every_check(self.build)
        count = len({c.source.entry for c in checks})
        for c in checks[:count]:
            if not runs_on(c.source.arch, self.device.arch):
                self._skip(c, f"it is for {c.source.arch}, the device is {self.device.arch}")
        distinct, repeats = (
            [c for c in part if runs_on(c.source.arch, self.device.arch)] for part in (checks[:count], checks[count:])
        )
        try:
            self._check_outputs(self.base, self.feeds)
        except AccuracyError:
            # which usually finds the kernel at fault
            self._check_kernels(self.base, self.feeds, [c for c in distinct if c.holds(self.base.sizes)], math.inf)
            raise
        here = [c for c in distinct if c.holds(self.base.sizes)]
        kernels = self._check_kernels(self.base, self.feeds, here, self._left())
        row = {"name": "base", "sizes": dict(self.base.sizes), "kernels": kernels}
        self.points.append(row | {"outputs": sum(o["status"] == "verified" for o in self.outputs)})
        listed = [*distinct, *repeats] if self.options.level == "full" else distinct
        for part in self.build.parts:
            if not part.holds(self.base.sizes):
                self._check_part(part, [c for c in listed if c.sizes == part.sizes])
        if self.base.sizes and self.options.points:
            self._check_other_points(distinct)
        if self.options.level == "full":
            self._check_kernels(self.base, self.feeds, [c for c in repeats if c.holds(self.base.sizes)], math.inf)
        return self._evidence(promotion)

    def _evidence(self, promotion: Promotion | None) -> dict[str, Any]:
        evidence: dict[str, Any] = {
            "level": self.options.level, "device": f"{self.device.name} {self.device.arch}",
            "metric": "norm(got - want) / norm(want)",
            "shapes": {k: list(v.shape) for k, v in self.feeds.items()}, "points": self.points,
            "kernels": list(self.rows.values()), "outputs": self.outputs,
        }  # fmt: skip
        if self.headroom is not None:
            evidence["headroom"] = self.headroom.to_json()
        if promotion is not None:
            evidence["promotion"] = {"note": promotion.note, "f32": sorted(promotion.origins)}
        return evidence

    # ------------------------------------------------------------------------------------------------- the budget

    def _left(self) -> float:
        """Seconds of the budget that are left."""
        return math.inf if self.options.level == "full" else self.options.budget - self.used

    def _estimate(self, check: KernelCheck, sizes: Mapping[str, int]) -> float:
        if not self.device.is_simulator:
            return LAUNCH_SECONDS
        return LAUNCH_SECONDS + sum(self.costs.simulated(p, sizes, adverse=True) for p in check.launches())

    # -------------------------------------------------------------------------------------------------- outputs

    def _check_outputs(self, point: Point, feeds: Mapping[str, np.ndarray]) -> None:
        """Compares all outputs. Raises AccuracyError for one above tolerance."""
        graph, labels = self.build.imported, self.build.imported.labels()
        limit = self.options.tolerance
        limit = limit if limit is not None else engine_tolerance(graph, self.precision)
        seconds = self._engine_seconds(point.sizes)
        if self.device.is_simulator and seconds > self._left():
            about = f"about {seconds:.0f} s on the simulator, beyond the budget of {self.options.budget:g} s"
            if self.precision == "fp32":
                self.outputs = [
                    {"output": n, "status": "skipped", "reason": about, "tolerance": limit} for n in labels
                ]
                return
            log.warning("comparing the outputs takes %s: they are compared nevertheless", about)
        known = self.sample.outputs if point is self.base else None
        reference = self.costs.reference.seconds(point.sizes)
        with ahead(lambda: known or run_reference(graph, feeds, bind=point.sizes)) as wanted:
            self.note("the engine", HANG_SECONDS + HANG_FACTOR * (seconds + reference))
            with self.engine.poisoned():
                changed = {s.input: feeds[s.input].copy() for s in self.engine.program.state}
                got = self.engine.run_tensors({**feeds, **changed})
            self.used += reference + (seconds if self.device.is_simulator else 0.0)
            self.note("the reference", math.inf)
            want = wanted.result()
        pairs = {label: (got[label], want[o.name]) for label, o in zip(labels, graph.outputs)}
        allowed = self._allowed(pairs, limit, feeds, point)
        found = [self._output(label, *pair, limit, allowed.get(label)) for label, pair in pairs.items()]
        if point is self.base:
            self.outputs = found
            return
        for row, new in zip(self.outputs, found):
            if row["status"] == new["status"] == "verified":
                row["error"] = max(row["error"], new["error"])

    def _engine_seconds(self, sizes: Mapping[str, int]) -> float:
        """Seconds of a run on the simulator."""
        return sum(self.costs.simulated(p, sizes, adverse=False) for p in self.build.part_at(sizes).launches)

    def _allowed(
        self, pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], limit: float, feeds: Mapping[str, np.ndarray],
        point: Point,
    ) -> dict[str, float]:  # fmt: skip
        """What rounding alone may change of each output beyond ``limit``; none where the user named the tolerance."""
        graph = self.build.imported
        names = {label: o.name for label, o in zip(pairs, graph.outputs)}
        beyond = {names[label]: want for label, (got, want) in pairs.items() if relative_error(got, want) > limit}
        if not beyond or self.options.tolerance is not None:
            return {}
        found = rounding_errors(graph.nodes, {**feeds, **beyond}, graph.weights, point.sizes, tuple(beyond))
        return {label: found[name] for label, name in names.items() if name in found}

    def _output(
        self, label: str, got: np.ndarray, want: np.ndarray, limit: float, allowed: float | None
    ) -> dict[str, Any]:
        """The row of an output; ``allowed`` is what rounding alone may change of it. Raises AccuracyError.

        Where a model rounds activations to few bits, a last-bit difference becomes a step, and steps add up: such an
        output may differ by as much as rounding alone changes it. An output that rounding alone may replace, such as
        the mean of numbers whose sum is 0, is no evidence for or against anything.
        """
        error = relative_error(got, want)
        if error > limit and allowed is not None:
            if from_numpy(want.dtype).is_float and error <= allowed and 1 <= allowed < math.inf:
                reason = f"nothing but rounding, which alone may change it by {100 * allowed:.0f} %"
                log.warning("output %s is %s", label, reason)
                return {"output": label, "status": "skipped", "reason": reason, "tolerance": limit}
            if _rounds_activations(self.build.imported):
                limit = max(limit, min(rounded_up(allowed), MAX_ROUNDING))
        if error > limit:
            remedy = "" if self.precision == "fp32" else "try precision fp32, "
            raise AccuracyError(
                f"output {label} has relative error {error:.2e} against the reference, above {limit:.0e}",
                node=label,
                hint=f"{remedy}raise the tolerance if the model bears it, or report a defect",
            )
        row = {"output": label, "status": "verified", "error": rounded_up(error), "tolerance": limit}
        odd = nonfinite_share(want)
        if odd:
            row["nonfinite"] = odd
            text = f"output {label} is NaN or infinite in {odd:.3g} of its elements, in the reference too"
            warnings.warn(f"{text}: only their places could be compared", RuntimeWarning, stacklevel=2)
        return row

    # -------------------------------------------------------------------------------------------------- kernels

    def _check_kernels(
        self, point: Point, feeds: Mapping[str, np.ndarray], checks: Sequence[KernelCheck], seconds: float
    ) -> int:
        """Compares kernels at one point, as many as fit ``seconds``, the cheapest first. Returns how many."""
        watch = None if self.headroom is None or point is not self.base else self.headroom.see
        chosen, kernels = list[KernelCheck](), 0.0
        last = 0 if watch is None else len(self.build.fused.graph.nodes)  # of the reference's nodes
        spent = self.costs.reference.seconds(point.sizes, last)
        for c in sorted(checks, key=lambda c: self._estimate(c, point.sizes)):
            nodes = max(last, self._nodes_before(c))
            needed = kernels + self._estimate(c, point.sizes) + self.costs.reference.seconds(point.sizes, nodes)
            if needed <= seconds:
                chosen.append(c)
                kernels, last, spent = kernels + self._estimate(c, point.sizes), nodes, needed
            else:
                self._skip(c)
        self.used += spent
        ends = sorted({*map(self._nodes_before, chosen), last})
        with each_ahead(with_values(self.build, chosen, feeds, point.sizes, watch)) as each:
            for c, values in each:
                at = self._nodes_before(c)
                until = ends[min(bisect_right(ends, at), len(ends) - 1)]  # what the reference has got to meanwhile
                beside = [self.costs.reference.seconds(point.sizes, n) for n in (at, until)]
                self._check_kernel(c, values, point, beside[1] - beside[0])
        return len(chosen)

    def _nodes_before(self, check: KernelCheck) -> int:
        """How many nodes of the graph the reference evaluates until it has all values of a kernel."""
        return 1 + max((self.positions.get(t, -1) for t in check.tensors()), default=-1)

    def _check_kernel(self, c: KernelCheck, values: Mapping[str, np.ndarray], point: Point, beside: float) -> None:
        """Compares one kernel and records what was found. The reference takes ``beside`` seconds at the same time."""
        seconds = self._estimate(c, point.sizes) + beside
        self.note(f"kernel {c.source.entry}", HANG_SECONDS + HANG_FACTOR * seconds)
        verdict = check_kernel(c, self.regions[c.planned.name], self.build, values, point.sizes, self.device)
        self.note("the reference", math.inf)
        row = self.rows.get(c.source.entry, {})
        if "error" not in row:
            row = {**c.label(), "status": "verified", "error": 0.0, "launches": 0, "at": []}
            self.rows[c.source.entry] = row
        row["error"] = max(row["error"], rounded_up(verdict.error))
        if point is self.base:
            row["launches"] += 1
        if point.name not in row["at"]:
            row["at"].append(point.name)
        if verdict.rounding is not None:
            row["rounding"] = max(row.get("rounding", 0.0), rounded_up(verdict.rounding))
        if verdict.doubt:
            row |= {"status": "skipped", "reason": verdict.doubt}

    def _skip(self, check: KernelCheck, reason: str = "") -> None:
        """Records that a kernel is not compared, unless it was at other sizes. No reason: the budget."""
        reason = reason or f"beyond the budget of {self.options.budget:g} s"
        self.rows.setdefault(check.source.entry, {**check.label(), "status": "skipped", "reason": reason})

    # --------------------------------------------------------------------------------------------- other sizes

    def _check_part(self, part: Planned, checks: Sequence[KernelCheck]) -> None:
        """Compares the kernels that are launched for a range of sizes only, and the outputs there."""
        if part.sizes is None or not checks:
            return
        sizes = within(self.build, part, self.base.sizes)
        if sizes is None or not self._check_point(Point(part.sizes.label, sizes), checks, self.used + self._left()):
            for c in checks:
                self._skip(c, f"no sizes in the range {part.sizes.label} could be run")

    def _check_other_points(self, checks: Sequence[KernelCheck]) -> None:
        """Compares kernels that depend on symbols at other sizes than the base's, within a share of what that took."""
        checks = [c for c in checks if c.is_symbolic() and "error" in self.rows[c.source.entry]]
        extra = max(EXTRA_SECONDS, EXTRA_SHARE * self.used)
        end = self.used + min(extra, self._left()) if self.options.level == "quick" else math.inf
        visited = [self.base]
        for point in borders(self.build, self.base.sizes):
            done = any(row["sizes"] == point.sizes for row in self.points)
            if done or self._check_point(point, checks, end):
                visited.append(point)
        for point in small_points(self.build.imported, self.base.sizes):
            if all(p.name != point.name for p in visited) and self._check_point(point, checks, end):
                visited.append(point)
        for part in self.build.parts:
            self._check_beyond(part, [c for c in checks if c.sizes == part.sizes], visited, end)

    def _check_beyond(
        self, part: Planned, checks: Sequence[KernelCheck], visited: Sequence[Point], end: float
    ) -> None:
        """Compares a part's kernels at sizes beyond what they tile, where no point was."""
        runs = [p for p in visited if part.holds(p.sizes)]
        start = runs[-1].sizes if runs else within(self.build, part, self.base.sizes)
        wanted = [g for g in goals([c.source for c in checks]) if not any(g.met(p.sizes) for p in runs)]
        if not wanted or start is None:
            return
        graph = self.build.imported if part.sizes is None else part.sizes.narrowed(self.build.imported)
        by_entry = {c.source.entry: c for c in checks}

        def cost(sizes: Mapping[str, int], entries: frozenset[str]) -> float:
            if self.costs.reference.values(sizes) > MAX_ELEMENTS:
                return math.inf
            nodes = max((self._nodes_before(by_entry[e]) for e in entries), default=0)
            reference = self.costs.reference.seconds(sizes, nodes)
            return reference + sum(self._estimate(by_entry[e], sizes) for e in entries)

        found, left = beyond(graph, wanted, start, cost, end - self.used)
        if found is not None:
            entries = {g.entry for g in wanted if g.met(found.sizes)}
            self._check_point(found, [c for c in checks if c.source.entry in entries], end)
        if left:
            kernels = len({g.entry for g in left})
            reason = "their ranges, the memory or the budget do not allow it"
            self.points.append({"name": "beyond", "kernels": kernels, "skipped": reason})

    def _check_point(self, point: Point, checks: Sequence[KernelCheck], end: float) -> bool:
        """Compares kernels at a point that verification adds, and the outputs if they cost little. True if it did."""
        row: dict[str, Any] = {"name": point.name, "sizes": dict(point.sizes)}
        try:
            self.engine.memory(**{s.name: point.sizes[s.name] for s in self.engine.program.symbols})
            draw = self.sample.draw or Draw.SIGNED
            feeds = sample_inputs(self.build.imported, point.sizes, draw=draw, seed=len(self.points))
            seconds = self._engine_seconds(point.sizes)
            drawn, reference = self.sample.draw is not None, self.costs.reference.seconds(point.sizes)
            if drawn and 2 * (seconds + reference) < end - self.used:
                self._check_outputs(point, feeds)
                row["outputs"] = len(self.outputs)
            here = [c for c in checks if c.holds(point.sizes)]
            row["kernels"] = self._check_kernels(point, feeds, here, end - self.used)
            if not row["kernels"]:
                row["skipped"] = "beyond the share of the budget that sizes of its own choice may take"
        except (EnvironmentError_, InputError, ModelError) as error:  # sizes that memory or the model does not take
            row["skipped"] = error.message
        self.points.append(row)
        return "skipped" not in row


def _rounds_activations(graph: Graph) -> bool:
    """True if a model quantises what it computes."""
    return any(n.op == "QuantizeLinear" and n.operands()[0].name not in graph.weights for n in graph.nodes)


def engine_tolerance(graph: Graph, precision: str) -> float:
    """The largest relative error of an output: by the coarser of ``precision`` and the types in the model.

    A model in f16 rounds every value in the reference, while kernels round only what they store.
    """
    own = {DType.F16: "fp16", DType.BF16: "bf16"}
    used = {own[o.dtype] for n in graph.nodes for o in n.outputs if o.dtype in own}
    return max(ENGINE_TOLERANCE[p] for p in (precision, *used))
