"""The scheduler and its pages, driven by random requests, drafts, ends and aborts, with a check after each step."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from arcweld.compiler.errors import UsageError
from arcweld.runtime.llm.adapters import Adapter, AdapterPlaces, LoRARequest
from arcweld.runtime.llm.package import AdapterRoom
from arcweld.runtime.llm.pages import PagePool
from arcweld.runtime.llm.params import SamplingParams
from arcweld.runtime.llm.scheduler import Scheduled, Scheduler
from arcweld.runtime.llm.sequence import Sequence

LENGTH, ROOM = 40, 2
STEPS: list[int] = []
AHEAD: list[int] = []  # tokens of steps that began before the last one's were known
ADAPTERS = [None, None, *(LoRARequest(f"a{k}", k, "nowhere") for k in range(1, 5))]


class Places(AdapterPlaces):
    """Places of adapters without files: what is in which place is noted where an engine would get weights.

    broken  adapters that cannot be loaded
    """

    def __init__(self) -> None:
        engine: Any = None
        super().__init__(engine, AdapterRoom(ROOM, 8, ()))
        self.weights: dict[int, LoRARequest] = {}
        self.broken: list[LoRARequest] = []
        self._asked: Any = None

    def _read(self, request: LoRARequest) -> Adapter:
        if request in self.broken:
            raise UsageError("it is broken")
        self._asked = request
        return Adapter({})

    def _load(self, place: int, adapter: Adapter) -> None:
        self.weights[place] = self._asked
        self.loads += 1

    def check(self, running: Iterable[Sequence], waiting: Iterable[Sequence]) -> None:
        """Each sequence that runs has the place in which its adapter is, and nobody else has one."""
        for s in running:
            assert self.weights[s.adapter] == s.lora if s.lora else not s.adapter
        assert all(not s.adapter for s in waiting)
        users = {place: found.users for place, found in self._places.items() if found.users}
        used = [s.adapter for s in running if s.adapter]
        assert users == {place: used.count(place) for place in used}
        assert set(self._places) <= set(range(1, ROOM + 1))


class Machine(RuleBasedStateMachine):
    """Tokens are small numbers, so that prefixes are shared and guesses are sometimes right."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(24, 4)
        self.places = Places()
        self.scheduler = Scheduler(self.pool, sequences=4, tokens=16, length=LENGTH, chunk=7, adapters=self.places)
        self.alive: list[Sequence] = []
        self.count = self.ended = 0
        self.contents: dict[int, tuple[Any, ...]] = {}  # what a page holds, position by position, as kernels write it
        self.waited: dict[Sequence, int] = {}

    @rule(
        size=st.integers(1, LENGTH - 1), most=st.integers(1, 30), base=st.integers(0, 2), priority=st.integers(0, 1),
        lora=st.sampled_from(ADAPTERS),
    )  # fmt: skip
    def add(self, size: int, most: int, base: int, priority: int, lora: LoRARequest | None) -> None:
        prompt = [(base + k * k) % 5 for k in range(size)]
        s = Sequence(self.count, prompt, SamplingParams(max_tokens=most), priority, lora=lora)
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

    @rule(undecided=st.lists(st.booleans(), min_size=1, max_size=5))
    def run_steps_ahead(self, undecided: list[bool]) -> None:
        """Behind each step another one begins before its tokens are known; ``undecided``: with a wrong token."""
        for wrong in undecided:
            self._step(0, ahead=True, wrong=wrong)

    def _step(self, guess: int, ahead: bool = False, wrong: bool = False) -> None:
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
        following = self._begin_following(found, wrong) if ahead else []
        for x in found:
            self._advance(x)
        for s in following:
            if s in self.alive and not wrong:
                AHEAD.append(s.number)
                self._advance(Scheduled(s, 1))

    def _begin_following(self, found: list[Scheduled], wrong: bool) -> list[Sequence]:
        """The sequences of which a token is computed behind the one that they get; it is written at once."""
        scheduler = self.scheduler
        if not all(x.reaches_end for x in found) or len(found) != len(scheduler.running):
            return []
        short = [
            x.sequence for x in found
            if len(x.sequence) + 1 < LENGTH and len(x.sequence.output) + 1 < (x.sequence.params.max_tokens or LENGTH)
        ]  # fmt: skip
        if scheduler.is_asked_for_others() or not all(scheduler.grow_behind(s) for s in short):
            return []
        for s in short:
            self._put(s, len(s), 9 if wrong else self._next(s))
        return short

    def _no_starvation(self, found: list[Scheduled]) -> None:
        """The first in order waits at most while prompts that were begun are computed, and where it needs a place for
        its adapter, until those who have one end.
        """  # fmt: skip
        if self.alive:
            first = min(self.alive, key=lambda s: s.order)
            served = first in [x.sequence for x in found]
            self.waited[first] = 0 if served else self.waited.get(first, 0) + 1
            prompts = 4 * (LENGTH // 7 + 1)
            assert self.waited[first] <= prompts + (prompts + LENGTH if first.lora else 0)

    def _write(self, x: Scheduled) -> None:
        """What the kernels do: each token's keys go to the slot of its position, which nobody else reads."""
        s = x.sequence
        tokens = [*s.tokens(s.computed, s.computed + x.count - len(x.drafts)), *x.drafts]
        assert len(tokens) == x.count
        for k, token in enumerate(tokens):
            self._put(s, s.computed + k, token)

    def _put(self, s: Sequence, position: int, token: int) -> None:
        size = self.pool.page_size
        page = s.pages[position // size]
        others = [r for r in self.scheduler.running if r is not s and page in r.pages]
        assert not others, "a token is written to a page that another sequence has"
        before = self.contents.get(page, ())[: position % size]
        self.contents[page] = (*before, (token, self._weights(s)))

    def _weights(self, s: Sequence) -> LoRARequest | None:
        return self.places.weights[s.adapter] if s.adapter else None

    @staticmethod
    def _next(s: Sequence) -> int:
        return (len(s) * 3 + s.number) % 5

    def _advance(self, x: Scheduled) -> None:
        s = x.sequence
        ends = x.reaches_end
        self.scheduler.computed(x, x.count - len(x.drafts))
        self._holds(s)
        if not ends:
            return
        for k in range(len(x.drafts) + 1):
            token = self._next(s)
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
            want = tuple((t, self._weights(s)) for t in s.tokens(k, min(k + size, s.computed)))
            assert self.contents[s.pages[k // size]][: len(want)] == want

    def _end(self, s: Sequence) -> None:
        self.scheduler.remove(s)
        self.alive.remove(s)

    @invariant()
    def pages_add_up(self) -> None:
        self.pool.check([s.pages for s in self.alive])
        assert self.pool.free + self.pool.used + self.pool.cached == self.pool.count
        assert len(self.scheduler) == len(self.alive)
        self.places.check(self.scheduler.running, (s for _, s in self.scheduler.waiting))

    def teardown(self) -> None:
        """Everything ends, and no page is left in use."""
        for _ in range(10_000):
            if not self.alive:
                break
            self._step(2)
        assert not self.alive
        assert self.pool.used == 0
        assert self.places.loads == 0 or self.places.salt(self.places.weights[1]) is not None
        self.places.check([], [])


def test_ten_thousand_steps() -> None:
    """200 runs of up to 50 rules; with ARCWELD_EVERY=1 ten times as many."""
    many = 2000 if os.environ.get("ARCWELD_EVERY") else 200
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    chosen = settings(
        max_examples=many, stateful_step_count=50, deadline=None, suppress_health_check=checks, derandomize=True,
    )
    STEPS.clear()
    AHEAD.clear()
    run_state_machine_as_test(Machine, settings=chosen)
    assert len(STEPS) >= 10_000
    assert len(AHEAD) >= 500


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


# --------------------------------------------------------------------------------------------------------- adapters


def with_adapters(**sizes: int) -> tuple[Scheduler, Places]:
    places = Places()
    given: Any = {"sequences": 4, "tokens": 8, "length": 64, **sizes}
    return Scheduler(PagePool(64, 4), **given, adapters=places), places


class Numbers:
    """Makes sequences of one prompt token, in order of arrival."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, adapter: int, most: int = 4, priority: int = 0) -> Sequence:
        self.count += 1
        lora = ADAPTERS[adapter + 1] if adapter else None
        return Sequence(self.count, [self.count], SamplingParams(max_tokens=most), priority, lora=lora)


def advance(scheduler: Scheduler) -> list[Sequence]:
    """A step. Returns the sequences that ended with it."""
    ended = []
    for x in scheduler.schedule():
        scheduler.computed(x, x.count)
        x.sequence.output.append(0)
        if len(x.sequence.output) == x.sequence.params.max_tokens:
            scheduler.remove(x.sequence)
            ended.append(x.sequence)
    return ended


def test_those_without_an_adapter_go_before_one_that_waits_for_a_place() -> None:
    scheduler, places = with_adapters()
    make = Numbers()
    one, two, three, same, plain = make(1), make(2, 8), make(3), make(2), make(0)
    for s in (one, two, three, same, plain):
        scheduler.add(s)
    advance(scheduler)
    assert scheduler.running == [one, two, plain]  # not the one whose adapter is in a place
    assert [len(scheduler), places.loads] == [5, 2]
    assert not scheduler.is_asked_for_others()  # those who wait cannot run, though there is room for one more
    another = make(0)
    scheduler.add(another)
    assert scheduler.is_asked_for_others()
    scheduler.remove(another)
    while not three.output:
        advance(scheduler)
    assert scheduler.running == [two, three, same]  # as soon as there is a place, in order
    assert (one in scheduler.running, len(plain.output)) == (False, 4)
    assert places.loads == 3
    while scheduler:
        advance(scheduler)
    places.check([], [])


@pytest.mark.parametrize("others", [(0,), (1,), (1, 2), (0, 1, 2, 4)])
def test_no_stream_of_others_keeps_one_from_its_place(others: tuple[int, ...]) -> None:
    """For each sequence that ends another one comes, of adapters that are in their places, or without one."""
    scheduler, _ = with_adapters()
    make = Numbers()
    for adapter in (1, 2):
        scheduler.add(make(adapter, 20))
    advance(scheduler)
    waits = make(3)
    scheduler.add(waits)
    for step in range(100):
        if not waits.output:
            scheduler.add(make(others[step % len(others)], 20))
        advance(scheduler)
        if waits.output:
            assert step <= 40
            return
    raise AssertionError("it waits for ever")


def test_a_place_is_taken_from_users_of_lower_priority_alone() -> None:
    """All users of the place whose users come last give up, and none of the others."""
    scheduler, places = with_adapters()
    make = Numbers()
    one, plain, two, again = make(1, 9, 1), make(0, 9, 2), make(2, 9, 1), make(2, 9, 2)
    for s in (one, plain, two, again):
        scheduler.add(s)
    advance(scheduler)
    assert len(scheduler.running) == 4
    high = make(3, 9, 0)
    scheduler.add(high)
    advance(scheduler)
    assert scheduler.running == [high, one, plain]
    assert [s.preemptions for s in (one, plain, two, again)] == [0, 0, 1, 1]
    equal = make(4, 9, 0)
    scheduler.add(equal)
    advance(scheduler)
    assert scheduler.running == [high, equal, plain]  # whose place is the only one with users of lower priority
    last = make(4, 9, 0)
    scheduler.add(last)
    advance(scheduler)
    assert scheduler.running == [high, equal, last, plain]
    while scheduler:
        advance(scheduler)
    places.check([], [])
    assert len(again.output) == 9


def test_adapters_that_cannot_be_loaded() -> None:
    scheduler, places = with_adapters()
    make = Numbers()
    one, two, three, plain = make(1), make(2), make(3), make(0)
    for s in (one, two, three, plain):
        scheduler.add(s)
    advance(scheduler)
    assert three.lora is not None
    broken = make(4)
    assert broken.lora is not None
    places.broken += [three.lora, broken.lora]  # the first one after it was read
    with pytest.raises(UsageError, match="broken"):
        scheduler.add(broken)
    while scheduler:
        advance(scheduler)
    ((refused, error),) = scheduler.refused
    assert (refused, str(error), three.output) == (three, "it is broken", [])
    scheduler.remove(three)
    places.check([], [])
    with pytest.raises(UsageError, match="no room for the adapter 'a1'"):
        pool_and_scheduler().add(make(1))


def test_names_and_numbers_of_adapters_are_their_own() -> None:
    scheduler, _ = with_adapters()
    first = Sequence(0, [1], SamplingParams(max_tokens=1), lora=LoRARequest("a", 1, "x"))
    scheduler.add(first)
    for other in (LoRARequest("a", 2, "x"), LoRARequest("b", 1, "x"), LoRARequest("a", 1, "y")):
        with pytest.raises(UsageError, match="has the name or the number of 'a'"):
            scheduler.add(Sequence(1, [1], SamplingParams(max_tokens=1), lora=other))
    scheduler.remove(first)
    scheduler.add(Sequence(1, [1], SamplingParams(max_tokens=1), lora=LoRARequest("a", 1, "y")))
    assert len(scheduler) == 1
