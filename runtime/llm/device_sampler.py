"""Chooses tokens where the logits are: the engine of ``compiler/sampler.py`` and what it is given and gives.

A row that it does not decide is None, and ``sampling.choose`` chooses its token on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from arcweld.compiler import sampler
from arcweld.compiler.errors import UsageError
from arcweld.runtime.arrays import Taken
from arcweld.runtime.engine import Engine
from arcweld.runtime.llm.params import SamplingParams
from arcweld.runtime.llm.sampling import Choice, Logprob, uniform
from arcweld.runtime.llm.transfers import Transfers

Copy = Callable[[], np.ndarray]
_TYPES = (np.int64, np.float64, np.int64, np.float64)  # of the sampler's results
SamplerPlace = Literal["auto", "device", "host"]  # where tokens are chosen
SAMPLER_PLACES: tuple[SamplerPlace, ...] = get_args(SamplerPlace)
_WIDTH = 4  # lists of changes are as long as a power of it, so that there are few shapes


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """A token that is wanted.

    row             of the step's logits
    seed            of the request's random numbers
    prompt, output  the tokens before it
    forbidden       tokens that may not be chosen
    """

    row: int
    params: SamplingParams
    seed: int
    prompt: Sequence[int]
    output: Sequence[int]
    forbidden: Sequence[int] = ()


def sampler_place(text: str) -> SamplerPlace:
    """Where tokens are chosen. Raises UsageError for what is no such place."""
    for place in SAMPLER_PLACES:
        if text == place:
            return place
    raise UsageError(f"sampler is {text!r}, not auto, device or host")


class Asked:
    """Tokens that the device chooses. Copies of them to the host begin with it, and are waited for when they are read.

    parts  the rows of each call of the sampler, and its results in the device's memory
    """

    def __init__(self, parts: Sequence[tuple[list[Wanted], list[Taken]]], transfers: Transfers) -> None:
        self.parts = parts
        self._copies = [self._begun(wanted, results, transfers) for wanted, results in parts]
        self._found: dict[int, Choice] | None = None

    @staticmethod
    def _begun(wanted: Sequence[Wanted], results: Sequence[Taken], transfers: Transfers) -> list[Copy]:
        likely = any(w.params.logprobs is not None for w in wanted)
        return [transfers.later(r, t) for r, t in zip(results, _TYPES if likely else _TYPES[:2])]

    def choice(self, row: int) -> Choice | None:
        """The token of a row of logits; None if the device does not decide it. Waits until it is chosen."""
        if self._found is None:
            self._found = {}
            for (wanted, _), copies in zip(self.parts, self._copies):
                self._read(wanted, [copy() for copy in copies])
        return self._found.get(row)

    def _read(self, wanted: Sequence[Wanted], results: Sequence[np.ndarray]) -> None:
        assert self._found is not None
        tokens, logprobs = results[:2]
        for k, w in enumerate(wanted):
            if tokens[k] >= 0:
                token, count = int(tokens[k]), w.params.logprobs
                likely = None if count is None else _most_likely(results[2][k], results[3][k], count, token)
                self._found[w.row] = Choice(token, float(logprobs[k]), likely)


class DeviceSampler:
    """The sampler of a model with a vocabulary of so many tokens. It runs on the model's device."""

    def __init__(self, engine: Engine, vocabulary: int, transfers: Transfers) -> None:
        self.engine, self.vocabulary, self.transfers = engine, vocabulary, transfers
        self.candidates = sampler.candidates(vocabulary)
        self.most_rows = next(s.hi for s in engine.program.symbols if s.name == sampler.SAMPLED) or 1

    def serves(self, params: SamplingParams) -> bool:
        """Whether tokens may be chosen here: their answer lies among the candidates, if the logits allow."""
        if (params.logprobs or 0) > self.candidates:
            return False
        return params.is_greedy or not self.candidates <= params.top_k < self.vocabulary

    def submit(self, logits: Taken, wanted: Sequence[Wanted]) -> Asked:
        """Lets the device choose the tokens that are wanted of ``logits`` [rows, vocabulary]."""
        parts: list[tuple[list[Wanted], list[Taken]]] = []
        changes = [_changes(w) for w in wanted]
        served = [
            k for k, (w, c) in enumerate(zip(wanted, changes))
            if self.serves(w.params) and len(c) <= (0 if w.params.logprobs is not None else sampler.MOST_CHANGES)
        ]  # fmt: skip
        for first in range(0, len(served), self.most_rows):
            part = served[first : first + self.most_rows]
            rows = [wanted[k] for k in part]
            parts.append((rows, self._run(logits, rows, [changes[k] for k in part])))
        return Asked(parts, self.transfers)

    def _run(
        self, logits: Taken, wanted: Sequence[Wanted], changes: Sequence[dict[int, tuple[float, float, float]]]
    ) -> list[Taken]:  # fmt: skip
        width = 1
        while width < max(map(len, changes)):
            width *= _WIDTH
        places = np.full((len(wanted), width, 2), -1, np.int64)
        amounts = np.ones((len(wanted), width, 3))
        for k, change in enumerate(changes):
            places[k, : len(change), 0] = k
            places[k, : len(change), 1] = list(change)
            amounts[k, : len(change)] = np.reshape(list(change.values()), (len(change), 3))
        feeds = {
            "rows": np.array([w.row for w in wanted], np.int64),
            "places": places,
            "changes": amounts,
            "settings": np.array([self._settings(w) for w in wanted]),
        }
        given = {name: self.transfers.upload(a) for name, a in feeds.items()}
        return self.engine.run_on_device(given, {"logits": logits})

    def _settings(self, w: Wanted) -> tuple[float, ...]:
        p = w.params
        if p.is_greedy:
            return 1.0, 1.0, 2.0, -1.0, 0.0
        top_k = p.top_k if 0 < p.top_k < self.vocabulary else 0
        number = uniform(w.seed, len(w.output))
        return p.temperature, top_k, p.top_p if p.top_p < 1 else 2.0, p.min_p if p.min_p > 0 else -1.0, number


def _most_likely(ids: np.ndarray, logprobs: np.ndarray, count: int, token: int) -> dict[int, Logprob]:
    """As ``sampling.most_likely``, of the candidates, which ``token`` is one of."""
    found = {int(ids[k]): Logprob(float(logprobs[k]), k + 1) for k in range(count)}
    if token not in found:
        own = logprobs[ids == token][0]
        found[token] = Logprob(float(own), int((logprobs > own).sum()) + 1)
    return found


def _changes(w: Wanted) -> dict[int, tuple[float, float, float]]:
    """The logits that are changed before a token is chosen: by which divisor, what is subtracted, what added."""
    p, found = w.params, dict[int, tuple[float, float, float]]()
    if p.counts:
        tokens, counts = np.unique(np.array(w.output, np.int64), return_counts=True)
        less = dict(zip(tokens.tolist(), (p.presence_penalty + p.frequency_penalty * counts).tolist()))
        seen = {*w.prompt, *w.output} if p.repetition_penalty != 1 else less.keys()
        found = {t: (p.repetition_penalty, less.get(t, 0.0), 0.0) for t in seen}
    for token, bias in p.logit_bias.items():
        divisor, less_by, _ = found.get(token, (1.0, 0.0, 0.0))
        found[token] = divisor, less_by, bias
    return found | dict.fromkeys(w.forbidden, (1.0, np.inf, 0.0))
