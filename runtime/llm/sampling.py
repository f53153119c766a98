"""Chooses tokens from logits. Each row is worked out alone, in f64, so that a result depends on no other request.

The random number of a token follows from its request's seed and its place in the result (Philox, Salmon et al.,
"Parallel Random Numbers: As Easy as 1, 2, 3", 2011). So what a request gets depends neither on
the batch it runs in nor on preemption, chunks of prompts or guesses that are checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from arcweld.runtime.llm.params import SamplingParams

# draws a token from logits, with the parameters, the seed and the place of the token
Draw = Callable[[np.ndarray, SamplingParams, int, int], int]


class LogitsError(Exception):
    """The logits of a row hold NaN, or nothing but minus infinity."""


@dataclass(frozen=True, slots=True)
class Logprob:
    """The natural logarithm of a token's probability before temperature and truncation, and its rank from 1 on."""

    logprob: float
    rank: int
    decoded_token: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token with its log probability, and those of the most likely ones if they were asked for."""

    token: int
    logprob: float
    logprobs: Mapping[int, Logprob] | None


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """The logarithms of the probabilities of a row, f64."""
    x = logits.astype(np.float64)
    x -= x.max()
    x -= np.log(np.exp(x).sum())
    return x


def choose(
    logits: np.ndarray, params: SamplingParams, seed: int, prompt: Sequence[int], output: Sequence[int],
    forbidden: Sequence[int] = (), allowed: np.ndarray | None = None, draw: Draw | None = None,
) -> Choice:  # fmt: skip
    """The next token from ``logits`` [vocabulary].

    seed             of the request's random numbers
    prompt, output   its tokens before this one
    forbidden        tokens that may not be chosen, as the end before ``min_tokens``
    allowed          bool[vocabulary]: which tokens may be chosen, as a grammar says; None: all
    draw             draws a token where the most likely one is not taken; None: by ``distribution``

    Raises LogitsError for logits that no token can be chosen from.
    """
    x = logits.astype(np.float64)
    if np.isnan(x).any() or x.max() == np.inf:
        raise LogitsError("the model's logits are not finite")
    plain = log_softmax(x) if x.max() > -np.inf else x
    _penalise(x, params, prompt, output)
    for token, bias in params.logit_bias.items():
        x[token] += bias
    x[list(forbidden)] = -np.inf
    if allowed is not None:
        x[~allowed] = -np.inf
    if not np.isfinite(x.max()):  # NaN, and infinity of penalties that are too strong
        what = "all logits are minus infinity" if x.max() == -np.inf else "penalties or biases leave no finite logits"
        raise LogitsError(f"no token may follow: {what}")
    token = int(x.argmax()) if params.is_greedy else (draw or _draw)(x, params, seed, len(output))
    wanted = None if params.logprobs is None else most_likely(plain, params.logprobs, token)
    return Choice(token, float(plain[token]), wanted)


def most_likely(logprobs: np.ndarray, count: int, token: int) -> dict[int, Logprob]:
    """The ``count`` most likely tokens and ``token``, with their log probabilities, the most likely one first."""
    top = np.argsort(-logprobs, kind="stable")[:count]
    found = {int(t): Logprob(float(logprobs[t]), k + 1) for k, t in enumerate(top)}
    if token not in found:
        found[token] = Logprob(float(logprobs[token]), int((logprobs > logprobs[token]).sum()) + 1)
    return found


def _penalise(x: np.ndarray, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> None:
    if not params.counts:
        return
    if params.repetition_penalty != 1:
        seen = np.unique(np.array([*prompt, *output], np.int64))
        with np.errstate(over="ignore"):  # what is infinite then is refused
            divided, multiplied = x[seen] / params.repetition_penalty, x[seen] * params.repetition_penalty
        x[seen] = np.where(x[seen] > 0, divided, multiplied)
    tokens, counts = np.unique(np.array(output, np.int64), return_counts=True)
    x[tokens] -= params.presence_penalty + params.frequency_penalty * counts


def _draw(x: np.ndarray, params: SamplingParams, seed: int, place: int) -> int:
    """A token drawn by the cumulative sum of the truncated distribution, the most likely one first."""
    return draw_from(*distribution(x, params), uniform(seed, place))


def draw_from(tokens: np.ndarray, weights: np.ndarray, number: float) -> int:
    """The token that the random number in [0, 1) takes, with probabilities in proportion to ``weights``."""
    total = np.cumsum(weights)
    at = int(np.searchsorted(total, number * total[-1], side="right"))
    return int(tokens[min(at, len(total) - 1)])


def distribution(x: np.ndarray, params: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that may be drawn with logits ``x``, the most likely one first, and their probabilities."""
    order = np.argsort(-x, kind="stable")
    if params.top_k > 0:
        order = order[: params.top_k]
    with np.errstate(over="ignore"):  # near temperature 0 all others are minus infinity, and the first one is still 0
        p = np.exp((x[order] - x[order[0]]) / params.temperature)
    p /= p.sum()
    keep = p >= params.min_p * p[0]
    if params.top_p < 1:
        keep &= np.cumsum(p) - p < params.top_p  # the first tokens that reach it
    return order[keep], p[keep] / p[keep].sum()


def uniform(seed: int, place: int, stream: int = 0) -> float:
    """The random number in [0, 1) of the token at ``place`` of a result; each ``stream`` has others."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, stream, place])).random())
