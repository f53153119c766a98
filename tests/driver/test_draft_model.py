"""A draft model guesses: tokens and their distribution stay the model's, whatever the draft says."""

from __future__ import annotations

import functools
import itertools
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from language_models import greedy, model, prompts
from scipy.stats import chisquare

from arcweld.compiler.errors import UsageError
from arcweld.driver.language_model import build_language_model
from arcweld.driver.llm import LLM as Opened
from arcweld.runtime.engine_file import write_engine
from arcweld.runtime.llm.draft_model import ModelDrafter
from arcweld.runtime.llm.gain import Gain
from arcweld.runtime.llm.llm import LLM
from arcweld.runtime.llm.package import Package
from arcweld.runtime.llm.params import SamplingParams

COUNT = 24
GREEDY = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)


@functools.cache
def package(draft: str = "") -> Package:
    """The model; ``like``: one whose weights are nearly the same; ``wrong``: one of which all are others."""
    if not draft:
        return build_language_model(
            model("llama"), length=128, page_size=8, tokens=64, device="sim", verify="off", end_tokens=[2]
        )
    rng, noise = np.random.default_rng(5), 0.03 if draft == "like" else 0.4
    data = package().data
    floats = {n: w for n, w in data.weights.items() if w.dtype == np.float32}
    other = {n: w + noise * w.std() * rng.standard_normal(w.shape, np.float32) for n, w in floats.items()}
    return replace(package(), data=replace(data, weights={**data.weights, **other}))


def described(**sizes: int) -> Package:
    """The model with another description."""
    return replace(package(), description=msgspec.structs.replace(package().description, **sizes))


@functools.cache
def wanted() -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of which some begin alike, and what follows them."""
    first = prompts([37, 9, 21, 5, 17], seed=1)
    given = [*first, first[0][:30] + first[2]]
    return given, [greedy(model("llama"), p, COUNT) for p in given]


def speculating(draft: str, count: int = 4, **settings: Any) -> LLM:
    given = {"model": package(draft), "num_speculative_tokens": count, "adaptive": False}
    return LLM(package(), device="sim", speculative=given, **settings)


def tokens(llm: LLM, given: list[list[int]], params: SamplingParams = GREEDY) -> list[list[int]]:
    found = [out.outputs[0].token_ids for out in llm.generate(given, params)]
    llm.core.pool.check([])
    assert isinstance(llm.core.guessing.drafter, ModelDrafter)
    llm.core.guessing.drafter.pool.check([])
    return found


def test_greedy_tokens_are_the_models_whatever_the_draft_says() -> None:
    given, want = wanted()
    shares = {}
    for draft in ("", "like", "wrong"):
        llm = speculating(draft)
        assert tokens(llm, given) == want
        steps, stats = llm.stats().steps, llm.stats()
        shares[draft] = stats.accepted / stats.proposed
        assert (steps < 10) == (draft == "")
    assert shares[""] == 1
    assert shares["wrong"] < 0.2 < shares["like"] < 1


EVERY = itertools.product([False, True], [16, 64], [1, 3, 8], [1, 4])
SOME = [(True, 16, 3, 4), (False, 64, 1, 1), (False, 16, 8, 3)]


@pytest.mark.slow
def test_tokens_do_not_depend_on_how_the_work_is_cut_up() -> None:
    """Prefix caches cold and warm, chunks, batches, few pages, which preempt; all of it with ARCWELD_EVERY=1."""
    given, want = wanted()
    for caching, chunk, batch, count in EVERY if os.environ.get("ARCWELD_EVERY") else SOME:
        llm = speculating(
            "like", count, enable_prefix_caching=caching, max_prefill_chunk=chunk, max_num_seqs=batch, num_pages=80
        )
        assert tokens(llm, given) == want
        assert tokens(llm, given) == want
    llm = speculating("like", num_pages=12)
    assert tokens(llm, given) == want
    assert llm.stats().preemptions > 0
    assert llm.stats().accepted > 0


def test_the_draft_catches_up_after_steps_without_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where guesses are made in some steps only, and requests are aborted in between."""
    given, want = wanted()
    llm = speculating("")
    asked = iter(range(10_000))
    monkeypatch.setattr(Gain, "allows", lambda gain, sequences: next(asked) % 3 == 0)
    for k, _ in enumerate(llm.stream(given[1], GREEDY)):
        if k == 5:
            break
    assert tokens(llm, given) == want
    assert llm.stats().accepted == llm.stats().proposed > 0


def test_guesses_go_on_to_the_end_of_the_length() -> None:
    llm = speculating("")
    without_end = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    assert len(tokens(llm, [[5]], without_end)[0]) == 127
    assert llm.stats().steps == 1 + 25 + 1  # the prompt, 5 tokens each, the last one


def test_draws_with_a_seed_are_those_without_guesses() -> None:
    given, _ = wanted()
    params = SamplingParams(temperature=0.8, top_p=0.9, seed=7, max_tokens=COUNT, repetition_penalty=1.2)
    alone = [out.outputs[0].token_ids for out in LLM(package(), device="sim").generate(given, params)]
    for draft in ("", "like", "wrong"):
        llm = speculating(draft, 3)
        assert tokens(llm, given, params) == alone
        if draft == "":
            assert llm.stats().accepted == llm.stats().proposed > 0


