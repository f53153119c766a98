"""Compares an engine at its kernels' results, one kernel after another, with references in f64.

Each kernel runs twice: on the reference's values of its operands, which shows its own (local) error, and on what the
kernels before it made, which shows what it inherits. Only values that are still to be read are held.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arcweld.compiler.errors import AccuracyError, DeviceError
from arcweld.compiler.ir import Node, Value
from arcweld.compiler.reference import stream_reference
from arcweld.debug.boundaries import Boundary, Divergence
from arcweld.debug.exact import evaluate_exactly, evaluated, narrowed
from arcweld.debug.subject import Subject
from arcweld.driver.isolation import Notes, ignore_notes, in_child
from arcweld.driver.kernel_checks import judge, run_launches
from arcweld.driver.metrics import relative_error
from arcweld.driver.stored_graph import graph_name
from arcweld.runtime.engine import Engine
from arcweld.runtime.plan import ExecutionPlan, LaunchPlan

REFERENCES = ("f64", "f32")
KERNEL_SECONDS = 600.0  # of CPU time: a kernel that takes longer on the simulator does not end
Told = Callable[[str], None]


def compare_kernels(subject: Subject, reference: str = REFERENCES[0], told: Told | None = None) -> Divergence:
    """Compares the kernels of an engine with its graph.

    reference  f64, or f32 for the graph's own types
    told       called with the kernel that is being run

    On a simulator all runs are in a child process; a kernel that ends it is the finding, and the only one.
    """
    work = Comparison(subject, reference)
    if not subject.device.is_simulator:
        return work.run(ignore_notes)
    last = [""]

    def tell(doing: str) -> None:
        last[0] = doing
        if told is not None:
            told(doing)

    try:
        return in_child(work.run, tell)
    except AccuracyError as error:  # the child was ended
        step = next((s for s in work.steps if last[0] == s.doing), None)
        if step is None:
            raise
        crashed = work.boundary(step, step.writes[0], cause="crash", detail=error.message)
        return Divergence((crashed,), {}, subject.tolerance)


@dataclass(frozen=True, slots=True)
class Step:
    """A launch, with those that write the same tensor before it. ``reads`` and ``writes`` are the program's names."""

    plan: LaunchPlan
    launches: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @property
    def doing(self) -> str:
        """What a run of it is called."""
        return f"kernel {self.plan.variant.entry} ({self.plan.launch.name})"


