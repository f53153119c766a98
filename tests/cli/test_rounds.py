"""Interleaved timing on a simulated machine: its clock drifts, its noise is autocorrelated, calls stall."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field

import numpy as np
import pytest

from arcweld.cli.rounds import Rounds, interleave
from arcweld.cli.timing import Call, Sample, Schedule
from arcweld.compiler.errors import EnvironmentError_
from arcweld.driver.comparison import LEAST_ROUNDS, Ratio, compare_rounds, drift

SCHEDULE = Schedule(iterations=10, warm_up=0.05, duration=1.0)
RUNS = 100


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> None:
    """Before each of hundreds of runs garbage is collected: not what other tests of the process have left."""
    gc.collect()
    gc.freeze()


@dataclass
class Machine:
    """A machine whose speed drifts and wanders, with a clock; every call takes simulated seconds.

    noise    standard deviation of the autocorrelated part of a call's log-time; its memory is ``memory`` seconds
    jitter   standard deviation of a call's own part
    drifts   share by which the machine becomes slower in a second
    stalls   probability of a call that takes up to ten times as long
    """

    seed: int
    noise: float = 0.05
    memory: float = 0.2
    jitter: float = 0.04
    drifts: float = 0.05
    stalls: float = 0.01
    now: float = 100.0
    state: float = 0.0
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.state = self.noise * float(self.rng.standard_normal())

    def clock(self) -> float:
        return self.now

    def contestant(self, seconds: float) -> Call:
        """A call that takes ``seconds`` on the undisturbed machine."""

        def call() -> Sample:
            rho = float(np.exp(-seconds / self.memory))
            a, b, stall, by = (*self.rng.standard_normal(2), *self.rng.random(2))
            self.state = rho * self.state + self.noise * float(np.sqrt(1 - rho**2)) * a
            slow = 1 + self.drifts * (self.now - 100.0)
            taken = seconds * slow * float(np.exp(self.state + self.jitter * b))
            taken *= 1 + 9 * by if stall < self.stalls else 1.0
            self.now += taken
            return Sample(taken * 1e3)

        return call


def found(seed: int, factor: float, **of_machine: float) -> tuple[Ratio, Rounds]:
    """The comparison of 5 ms with ``factor`` times as much, on a machine of its own."""
    machine = Machine(seed, **of_machine)
    calls = {"a": machine.contestant(0.005), "b": machine.contestant(0.005 * factor)}
    rounds = interleave(calls, SCHEDULE, seed, machine.clock)
    return compare_rounds(rounds.turns[:, 0], rounds.turns[:, 1], seed), rounds


def test_equal_contestants_have_no_difference() -> None:
    """At least 95 of 100 runs; the level of the test promises 99 on average."""
    assert sum(not found(seed, 1.0)[0].differs for seed in range(RUNS)) >= 95


@pytest.mark.parametrize("factor", [1.05, 1 / 1.05])
def test_a_slowdown_of_5_percent_is_found(factor: float) -> None:
    """At least 95 of 100 runs, in the right direction, and the interval holds the truth in as many."""
    results = [found(seed, factor)[0] for seed in range(RUNS)]
    assert sum(r.differs and (r.value > 1) == (factor > 1) for r in results) >= 95
    assert sum(r.low <= factor <= r.high for r in results) >= 95
    assert abs(float(np.mean([r.value for r in results])) - factor) < 0.003  # no bias either


def test_one_after_the_other_would_be_misled() -> None:
    """The machine is hard enough: without rounds its drift alone looks like a difference."""
    misled = 0
    for seed in range(20):
        machine = Machine(seed)
        calls = [machine.contestant(0.002) for _ in range(2)]
        a, b = ([call().latency for _ in range(500)] for call in calls)
        misled += abs(float(np.median(b) / np.median(a)) - 1) > 0.02
    assert misled >= 15


def test_what_a_run_holds() -> None:
    ratio, rounds = found(3, 1.0, noise=0.01, drifts=0.1)
    assert rounds.turns.shape == (ratio.rounds, 2)
    assert ratio.rounds >= LEAST_ROUNDS
    for k, own in enumerate(rounds.timings.values()):
        assert [t.round for t in own] == sorted(t.round for t in own)
        assert {t.round for t in own} == set(range(ratio.rounds))
        first = [t.sample.latency for t in own if t.round == 7]
        assert rounds.turns[7, k] == np.median(first)
        assert sum(t.sample.latency for t in own) >= 1000 * SCHEDULE.duration
    assert drift(rounds.turns) == pytest.approx(0.2, abs=0.1)  # 10 % a second, for three seconds


def test_orders_are_drawn_anew_and_by_the_seed() -> None:
    def orders(seed: int) -> list[str]:
        said: list[str] = []

        def call(name: str) -> Call:
            def one() -> Sample:
                said.append(name)
                return Sample(20.0)

            return one

        schedule = Schedule(iterations=200, warm_up=0.0, duration=0.0)
        interleave({n: call(n) for n in "abc"}, schedule, seed, lambda: 0.0)
        turns = said[6:]  # behind the warming up
        return ["".join(turns[i : i + 6 : 2]) for i in range(0, len(turns), 6)]

    assert orders(1) == orders(1) != orders(2)
    assert len(set(orders(1))) == 6
    assert {"".join(sorted(o)) for o in orders(1)} == {"abc"}
    counts = [orders(1).count(o) for o in set(orders(1))]
    assert min(counts) > 15  # of 200 in 6


def test_a_slow_contestant_has_turns_of_one_call() -> None:
    machine = Machine(1, drifts=0.0)
    calls = {"fast": machine.contestant(0.001), "slow": machine.contestant(0.5)}
    rounds = interleave(calls, Schedule(1, 0.0, 0.0), 0, machine.clock)
    assert len(rounds.timings["slow"]) == LEAST_ROUNDS
    assert len(rounds.timings["fast"]) > 5 * LEAST_ROUNDS


@pytest.mark.parametrize(
    ("latencies", "ticks", "words"),
    [
        ([1.0, -3.0], 0.001, "measured -3 ms for a call of a"), ([1.0, 0.0], 0.001, "measured 0 ms"),
        ([1.0] * 99 + [7000.0], 0.001, "jumped: a call of a took 7 s"), ([1.0], -1.0, "went back by 1 s"),
    ],
)  # fmt: skip
def test_a_clock_that_jumps(latencies: list[float], ticks: float, words: str) -> None:
    now, index = 0.0, 0

    def call() -> Sample:
        nonlocal index
        index += 1
        return Sample(latencies[index % len(latencies)])

    def clock() -> float:
        nonlocal now
        now += ticks
        return now

    for warm_up in (0.0, 0.001):
        with pytest.raises(EnvironmentError_, match=words) as error:
            interleave({"a": call, "b": lambda: Sample(1.0)}, Schedule(1000, warm_up, 0.0), 0, clock)
        assert error.value.hint


def test_a_slow_call_is_no_jump() -> None:
    """A call of ten seconds among calls of one is slow, not impossible."""
    latencies = iter([1000.0] * 12 + [10_000.0] + [1000.0] * 200)
    calls = {"a": lambda: Sample(next(latencies)), "b": lambda: Sample(1.0)}
    assert interleave(calls, Schedule(1, 0.0, 0.0), 0, lambda: 0.0).turns[:, 0].max() == 10_000
