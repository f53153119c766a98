"""Steps that begin before the tokens of the last one are read: the same results, in another order of the work."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
from language_models import VOCABULARY, greedy, model, prompts

from arcweld.driver.language_model import build_language_model
from arcweld.runtime.llm.device_sampler import Asked
from arcweld.runtime.llm.llm import LLM
from arcweld.runtime.llm.package import Package
from arcweld.runtime.llm.params import SamplingParams

COUNT = 10
GREEDY = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)


@functools.cache
def package() -> Package:
    return build_language_model(
        model("llama"), length=128, page_size=8, tokens=64, device="sim", verify="off", end_tokens=[2]
    )


def opened(*, ahead: bool = True, **settings: Any) -> LLM:
    return LLM(package(), device="sim", sampler="device", async_scheduling=ahead, **settings)


def results(llm: LLM, given: list[list[int]], params: Any) -> list[tuple[list[int], str | None, Any]]:
    found = [o for out in llm.generate(given, params) for o in out.outputs]
    llm.core.pool.check([])
    assert not llm.core
    return [(o.token_ids, o.finish_reason, o.stop_reason) for o in found]


@functools.cache
def wanted() -> tuple[list[list[int]], list[list[int]]]:
    given = prompts([17, 9, 5, 12], seed=1)
    return given, [greedy(model("llama"), p, COUNT) for p in given]


class Recorded:
    """What is done, in its order: ``step`` begins a step, ``read`` waits for the tokens of the step of a number."""

    def __init__(self, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[tuple[str, int]] = []
        self._steps, self._read = 0, dict[int, int]()
        compute = llm.core.runner._compute

        def begun(feeds: Any) -> Any:
            self.events.append(("step", self._steps))
            self._steps += 1
            return compute(feeds)

        choice = Asked.choice
        monkeypatch.setattr(llm.core.runner, "_compute", begun)
        asked: list[Asked] = []

        def read(this: Asked, row: int) -> Any:
            if this not in asked:
                asked.append(this)
                self.events.append(("read", len(asked) - 1))
            return choice(this, row)

        monkeypatch.setattr(Asked, "choice", read)


def test_a_step_begins_before_the_tokens_of_the_last_one_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    given, want = wanted()
    for ahead in (True, False):
        llm = opened(ahead=ahead)
        with monkeypatch.context() as patch:
            recorded = Recorded(llm, patch)
            assert [r[0] for r in results(llm, given[1:3], GREEDY)] == want[1:3]
        order = [f(k) for k in range(COUNT) for f in (lambda k: ("step", k), lambda k: ("read", k))]
        if ahead:  # the step of the last token needs nothing behind it
            order = [("step", 0)] + [f for k in range(COUNT - 1) for f in (("step", k + 1), ("read", k))]
            order.append(("read", COUNT - 1))
        assert recorded.events == order
        assert llm.stats().steps_ahead == (COUNT - 1 if ahead else 0)
        assert llm.stats().steps == COUNT


@pytest.mark.parametrize("settings", [{}, {"num_pages": 9}, {"max_num_seqs": 2}, {"max_prefill_chunk": 4}])
def test_results_are_those_of_steps_in_turns(settings: dict[str, Any]) -> None:
    """End tokens, stop tokens, lengths, draws that are not decided, penalties and preemption come in between."""
    given, want = wanted()
    params = [
        SamplingParams(temperature=0, max_tokens=COUNT, stop_token_ids=[want[0][4]], ignore_eos=True),
        SamplingParams(temperature=1.5, seed=5, max_tokens=30, repetition_penalty=1.3, presence_penalty=0.5),
        SamplingParams(temperature=1, seed=6, max_tokens=7, n=2, logprobs=3),
        SamplingParams(temperature=0, max_tokens=30, ignore_eos=True),
    ]
    (first, second) = (opened(ahead=ahead, **settings) for ahead in (True, False))
    found = results(first, given, params)
    assert found == results(second, given, params)
    assert found[0] == (want[0][:5], "stop", want[0][4])
    assert found[-1][0][:COUNT] == want[3]
    assert first.stats().steps_ahead > 10
    assert second.stats().steps_ahead == 0
    assert first.stats().generated_tokens == second.stats().generated_tokens
    assert (first.stats().preemptions > 0) == ("num_pages" in settings)


def test_tokens_that_the_device_does_not_decide_throw_the_step_behind_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third token; the others of the batch go on."""
    given, want = wanted()
    llm = opened()
    sampler, device = llm.core.steps.sampler, llm.core.runner.engine.device
    assert sampler is not None
    chosen, count = sampler._run, itertools.count()

    def some(*args: Any) -> Any:
        found = chosen(*args)
        for k in range(found[0].shape[0]):
            if next(count) % 3 == 0:
                device.fill(found[0].address + 8 * k, 8, 255)  # -1
        return found

    monkeypatch.setattr(sampler, "_run", some)
    assert [r[0] for r in results(llm, given, GREEDY)] == want
    stats = llm.stats()
    assert stats.on_host >= COUNT
    assert stats.steps_ahead > 0
    assert stats.generated_tokens == stats.on_host + stats.on_device == len(given) * COUNT


