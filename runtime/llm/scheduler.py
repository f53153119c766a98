"""Which tokens the next step computes: continuous batching with chunked prompts and preemption by recomputing.

Each step first gives a token to every sequence that is past its prompt, then fills what is left with chunks of
prompts, and then admits sequences that wait (Yu et al., "Orca", 2022; Agrawal et al., "Sarathi-Serve", 2024). A
sequence that needs a page where none is left takes those of the last sequence in order, which waits again and computes
its tokens anew. One that waits takes the place of one of lower priority, if there is no other. So the first in order
always goes on, and no sequence waits for ever behind others of its priority.

A sequence with an adapter needs a place for that adapter too. Where others' adapters are in all of them, it waits until
one is free, and sequences without an adapter go on before it. Others with an adapter do not, even if theirs is in a
place: they could keep that place from it for ever.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from arcweld.compiler.errors import ArcweldError, UsageError
from arcweld.runtime.llm.adapters import AdapterPlaces, LoRARequest
from arcweld.runtime.llm.pages import PagePool
from arcweld.runtime.llm.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Scheduled:
    """The next ``count`` tokens of a sequence, of which the last ``drafts`` are guesses that follow its own."""

    sequence: Sequence
    count: int
    drafts: tuple[int, ...] = ()

    @property
    def reaches_end(self) -> bool:
        """Whether the logits of the sequence's last token are among the results."""
        return self.sequence.computed + self.count - len(self.drafts) == len(self.sequence)