def exact(prompt: list[int], params: SamplingParams) -> dict[tuple[int, ...], float]:
    """The probability of each result, by softmax of transformers' logits."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(params.max_tokens or 0):
        longer: dict[tuple[int, ...], float] = {}
        for path, p in found.items():
            with torch.no_grad():
                logits = model("llama")(torch.tensor([[*prompt, *path]])).logits[0, -1].double().numpy()
            top = np.argsort(-logits)[: params.top_k]
            e = np.exp((logits[top] - logits[top[0]]) / params.temperature)
            longer |= {(*path, int(t)): p * float(each) for t, each in zip(top, e / e.sum())}
        found = longer
    return found


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["like", "wrong", *([""] if os.environ.get("ARCWELD_EVERY") else [])])
def test_results_without_a_seed_follow_the_models_distribution(draft: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """768 results of 4 tokens, of which 2 are guessed, against the probabilities of all 81.

    Chi squared at significance 1e-3; results that are expected less than 5 times count as one.
    """
    seeds = np.random.default_rng(11)
    monkeypatch.setattr("secrets.randbits", lambda bits: int(seeds.integers(1 << 62)))
    (prompt,) = prompts([9], seed=2)
    params = SamplingParams(temperature=1.5, top_k=3, max_tokens=4, ignore_eos=True, n=384)
    want = exact(prompt, params)
    llm = speculating(draft, 3, max_num_seqs=32)
    found: Counter[tuple[int, ...]] = Counter()
    for out in llm.generate([prompt] * 2, params):
        found.update(tuple(o.token_ids) for o in out.outputs)
    total = sum(found.values())
    assert total == 768
    assert set(found) <= set(want)
    often = [path for path, p in want.items() if p * total >= 5]
    counts = [*(found[path] for path in often), total - sum(found[path] for path in often)]
    expected = [*(want[path] * total for path in often), total * (1 - sum(want[path] for path in often))]
    assert len(often) > 10
    assert chisquare(counts, expected).pvalue > 1e-3
    share = llm.stats().accepted / llm.stats().proposed
    assert share == 1 if draft == "" else 0.01 < share < 0.99


def test_sequences_longer_than_the_draft_get_no_guesses() -> None:
    given, want = wanted()
    short = {"model": described(length=32), "num_speculative_tokens": 4, "adaptive": False}
    llm = LLM(package(), device="sim", speculative=short)
    assert tokens(llm, given) == want
    assert llm.stats().accepted == llm.stats().proposed > 0


def test_guesses_that_lose_are_left_out() -> None:
    """By a clock that says that a step of the draft takes as long as three of the model."""
    given, want = wanted()
    llm = speculating("")
    llm.core.guessing.gain.adaptive = True
    assert isinstance(llm.core.guessing.drafter, ModelDrafter)
    runners, spent = (llm.core.runner, llm.core.guessing.drafter.runner), [1.0, 3.0]
    llm.core.guessing.clock = lambda: sum(s * r.steps for s, r in zip(spent, runners))
    assert tokens(llm, given[:1], SamplingParams(temperature=0, max_tokens=70, ignore_eos=True))[0][:COUNT] == want[0]
    assert 0 < llm.stats().proposed <= 8 * 4
    llm = speculating("")
    llm.core.guessing.gain.adaptive = True
    llm.core.guessing.clock = functools.partial(lambda r: float(r.steps), llm.core.runner)
    tokens(llm, given[:1], SamplingParams(temperature=0, max_tokens=70, ignore_eos=True))
    assert llm.stats().proposed > 50


def test_logits_of_the_draft_that_are_no_numbers_end_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given, want = wanted()
    llm = speculating("like")
    assert isinstance(llm.core.guessing.drafter, ModelDrafter)
    compute = llm.core.guessing.drafter.runner.logits
    monkeypatch.setattr(llm.core.guessing.drafter.runner, "logits", lambda runs: compute(runs) * np.float32(np.nan))
    assert tokens(llm, given) == want
    assert llm.stats().proposed == 0
    assert caplog.text.count("the draft model makes no guess") == 1


def test_memory_holds_the_pages_of_both() -> None:
    llm = speculating("", kv_cache_memory="64K")
    assert isinstance(llm.core.guessing.drafter, ModelDrafter)
    each = 8 * 2 * 2 * (16 + 16) * 4  # positions, layers, heads, elements of keys and values, bytes
    assert llm.core.pool.count == llm.core.guessing.drafter.pool.count == 65536 // (2 * each)


def test_draft_models_that_do_not_fit_are_refused(tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="vocabulary of 96 tokens, the model one of 128"):
        LLM(package(), device="sim", speculative={"model": described(vocabulary=96), "num_speculative_tokens": 2})
    with pytest.raises(UsageError, match="steps of 2 sequences, and max_num_seqs is 8"):
        LLM(package(), device="sim", speculative={"model": described(tokens=2), "num_speculative_tokens": 1})
    with pytest.raises(UsageError, match="there is no model"):
        Opened(package(), device="sim", speculative={"model": "nowhere", "num_speculative_tokens": 2})
    path = tmp_path / "draft.engine"
    write_engine(path, package("like").data)
    given, want = wanted()
    llm = Opened(package(), device="sim", speculative={"model": path, "num_speculative_tokens": 2, "adaptive": False})
    assert tokens(llm, given[:1]) == want[:1]
    assert llm.stats().accepted > 0


def test_a_draft_that_is_a_checkpoint_needs_no_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """It is given tokens and gives tokens."""
    monkeypatch.setattr("arcweld.driver.llm.cache_dir", lambda: tmp_path / "cache")
    (tmp_path / "draft").mkdir()
    model("llama").save_pretrained(tmp_path / "draft")
    given = prompts([9], seed=2)
    speculative = {"model": tmp_path / "draft", "num_speculative_tokens": 3, "adaptive": False}
    llm = Opened(
        package(), device="sim", max_model_len=128, max_num_batched_tokens=64, speculative=speculative,
        build={"verify": "off"},
    )  # fmt: skip
    assert tokens(llm, given) == [greedy(model("llama"), p, COUNT) for p in given]
    assert llm.stats().accepted > 0
