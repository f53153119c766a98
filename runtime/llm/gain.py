"""Whether guesses pay: tokens a second with them against tokens a second without, both measured."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from statistics import median

_WINDOW = 16  # steps that are remembered


@dataclass(slots=True)
class _Batch:
    """What is known of steps of about so many sequences.

    plain    seconds of steps without guesses
    guessed  seconds of steps with guesses, and the tokens that each of their sequences got on average
    pays     whether guesses have paid the last time
    waits    steps without guesses before they are tried again
    since    steps with guesses since the last one without
    pause    how many these are after the next failure
    """

    plain: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    guessed: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    pays: bool = False
    waits: int = 0
    since: int = 0
    pause: int = 0

    @property
    def speedup(self) -> float:
        """How many times as many tokens a second there are with guesses. Medians, as first steps take longer."""
        each = sum(tokens for _, tokens in self.guessed) / len(self.guessed)
        return each * median(self.plain) / median(seconds for seconds, _ in self.guessed)


@dataclass(slots=True)
class Gain:
    """Decides by measured times, for batches of one sequence, of 2 and 3, of 4 to 7 and so on, whether to guess.

    A guess costs a row of the step and the drafter's own work, whether it is right or not. ``trial`` steps with guesses
    are compared with steps without. Guesses go on if they are faster by ``resume``; from then on until they are slower
    by ``keep``. After ``pause`` steps they are tried again, and after twice as many each time that they fail, up to
    ``longest``. While they pay, one step in ``refresh`` has none, so that what they are compared with is of now.

    adaptive  False: guesses are always made
    accepted, proposed  guesses that were right, and all that were checked
    """

    adaptive: bool = True
    trial: int = 8
    resume: float = 1.05
    keep: float = 1.0
    pause: int = 32
    longest: int = 1024
    refresh: int = 64
    accepted: int = 0
    proposed: int = 0
    _batches: defaultdict[int, _Batch] = field(default_factory=lambda: defaultdict(_Batch))

    def allows(self, sequences: int) -> bool:
        """Whether guesses are to be made in a step of so many sequences."""
        batch = self._batches[sequences.bit_length()]
        return not self.adaptive or (batch.waits == 0 and len(batch.plain) >= 2 and batch.since < self.refresh)

    def count(self, proposed: int, accepted: int) -> None:
        """So many guesses were checked, and so many of them were right."""
        self.proposed += proposed
        self.accepted += accepted

    def note(self, sequences: int, seconds: float, *, guessed: bool, tokens: int) -> None:
        """A step of single tokens, with guesses or without, took ``seconds`` and gave ``tokens`` in all."""
        batch = self._batches[sequences.bit_length()]
        if not guessed:
            batch.plain.append(seconds)
            batch.waits, batch.since = max(0, batch.waits - 1), 0
            return
        batch.since += 1
        batch.guessed.append((seconds, tokens / sequences))
        if len(batch.guessed) < self.trial or not batch.plain:
            return
        batch.pays = batch.speedup >= (self.keep if batch.pays else self.resume)
        if batch.pays:
            batch.pause = 0
        else:
            batch.pause = min(self.longest, 2 * batch.pause) if batch.pause else self.pause
            batch.waits = batch.pause
            batch.guessed.clear()
