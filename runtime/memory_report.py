"""The exact device memory of an engine for given sizes, without running anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arcweld.compiler.errors import InputError
from arcweld.runtime.arena import aligned
from arcweld.runtime.executor import Part
from arcweld.runtime.launch_list import compute_sizes
from arcweld.runtime.program import Program
from arcweld.runtime.steps import sizes_given


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """Bytes on the device: ``weights`` once for an engine; ``arena``, ``inputs`` and ``outputs`` for each context;
    ``state``, the buffers that the model owns, for each session.

    ``inputs`` and ``outputs`` are allocated for staged CUDA graphs only, and not for state. Counters that kernels keep
    between launches are part of ``arena``.
    """

    weights: int
    arena: int
    inputs: int
    outputs: int
    state: int = 0

    @property
    def staging(self) -> int:
        """Bytes of a staged graph's inputs and outputs."""
        return self.inputs + self.outputs

    @property
    def total(self) -> int:
        """All bytes with one context and one session."""
        return self.weights + self.arena + self.staging + self.state


def memory_report(
    program: Program, stages: Sequence[Sequence[Part]], env: Mapping[str, int], weights: int
) -> MemoryReport:
    """The report for the symbols' values ``env``; ``stages`` are the parts of each stage, or of the whole program.

    Sizes that are computed from data count as their upper bounds. Raises InputError for one that has no bound.
    """
    if not program.steps:
        return _of_stage(program, stages[0], dict(env), weights)
    every = {**{name: s.hi for name, s in sizes_given(program.steps).items()}, **env}
    found = []
    for stage, parts in zip(program.stages, stages):
        sizes = {s.name: every[s.name] for s in stage.symbols}
        unbounded = [name for name, size in sizes.items() if size is None]
        if unbounded:
            raise InputError(
                f"dimension {unbounded[0]!r} is computed from data and has no bound: its memory cannot be told before",
                hint=f"memory({unbounded[0]}=...) takes a size to assume",
            )
        found.append(_of_stage(stage, parts, {n: s for n, s in sizes.items() if s is not None}, 0))
    return MemoryReport(weights, sum(r.arena for r in found), 0, sum(r.outputs for r in found))


def _of_stage(program: Program, parts: Sequence[Part], env: dict[str, int], weights: int) -> MemoryReport:
    serving = next((p for p in parts if not p.plan.out_of_range(env)), parts[-1])
    sizes = compute_sizes(serving.plan, env)
    kept = {n for s in program.state for n in (s.input, s.output)}
    return MemoryReport(
        weights=weights,
        arena=sizes.arena_bytes + sizes.counter_bytes,
        inputs=sum(aligned(sizes.nbytes[t.name]) for t in program.inputs if t.name not in kept),
        outputs=sum(aligned(sizes.nbytes[t.name]) for t in program.outputs if t.name not in kept),
        state=sum(sizes.nbytes[s.input] for s in program.state if s.initial is not None),
    )