def test_requests_that_come_and_go_while_a_step_is_under_way() -> None:
    given, want = wanted()
    llm = opened()
    core, found = llm.core, dict[str, list[int]]()
    core.add("a", given[0], GREEDY)
    core.add("b", given[1], GREEDY)
    for k in range(60):
        if k == 3:
            core.add("c", given[2], GREEDY)
        if k == 5:
            aborted = core.abort("a")
        for out in core.step():
            found[out.request_id] = list(out.outputs[0].token_ids)
        core.pool.check([s.pages for s in core.scheduler.running])
    assert aborted is not None
    assert aborted.outputs[0].token_ids == want[0][: len(aborted.outputs[0].token_ids)]
    assert (found["b"], found["c"]) == (want[1], want[2])
    assert not core
    core.pool.check([])
    core.add("d", given[3], GREEDY)
    core.step()
    core.abort("d")  # alone, with a step behind it under way
    assert core.step() == []
    assert results(llm, given[3:], GREEDY)[0][0] == want[3]


def test_logits_that_are_no_numbers_end_one_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    given, want = wanted()
    llm = opened()
    compute = llm.core.runner._compute

    def broken(feeds: Any) -> Any:
        found = compute(feeds)
        if llm.core.runner.steps == 4 and found.results[0].shape[0] > 1:
            llm.core.runner.engine.device.fill(found.results[0].address, 4 * VOCABULARY, 255)
        return found

    monkeypatch.setattr(llm.core.runner, "_compute", broken)
    out = llm.generate(given[:2], GREEDY)
    assert (out[0].outputs[0].finish_reason, out[0].outputs[0].token_ids) == ("error", want[0][:3])
    assert out[1].outputs[0].token_ids == want[1]
    llm.core.pool.check([])


def test_what_needs_the_tokens_first_takes_turns() -> None:
    """Guesses, the prompt's log probabilities, tokens that are chosen on the host."""
    given, want = wanted()
    for settings, params in (
        ({"speculative": 2}, GREEDY), ({}, SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)),
        ({}, SamplingParams(temperature=0, max_tokens=3, top_k=VOCABULARY, logprobs=1, presence_penalty=0.1)),
    ):  # fmt: skip
        llm = opened(**settings)
        found = results(llm, given[:2], params)
        assert [r[0][:1] for r in found] == [w[:1] for w in want[:2]]
        if "speculative" in settings or params.prompt_logprobs is not None:
            assert llm.stats().steps_ahead == 0


def test_the_pages_of_a_token_that_is_thrown_away_are_free() -> None:
    """A result ends with the last token of a page, so that the step behind it has taken another one."""
    given, want = wanted()
    llm = opened(num_pages=6)
    prompt = given[1][:7]
    (first,) = greedy(model("llama"), prompt, 1)
    (out,) = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=8, stop_token_ids=[first], ignore_eos=True))
    assert out.outputs[0].token_ids == [first]
    assert llm.stats().steps_ahead == 1
    llm.core.pool.check([])
    assert results(llm, given[2:3], GREEDY)[0][0] == want[2]
    assert np.isfinite(out.outputs[0].cumulative_logprob)


def test_memory_is_that_of_the_models_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several GPUs another one may be current where a step is called."""
    llm = opened()
    device = llm.core.runner.engine.device
    inside, outside = [0], list[str]()
    enter, leave = device.enter, device.leave

    def entered() -> int:
        inside[0] += 1
        return enter()

    def left(token: int) -> None:
        inside[0] -= 1
        leave(token)

    monkeypatch.setattr(device, "enter", entered)
    monkeypatch.setattr(device, "leave", left)
    for name in ("allocate", "upload", "copy", "download_later"):
        call = getattr(device, name)

        def noted(*args: Any, _call: Any = call, _name: str = name, **more: Any) -> Any:
            outside.extend([] if inside[0] else [_name])
            return _call(*args, **more)

        monkeypatch.setattr(device, name, noted)
    given, want = wanted()
    assert [r[0] for r in results(llm, given[:2], GREEDY)] == want[:2]
    assert not outside
    assert inside == [0]
