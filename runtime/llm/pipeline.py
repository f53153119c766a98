"""Steps one after another, of which the next one begins on the device before the tokens of the last one are read.

A following step takes its tokens from where the device has chosen them. While it is computed, the host reads the tokens
of the step before, makes text of them, and finds out which results have ended; then it says how the following step's
tokens are chosen, and begins the one behind. What the host finds out too late costs a token that is thrown away: of a
sequence that has ended, by an end token, a stop string or its user, and of one whose token the device did not decide.
The throw-away's keys and values are in pages behind those that count, and later tokens write over them in the order in
which the device works.
"""

from __future__ import annotations

from arcweld.runtime.llm.batch import in_order_of_adapters
from arcweld.runtime.llm.request import Request
from arcweld.runtime.llm.scheduler import Scheduled
from arcweld.runtime.llm.sequence import Sequence
from arcweld.runtime.llm.steps import Step, Steps


class Pipeline:
    """Runs steps. ``ahead``: the next one begins before the tokens of the last one are read, where it may."""

    def __init__(self, steps: Steps, ahead: bool) -> None:
        self._steps, self._ahead = steps, ahead and steps.sampler is not None
        self._begun: Step | None = None
        self.ahead = 0  # steps that began early

    def step(self) -> list[Request]:
        """Ends the step that has begun, or the next one; returns the requests that have new tokens or have ended."""
        steps, step, self._begun = self._steps, self._begun, None
        if step is None or not self._alive(step):
            step = steps.begin()
        if step is None:
            return []
        following = self._begin_following(step) if self._ahead else None
        changed = steps.end(step)
        if following is not None:
            following.void.update(self._undecided(step))
            if self._alive(following):
                steps.sample(following)
                self._begun = following
        return changed

    def _begin_following(self, step: Step) -> Step | None:
        """The step behind one whose tokens are not read yet; None where these have to be known first."""
        steps, scheduler = self._steps, self._steps.scheduler
        if step.asked is None or len(step.asked.parts) != 1 or steps.guessing.drafter is not None:
            return None
        rows = {w.row: k for k, w in enumerate(step.asked.parts[0][0])}
        running = {
            x.sequence: rows[first] for x, first in zip(step.scheduled, step.first)
            if x.sequence in steps.owners and x.sequence not in step.void and x.reaches_end and first in rows
        }  # fmt: skip
        if len(running) != len(scheduler.running) or scheduler.is_asked_for_others():
            return None
        following = [s for s in running if self._goes_on(s)]
        if not following or not all(scheduler.grow_behind(s) for s in following):
            return None
        following.sort(key=lambda s: in_order_of_adapters(s.adapter))
        tokens = step.asked.parts[0][1][0]
        computed = steps.runner.compute_behind(following, tokens, [running[s] for s in following])
        self.ahead += 1
        return steps.submit([Scheduled(s, 1) for s in following], list(range(len(following))), computed)

    def _goes_on(self, s: Sequence) -> bool:
        """Whether a sequence, after a token that is not read yet, is still shorter than it may become."""
        length, most = self._steps.scheduler.length, s.params.max_tokens
        return len(s) + 1 < length and (most is None or len(s.output) + 1 < most)

    def _undecided(self, step: Step) -> list[Sequence]:
        assert step.asked is not None
        return [x.sequence for x, first in zip(step.scheduled, step.first) if step.asked.choice(first) is None]

    def _alive(self, step: Step) -> bool:
        """Whether any sequence of a step still needs it."""
        return any(self._steps.needs(step, x.sequence) for x in step.scheduled)
