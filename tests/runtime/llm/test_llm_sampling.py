"""Which tokens are drawn, and how likely: against the logits processors of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as hf

from arcweld.compiler.errors import UsageError
from arcweld.runtime.llm.params import SamplingParams
from arcweld.runtime.llm.sampling import LogitsError, choose, distribution, log_softmax, uniform

VOCABULARY = 50


def logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(VOCABULARY).astype(np.float32) * 3


def theirs(x: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The probabilities of all tokens, by transformers' processors in f64."""
    scores, ids = torch.tensor(x[None], dtype=torch.float64), torch.zeros((1, 1), dtype=torch.long)
    steps: list[hf.LogitsProcessor] = [hf.TemperatureLogitsWarper(params.temperature)]
    if params.top_k > 0:
        steps.append(hf.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(hf.TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        steps.append(hf.MinPLogitsWarper(params.min_p))
    for step in steps:
        scores = step(ids, scores)
    return scores.softmax(-1)[0].numpy()


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 999), temperature=st.floats(0.2, 3), top_k=st.sampled_from([0, 1, 3, 20, 80]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]), min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)  # fmt: skip
def test_the_distribution_is_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    tokens, p = distribution(logits(seed).astype(np.float64), params)
    want = theirs(logits(seed), params)
    found = np.zeros(VOCABULARY)
    found[tokens] = p
    np.testing.assert_allclose(found, want, atol=1e-9)


def test_the_repetition_penalty_is_transformers() -> None:
    x, prompt, output = logits(1), [3, 7, 7], [9]
    want = hf.RepetitionPenaltyLogitsProcessor(2.5)(torch.tensor([prompt + output]), torch.tensor(x[None]))
    found = choose(x, SamplingParams(temperature=0, repetition_penalty=2.5), 0, prompt, output)
    assert found.token == int(want.argmax())
    seen = int(x.argmax())
    assert choose(x, SamplingParams(temperature=0, repetition_penalty=50), 0, [seen], []).token != seen


def test_penalties_count_the_result_and_not_the_prompt() -> None:
    x = np.zeros(4, np.float32)
    x[:] = 0.0, 1.0, 0.9, 0.0
    params = SamplingParams(temperature=0, frequency_penalty=0.2)
    assert choose(x, params, 0, [1, 1, 1], []).token == 1
    assert choose(x, params, 0, [], [1]).token == 2
    assert choose(x, SamplingParams(temperature=0, presence_penalty=0.05), 0, [], [1, 1]).token == 1


def test_draws_follow_the_distribution() -> None:
    """The numbers of 20,000 draws against the probabilities, by chi squared (29 degrees of freedom at most)."""
    from scipy.stats import chisquare

    params = SamplingParams(temperature=1.5, top_k=20)
    tokens, p = distribution(logits(3).astype(np.float64), params)
    drawn = [choose(logits(3), params, 5, [], [0] * k).token for k in range(20_000)]
    counts = np.array([drawn.count(int(t)) for t in tokens])
    assert counts.sum() == 20_000
    assert chisquare(counts, p * 20_000).pvalue > 1e-4


def test_a_draw_depends_on_seed_and_place_alone() -> None:
    params = SamplingParams(temperature=1.0)
    first = [choose(logits(k), params, 11, [], [0] * k).token for k in range(30)]
    again = [choose(logits(k), params, 11, [1, 2], [9] * k).token for k in range(30)]
    assert first == again
    assert first != [choose(logits(k), params, 12, [], [0] * k).token for k in range(30)]
    assert len({uniform(1, k) for k in range(1000)}) == 1000
    assert all(0 <= uniform(k, 0) < 1 for k in range(100))


def test_log_probabilities_are_those_before_temperature() -> None:
    x = logits(4)
    found = choose(x, SamplingParams(temperature=0.3, logprobs=3, top_k=1), 0, [], [])
    want = torch.tensor(x, dtype=torch.float64).log_softmax(-1)
    np.testing.assert_allclose(found.logprob, want[found.token], rtol=1e-9)
    np.testing.assert_allclose(log_softmax(x), want, rtol=1e-9)
    assert found.logprobs is not None
    assert [int(t) for t in want.topk(3).indices] == list(found.logprobs)
    assert [e.rank for e in found.logprobs.values()] == [1, 2, 3]


def test_a_chosen_token_that_is_not_among_the_likely_ones_is_reported_with_its_rank() -> None:
    x = logits(4)
    worst = int(x.argmin())
    found = choose(x, SamplingParams(temperature=0, logprobs=2, logit_bias={worst: 100}), 0, [], [])
    assert found.token == worst
    assert found.logprobs is not None
    assert found.logprobs[worst].rank == VOCABULARY


def test_forbidden_and_disallowed_tokens_are_never_chosen() -> None:
    x = logits(2)
    best = [int(t) for t in np.argsort(-x)[:3]]
    assert choose(x, SamplingParams(temperature=0), 0, [], [], forbidden=best[:2]).token == best[2]
    allowed = np.zeros(VOCABULARY, bool)
    allowed[[4, 5]] = True
    assert {choose(x, SamplingParams(), k, [], [], allowed=allowed).token for k in range(200)} == {4, 5}
    with pytest.raises(LogitsError, match="minus infinity"):
        choose(x, SamplingParams(), 0, [], [], allowed=np.zeros(VOCABULARY, bool))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error(bad: float) -> None:
    x = logits(0)
    x[3] = bad
    with pytest.raises(LogitsError, match="not finite"):
        choose(x, SamplingParams(), 0, [], [])


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"temperature": -1}, "temperature is -1, not at least 0"), ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p is 0"), ({"top_p": 1.5}, "top_p"), ({"min_p": 2}, "min_p"), ({"n": 0}, "n is 0"),
        ({"best_of": 1, "n": 2}, "best_of"), ({"best_of": 2, "temperature": 0}, "the same"), ({"top_k": -2}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"), ({"min_tokens": 20}, "more than max_tokens"), ({"stop": ""}, "empty stop"),
        ({"presence_penalty": 3}, "presence"), ({"repetition_penalty": 0}, "repetition"),
        ({"logprobs": -1}, "logprobs"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(given: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        SamplingParams(**given)  # type: ignore[arg-type]


def test_temperatures_next_to_zero_take_the_most_likely_token() -> None:
    """Logits divided by such a temperature are infinite."""
    x = logits(2)
    for temperature in (5e-324, 1e-310, 1e-9):
        for more in ({}, {"top_p": 0.5}, {"min_p": 0.5}, {"top_k": 3}):
            params = SamplingParams(temperature=temperature, **more)
            assert choose(x, params, 0, [], []).token == int(x.argmax())


def test_penalties_that_leave_nothing_finite_are_said() -> None:
    x, seen = np.abs(logits(3)), [4]
    for penalty in (5e-324, 1e-310):
        with pytest.raises(LogitsError, match="no finite logits"):
            choose(x, SamplingParams(repetition_penalty=penalty), 0, seen, [])


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_have_64_bits(seed: int) -> None:
    with pytest.raises(UsageError, match="seed"):
        SamplingParams(seed=seed)
    assert 0 <= choose(logits(4), SamplingParams(seed=2**64 - 1), 2**64 - 1, [], []).token < VOCABULARY
