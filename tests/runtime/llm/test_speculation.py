"""What guesses are accepted, what they leave of the distribution, and when they are made."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from arcweld.compiler.errors import UsageError
from arcweld.runtime.llm.gain import Gain
from arcweld.runtime.llm.params import SamplingParams
from arcweld.runtime.llm.sampling import uniform
from arcweld.runtime.llm.speculation import DRAFT, Guess, Speculation

PARAMS = SamplingParams(temperature=1.0)
DRAWS = 6_000


def softmax(x: np.ndarray) -> np.ndarray:
    e: np.ndarray = np.exp(x - x.max())
    return np.asarray(e / e.sum())


@pytest.mark.parametrize("apart", [0.0, 1.0, 5.0])
def test_what_is_accepted_or_drawn_instead_follows_the_models_distribution(apart: float) -> None:
    """Chi squared with 7 degrees of freedom, significance 1e-4; the share of accepted guesses is 1 minus the distance
    of the two distributions in total variation (Leviathan et al., theorem 3.5), within 4 standard deviations."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal(8) * 2
    q = softmax(x + apart * rng.standard_normal(8))
    p = softmax(x)
    found, kept = np.zeros(8), 0
    for place in range(DRAWS):
        drawn = int(np.searchsorted(np.cumsum(q), uniform(9, place, DRAFT), side="right"))
        token = Guess(drawn, np.arange(8), q).accepted_or_other(x, PARAMS, 9, place)
        found[token] += 1
        kept += token == drawn
    assert chisquare(found, p * DRAWS).pvalue > 1e-4
    share = np.minimum(p, q).sum()
    assert abs(kept / DRAWS - share) <= 4 * np.sqrt(share * (1 - share) / DRAWS)


def test_a_guess_that_may_not_be_drawn_is_refused() -> None:
    x = np.array([5.0, 1.0, 0.0, -np.inf])
    for token, params in [(3, PARAMS), (1, SamplingParams(top_k=2, top_p=0.5))]:
        for place in range(200):
            assert Guess(token, np.array([token]), np.ones(1)).accepted_or_other(x, params, 1, place) != token


def play(gain: Gain, steps: int, *, tokens: float, cost: float, sequences: int = 1) -> list[bool]:
    """Which of so many steps have guesses, if such a step gives ``tokens`` and takes ``cost`` times as long."""
    made = []
    for _ in range(steps):
        made.append(gain.allows(sequences))
        seconds = cost if made[-1] else 1.0
        given = round(tokens * sequences) if made[-1] else sequences
        gain.note(sequences, seconds, guessed=made[-1], tokens=given)
    return made


def test_guesses_that_lose_are_made_in_trials_alone_and_ever_more_rarely() -> None:
    made = play(Gain(), 4000, tokens=2, cost=2.1)
    assert made[:2] == [False, False]  # what they are compared with
    starts = [k for k in range(1, len(made)) if made[k] and not made[k - 1]]
    assert starts[:4] == [2, 42, 114, 250]  # 8 steps each, after 32, 64 and 128 without
    assert sum(made) <= 8 * len(starts)
    assert len(starts) == 8


def test_guesses_that_pay_go_on() -> None:
    made = play(Gain(), 1000, tokens=3, cost=2)
    assert sum(made) > 1000 * 60 / 64 - 4
    assert sum(not m for m in made) > 10  # a step without them now and then


def test_a_small_gain_is_no_reason_to_begin_but_one_to_go_on() -> None:
    assert sum(play(Gain(), 100, tokens=2, cost=1.96)) < 30
    gain = Gain()
    play(gain, 40, tokens=2, cost=1.5)
    assert sum(play(gain, 100, tokens=2, cost=1.96)) > 95


def test_what_pays_for_one_sequence_may_lose_for_many() -> None:
    gain = Gain()
    for _ in range(50):
        play(gain, 4, tokens=2, cost=1.2)
        play(gain, 4, tokens=2, cost=5, sequences=8)
    assert gain.allows(1)
    assert not gain.allows(8)
    assert Gain(adaptive=False).allows(8)


def test_first_steps_that_take_longer_do_not_count() -> None:
    gain = Gain()
    gain.note(1, 50.0, guessed=False, tokens=1)
    gain.note(1, 50.0, guessed=False, tokens=1)
    assert sum(play(gain, 3000, tokens=2, cost=4)[1500:]) < 150


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (64, "64 tokens, not 0 to 63"), (-1, "-1 tokens"), ({"num_speculative_tokens": 0}, "0 tokens"),
        ({"method": "ngram"}, "None tokens"), ({"num_speculative_tokens": 2, "size": 3}, "no setting 'size'"),
        ({"num_speculative_tokens": 2, "method": "eagle"}, "'eagle', not ngram or draft_model"),
        ({"num_speculative_tokens": 2, "method": "draft_model"}, "draft_model needs a model"),
        ({"num_speculative_tokens": 2, "method": "ngram", "model": "m"}, "ngram has no use for the model 'm'"),
        ({"num_speculative_tokens": 2, "prompt_lookup_min": 5}, "5 to 4, not a range"),
        ({"num_speculative_tokens": "2"}, "'2' tokens"),
    ],
)  # fmt: skip
def test_settings_that_contradict_themselves(given: object, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Speculation.of(given, 64)  # type: ignore[arg-type]


def test_methods_by_what_is_given() -> None:
    assert Speculation.of(0, 64) is None
    assert Speculation.of(3, 64) == Speculation(3)
    found = Speculation.of({"num_speculative_tokens": 2, "model": "m"}, 64)
    assert found is not None
    assert (found.method, found.model) == ("draft_model", "m")
