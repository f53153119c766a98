"""Which tokens the next step computes: continuous batching with chunked prompts and preemption by recomputing.

Each step first gives a token to every sequence that is past its prompt, then fills what is left with chunks of
prompts, and then admits sequences that wait (Yu et al., "Orca", 2022; Agrawal et al., "Sarathi-Serve", 2024). A
sequence that needs a page where none is left takes those of the last sequence in order, which waits again and computes
its tokens anew. One that waits takes the place of one of lower priority, if there is no other. So the first in order
always goes on, and no sequence waits for ever behind others of its priority.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from arcweld.compiler.errors import UsageError
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
    """

    def __init__(
        self, pool: PagePool, *, sequences: int, tokens: int, length: int, chunk: int | None = None
    ) -> None:
        if sequences < 1 or tokens < sequences:
            hint = "max_num_batched_tokens is at least max_num_seqs: every sequence gets a token in each step"
            raise UsageError(f"{tokens} tokens in a step of up to {sequences} sequences", hint=hint)
        if chunk is not None and chunk < 1:
            raise UsageError(f"chunks of {chunk} tokens")
        self.pool, self.sequences, self.tokens, self.length = pool, sequences, tokens, length
        self.chunk = tokens if chunk is None else chunk
        self.waiting: list[tuple[tuple[int, int], Sequence]] = []  # a heap
        self.running: list[Sequence] = []  # in order
        self.preemptions = 0

    def __len__(self) -> int:
        """Sequences that have not ended."""
        return len(self.waiting) + len(self.running)

    def add(self, sequence: Sequence) -> None:
        """Lets a sequence wait. Raises UsageError for one that could never be computed."""
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
        heapq.heappush(self.waiting, (sequence.order, sequence))

    def remove(self, sequence: Sequence) -> None:
        """A sequence ends: its pages are others' from now on."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting = [entry for entry in self.waiting if entry[1] is not sequence]
            heapq.heapify(self.waiting)
        self.pool.release(sequence.pages)
        sequence.pages = []

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
        while left and self.waiting and len(self.running) < self.sequences:
            scheduled = self._admitted(self.waiting[0][1], left)
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
            victim = max(self.running, key=lambda r: r.order)
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
        self.pool.release(s.pages)
        s.pages, s.computed, s.published = [], 0, 0
        s.preemptions += 1
        self.preemptions += 1
        heapq.heappush(self.waiting, (s.order, s))

    def _make_way(self) -> None:
        """Preempts sequences of lower priority than the first one that waits, until there is a place for it."""
        while self.waiting and self.running:
            first, last = self.waiting[0][1], max(self.running, key=lambda r: r.order)
            if first.priority >= last.priority or (len(self.running) < self.sequences and self._fits(first)):
                return
            self._preempt(last)

    def _fits(self, s: Sequence) -> bool:
        """Whether all tokens of a sequence that waits have room, and one more page is left for each that runs.

        With less, one of them would soon be preempted.
        """
        known = self.pool.known(s.tokens(0, len(s)), s.salt)
        more = self.pool.pages_for(len(s)) - len(known)
        unused = sum(self.pool.is_unused(page) for page in known)
        return more + unused + len(self.running) <= self.pool.available

    def _admitted(self, s: Sequence, left: int) -> Scheduled | None:
        """The first chunk of the first sequence that waits; None if there are no pages for it now."""
        if self.running and not self._fits(s):
            return None
        s.pages = self.pool.match(s.tokens(0, len(s)), s.salt)
        s.published = len(s.pages)
        s.computed = s.published * self.pool.page_size
        count = min(s.left, left, self.chunk)
        grown = self._grow(s, count)
        assert grown, "a sequence that fits has its pages"
        if s.cached is None:
            s.cached = s.computed
        heapq.heappop(self.waiting)
        self.running.append(s)
        self.running.sort(key=lambda r: r.order)
        return Scheduled(s, count)

    def computed(self, scheduled: Scheduled, count: int) -> None:
        """``count`` of the scheduled tokens were computed and stay: full pages may now be found by others."""
        s = scheduled.sequence
        s.computed += count
        known = s.tokens(0, min(s.computed, len(s)))
        self.pool.publish(s.pages, known, s.published, s.salt)
        s.published = len(known) // self.pool.page_size
