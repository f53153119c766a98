"""Statistics of interleaved timings: the ratio of two contestants' times, whether it differs from 1, and trends.

Times come in **rounds**. In a round every contestant has one **turn**: some calls in a row, of which the median counts.
The order within a round is drawn at random. What changes slowly (clocks, temperature, other load) is nearly the same
for all turns of a round, so that it cancels in the ratios of a round.

estimate    the 20 % trimmed mean of the rounds' log-ratios (Wilcox, Introduction to Robust Estimation and Hypothesis
            Testing, section 3.3): stalls of single turns do not move it
interval    percentile bootstrap of blocks of successive rounds, wrapped round (Politis and Romano, A Circular Block-
            Resampling Procedure for Stationary Data, 1992), because neighbouring rounds are alike. A block has n^(1/3)
            rounds (Hall, Horowitz and Jing, Biometrika 82, 1995, give that order)
p-value     randomisation test: under the hypothesis of no difference the order's lottery made each ratio as likely as
            its inverse, so the share of random inversions that give as large an estimate is exact, whatever the noise
            is (Edgington and Onghena, Randomization Tests; with one added to both counts: Phipson and Smyth, 2010)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arcweld.compiler.errors import UsageError

CONFIDENCE = 0.99  # of intervals; a difference is one if p < 1 - CONFIDENCE
# Smaller differences are none: where code and data happen to lie in memory makes some (Mytkowicz and others, Producing
# Wrong Data Without Doing Anything Obviously Wrong, 2009), and a process draws that once for all of its calls.
NEGLIGIBLE = 0.01
TRIMMED = 0.2  # of the log-ratios, at each end
RESAMPLES = 1999
LEAST_ROUNDS = 20  # with fewer, intervals are too narrow
DRIFT = 0.03  # a smaller change of the machine's speed is not mentioned


@dataclass(frozen=True, slots=True)
class Ratio:
    """The time of one contestant divided by that of another: the estimate, its interval, and the p-value of "equal".

    ``before`` and ``after`` are the estimates in the first and in the last third of the rounds, where these differ with
    the same confidence and by more than ``NEGLIGIBLE``; else both are None.
    """

    value: float
    low: float
    high: float
    p: float
    rounds: int
    before: float | None = None
    after: float | None = None

    @property
    def differs(self) -> bool:
        """Whether the times differ: beyond chance (test and interval agree), and by more than ``NEGLIGIBLE``."""
        beyond_chance = self.p < 1 - CONFIDENCE and not self.low <= 1 <= self.high
        return beyond_chance and abs(self.value - 1) > NEGLIGIBLE

    def regressed(self, threshold: float) -> bool:
        """Whether the time is longer, and by more than the share ``threshold``."""
        return self.differs and self.value > 1 + threshold

    def report(self) -> dict[str, Any]:
        """The ratio as plain data."""
        return {
            "time_ratio": self.value, "low": self.low, "high": self.high, "confidence": CONFIDENCE, "p": self.p,
            "rounds": self.rounds, "differs": self.differs, "ratio_before": self.before, "ratio_after": self.after,
        }  # fmt: skip


def compare_rounds(base: Sequence[float], other: Sequence[float], seed: int = 0) -> Ratio:
    """The ratio ``other / base`` of two contestants' times, one of each for every round, in order.

    Equal arguments give equal results. Raises UsageError for unequal or too few rounds, and for times that are not
    positive.
    """
    b, o = np.asarray(base, np.float64), np.asarray(other, np.float64)
    if b.shape != o.shape or b.ndim != 1:
        raise UsageError(f"{b.size} rounds are compared with {o.size}: every round has a time of both")
    if b.size < LEAST_ROUNDS:
        raise UsageError(f"{b.size} rounds tell nothing", hint=f"measure {LEAST_ROUNDS} or more")
    if not (np.all(np.isfinite(b)) and np.all(np.isfinite(o)) and np.all(b > 0) and np.all(o > 0)):
        raise UsageError("a round has a time that is not positive")
    rng = np.random.default_rng(seed)
    logs = np.log(o / b)
    low, high = np.exp(np.quantile(block_bootstrap(logs, rng), ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)))
    before, after = _change(logs, rng)
    p = inversion_test(logs, rng)
    return Ratio(float(np.exp(trimmed_mean(logs))), float(low), float(high), p, b.size, before, after)


def trimmed_mean(values: np.ndarray) -> np.ndarray:
    """The mean along the last axis, without the share ``TRIMMED`` of the elements at each end."""
    n = values.shape[-1]
    cut = int(TRIMMED * n)
    found: np.ndarray = np.sort(values, axis=-1)[..., cut : n - cut].mean(axis=-1)
    return found


def block_bootstrap(
    values: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES, length: int | None = None
) -> np.ndarray:
    """Trimmed means of ``resamples`` series of blocks of ``length`` successive values, drawn with repetition.

    Blocks wrap round from the end to the beginning. ``length`` is n^(1/3), rounded up, where it is None; 1 is the
    bootstrap of independent values.
    """
    n = len(values)
    length = int(np.ceil(np.cbrt(n))) if length is None else length
    starts = rng.integers(n, size=(resamples, -(-n // length)))
    places = (starts[:, :, None] + np.arange(length)) % n
    return trimmed_mean(values[places.reshape(resamples, -1)[:, :n]])


def inversion_test(logs: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES) -> float:
    """The two-sided p-value of "each log-ratio is as likely as its negative", by ``resamples`` random signs."""
    signs = rng.integers(2, size=(resamples, len(logs)), dtype=np.int8) * 2 - 1
    as_large = np.abs(trimmed_mean(signs * logs)) >= abs(float(trimmed_mean(logs))) * (1 - 1e-12)
    return float((1 + np.count_nonzero(as_large)) / (1 + resamples))


def _change(logs: np.ndarray, rng: np.random.Generator) -> tuple[float | None, float | None]:
    """The ratio in the first and in the last third, if they differ."""
    third = len(logs) // 3
    first, last = logs[:third], logs[-third:]
    differences = block_bootstrap(last, rng) - block_bootstrap(first, rng)
    low, high = np.quantile(differences, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    before, after = float(np.exp(trimmed_mean(first))), float(np.exp(trimmed_mean(last)))
    if low <= 0 <= high or abs(after / before - 1) <= NEGLIGIBLE:
        return None, None
    return before, after


def drift(times: np.ndarray) -> float:
    """How much longer the last third of the rounds took than the first, as a share; 0 where it is within ``DRIFT``.

    ``times[r, c]`` is that of contestant c in round r. It is the median change of all contestants' turns: of the
    machine, not of one of them.
    """
    logs = np.log(times)
    third = max(1, len(logs) // 3)
    change = float(np.exp(np.median(np.median(logs[-third:], axis=0) - np.median(logs[:third], axis=0)))) - 1
    return change if abs(change) > DRIFT else 0.0


def sentence(base: str, other: str, ratio: Ratio) -> str:
    """``B is 7.2 % +- 0.9 % faster than A (p < 0.001)``: the share of A's time that B saves, or takes beyond it.

    What follows ``+-`` is half of the interval. Where there is no difference, it says how large one might be.
    """
    percent, half = 100 * abs(ratio.value - 1), 50 * (ratio.high - ratio.low)
    if not ratio.differs:
        return f"{other} and {base}: no difference ({100 * (ratio.value - 1):+.1f} % +- {half:.1f} %, {_p(ratio.p)})"
    way = "faster" if ratio.value < 1 else "slower"
    return f"{other} is {percent:.1f} % +- {half:.1f} % {way} than {base} ({_p(ratio.p)})"


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
