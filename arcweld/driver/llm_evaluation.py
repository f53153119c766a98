"""Measures of a language model on a text: perplexity, and how far its predictions are from another model's.

A text is cut into windows of equal length, each computed by itself. The measures are those that llama.cpp's tool
``perplexity`` prints: the Kullback-Leibler divergence of the next token's distribution, and how often both models hold
the same token for the most likely one. Intervals hold 95 % of the means of windows drawn with repetition (bootstrap).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from arcweld.compiler.errors import UsageError
from arcweld.runtime.llm.batch import Run
from arcweld.runtime.llm.core import Core
from arcweld.runtime.llm.runner import Runner

RESAMPLES = 2000
_SHARE = (2.5, 97.5)  # percentiles of an interval


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over windows with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a model's predictions are from a base model's, over ``tokens`` predictions.

    base, other   their perplexities
    divergence    mean KL divergence of the base's distributions from the other's, in nats
    worst         the largest of one prediction
    same_top      how often both have the same most likely token, from 0 to 1
    """

    base: Estimate
    other: Estimate
    divergence: Estimate
    worst: float
    same_top: Estimate
    tokens: int


def windows_of(ids: Sequence[int], length: int, most: int | None = None) -> list[list[int]]:
    """``ids`` in windows of ``length`` tokens, at most ``most`` of them; what is left over is not used.

    Raises UsageError for a text that is shorter than one window, and for windows of less than two tokens.
    """
    if length < 2:
        raise UsageError(f"windows of {length} tokens predict nothing", hint="two tokens at least")
    found = [list(ids[k : k + length]) for k in range(0, len(ids) - length + 1, length)][:most]
    if not found:
        raise UsageError(f"the text has {len(ids)} tokens, less than a window of {length}", hint="take shorter windows")
    return found


def perplexity(core: Core, windows: Sequence[Sequence[int]]) -> Estimate:
    """``exp`` of the mean negative log probability of each window's tokens but its first."""
    means = np.array([-_of_tokens(rows, w).mean() for w, rows in zip(windows, _predictions(core, windows))])
    return _estimate(means, np.exp)


def compare(base: Core, other: Core, windows: Sequence[Sequence[int]]) -> Agreement:
    """The other model's predictions beside the base's. Raises UsageError for models with other vocabularies."""
    sizes = [c.description.vocabulary for c in (base, other)]
    if sizes[0] != sizes[1]:
        raise UsageError(f"the models have {sizes[0]} and {sizes[1]} tokens: their predictions are of other things")
    losses: tuple[list[float], list[float]] = ([], [])
    divergences, same, worst = list[float](), list[float](), 0.0
    for window, p, q in zip(windows, _predictions(base, windows), _predictions(other, windows)):
        for own, rows in zip(losses, (p, q)):
            own.append(-_of_tokens(rows, window).mean())
        divergence = np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0)  # rounding may make it a little less than 0
        divergences.append(divergence.mean())
        worst = max(worst, float(divergence.max()))
        same.append((p.argmax(axis=1) == q.argmax(axis=1)).mean())
    first, second = (_estimate(np.array(own), np.exp) for own in losses)
    return Agreement(
        first, second, _estimate(np.array(divergences)), worst, _estimate(np.array(same)),
        sum(len(w) - 1 for w in windows),
    )  # fmt: skip


def _predictions(core: Core, windows: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
    """For each window the log probabilities f64 [length - 1, vocabulary] of the tokens behind its first ones."""
    runner, d = core.runner, core.description
    for window in windows:
        pages = -(-len(window) // d.page_size)
        if len(window) > d.length or pages > runner.pages:
            raise UsageError(
                f"a window of {len(window)} tokens is longer than the model takes", hint=f"at most {d.length} tokens"
            )
        yield _log_softmax(np.concatenate(list(_chunks(runner, window, list(range(pages))))))


def _chunks(runner: Runner, window: Sequence[int], pages: list[int]) -> Iterator[np.ndarray]:
    """The logits of all tokens but the last, a step's worth at a time."""
    d = runner.description
    most = min(d.tokens, d.rows)
    for start in range(0, len(window) - 1, most):
        tokens = window[start : min(start + most, len(window) - 1)]
        yield runner.logits([Run(tokens, start, pages, range(len(tokens)))])


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x


def _of_tokens(rows: np.ndarray, window: Sequence[int]) -> np.ndarray:
    found: np.ndarray = rows[np.arange(len(rows)), np.asarray(window[1:])]
    return found


def _estimate(means: np.ndarray, of: Callable[[np.ndarray], np.ndarray] = np.asarray) -> Estimate:
    rng = np.random.default_rng(0)
    drawn = means[rng.integers(len(means), size=(RESAMPLES, len(means)))].mean(axis=1)
    low, high = np.percentile(of(drawn), _SHARE)
    return Estimate(float(of(means.mean())), float(low), float(high))
