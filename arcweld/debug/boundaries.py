"""What a comparison at an engine's kernels finds: a boundary for each result of each kernel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Boundary:
    """One result of one kernel, compared with the reference. Errors are relative, of 2-norms.

    launch     the program's name of the launch
    kernel     the kernel's entry; ``source`` is where its text stores the result: member of the engine file, and line
    nodes      the model's nodes that it computes
    value      the graph's name of the result
    local      the error where the kernel reads the reference's values
    inherited  the difference that it makes to read what the kernels before it made
    total      the error where it reads that
    limit      what ``local`` may be
    worst      the element with the largest error of ``local``
    cause      ``kernel``: it does not compute what its nodes say; ``precision``: its types do not hold the result;
               ``crash``: it failed; empty where nothing is wrong
    detail     what failed
    """

    launch: str
    kernel: str
    source: str
    nodes: tuple[str, ...]
    value: str
    local: float = math.inf
    inherited: float = math.nan
    total: float = math.inf
    limit: float = 0.0
    worst: tuple[int, ...] = ()
    cause: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Divergence:
    """What a comparison found.

    boundaries  in the order of launches
    outputs     relative errors of the engine's outputs by label, in a run as a whole
    tolerance   what these may be
    passes      relative errors of the optimised graph's outputs against the imported graph's, both in references; empty
                for an engine file, which has no imported graph
    runtime     relative differences between the outputs of the run as a whole and those of kernels one by one
    """

    boundaries: tuple[Boundary, ...]
    outputs: Mapping[str, float]
    tolerance: float
    passes: Mapping[str, float] = field(default_factory=dict)
    runtime: Mapping[str, float] = field(default_factory=dict)

    @property
    def first(self) -> Boundary | None:
        """The first kernel that is wrong by itself."""
        return next((b for b in self.boundaries if b.cause), None)

    def ranked(self) -> list[Boundary]:
        """The boundaries by what they may be and are locally, the worst first."""
        return sorted(self.boundaries, key=lambda b: (-_ratio(b), -b.local))

    def beyond(self, errors: Mapping[str, float]) -> list[str]:
        """The outputs of which one of the members above is beyond the tolerance."""
        return [label for label, e in errors.items() if not e <= self.tolerance]

    @property
    def wrong(self) -> bool:
        """Whether anything is."""
        return self.first is not None or any(map(self.beyond, (self.outputs, self.passes, self.runtime)))


def _ratio(b: Boundary) -> float:
    return math.inf if b.cause == "crash" else b.local / max(b.limit, 1e-30)
