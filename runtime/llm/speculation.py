"""Guesses of the next tokens, which one step of the model checks together.

Two ways to accept a guess leave the model's distribution as it is. A guess that was not drawn, or drawn with the random
number of its place, is kept if it is the token that would have been chosen anyway: results are then the same with and
without guesses, bit for bit where the model's logits are (Daliri et al., "Coupling without Communication and
Drafter-Invariant Speculative Decoding", 2024). A guess that was drawn with a random number of its own is accepted by
rejection sampling, which keeps more of them (Leviathan et al., "Fast Inference from Transformers via Speculative
Decoding", 2023; Chen et al., "Accelerating Large Language Model Decoding with Speculative Sampling", 2023).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np

from arcweld.compiler.errors import UsageError
from arcweld.runtime.llm.params import SamplingParams
from arcweld.runtime.llm.sampling import distribution, draw_from, uniform
from arcweld.runtime.llm.sequence import Sequence

DRAFT, ACCEPT = 1, 2  # streams of random numbers beside that of the tokens themselves
NGRAM, MODEL = "ngram", "draft_model"


@dataclass(frozen=True, slots=True, eq=False)
class Guess:
    """A token that may come next.

    tokens, probabilities  what it was drawn from with a random number of its own; None: it is compared with the token
                           that is chosen
    """

    token: int
    tokens: np.ndarray | None = None
    probabilities: np.ndarray | None = None

    def accepted_or_other(self, x: np.ndarray, params: SamplingParams, seed: int, place: int) -> int:
        """The guess, or a token that is drawn instead of it, so that either has the distribution of the logits ``x``.

        The guess stays with the probability min(1, p/q), where p is the model's and q is that which it was drawn with.
        Else a token is drawn from what of p exceeds q.
        """
        assert self.tokens is not None
        assert self.probabilities is not None
        tokens, p = distribution(x, params)
        q = np.zeros(len(x))
        q[self.tokens] = self.probabilities
        chance = float(p[tokens == self.token].sum())  # 0 if it may not be drawn
        if uniform(seed, place, ACCEPT) * q[self.token] < chance:
            return self.token
        rest = np.maximum(p - q[tokens], 0)
        if not rest.any():  # p and q differ by rounding alone
            rest = p
        return draw_from(tokens, rest, uniform(seed, place))


class Drafter(Protocol):
    """Makes guesses."""

    def guesses(self, wanted: Several[Wanted]) -> dict[Sequence, tuple[Guess, ...]]:
        """Guesses of the tokens that follow each sequence; none for those that it has no guess for."""
        ...

    def keep(self, running: Iterable[Sequence]) -> None:
        """Gives up what is held for sequences other than these."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """A sequence that guesses are wanted for.

    most  how many at most
    seed  of its random numbers
    """

    sequence: Sequence
    most: int
    seed: int


@dataclass(frozen=True, slots=True)
class Speculation:
    """How guesses are made, with the names that vLLM has in ``speculative_config``.

    num_speculative_tokens  how many tokens are guessed for a sequence in a step
    method                  ``ngram``: from the sequence's own text; ``draft_model``: by a smaller model
    model                   that model: an engine, or a checkpoint where ``arcweld.LLM`` is given one
    prompt_lookup_max, prompt_lookup_min
                            of ``ngram``: how many of the last tokens are looked for, at most and at least
    adaptive                guesses are made only while they pay
    """

    num_speculative_tokens: int
    method: str = NGRAM
    model: Any = None
    prompt_lookup_max: int = 4
    prompt_lookup_min: int = 2
    adaptive: bool = True

    @classmethod
    def of(cls, given: int | Mapping[str, Any], tokens: int) -> Speculation | None:
        """What a user says, a number of tokens from the sequence's own text or a mapping; None for 0.

        ``tokens`` are the most of a step. Raises UsageError for what contradicts itself.
        """
        config: dict[str, Any] = {"num_speculative_tokens": given} if isinstance(given, int) else dict(given)
        names = [f.name for f in fields(cls)]
        if unknown := [k for k in config if k not in names]:
            raise UsageError(f"speculative has no setting {unknown[0]!r}", hint=f"there are {', '.join(names)}")
        count = config.get("num_speculative_tokens")
        if not isinstance(count, int) or not 0 <= count < tokens or (count == 0 and not isinstance(given, int)):
            raise UsageError(f"speculative is {count!r} tokens, not 0 to {tokens - 1}, which fit into a step")
        config.setdefault("method", NGRAM if config.get("model") is None else MODEL)
        found = cls(**config)
        if found.method not in (NGRAM, MODEL):
            raise UsageError(f"the method of speculative is {found.method!r}, not {NGRAM} or {MODEL}")
        if (found.method == MODEL) != (found.model is not None):
            what = "needs a model" if found.model is None else f"has no use for the model {found.model!r:.80}"
            raise UsageError(f"speculative with the method {found.method} {what}")
        if not 1 <= found.prompt_lookup_min <= found.prompt_lookup_max:
            sizes = f"{found.prompt_lookup_min} to {found.prompt_lookup_max}"
            raise UsageError(f"prompt_lookup_min to prompt_lookup_max is {sizes}, not a range of positive numbers")
        return found if count else None


def ngram_guesses(tokens: Several[int], count: int, most: int = 4, least: int = 2) -> tuple[int, ...]:
    """The ``count`` tokens that followed when the last few tokens occurred before ("prompt lookup", Saxena, 2023).

    Tried are the last ``most`` tokens, then fewer, down to ``least``; of several occurrences the latest one counts.
    """
    n = len(tokens)
    for size in range(min(most, n - 1), least - 1, -1):
        end = list(tokens[n - size :])
        for at in range(n - size - 1, -1, -1):
            if tokens[at] == end[0] and list(tokens[at : at + size]) == end:
                return tuple(tokens[at + size : at + size + count])
    return ()


class NgramDrafter:
    """Guesses from a sequence's own text."""

    def __init__(self, settings: Speculation) -> None:
        self._settings = settings

    def guesses(self, wanted: Several[Wanted]) -> dict[Sequence, tuple[Guess, ...]]:
        """What followed the last tokens before."""
        most, least = self._settings.prompt_lookup_max, self._settings.prompt_lookup_min
        texts = {w.sequence: w.sequence.tokens(0, len(w.sequence)) for w in wanted}
        return {
            w.sequence: tuple(Guess(t) for t in ngram_guesses(texts[w.sequence], w.most, most, least)) for w in wanted
        }

    def keep(self, running: Iterable[Sequence]) -> None:
        """Nothing is held."""
