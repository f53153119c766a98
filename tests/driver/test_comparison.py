"""Statistics of comparisons: against scipy, by coverage on random series, and on a simulated machine."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from arcweld.compiler.errors import UsageError
from arcweld.driver import comparison
from arcweld.driver.comparison import (
    CONFIDENCE,
    RESAMPLES,
    TRIMMED,
    block_bootstrap,
    compare_rounds,
    drift,
    inversion_test,
    sentence,
    trimmed_mean,
)


def autocorrelated(rng: np.random.Generator, n: int, rho: float, sd: float) -> np.ndarray:
    """A Gaussian autoregressive series of order 1 with standard deviation ``sd``."""
    steps = rng.standard_normal(n) * sd * np.sqrt(1 - rho**2)
    found = np.empty(n)
    found[0] = rng.standard_normal() * sd
    for i in range(1, n):
        found[i] = rho * found[i - 1] + steps[i]
    return found


@pytest.mark.parametrize("n", [20, 57, 300])
def test_the_trimmed_mean_is_scipys(n: int) -> None:
    values = np.random.default_rng(n).standard_t(2, (3, n))
    np.testing.assert_allclose(trimmed_mean(values), scipy.stats.trim_mean(values, TRIMMED, axis=1), rtol=1e-12)


def test_blocks_of_one_value_are_scipys_bootstrap() -> None:
    """The quantiles of both agree within what a finite number of resamples leaves open."""
    values = np.random.default_rng(1).standard_normal(120) * 0.05
    ours = block_bootstrap(values, np.random.default_rng(2), 20_000, length=1)
    theirs = scipy.stats.bootstrap(
        (values,), lambda v, axis: scipy.stats.trim_mean(v, TRIMMED, axis=axis), n_resamples=20_000, vectorized=True,
        method="percentile", confidence_level=CONFIDENCE, rng=np.random.default_rng(3),
    )  # fmt: skip
    sd = float(theirs.standard_error)
    assert ours.std() == pytest.approx(sd, rel=0.03)
    for q, theirs_at in zip(((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2), theirs.confidence_interval):
        assert np.quantile(ours, q) == pytest.approx(theirs_at, abs=0.12 * sd)


def test_blocks_see_the_autocorrelation() -> None:
    """The variance of the mean of an autoregressive series is (1 + rho)/(1 - rho) times that of independent values."""
    rng = np.random.default_rng(4)
    ratios = []
    for _ in range(40):
        values = autocorrelated(rng, 400, 0.5, 1.0)
        wide, narrow = (block_bootstrap(values, rng, 500, length=k).std() for k in (8, 1))
        ratios.append(wide / narrow)
    assert 1.35 < np.mean(ratios) < np.sqrt(3)  # blocks of finite length see a part of it


@pytest.mark.parametrize("shift", [0.0, 0.004, 0.01, -0.02])
def test_the_randomisation_test_agrees_with_scipys(shift: float) -> None:
    logs = np.random.default_rng(5).standard_normal(60) * 0.03 + shift
    theirs = scipy.stats.permutation_test(
        (logs,), lambda v, axis: scipy.stats.trim_mean(v, TRIMMED, axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=RESAMPLES, rng=np.random.default_rng(6),
    )  # fmt: skip
    ours = inversion_test(logs, np.random.default_rng(7))
    assert ours == pytest.approx(theirs.pvalue, abs=4 * np.sqrt(theirs.pvalue / RESAMPLES) + 2 / RESAMPLES)


def test_equal_contestants_have_uniform_p_values() -> None:
    rng = np.random.default_rng(8)
    found = [inversion_test(autocorrelated(rng, 40, 0.0, 0.05), rng, 499) for _ in range(200)]
    assert scipy.stats.kstest(found, "uniform").pvalue > 0.01


@pytest.mark.parametrize(("rho", "least"), [(0.0, 0.97), (0.4, 0.93)])
def test_intervals_cover_the_ratio(rho: float, least: float) -> None:
    """Of 200 intervals: the share that holds the true ratio."""
    rng, held = np.random.default_rng(9), 0
    for seed in range(200):
        logs = autocorrelated(rng, 100, rho, 0.03) + np.log(1.03)
        found = compare_rounds(np.ones(100), np.exp(logs), seed)
        held += found.low <= 1.03 <= found.high
    assert held >= 200 * least


def test_stalls_of_single_turns_do_not_move_the_ratio() -> None:
    rng = np.random.default_rng(10)
    base, other = (np.exp(rng.standard_normal(200) * 0.01) for _ in range(2))
    other *= 0.93
    other[::12] *= 20
    found = compare_rounds(base, other)
    assert found.value == pytest.approx(0.93, abs=0.01)
    assert found.differs
    assert found.p == 1 / (1 + RESAMPLES)


def test_a_negligible_difference_is_none() -> None:
    rng = np.random.default_rng(11)
    base, other = (np.exp(rng.standard_normal(200) * 0.001) for _ in range(2))
    found = compare_rounds(base, 1.005 * other)
    assert found.p < 0.001
    assert not found.differs
    assert compare_rounds(base, 1.015 * other).differs


def test_a_ratio_that_changes_is_noticed() -> None:
    rng = np.random.default_rng(12)
    noise = np.exp(rng.standard_normal(150) * 0.01)
    growing = compare_rounds(np.ones(150), noise * np.linspace(1.0, 1.1, 150))
    assert growing.before == pytest.approx(1.017, abs=0.01)
    assert growing.after == pytest.approx(1.083, abs=0.01)
    steady = compare_rounds(np.ones(150), noise * 1.05)
    assert (steady.before, steady.after) == (None, None)


def test_drift_is_of_the_machine() -> None:
    rng = np.random.default_rng(13)
    noise = np.exp(rng.standard_normal((90, 3)) * 0.01)
    assert drift(noise) == 0
    assert drift(noise * np.linspace(1, 1.3, 90)[:, None]) == pytest.approx(0.2, abs=0.03)
    alone = noise.copy()
    alone[:, 1] *= np.linspace(1, 1.3, 90)
    assert drift(alone) == 0  # one contestant's own: `Ratio.before` and `after` tell it


def test_the_sentence() -> None:
    ratio = comparison.Ratio(0.928, 0.919, 0.937, 0.0002, 100)
    assert sentence("A", "B", ratio) == "B is 7.2 % +- 0.9 % faster than A (p < 0.001)"
    ratio = comparison.Ratio(1.05, 1.03, 1.07, 0.004, 100)
    assert sentence("A", "B", ratio) == "B is 5.0 % +- 2.0 % slower than A (p = 0.004)"
    ratio = comparison.Ratio(1.001, 0.99, 1.01, 0.61, 100)
    assert sentence("A", "B", ratio) == "B and A: no difference (+0.1 % +- 1.0 %, p = 0.61)"


def test_a_regression_is_a_difference_beyond_the_threshold() -> None:
    ratio = comparison.Ratio(1.05, 1.03, 1.07, 0.004, 100)
    assert ratio.regressed(0.04)
    assert not ratio.regressed(0.05)
    assert not comparison.Ratio(1.05, 0.99, 1.11, 0.2, 100).regressed(0.01)
    assert not comparison.Ratio(0.9, 0.88, 0.92, 0.001, 100).regressed(0.0)


@pytest.mark.parametrize(
    ("base", "other", "words"),
    [
        (np.ones(19), np.ones(19), "tell nothing"), (np.ones(30), np.ones(31), "compared with 31"),
        (np.ones(30), np.zeros(30), "not positive"), (np.ones(30), np.full(30, np.nan), "not positive"),
    ],
)  # fmt: skip
def test_rounds_that_cannot_be_compared(base: np.ndarray, other: np.ndarray, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        compare_rounds(base, other)
