"""Guesses of the next tokens, which one step checks together.

A guess is kept if it is the token that would have been chosen anyway, with the random number of its place. So results
are the same with and without guesses, bit for bit where the model's logits are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def ngram_guesses(tokens: Sequence[int], count: int, most: int = 4, least: int = 2) -> tuple[int, ...]:
    """The ``count`` tokens that followed when the last few tokens occurred before ("prompt lookup", Saxena, 2023).

    Tried are the last ``most`` tokens, then fewer, down to ``least``; of several occurrences the latest one counts.
    """
    n = len(tokens)
    for size in range(min(most, n - 1), least - 1, -1):
        end = list(tokens[n - size :])
        for at in range(n - size - 1, -1, -1):
            if tokens[at] == end[0] and list(tokens[at : at + size]) == end:
                return tuple(tokens[at + size : at + size + count])
    return ()


@dataclass(slots=True)
class Gain:
    """Whether guesses pay, by how many of the last ones were right.

    A guess costs a row of the step whether it is right or not. While fewer than ``worthwhile`` of them are right, none
    are made; after ``pause`` steps it is tried again.
    """

    worthwhile: float = 0.2
    pause: int = 32
    memory: float = 0.9  # of what was before, after each step
    right: float = 1.0
    made: float = 1.0
    waits: int = 0
    accepted: int = 0
    proposed: int = 0

    def allows(self) -> bool:
        """Whether guesses are to be made in this step."""
        if self.waits:
            self.waits -= 1
            return False
        return True

    def note(self, made: int, right: int) -> None:
        """``right`` of ``made`` guesses of a step were right."""
        self.proposed += made
        self.accepted += right
        self.right, self.made = self.memory * self.right + right, self.memory * self.made + made
        if self.right < self.worthwhile * self.made:
            self.waits, self.right, self.made = self.pause, 1.0, 1.0
