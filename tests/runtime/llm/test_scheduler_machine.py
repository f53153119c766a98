"""The scheduler and its pages, driven by random requests, drafts, ends and aborts, with a check after each step."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from arcweld.compiler.errors import UsageError
from arcweld.runtime.llm.pages import PagePool
from arcweld.runtime.llm.params import SamplingParams
from arcweld.runtime.llm.scheduler import Scheduled, Scheduler
from arcweld.runtime.llm.sequence import Sequence

LENGTH = 40
STEPS: list[int] = []


class Machine(RuleBasedStateMachine):
    """Tokens are small numbers, so that prefixes are shared and guesses are sometimes right."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(24, 4)
        self.scheduler = Scheduler(self.pool, sequences=4, tokens=16, length=LENGTH, chunk=7)
        self.alive: list[Sequence] = []
        self.count = self.ended = 0
        self.contents: dict[int, tuple[int, ...]] = {}  # what a page holds, position by position, as kernels write it
        self.waited: dict[Sequence, int] = {}

    @rule(
        size=st.integers(1, LENGTH - 1), most=st.integers(1, 30), base=st.integers(0, 2), priority=st.integers(0, 1)
    )
    def add(self, size: int, most: int, base: int, priority: int) -> None:
        prompt = [(base + k * k) % 5 for k in range(size)]
        s = Sequence(self.count, prompt, SamplingParams(max_tokens=most), priority)
        self.count += 1
        if len(self.alive) < 12:
            self.scheduler.add(s)
            self.alive.append(s)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        s = data.draw(st.sampled_from(self.alive))
        self._end(s)

    @rule(guess=st.integers(0, 4), steps=st.integers(1, 5))
    def run_steps(self, guess: int, steps: int) -> None:
        for _ in range(steps):
            self._step(guess)

    def _step(self, guess: int) -> None:
        STEPS.append(len(self.alive))
        drafts = {s: tuple((len(s) + k) % 5 for k in range(guess)) for s in self.scheduler.running}
        found = self.scheduler.schedule(drafts)
        assert bool(found) == bool(self.alive)
        assert sum(x.count for x in found) <= self.scheduler.tokens
        assert len({x.sequence for x in found}) == len(found)
        assert len(self.scheduler.running) <= self.scheduler.sequences
        self._no_starvation(found)
        for x in found:
            self._write(x)
        for x in found:
            self._advance(x)

    def _no_starvation(self, found: list[Scheduled]) -> None:
        """The first in order waits at most while prompts that were begun are computed."""
        if self.alive:
            first = min(self.alive, key=lambda s: s.order)
            served = first in [x.sequence for x in found]
            self.waited[first] = 0 if served else self.waited.get(first, 0) + 1
            assert self.waited[first] <= 4 * (LENGTH // 7 + 1)

    def _write(self, x: Scheduled) -> None:
        """What the kernels do: each token's keys go to the slot of its position, which nobody else reads."""
        s = x.sequence
        tokens = [*s.tokens(s.computed, s.computed + x.count - len(x.drafts)), *x.drafts]
        assert len(tokens) == x.count
        size = self.pool.page_size
        for k, token in enumerate(tokens):
            position = s.computed + k
            page = s.pages[position // size]
            others = [r for r in self.scheduler.running if r is not s and page in r.pages]
            assert not others, "a token is written to a page that another sequence has"
            before = self.contents.get(page, ())[: position % size]
            self.contents[page] = (*before, token)

    def _advance(self, x: Scheduled) -> None:
        s = x.sequence
        ends = x.reaches_end
        self.scheduler.computed(x, x.count - len(x.drafts))
        self._holds(s)
        if not ends:
            return
        for k in range(len(x.drafts) + 1):
            token = (len(s) * 3 + s.number) % 5
            s.output.append(token)
            if len(s.output) >= (s.params.max_tokens or LENGTH) or len(s) >= LENGTH:
                self._end(s)
                self.ended += 1
                return
            if k == len(x.drafts) or token != x.drafts[k]:
                break
            self.scheduler.computed(x, 1)
        self._holds(s)

    def _holds(self, s: Sequence) -> None:
        """The pages of a sequence hold its tokens, shared ones included."""
        size = self.pool.page_size
        for k in range(0, s.computed, size):
            want = tuple(s.tokens(k, min(k + size, s.computed)))
            assert self.contents[s.pages[k // size]][: len(want)] == want

    def _end(self, s: Sequence) -> None:
        self.scheduler.remove(s)
        self.alive.remove(s)

    @invariant()
    def pages_add_up(self) -> None:
        self.pool.check([s.pages for s in self.alive])
        assert self.pool.free + self.pool.used + self.pool.cached == self.pool.count
        assert len(self.scheduler) == len(self.alive)

    def teardown(self) -> None:
        """Everything ends, and no page is left in use."""
        for _ in range(10_000):
            if not self.alive:
                break
            self._step(2)
        assert not self.alive
        assert self.pool.used == 0


def test_ten_thousand_steps() -> None:
    """200 runs of up to 50 rules; with ARCWELD_EVERY=1 ten times as many."""
    many = 2000 if os.environ.get("ARCWELD_EVERY") else 200
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    chosen = settings(
        max_examples=many, stateful_step_count=50, deadline=None, suppress_health_check=checks, derandomize=True,
    )
    STEPS.clear()
    run_state_machine_as_test(Machine, settings=chosen)
    assert len(STEPS) >= 10_000


def pool_and_scheduler(pages: int = 8, **sizes: int) -> Scheduler:
    return Scheduler(PagePool(pages, 4), **{"sequences": 2, "tokens": 8, "length": 64, **sizes})


@pytest.mark.parametrize(
    ("prompt", "most", "text"),
    [
        ([], 1, "empty prompt"), ([1] * 64, 1, "64 tokens; at most 63"), ([1] * 30, 10, "need 10 pages, there are 8"),
        ([1] * 30, None, "need 16 pages"),
    ],
)  # fmt: skip
def test_what_could_never_be_computed_is_refused(prompt: list[int], most: int | None, text: str) -> None:
    scheduler = pool_and_scheduler()
    with pytest.raises(UsageError, match=text):
        scheduler.add(Sequence(0, prompt, SamplingParams(max_tokens=most)))
    assert len(scheduler) == 0


def test_a_request_of_higher_priority_takes_the_pages_of_a_lower_one() -> None:
    scheduler = pool_and_scheduler(pages=4)  # each of them needs all of these
    low = Sequence(0, [1] * 7, SamplingParams(max_tokens=9), priority=1)
    high = Sequence(1, [2] * 7, SamplingParams(max_tokens=9), priority=0)
    scheduler.add(low)
    done: list[Sequence] = []
    while scheduler:
        if len(low.output) == 2 and not high.output and high not in scheduler.running:
            scheduler.add(high)
        for x in scheduler.schedule():
            s, ends = x.sequence, x.reaches_end
            scheduler.computed(x, x.count)
            if ends:
                s.output.append(0)
                if len(s.output) == 9:
                    scheduler.remove(s)
                    done.append(s)
    assert done == [high, low]
    assert low.preemptions
    assert not high.preemptions


def test_a_step_has_room_for_every_sequence() -> None:
    with pytest.raises(UsageError, match="4 tokens in a step of up to 5 sequences"):
        pool_and_scheduler(sequences=5, tokens=4)
