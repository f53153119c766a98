"""Which sequences of a step get guesses, and whether they pay: what a ``Core`` has of speculation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Several

from arcweld.runtime.llm.gain import Gain
from arcweld.runtime.llm.scheduler import Scheduled
from arcweld.runtime.llm.sequence import Sequence
from arcweld.runtime.llm.speculation import Drafter, Guess, Wanted


class Guessing:
    """Guesses of ``drafter`` for the steps of a core; none without one.

    count     how many a sequence gets at most
    length    the most tokens of a sequence
    adaptive  only while they pay
    """

    def __init__(self, length: int, drafter: Drafter | None = None, count: int = 0, adaptive: bool = True) -> None:
        self.length, self.drafter, self.count, self.gain = length, drafter, count, Gain(adaptive)
        self.clock: Callable[[], float] = time.perf_counter
        self._began, self._singles, self._asked = 0.0, 0, False

    def begin(
        self, running: Several[Sequence], seed: Callable[[Sequence], int]
    ) -> dict[Sequence, tuple[Guess, ...]]:  # fmt: skip
        """A step begins: guesses for sequences that are past their prompts. ``seed``: of their random numbers."""
        self._began = self.clock()
        self.keep(running)
        singles = [s for s in running if s.left == 1 and s.output]
        self._singles = len(singles)
        self._asked = self.drafter is not None and bool(singles) and self.gain.allows(len(singles))
        if self.drafter is None or not self._asked:
            return {}
        wanted = [Wanted(s, self._most(s), seed(s)) for s in singles]
        return self.drafter.guesses([w for w in wanted if w.most > 0])

    def _most(self, s: Sequence) -> int:
        """How many guesses a sequence may have: a token follows them, and nothing beyond its end is computed."""
        left = min(self.length - len(s), (s.params.max_tokens or self.length) - len(s.output))
        return min(self.count, left - 1)

    def end(self, scheduled: Several[Scheduled], tokens: int) -> None:
        """The step has ended with so many new tokens. Steps with chunks of prompts are not compared."""
        guessed = any(x.drafts for x in scheduled)
        if guessed == self._asked and len(scheduled) == self._singles:
            self.gain.note(len(scheduled), self.clock() - self._began, guessed=guessed, tokens=tokens)

    def keep(self, running: Iterable[Sequence]) -> None:
        """Gives up what is held for sequences other than these."""
        if self.drafter is not None:
            self.drafter.keep(running)
