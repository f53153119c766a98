"""Tokens chosen on the device: those of the host's sampler, those of a formula written out here, or undecided."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcweld.compiler.dtypes import DType
from arcweld.compiler.sampler import CANDIDATES, INPUTS, MOST_CHANGES, OUTPUTS, candidates, most_rows, sampler_graph
from arcweld.driver.api import build_data
from arcweld.runtime.engine import Engine
from arcweld.runtime.llm.device_sampler import DeviceSampler, Wanted
from arcweld.runtime.llm.params import SamplingParams
from arcweld.runtime.llm.sampling import Choice, LogitsError, choose, uniform
from arcweld.runtime.llm.transfers import Transfers

SMALL, LARGE, ROWS = 50, 700, 8  # vocabularies that have fewer and more tokens than are looked at


@functools.cache
def sampler(vocabulary: int, dtype: DType = DType.F32) -> DeviceSampler:
    build, device, _ = build_data(sampler_graph(vocabulary, dtype, ROWS), device="sim", verify="off")
    return DeviceSampler(Engine(build.data, device), vocabulary, Transfers(device))


def logits(vocabulary: int, seed: int, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(vocabulary) * scale).astype(np.float32)


def chosen(x: np.ndarray, wanted: list[Wanted], vocabulary: int, dtype: DType = DType.F32) -> list[Choice | None]:
    found = sampler(vocabulary, dtype)
    asked = found.submit(found.transfers.upload(x), wanted)
    return [asked.choice(w.row) for w in wanted]


def written_out(x: np.ndarray, w: Wanted) -> int:
    """The token, by the definitions of the parameters: what each token's probability is, and whose share is drawn."""
    p, z = w.params, [float(v) for v in x]
    seen = {t: w.output.count(t) for t in {*w.prompt, *w.output}}  # type: ignore[attr-defined]
    for t, times in seen.items():
        z[t] = z[t] / p.repetition_penalty if z[t] > 0 else z[t] * p.repetition_penalty
        z[t] -= times * p.frequency_penalty + (times > 0) * p.presence_penalty
    for t in range(len(z)):
        z[t] = -np.inf if t in w.forbidden else z[t] + p.logit_bias.get(t, 0.0)
    order = sorted(range(len(z)), key=lambda t: (-z[t], t))
    if p.temperature == 0:
        return order[0]
    order = order[: p.top_k] if p.top_k > 0 else order
    share = [np.exp(np.float64(z[t] - z[order[0]]) / p.temperature) for t in order]
    mass, before, kept = sum(share), 0.0, list[tuple[int, float]]()
    for t, s in zip(order, share):
        if before < p.top_p * mass and s >= p.min_p * share[0]:
            kept.append((t, s))
        before += s
    left = uniform(w.seed, len(w.output)) * sum(s for _, s in kept)
    for t, s in kept:
        if left < s:
            return t
        left -= s
    return kept[-1][0]


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 0.8, 1.0, 2.5]), top_k=st.sampled_from([0, 1, 2, 20, 49, 90]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]), min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]), presence_penalty=st.sampled_from([0.0, 0.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.25]), logit_bias=st.sampled_from([{}, {3: 4.0}, {7: -100.0, 9: 1.5}]),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(
    params=st.lists(PARAMS, min_size=1, max_size=ROWS), seed=st.integers(0, 999),
    vocabulary=st.sampled_from([SMALL, LARGE]),
    scale=st.sampled_from([0.5, 3.0]), rounded=st.booleans(), data=st.data(),
)  # fmt: skip
def test_tokens_are_the_hosts_or_undecided(
    params: list[SamplingParams], seed: int, vocabulary: int, scale: float, rounded: bool, data: Any
) -> None:
    """Rounded logits have many that are equal. Rows are asked for in any order, some not at all."""
    x = np.stack([logits(vocabulary, seed + k, scale) for k in range(ROWS)])
    x = x.round(1) if rounded else x
    rows = data.draw(st.permutations(range(ROWS)))
    tokens = st.lists(st.integers(0, SMALL - 1), max_size=12)
    wanted = [
        Wanted(row, p, seed, data.draw(tokens), data.draw(tokens), data.draw(st.sampled_from([(), (0,), (1, 4)])))
        for row, p in zip(rows, params)
    ]
    for w, found in zip(wanted, chosen(x, wanted, vocabulary)):
        want = choose(x[w.row], w.params, w.seed, w.prompt, w.output, w.forbidden)
        if found is not None:
            assert found.token == want.token == written_out(x[w.row], w)
            np.testing.assert_allclose(found.logprob, want.logprob, rtol=0, atol=1e-11)


