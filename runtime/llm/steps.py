"""Steps of a language model: what is computed, where its tokens are chosen, and what they make of their sequences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from arcweld.runtime.llm.batch import Run, in_order_of_adapters
from arcweld.runtime.llm.device_sampler import Asked, DeviceSampler, Wanted
from arcweld.runtime.llm.guessing import Guessing
from arcweld.runtime.llm.request import Owner, Request
from arcweld.runtime.llm.runner import Computed, Runner
from arcweld.runtime.llm.sampling import Choice, LogitsError, choose, log_softmax, most_likely
from arcweld.runtime.llm.scheduler import Scheduled, Scheduler
from arcweld.runtime.llm.sequence import Sequence
from arcweld.runtime.llm.speculation import Guess


@dataclass(slots=True, eq=False)
class Step:
    """A step that the device computes or has computed.

    scheduled  which tokens of which sequences
    first      the row of each one's first logits, in the order of ``scheduled``
    computed   the logits, on the device
    guesses    what the drafts of ``scheduled`` were drawn from
    asked      the tokens that the device chooses, if it chooses any
    void       sequences whose part of it is thrown away
    """

    scheduled: list[Scheduled]
    first: list[int]
    computed: Computed
    guesses: Mapping[Sequence, tuple[Guess, ...]]
    asked: Asked | None = None
    void: set[Sequence] = field(default_factory=set)


@dataclass(slots=True)
class Counts:
    """What all steps have done: tokens computed, chosen, and found in the prefix cache; where they were chosen."""

    computed: int = 0
    generated: int = 0
    cached: int = 0
    on_device: int = 0
    on_host: int = 0


@dataclass(slots=True, eq=False)
class Steps:
    """Begins and ends steps of the sequences in ``owners``.

    sampler  chooses tokens on the device; None: all are chosen on the host
    """

    runner: Runner
    scheduler: Scheduler
    guessing: Guessing
    owners: Mapping[Sequence, Owner]
    sampler: DeviceSampler | None
    counts: Counts = field(default_factory=Counts)

    def begin(self) -> Step | None:
        """Lets the device compute the next step, and choose its tokens; None if there is nothing to do."""
        guesses = self.guessing.begin(self.scheduler.running, lambda s: self.owners[s].seed)
        scheduled = self.scheduler.schedule({s: self.owners[s].result.possible(g) for s, g in guesses.items()})
        if not scheduled:
            return None
        scheduled.sort(key=lambda x: in_order_of_adapters(x.sequence.adapter))
        counts = [len(wanted_rows(x)) for x in scheduled]
        computed = self.runner.compute([_run(x) for x in scheduled])
        step = self.submit(scheduled, np.cumsum([0, *counts])[:-1].tolist(), computed, guesses)
        self.sample(step)
        return step

    def submit(
        self, scheduled: list[Scheduled], first: list[int], computed: Computed,
        guesses: Mapping[Sequence, tuple[Guess, ...]] = MappingProxyType({}),
    ) -> Step:  # fmt: skip
        """A step that the device computes."""
        self.counts.computed += sum(x.count for x in scheduled)
        return Step(scheduled, first, computed, guesses)

    def needs(self, step: Step, s: Sequence) -> bool:
        """Whether a sequence's part of a step is wanted: it has not ended since the step began."""
        owner = self.owners.get(s)
        return owner is not None and s not in step.void and not owner.result.output.finished

    def sample(self, step: Step) -> None:
        """Lets the device choose the tokens of a step, as far as it can."""
        if self.sampler is not None:
            wanted = [w for x, first in zip(step.scheduled, step.first) for w in self._wanted(x, first, step)]
            step.asked = self.sampler.submit(step.computed.results[0], wanted) if wanted else None

    def _wanted(self, x: Scheduled, first: int, step: Step) -> list[Wanted]:
        """The tokens of a sequence that the device may choose: no form restricts them, and no guess was drawn."""
        s = x.sequence
        if not self.needs(step, s):
            return []
        owner = self.owners[s]
        if owner.request.pooling is not None or owner.result.constraint is not None or not x.reaches_end:
            return []
        if any(g.tokens is not None for g in step.guesses.get(s, ())):
            return []
        first += len(wanted_rows(x)) - len(x.drafts) - 1
        before = [[*s.output, *x.drafts[:k]] for k in range(len(x.drafts) + 1)]
        return [
            Wanted(first + k, s.params, owner.seed, s.prompt, output, owner.result.forbidden(len(output)))
            for k, output in enumerate(before)
        ]

    def end(self, step: Step) -> list[Request]:
        """Waits for a step; returns the requests of which results have new tokens or have ended.

        Sequences that have ended since the step began are left out.
        """
        before, changed = self.counts.generated, dict[str, Request]()
        for x, first in zip(step.scheduled, step.first):
            if not self.needs(step, x.sequence):
                continue
            owner = self.owners[x.sequence]
            self._note(x, owner)
            take = self._take if owner.request.pooling is None else self._take_hidden
            if take(x, first, owner, step):
                changed[owner.request.output.request_id] = owner.request
        self.guessing.end(step.scheduled, self.counts.generated - before)
        return list(changed.values())

    def _take(self, x: Scheduled, first: int, owner: Owner, step: Step) -> bool:
        """What the logits of a sequence's rows make of it. True if it has new tokens."""
        s, own, result = x.sequence, x.count - len(x.drafts), owner.result
        if s.params.prompt_logprobs is not None and s.computed < len(s.prompt):
            self._prompt_logprobs(x, step.computed.rows(first, x.count), owner.request)
            first += own - 1
        ends = x.reaches_end
        self.scheduler.computed(x, own)
        if not ends:
            return False
        right = 0
        for k in range(len(x.drafts) + 1):
            guess = step.guesses[s][k] if k < len(x.drafts) else None
            try:
                choice = self._choice(step, first + k, s, owner, guess)
            except LogitsError as error:
                result.fail(str(error))
                break
            result.add(choice)
            self.counts.generated += 1
            if result.output.finished or k >= len(x.drafts) or choice.token != x.drafts[k]:
                break
            right += 1
            self.scheduler.computed(x, 1)
        if x.drafts:
            self.guessing.gain.count(len(x.drafts), right)
        return True

    def _choice(self, step: Step, row: int, s: Sequence, owner: Owner, guess: Guess | None) -> Choice:
        """The next token of a sequence, which has all before it: the device's, or else one by the row's logits."""
        found = None if step.asked is None else step.asked.choice(row)
        if found is not None:
            self.counts.on_device += 1
            return found
        self.counts.on_host += 1
        logits, result = step.computed.rows(row, 1)[0], owner.result
        draw = None if guess is None or guess.tokens is None else guess.accepted_or_other
        forbidden = result.forbidden(len(s.output))
        return choose(logits, s.params, owner.seed, s.prompt, s.output, forbidden, result.allowed, draw)

    def _note(self, x: Scheduled, owner: Owner) -> None:
        """Counts, once for each sequence, what it found in the prefix cache."""
        s, request = x.sequence, owner.request
        if not s.noted:
            s.noted = True
            self.counts.cached += s.cached or 0
            if owner.result is request.results[0]:
                request.output.num_cached_tokens = s.cached or 0

    def _take_hidden(self, x: Scheduled, first: int, owner: Owner, step: Step) -> bool:
        """What the hidden states of a prompt's rows make of its vector. True if that is complete."""
        request, count = owner.request, len(wanted_rows(x))
        assert request.pooling is not None
        ends = x.reaches_end
        if count:
            request.pooling.add(x.sequence.computed, step.computed.hidden(first, count))
        self.scheduler.computed(x, x.count)
        if ends:
            vector = request.pooling.vector()
            if np.isfinite(vector).all():
                request.output.embedding = vector
                owner.result.end("stop", None)
            else:
                owner.result.fail("the hidden states are not finite")
        return ends

    def _prompt_logprobs(self, x: Scheduled, logits: np.ndarray, request: Request) -> None:
        s, wanted = x.sequence, request.output.prompt_logprobs
        assert wanted is not None
        assert s.params.prompt_logprobs is not None
        for k, row in enumerate(logits):
            place = s.computed + k + 1  # of the token that the row is about
            if place < len(s.prompt) and place == len(wanted):
                wanted.append(dict(most_likely(log_softmax(row), s.params.prompt_logprobs, s.prompt[place])))


def wanted_rows(x: Scheduled) -> range:
    """The tokens of a scheduled sequence whose logits are wanted, from its first scheduled token on."""
    s = x.sequence
    if s.params.wants_prompt and s.computed < len(s.prompt):
        return range(x.count)
    return range(x.count - len(x.drafts) - 1, x.count) if x.reaches_end else range(0)


def _run(x: Scheduled) -> Run:
    s = x.sequence
    tokens = [*s.tokens(s.computed, s.computed + x.count - len(x.drafts)), *x.drafts]
    return Run(tokens, s.computed, s.pages, wanted_rows(x), s.adapter)
