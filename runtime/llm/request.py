"""A request: a prompt with its results, and which of them a sequence belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from arcweld.runtime.llm.outputs import RequestOutput
from arcweld.runtime.llm.params import SamplingParams
from arcweld.runtime.llm.pooling import Pooling
from arcweld.runtime.llm.results import Result


@dataclass(slots=True, eq=False)
class Request:
    """A prompt with its results, several if ``n`` or ``best_of`` says so."""

    output: RequestOutput
    params: SamplingParams
    results: list[Result] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    pooling: Pooling | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Owner:
    """What a sequence belongs to: one ``result`` of a request, whose random numbers have ``seed``."""

    request: Request
    result: Result
    seed: int


def hash_seed(seed: int, index: int) -> int:
    """The seed of one of a request's results."""
    if index == 0:
        return seed
    return int(np.random.SeedSequence([seed & (1 << 64) - 1, index]).generate_state(1, np.uint64)[0])