@pytest.mark.parametrize("vocabulary", [SMALL, LARGE])
@pytest.mark.parametrize(
    ("params", "share"),
    [
        ({"temperature": 0}, 1), ({"top_k": 20}, 1), ({"top_k": 40, "top_p": 0.9}, 1), ({"min_p": 0.05}, 1),
        ({"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2}, 0.97), ({}, 0.85),
    ],
)  # fmt: skip
def test_nearly_all_tokens_are_decided(vocabulary: int, params: dict[str, Any], share: float) -> None:
    """Steep logits, as those of language models are. Else the host's sampler could do all of the work unseen."""
    count = 64
    x = np.stack([logits(vocabulary, k, 4) for k in range(ROWS)])
    wanted = [
        Wanted(k % ROWS, SamplingParams(**params), seed, [1, 2], [3])
        for seed in range(count // ROWS) for k in range(ROWS)
    ]  # fmt: skip
    parts = [wanted[k : k + ROWS] for k in range(0, count, ROWS)]
    decided = sum(c is not None for part in parts for c in chosen(x, part, vocabulary))
    assert decided >= share * count


def test_equal_logits_are_taken_in_the_order_of_their_tokens() -> None:
    for vocabulary in (SMALL, LARGE):
        x = np.zeros((1, vocabulary), np.float32)
        x[0, [40, 7, 23]] = 5
        (found,) = chosen(x, [Wanted(0, SamplingParams(temperature=0), 0, [], [])], vocabulary)
        assert found is not None
        assert found.token == 7
        drawn = [chosen(x, [Wanted(0, SamplingParams(top_k=2), seed, [], [])], vocabulary)[0] for seed in range(20)]
        assert {c.token for c in drawn if c} == {7, 23}


def test_a_tie_that_a_penalty_makes_is_decided_as_on_the_host() -> None:
    x = np.full((1, LARGE), -9, np.float32)
    x[0, [5, 6]] = 4.0, 2.0
    for first, second in ((5, 6), (6, 5)):
        x[0, [first, second]] = 4.0, 2.0
        w = Wanted(0, SamplingParams(temperature=0, repetition_penalty=2.0), 0, [first], [])
        (found,) = chosen(x, [w], LARGE)
        assert found is not None
        assert found.token == choose(x[0], w.params, 0, [first], []).token == 5


def test_logits_that_a_penalty_makes_nearly_equal_are_left_to_the_host() -> None:
    """Rounding of the penalty decides which one is the greater."""
    x = np.full((1, LARGE), -9, np.float32)
    x[0, 5] = 3.1
    x[0, 6] = np.float32(3.1) * np.float32(1.1)
    off = float(x[0, 6]) / float(x[0, 5])
    w = Wanted(0, SamplingParams(temperature=0, repetition_penalty=off * (1 + 1e-14)), 0, [6], [])
    assert chosen(x, [w], LARGE) == [None]


def test_draws_next_to_a_border_are_left_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.full((1, LARGE), -100, np.float32)
    x[0, [3, 4]] = np.log(3), 0  # 3/4 and 1/4, nearly
    border = 1 / (1 + float(np.exp(np.float64(x[0, 4]) - np.float64(x[0, 3]))))
    for number, want in ((border - 1e-8, 3), (border + 1e-8, 4), (border, None)):
        monkeypatch.setattr("arcweld.runtime.llm.device_sampler.uniform", lambda seed, place, number=number: number)
        (found,) = chosen(x, [Wanted(0, SamplingParams(top_k=5), 0, [], [])], LARGE)
        assert (None if found is None else found.token) == want
    monkeypatch.setattr("arcweld.runtime.llm.device_sampler.uniform", lambda seed, place: 0.5)
    assert chosen(x, [Wanted(0, SamplingParams(top_k=5, top_p=border), 0, [], [])], LARGE) == [None]


def test_draws_beyond_the_candidates_are_left_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tokens are as likely, and the candidates are the first ones."""
    x = np.zeros((1, LARGE), np.float32)
    for number in ((CANDIDATES // 2 + 0.5) / LARGE, (CANDIDATES + 1) / LARGE, 0.999):
        monkeypatch.setattr("arcweld.runtime.llm.device_sampler.uniform", lambda seed, place, number=number: number)
        (found,) = chosen(x, [Wanted(0, SamplingParams(), 0, [], [])], LARGE)
        want = int(number * LARGE)
        assert (None if found is None else found.token) == (want if want < CANDIDATES else None)


@pytest.mark.parametrize("vocabulary", [SMALL, LARGE])
def test_rows_without_an_answer_are_left_to_the_host_and_others_not(vocabulary: int) -> None:
    x = np.stack([logits(vocabulary, k) for k in range(5)])
    x[0, 3], x[1, 9] = np.nan, np.inf
    x[2] = -np.inf
    x[3, 1:] = -np.inf
    for params in (SamplingParams(temperature=0), SamplingParams(temperature=0.7)):
        found = chosen(x, [Wanted(k, params, 1, [], []) for k in range(5)], vocabulary)
        assert found[:3] == [None] * 3
        assert found[3] is not None
        assert found[3].token == 0
        assert found[4] is not None or params.temperature
        for k in range(3):
            with pytest.raises(LogitsError):
                choose(x[k], params, 1, [], [])


def test_log_probabilities_of_likely_tokens_are_the_hosts() -> None:
    x = np.stack([logits(LARGE, k).round(1) for k in range(4)])
    for count in (0, 5, CANDIDATES):
        params = SamplingParams(temperature=0.9, top_k=60, logprobs=count)
        wanted = [Wanted(k, params, k, [], [1]) for k in range(4)]
        for w, found in zip(wanted, chosen(x, wanted, LARGE)):
            want = choose(x[w.row], params, w.seed, [], [1])
            assert found is not None
            assert found.logprobs is not None
            assert want.logprobs is not None
            assert list(found.logprobs) == list(want.logprobs)
            for t, entry in want.logprobs.items():
                assert found.logprobs[t].rank == entry.rank
                np.testing.assert_allclose(found.logprobs[t].logprob, entry.logprob, rtol=0, atol=1e-11)


def test_what_the_candidates_cannot_hold_is_not_asked_for() -> None:
    x = logits(LARGE, 0)[None]
    greedy = {"temperature": 0.0}
    for params, prompt in (
        (SamplingParams(top_k=CANDIDATES), []), (SamplingParams(**greedy, logprobs=CANDIDATES + 1), []),
        (SamplingParams(**greedy, logprobs=1, repetition_penalty=2.0), [4]),
        (SamplingParams(**greedy, logit_bias=dict.fromkeys(range(MOST_CHANGES + 1), 0.0)), []),
    ):  # fmt: skip
        assert chosen(x, [Wanted(0, params, 0, prompt, [])], LARGE) == [None]
    assert chosen(x, [Wanted(0, SamplingParams(top_k=CANDIDATES - 1), 0, [], [])], LARGE) != [None]


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_logits_of_16_bits(dtype: DType) -> None:
    x = np.stack([logits(LARGE, k) for k in range(ROWS)]).astype(dtype.numpy)
    wanted = [Wanted(k, SamplingParams(temperature=0.7, top_k=50), 3, [], [k]) for k in range(ROWS)]
    found = chosen(x, wanted, LARGE, dtype)
    want = [choose(x[k].astype(np.float32), wanted[k].params, 3, [], [k]).token for k in range(ROWS)]
    assert [c.token for c in found if c] == want


def test_more_rows_than_a_call_takes() -> None:
    assert most_rows(1 << 18, 512) == 128
    found = sampler(SMALL)
    x = logits(SMALL, 0)[None]
    wanted = [Wanted(0, SamplingParams(temperature=0), 0, [], []) for _ in range(found.most_rows + 3)]
    asked = found.submit(found.transfers.upload(x), wanted)
    assert [len(rows) for rows, _ in asked.parts] == [ROWS, 3]


def test_the_graph_says_what_it_takes_and_gives() -> None:
    graph = sampler_graph(LARGE, DType.F32, ROWS)
    assert tuple(v.name for v in graph.inputs) == INPUTS
    assert graph.labels() == OUTPUTS
    assert candidates(SMALL) == SMALL
    assert graph.outputs[2].shape[1] == candidates(LARGE) == CANDIDATES