class Scheduler:
    """Sequences that wait and that run.

    pool        where keys and values are
    sequences   the most that run together
    tokens      the most tokens of a step
    length      the most tokens of a sequence
    chunk       the most tokens of one prompt in a step; None: ``tokens``
    adapters    places of adapters; None: no sequence has one

    ``refused`` has sequences whose adapter could not be loaded when it was their turn, with the reason. They neither
    wait nor run, and whoever added them takes them from there and removes them.
    """

    def __init__(
        self, pool: PagePool, *, sequences: int, tokens: int, length: int, chunk: int | None = None,
        adapters: AdapterPlaces | None = None,
    ) -> None:  # fmt: skip
        if sequences < 1 or tokens < sequences:
            hint = "max_num_batched_tokens is at least max_num_seqs: every sequence gets a token in each step"
            raise UsageError(f"{tokens} tokens in a step of up to {sequences} sequences", hint=hint)
        if chunk is not None and chunk < 1:
            raise UsageError(f"chunks of {chunk} tokens")
        self.pool, self.sequences, self.tokens, self.length = pool, sequences, tokens, length
        self.adapters = adapters
        self.chunk = tokens if chunk is None else chunk
        self.waiting: list[tuple[tuple[int, int], Sequence]] = []  # a heap
        self.running: list[Sequence] = []  # in order
        self.refused: list[tuple[Sequence, ArcweldError]] = []
        self.preemptions = 0

    def __len__(self) -> int:
        """Sequences that have not ended."""
        return len(self.waiting) + len(self.running)

    def add(self, sequence: Sequence) -> None:
        """Lets a sequence wait. Raises UsageError for one that could never be computed, and what adapters raise."""
        count = len(sequence.prompt)
        if count == 0:
            raise UsageError("an empty prompt has no next token", hint="give at least one token")
        if count >= self.length:
            raise UsageError(
                f"the prompt has {count} tokens; at most {self.length - 1} leave room for one more",
                hint="shorten the prompt, or build with a greater max_model_len",
            )
        most = min(self.length, count + (sequence.params.max_tokens or self.length))
        if self.pool.pages_for(most) > self.pool.count:
            raise UsageError(
                f"{most} tokens need {self.pool.pages_for(most)} pages, there are {self.pool.count}",
                hint="lower max_tokens, or give more kv_cache_memory",
            )
        if sequence.lora is not None:
            self.places_for(sequence.lora).enter(sequence.lora)
        heapq.heappush(self.waiting, (sequence.order, sequence))

    def places_for(self, adapter: LoRARequest) -> AdapterPlaces:
        """The places of adapters. Raises UsageError if there are none."""
        if self.adapters is None:
            hint = "arcweld build-llm --max-loras makes room for adapters"
            raise UsageError(f"the engine has no room for the adapter {adapter.lora_name!r}", hint=hint)
        return self.adapters

    def remove(self, sequence: Sequence) -> None:
        """A sequence ends: its pages are others' from now on."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self._wait_no_more(sequence)
        self._give_up(sequence)
        if sequence.lora is not None:
            self.places_for(sequence.lora).leave(sequence.lora)

    def _wait_no_more(self, sequence: Sequence) -> None:
        if self.waiting and self.waiting[0][1] is sequence:
            heapq.heappop(self.waiting)
            return
        self.waiting = [entry for entry in self.waiting if entry[1] is not sequence]
        heapq.heapify(self.waiting)

    def _give_up(self, s: Sequence) -> None:
        """Gives back the pages and the place of a sequence that runs no more."""
        self.pool.release(s.pages)
        s.pages, s.computed, s.published = [], 0, 0
        if self.adapters is not None:
            self.adapters.release(s.adapter)
            s.adapter = 0

    def schedule(self, drafts: dict[Sequence, tuple[int, ...]] | None = None) -> list[Scheduled]:
        """The next step, which has a token at least unless nothing is left to do. Its pages are taken.

        ``drafts``: guesses of the tokens that follow those that a sequence has. They are computed where there is room.
        """
        self._make_way()
        found: list[Scheduled] = []
        left = self.tokens
        singles = [s for s in self.running if s.left == 1]
        chunks = [s for s in self.running if s.left > 1]
        reserved = len(singles)
        for s in singles:
            reserved -= 1
            if s not in self.running:  # it was preempted by one before it
                continue
            guesses = (drafts or {}).get(s, ())[: max(0, min(left - reserved - 1, self.length - len(s) - 1))]
            scheduled = self._scheduled(s, 1 + len(guesses), guesses, found)
            if scheduled is not None:
                left -= scheduled.count
        for s in chunks:
            if left and s in self.running:
                scheduled = self._scheduled(s, min(s.left, left, self.chunk), (), found)
                left -= scheduled.count if scheduled is not None else 0
        while left and len(self.running) < self.sequences:
            first = self._first_in_line()
            if first is None:
                break
            if not self._placed(first):
                continue
            scheduled = self._admitted(first, left)
            if scheduled is None:
                break
            found.append(scheduled)
            left -= scheduled.count
        return found

    def _scheduled(
        self, s: Sequence, count: int, drafts: tuple[int, ...], found: list[Scheduled]
    ) -> Scheduled | None:
        """The tokens of a running sequence with pages for them; None if it had to give its own up."""
        while not self._grow(s, count):
            if drafts:  # guesses take no one's pages
                count, drafts = count - len(drafts), ()
                continue
            victim = max(self.running, key=_order)
            found[:] = [f for f in found if f.sequence is not victim]
            self._preempt(victim)
            if victim is s:
                return None
        scheduled = Scheduled(s, count, drafts)
        found.append(scheduled)
        return scheduled

    def _grow(self, s: Sequence, count: int) -> bool:
        """Takes the pages that the next ``count`` tokens need. False, and nothing has changed, if there are too few."""
        more = self.pool.take(max(0, self.pool.pages_for(s.computed + count) - len(s.pages)))
        if more is None:
            return False
        s.pages += more
        return True

    def _preempt(self, s: Sequence) -> None:
        self.running.remove(s)
        self._give_up(s)
        s.preemptions += 1
        self.preemptions += 1
        heapq.heappush(self.waiting, (s.order, s))

    def _make_way(self) -> None:
        """Preempts sequences of lower priority than the first one that waits, until there is a place for it."""
        while self.waiting and self.running and (victims := self._in_the_way()):
            for s in victims:
                self._preempt(s)

    def _in_the_way(self) -> list[Sequence]:
        """Sequences that run and give up what the first one that waits lacks; none if it lacks nothing of theirs."""
        first = self.waiting[0][1]
        if not self._may_have_place(first):
            if users := self._users_of_a_place(first.priority):
                return users
            behind = self._first_in_line()
            if behind is None:
                return []
            first = behind
        last = max(self.running, key=_order)
        if first.priority >= last.priority or (len(self.running) < self.sequences and self._fits(first)):
            return []
        return [last]

    def _users_of_a_place(self, priority: int) -> list[Sequence]:
        """All users of a place for adapters, if they are of lower priority than this; of several places the last's."""
        places = {s.adapter: [r for r in self.running if r.adapter == s.adapter] for s in self.running if s.adapter}
        lower = [users for users in places.values() if min(users, key=_order).priority > priority]
        return max(lower, key=lambda users: min(map(_order, users)), default=[])

    def _may_have_place(self, s: Sequence) -> bool:
        return s.lora is None or self.places_for(s.lora).has_place(s.lora)

    def _first_in_line(self) -> Sequence | None:
        """Who is to run next: the first one that waits, or the first without an adapter while that has no place."""
        if not self.waiting or self._may_have_place(self.waiting[0][1]):
            return self.waiting[0][1] if self.waiting else None
        return min((s for _, s in self.waiting if s.lora is None), key=_order, default=None)

    def _placed(self, s: Sequence) -> bool:
        """Gives a sequence that waits a place for its adapter. False, and it is refused, if that cannot be loaded."""
        try:
            s.adapter = 0 if s.lora is None else self.places_for(s.lora).acquire(s.lora)
        except ArcweldError as error:
            self._wait_no_more(s)
            self.refused.append((s, error))
            return False
        return True

    def _salt(self, s: Sequence) -> bytes | None:
        """What keeps a sequence's prefixes apart from others'; None if there are none, as its adapter is not here."""
        own = b"" if s.lora is None else self.places_for(s.lora).salt(s.lora)
        return None if own is None else s.salt + own

    def _fits(self, s: Sequence) -> bool:
        """Whether all tokens of a sequence that waits have room, and one more page is left for each that runs.

        With less, one of them would soon be preempted.
        """
        salt = self._salt(s)
        known = [] if salt is None else self.pool.known(s.tokens(0, len(s)), salt)
        more = self.pool.pages_for(len(s)) - len(known)
        unused = sum(self.pool.is_unused(page) for page in known)
        return more + unused + len(self.running) <= self.pool.available

    def _admitted(self, s: Sequence, left: int) -> Scheduled | None:
        """The first chunk of a sequence that waits; None if there are no pages for it now."""
        if self.running and not self._fits(s):
            self._give_up(s)
            return None
        s.pages = self.pool.match(s.tokens(0, len(s)), self._salt(s) or b"")
        s.published = len(s.pages)
        s.computed = s.published * self.pool.page_size
        count = min(s.left, left, self.chunk)
        grown = self._grow(s, count)
        assert grown, "a sequence that fits has its pages"
        if s.cached is None:
            s.cached = s.computed
        self._wait_no_more(s)
        self.running.append(s)
        self.running.sort(key=_order)
        return Scheduled(s, count)

    def is_asked_for_others(self) -> bool:
        """Whether a sequence that waits could run now, in a free place or in that of one of lower priority."""
        if not self.waiting:
            return False
        last = max((r.priority for r in self.running), default=0)
        room = len(self.running) < self.sequences and self._first_in_line() is not None
        return room or self.waiting[0][1].priority < last

    def grow_behind(self, s: Sequence) -> bool:
        """Takes the page of the token behind the one that is being chosen, if it needs one. False if there is none."""
        return self._grow(s, len(s) + 1 - s.computed)

    def computed(self, scheduled: Scheduled, count: int) -> None:
        """``count`` of the scheduled tokens were computed and stay: full pages may now be found by others."""
        s = scheduled.sequence
        s.computed += count
        known = s.tokens(0, min(s.computed, len(s)))
        self.pool.publish(s.pages, known, s.published, self._salt(s) or b"")
        s.published = len(known) // self.pool.page_size


def _order(s: Sequence) -> tuple[int, int]:
    return s.order
