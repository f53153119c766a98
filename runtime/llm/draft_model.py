"""Guesses of a smaller model: an engine of its own, with pages of its own, which follows the sequences.

What the draft's pages hold of a sequence is what it was given: tokens of the sequence, then its own guesses. Guesses
that the model has refused are written over by the next tokens; later positions are never seen before they are written
again. A sequence that was preempted, or that ran for a while without guesses, is caught up with in chunks; the draft's
own prefix cache finds what it knows of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from collections.abc import Sequence as Several
from dataclasses import dataclass, field

import numpy as np

from arcweld.compiler.errors import UsageError
from arcweld.runtime.llm.batch import Run
from arcweld.runtime.llm.package import Description
from arcweld.runtime.llm.pages import PagePool
from arcweld.runtime.llm.params import SamplingParams
from arcweld.runtime.llm.runner import Runner
from arcweld.runtime.llm.sampling import LogitsError, choose, distribution, draw_from, uniform
from arcweld.runtime.llm.sequence import Sequence
from arcweld.runtime.llm.speculation import DRAFT, Guess, Wanted

log = logging.getLogger("arcweld.llm")


@dataclass(slots=True, eq=False)
class _State:
    """What the draft holds of a sequence.

    pages      in order
    computed   how many positions are right
    guessed    tokens that were given beyond those of the sequence, from position ``start`` on
    published  how many full pages may be found
    """

    pages: list[int] = field(default_factory=list)
    computed: int = 0
    guessed: list[int] = field(default_factory=list)
    start: int = 0
    published: int = 0


@dataclass(slots=True, eq=False)
class _Growing:
    """A sequence while guesses are made."""

    wanted: Wanted
    state: _State
    found: list[Guess] = field(default_factory=list)
    ended: bool = False


def check_draft(draft: Description, model: Description, sequences: int) -> None:
    """Raises UsageError for a draft model that cannot guess for the model, with so many sequences together."""
    if draft.vocabulary != model.vocabulary:
        raise UsageError(
            f"the draft model has a vocabulary of {draft.vocabulary} tokens, the model one of {model.vocabulary}",
            hint="a draft model is one of the same family, with the same tokenizer",
        )
    if min(draft.rows, draft.tokens) < sequences:
        raise UsageError(
            f"the draft model was built for steps of {min(draft.rows, draft.tokens)} sequences, and max_num_seqs is "
            f"{sequences}", hint="lower max_num_seqs, or build the draft model for more tokens",
        )  # fmt: skip


class ModelDrafter:
    """Guesses of a draft model. Where its pages are short, a sequence gets no guesses for the time being."""

    def __init__(self, runner: Runner, caching: bool) -> None:
        self.runner = runner
        self.pool = PagePool(runner.pages, runner.description.page_size, caching)
        self._states: dict[Sequence, _State] = {}
        self._warned = False

    def keep(self, running: Iterable[Sequence]) -> None:
        """Gives the pages of other sequences back."""
        alive = set(running)
        for s in [s for s in self._states if s not in alive]:
            self.pool.release(self._states.pop(s).pages)

    def guesses(self, wanted: Several[Wanted]) -> dict[Sequence, tuple[Guess, ...]]:
        """Guesses for the sequences that the draft has caught up with, each drawn as its request's tokens are.

        The first step of the draft computes what it lacks, each further one a guess for every sequence.
        """
        length = self.runner.description.length
        # the last guess is never given to the draft, so a sequence of its full length has one
        known = [_Growing(w, self._state(w.sequence)) for w in wanted if len(w.sequence) <= length]
        ready = self._catch_up(known)
        for g, row in ready:
            self._add(g, row)
        while growing := [g for g, _ in ready if self._goes_on(g)]:
            runs = [Run([g.found[-1].token], g.state.computed, g.state.pages, (0,)) for g in growing]
            for g, row in zip(growing, self.runner.logits(runs)):
                g.state.guessed.append(g.found[-1].token)
                g.state.computed += 1
                self._add(g, row)
        return {g.wanted.sequence: tuple(g.found) for g, _ in ready}

    def _state(self, s: Sequence) -> _State:
        """What is held of a sequence, without guesses that turned out to be wrong."""
        state = self._states.get(s)
        if state is None:
            pages = self.pool.match(s.tokens(0, len(s)), s.salt)
            size = self.pool.page_size
            state = self._states[s] = _State(pages, len(pages) * size, published=len(pages))
            return state
        own = s.tokens(state.start, len(s))
        right = next((k for k, (a, b) in enumerate(zip(state.guessed, own)) if a != b), None)
        right = min(len(own), len(state.guessed)) if right is None else right
        # the last token is computed again if need be: its logits are wanted
        state.computed = min(state.computed, state.start + right, len(s) - 1)
        state.guessed = []
        return state

    def _catch_up(self, known: Several[_Growing]) -> list[tuple[_Growing, np.ndarray]]:
        """Computes what the draft lacks of the sequences, as far as a step goes; the logits of those that are whole.

        Those that lack least come first, so that a long prompt keeps no others waiting.
        """
        left = self.runner.description.tokens
        parts: list[tuple[_Growing, int]] = []
        for g in sorted(known, key=lambda g: len(g.wanted.sequence) - g.state.computed):
            count = min(len(g.wanted.sequence) - g.state.computed, left)
            if count and self._grow(g.state, count):
                parts.append((g, count))
                left -= count
        if not parts:
            return []
        runs, whole = [], []
        for g, count in parts:
            s, at = g.wanted.sequence, g.state.computed
            ends = at + count == len(s)
            runs.append(Run(s.tokens(at, at + count), at, g.state.pages, (count - 1,) if ends else ()))
            whole += [g] if ends else []
        logits = self.runner.logits(runs)
        for g, count in parts:
            self._computed(g, count)
        return list(zip(whole, logits))

    def _computed(self, g: _Growing, count: int) -> None:
        s, state = g.wanted.sequence, g.state
        state.computed += count
        state.start = state.computed
        known = s.tokens(0, state.computed)
        self.pool.publish(state.pages, known, state.published, s.salt)
        state.published = len(known) // self.pool.page_size

    def _grow(self, state: _State, count: int) -> bool:
        more = self.pool.take(max(0, self.pool.pages_for(state.computed + count) - len(state.pages)))
        state.pages += more or []
        return more is not None

    def _goes_on(self, g: _Growing) -> bool:
        """Whether a sequence gets another guess: it has room for the last one."""
        if g.ended or len(g.found) >= g.wanted.most or g.state.computed >= self.runner.description.length:
            return False
        return self._grow(g.state, 1)

    def _add(self, g: _Growing, logits: np.ndarray) -> None:
        """A guess by the draft's logits. What they say is never final, so logits that are no numbers end nothing."""
        w = g.wanted
        output = [*w.sequence.output, *(guess.token for guess in g.found)]
        try:
            g.found.append(_drawn(logits, w.sequence.params, w.seed, w.sequence.prompt, output))
        except LogitsError as error:
            g.ended = True
            if not self._warned:
                log.warning("the draft model makes no guess here: %s", error)
            self._warned = True


def _drawn(
    logits: np.ndarray, params: SamplingParams, seed: int, prompt: Several[int], output: Several[int]
) -> Guess:  # fmt: skip
    """A guess drawn as the request's tokens are.

    A request with a seed of its user's gets the same tokens with and without guesses, so its guesses are drawn with the
    random numbers of their places. Others are drawn with numbers of their own, and accepted by rejection sampling.
    """
    drawn_from: list[np.ndarray] = []

    def draw(x: np.ndarray, params: SamplingParams, seed: int, place: int) -> int:
        tokens, probabilities = distribution(x, params)
        drawn_from.extend((tokens, probabilities))
        return draw_from(tokens, probabilities, uniform(seed, place, DRAFT))

    token = choose(logits, params, seed, prompt, output, draw=draw if params.seed is None else None).token
    return Guess(token, *drawn_from)
