"""Interleaved timing: in every round each contestant has a turn of some calls, in an order drawn at random."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from arcweld.cli.timing import Call, Sample, Schedule
from arcweld.compiler.errors import EnvironmentError_
from arcweld.driver.comparison import LEAST_ROUNDS

TURN = 0.010  # least seconds of a turn, unless one call takes longer
MOST_ROUNDS = 300  # in ``Schedule.duration``: turns are longer rather than more
MOST_CALLS = 10_000  # of a turn
COLD = 0.1  # seconds: what empty caches add to a longer call is nothing beside it
JUMP_SECONDS, JUMP_TIMES = 5.0, 100.0  # a call of both more seconds and more than so many medians: the clock jumped
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Timing:
    """One timed call: the number of its round, and what was measured."""

    round: int
    sample: Sample


@dataclass(frozen=True, slots=True)
class Rounds:
    """What interleaved timing measured.

    timings  every call of each contestant, by its name, in order
    turns    milliseconds: the median call of each contestant's turn, ``[round, contestant]``
    """

    timings: Mapping[str, tuple[Timing, ...]]
    turns: np.ndarray


def interleave(
    calls: Mapping[str, Call], schedule: Schedule, seed: int, clock: Clock = time.perf_counter
) -> Rounds:
    """Times the calls of all contestants, which are given by name, in rounds.

    A turn begins with a call that is not timed, because the others have emptied the caches. There are at least
    ``LEAST_ROUNDS`` rounds, and for each contestant ``schedule.iterations`` calls and ``schedule.duration`` seconds of
    them. The same ``seed`` draws the same orders. Raises EnvironmentError_ for a clock that goes backwards, stands or
    jumps.
    """
    takers = {name: _warmed(name, call, schedule, clock) for name, call in calls.items()}
    rng, names = np.random.default_rng(seed), list(calls)
    timings: dict[str, list[Timing]] = {name: [] for name in names}
    turns: list[list[float]] = []
    seconds = dict.fromkeys(names, 0.0)
    time.sleep(schedule.sleep)
    last = clock()
    with _uncollected():
        while not _enough(turns, timings, schedule, min(seconds.values())):
            row = dict.fromkeys(names, 0.0)
            for k in rng.permutation(len(names)):
                own = list(takers[names[k]].turn(schedule.idle))
                timings[names[k]] += [Timing(len(turns), s) for s in own]
                seconds[names[k]] += sum(s.latency for s in own) / 1e3
                row[names[k]] = float(np.median([s.latency for s in own]))
            turns.append(list(row.values()))
            last = _later(clock(), last)
    for name, own_timings in timings.items():
        check_jumps(name, np.array([t.sample.latency for t in own_timings]) / 1e3)
    return Rounds({name: tuple(t) for name, t in timings.items()}, np.array(turns))


def _enough(turns: list[list[float]], timings: Mapping[str, list[Timing]], schedule: Schedule, spent: float) -> bool:
    fewest = min(len(t) for t in timings.values())
    return len(turns) >= LEAST_ROUNDS and fewest >= schedule.iterations and spent >= schedule.duration


@dataclass(frozen=True, slots=True)
class _Taker:
    """A contestant that is warm: how many calls make a turn, and whether the first one is not timed."""

    name: str
    call: Call
    count: int
    untimed: bool

    def turn(self, idle: float) -> Iterator[Sample]:
        if self.untimed:
            self.call()
        for _ in range(self.count):
            yield _positive(self.name, self.call())
            if idle:
                time.sleep(idle)


def _warmed(name: str, call: Call, schedule: Schedule, clock: Clock) -> _Taker:
    call()
    found, begin = [_positive(name, call())], clock()
    last = begin
    while last < begin + schedule.warm_up:
        found.append(_positive(name, call()))
        last = _later(clock(), last)
    typical = float(np.median([s.latency for s in found])) / 1e3
    count = int(np.clip(round(max(TURN, schedule.duration / MOST_ROUNDS) / typical), 1, MOST_CALLS))
    return _Taker(name, call, count, untimed=typical < COLD)


def _later(now: float, before: float) -> float:
    """``now``. Raises EnvironmentError_ if that is earlier than ``before``."""
    if now < before:
        raise _jumped(f"went back by {before - now:.3g} s")
    return now


def _positive(name: str, sample: Sample) -> Sample:
    if not sample.latency > 0:
        raise _jumped(f"measured {sample.latency:.3g} ms for a call of {name}")
    return sample


def check_jumps(name: str, seconds: np.ndarray) -> None:
    """Raises EnvironmentError_ if one call took so much longer than the median that nothing but the clock explains it.
    """
    longest, median = float(seconds.max()), float(np.median(seconds))
    if longest > max(JUMP_SECONDS, JUMP_TIMES * median):
        raise _jumped(f"jumped: a call of {name} took {longest:.3g} s by it, the median is {median:.3g} s")


def _jumped(what: str) -> EnvironmentError_:
    return EnvironmentError_(
        f"the clock {what}: nothing can be concluded", hint="measure again, while the machine is not suspended or moved"
    )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's collection of garbage, which would stop one contestant for what another left."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