class Comparison:
    """One comparison, in the process that runs the kernels."""

    def __init__(self, subject: Subject, reference: str) -> None:
        self.subject, self.data, self.graph = subject, subject.data, subject.graph
        self.evaluate = evaluate_exactly if reference == "f64" else None
        self.values: dict[str, Value] = {v.name: v for v in self.graph.values()}
        self.producers = self.graph.producers()
        self.labels = dict(zip(self.graph.labels(), (o.name for o in self.graph.outputs)))
        part = self.data.program.at(subject.sizes)
        self.steps = _steps(ExecutionPlan(part, subject.device.arch).launches, {a.name: a.of for a in part.aliases})
        known = {**self.values, **self.graph.weights}
        tensors = dict.fromkeys(t for s in self.steps for t in (*s.reads, *s.writes))
        self.name = {t: graph_name(t, self.labels, known) for t in tensors}

    def run(self, note: Notes) -> Divergence:
        """The comparison; raises as the references do."""
        found, own, exact = self._kernels(note)
        note("the engine", KERNEL_SECONDS * max(len(self.steps), 1))
        got = self._whole()
        made = {label: n for label, n in self.labels.items() if label in got and n in own}
        outputs = {label: relative_error(got[label], exact[n]) for label, n in made.items()}
        runtime = {label: relative_error(got[label], own[n]) for label, n in made.items()}
        note("the reference", math.inf)
        passes: dict[str, float] = {}
        imported = self.subject.imported
        if imported is not None:
            names = dict(zip(imported.labels(), (o.name for o in imported.outputs)))
            wanted = {names[label] for label in made}
            want = evaluated(imported, self.subject.feeds, self.subject.sizes, wanted, self.evaluate)
            passes = {label: relative_error(exact[n], want[names[label]]) for label, n in made.items()}
        return Divergence(tuple(found), outputs, self.subject.tolerance, passes, runtime)

    def _whole(self) -> dict[str, np.ndarray]:
        """The outputs of the engine; none where the device fails, as one of the kernels then has.

        On the simulator, every loop runs as the kernel shows it.
        """
        engine, feeds = Engine(self.data, self.subject.device.adversary(), borrow=True), self.subject.feeds
        with engine.poisoned():
            changed = {s.input: feeds[s.input].copy() for s in engine.program.state}
            try:
                return engine.run_tensors({**feeds, **changed})
            except DeviceError:
                return {}

    def _kernels(self, note: Notes) -> tuple[list[Boundary], dict[str, np.ndarray], dict[str, np.ndarray]]:
        """All boundaries, and the outputs that the kernels and the reference made, by the graph's names."""
        names = [[self.name[t] for t in (*s.reads, *s.writes)] for s in self.steps]
        position = {o.name: i for i, n in enumerate(self.graph.nodes) for o in n.outputs}
        last = {n: k for k, own in enumerate(names) for n in own}
        kept = set(self.labels.values())
        due: dict[int, list[int]] = {}
        hold, at = dict.fromkeys(kept - set(self.graph.weights), len(self.graph.nodes)), -1
        for k, own in enumerate(names):
            at = max([at, *(position.get(n, -1) for n in own)])  # in the order of launches
            due.setdefault(at, []).append(k)
            hold |= {n: max(hold.get(n, -1), at) for n in own if n not in self.graph.weights}
        found: list[Boundary] = []
        made: dict[str, np.ndarray] = {}
        exact: dict[str, np.ndarray] = {}
        feeds, sizes = self.subject.feeds, self.subject.sizes
        for i, values in stream_reference(self.graph, feeds, hold=hold, bind=sizes, evaluate=self.evaluate):
            exact = values
            for k in due.get(i, ()):
                found += self._compared(self.steps[k], values, made, note)
                for n in [n for n in made if last[n] <= k and n not in kept]:
                    del made[n]
        return found, made, {n: exact[n] for n in kept if n in exact}

    def _compared(
        self, step: Step, exact: Mapping[str, np.ndarray], made: dict[str, np.ndarray], note: Notes
    ) -> Iterator[Boundary]:
        """The boundaries of a step; adds to ``made`` what the kernels make of their own values."""
        note(step.doing, KERNEL_SECONDS)
        right = {n: self._narrowed(n, exact) for t in (*step.reads, *step.writes) if (n := self.name[t]) in exact}
        own = {n: made.get(n, a) for n, a in right.items()}
        try:
            local, whole = (self._run(step, values) for values in (right, own))
        except DeviceError as error:
            made |= {self.name[t]: right[self.name[t]] for t in step.writes}
            yield self.boundary(step, step.writes[0], cause="crash", detail=error.message)
            return
        for t in step.writes:
            n = self.name[t]
            made[n] = whole[t]
            yield self._boundary(step, t, local[t], whole[t], exact[n], right)

    def _narrowed(self, name: str, exact: Mapping[str, np.ndarray]) -> np.ndarray:
        found = narrowed(exact[name], self.values[name].dtype)
        assert found is not None
        return found

    def _run(self, step: Step, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        entry, at = step.plan.variant.entry, self.subject
        return run_launches(self.data, step.launches, entry, lambda t: values[self.name[t]], at.sizes, at.device)

    def _boundary(
        self, step: Step, tensor: str, local: np.ndarray, whole: np.ndarray, want: np.ndarray,
        right: Mapping[str, np.ndarray],
    ) -> Boundary:  # fmt: skip
        """The comparison of one result; ``right`` has the reference's values in the graph's own types."""
        name = self.name[tensor]
        nodes = self._nodes(step, name)
        own = judge(nodes, name, local, right, self.graph.weights, self.subject.sizes)
        error = relative_error(local, want)
        cause = "kernel" if own.wrong else "precision" if error > max(own.limit, own.error) else ""
        return self.boundary(
            step, tensor, local=max(error, own.error if own.wrong else 0.0), inherited=_difference(whole, local, want),
            total=relative_error(whole, want), limit=own.limit, worst=_worst(local, want), cause=cause,
        )  # fmt: skip

    def _nodes(self, step: Step, name: str) -> list[Node]:
        """The nodes between what a step reads and one of its results."""
        read, wanted = {self.name[t] for t in step.reads}, [name]
        found: set[str] = set()
        while wanted:
            node = self.producers.get(wanted.pop())
            if node is not None and node.output.name not in found:
                found.add(node.output.name)
                wanted += [v.name for v in node.operands() if v.name not in read]
        return [n for n in self.graph.nodes if n.output.name in found]

    def boundary(self, step: Step, tensor: str, **changes: Any) -> Boundary:
        """The boundary of a step's result with its names and places."""
        v = step.plan.variant
        line = _stores_at(self.data.sources[v.kernel], step.writes.index(tensor))
        origin = step.plan.launch.origin
        return Boundary(step.plan.launch.name, v.entry, f"kernels/{v.kernel}.cu:{line}", origin, self.name[tensor],
                        **changes)  # fmt: skip


def _steps(launches: Sequence[LaunchPlan], aliases: Mapping[str, str]) -> list[Step]:
    """The launches in order, those that write one tensor joined. What is written in place is read too."""
    found: list[Step] = []
    for x in launches:
        reads = [*x.launch.reads, *(aliases[t] for t in x.launch.writes if t in aliases)]
        names: tuple[str, ...] = (x.launch.name,)
        if found and set(found[-1].writes) & set(x.launch.writes):
            before = found.pop()
            reads = [*before.reads, *(t for t in reads if t not in before.writes)]
            names = (*before.launches, *names)
        found.append(Step(x, names, tuple(dict.fromkeys(reads)), x.launch.writes))
    return found


def _difference(whole: np.ndarray, local: np.ndarray, want: np.ndarray) -> float:
    """The norm of the difference of two results, relative to the reference's norm."""
    if not np.all(np.isfinite(np.asarray(local, np.float64))):
        return math.nan
    scale = float(np.linalg.norm(np.asarray(want, np.float64)))
    error = float(np.linalg.norm(np.asarray(whole, np.float64) - np.asarray(local, np.float64)))
    return error / scale if scale and math.isfinite(scale) else error


def _worst(got: np.ndarray, want: np.ndarray) -> tuple[int, ...]:
    """The element that differs most; empty for none, or for a scalar."""
    g, w = np.asarray(got, np.float64), np.asarray(want, np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.where((g == w) | (np.isnan(g) & np.isnan(w)), 0.0, np.abs(g - w))
    difference = np.where(np.isnan(difference), np.inf, difference)
    if not difference.size or not difference.max():
        return ()
    return tuple(int(k) for k in np.unravel_index(int(np.argmax(difference)), difference.shape))


def _stores_at(source: str, result: int) -> int:
    """The line, from 1 on, at which a kernel's text first stores its ``result``-th output; else that of the kernel."""
    lines = source.splitlines()
    stores = re.compile(rf"^(?!//).*\bp\.out{result}\b")
    found = (k for pattern in (stores, re.compile("__global__")) for k, line in enumerate(lines, 1)
             if pattern.search(line))  # fmt: skip
    return next(found, 1)
