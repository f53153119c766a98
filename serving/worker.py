"""The thread that owns a ``Core``: requests of an event loop come in by a queue, what is new of them goes back.

The core changes its results in place, so what leaves the thread are copies of what is new.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from arcweld.compiler.errors import ArcweldError
from arcweld.runtime.llm.adapters import LoRARequest
from arcweld.runtime.llm.core import Core
from arcweld.runtime.llm.outputs import RequestOutput
from arcweld.runtime.llm.params import SamplingParams
from arcweld.runtime.llm.results import Result
from arcweld.runtime.llm.sampling import Logprob
from arcweld.serving.errors import LIMIT, SERVER, Refusal, refused
from arcweld.serving.metrics import Metrics
from arcweld.serving.settings import Limits

log = logging.getLogger("arcweld.serving")
T = TypeVar("T")
RETRY_AFTER = 1  # seconds
_LAST_STEP = 5.0  # seconds that the step in progress has when the server ends
DRAINING = "the server is shutting down"


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new of one result: text that nothing takes back, tokens, and how it ended if it did.

    prompt, index  whose result it is
    """

    prompt: int
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[Mapping[int, Logprob], ...]
    finish_reason: str | None
    stop_reason: int | str | None
    error: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A prompt's results are complete, and nothing changes them any more."""

    prompt: int
    output: RequestOutput


Event = Piece | Ended


@dataclass(slots=True, eq=False)
class Job:
    """A request of a client's: prompts that are computed with the same parameters.

    pieces    whether it wants news at each step; else it gets complete results alone
    arrived   by ``time.monotonic``
    deadline  the same, after which the request is given up
    accepted  done when the core has taken the prompts; fails if it refuses one
    adapter   what its tokens are computed with, beside the model
    salt      as ``Core.add`` takes it
    """

    prompts: Sequence[Sequence[int]]
    params: SamplingParams
    pieces: bool
    arrived: float
    deadline: float
    accepted: asyncio.Future[None]
    adapter: LoRARequest | None = None
    salt: bytes = b""
    events: asyncio.Queue[Event | Refusal] = field(default_factory=asyncio.Queue)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def sequences(self) -> int:
        """How many sequences it takes."""
        return len(self.prompts) * (self.params.best_of or self.params.n)


@dataclass(slots=True, eq=False)
class _Entry:
    """A prompt in the core, and what is told and measured of its results, by their place.

    admitted  whether a step has had a token of it
    shown     characters and tokens that are told
    ended     results whose end is told
    latest    how many tokens a result had when the last ones came, and when that was
    counted   results whose end is counted
    """

    job: Job
    prompt: int
    results: list[Result]
    admitted: bool = False
    shown: dict[int, tuple[int, int]] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    latest: dict[int, tuple[int, float]] = field(default_factory=dict)
    counted: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Command:
    """``add``, ``abort`` or ``stop``."""

    what: str
    job: Job | None = None


class Worker:
    """Runs ``core`` in a thread of its own for the requests of one event loop."""

    def __init__(self, core: Core, metrics: Metrics, limits: Limits) -> None:
        self.core, self.metrics, self.limits = core, metrics, limits
        self.draining = False
        self.active = 0  # sequences of requests that have not ended
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._entries: dict[str, _Entry] = {}
        self._began: float | None = None  # when the step in progress began; None: nothing is to do
        self._failed = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        metrics.watch(core)

    # ------------------------------------------------------------------------------------- in the event loop's thread

    def start(self) -> None:
        """Begins. Called in the event loop that requests come from."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="arcweld-steps", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Ends: requests that still run are told. Waits a little for the step in progress."""
        assert self._thread is not None
        self._commands.put(_Command("stop"))
        await asyncio.to_thread(self._thread.join, _LAST_STEP)
        if self._thread.is_alive():
            log.error("the step in progress did not end within %g s", _LAST_STEP)

    @property
    def complaint(self) -> str:
        """Why the model does not answer any more; empty if it does."""
        if self._failed:
            return self._failed
        began = self._began
        if self.core and began is not None and (spent := time.monotonic() - began) > self.limits.step:
            return f"a step has taken {spent:.0f} s, more than {self.limits.step:g} s"
        return ""

    @asynccontextmanager
    async def request(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, *, pieces: bool,
        adapter: LoRARequest | None = None, salt: bytes = b"",
    ) -> AsyncIterator[AsyncIterator[Event]]:  # fmt: skip
        """Gives what comes of prompts. Leaving early frees their pages before the next step.

        ``salt`` as in ``Core.add``. Raises Refusal where there is no room (429), while the server ends (503), and for
        what the core refuses (400).
        Waiting for events raises it when the time is over (408) and if the model fails (500).
        """
        assert self._loop is not None
        now = time.monotonic()
        future: asyncio.Future[None] = self._loop.create_future()
        job = Job(prompts, params, pieces, now, now + self.limits.seconds, future, adapter, salt)
        self._check_room(job.sequences)
        self.active += job.sequences
        try:
            self._commands.put(_Command("add", job))
            if self._failed:  # the thread may have ended before it saw the command
                raise self._failure()
            await self._in_time(job, job.accepted)
            yield self._events(job)
        finally:
            self.active -= job.sequences
            self._commands.put(_Command("abort", job))

    def _check_room(self, sequences: int) -> None:
        room = self.core.scheduler.sequences + self.limits.queue
        if self.draining:
            raise Refusal(503, DRAINING, kind=SERVER, reason="shutting_down", retry_after=RETRY_AFTER)
        if self._failed:
            raise self._failure()
        if sequences > room:
            raise Refusal(400, f"the request asks for {sequences} results; the server takes at most {room} at a time")
        if self.active + sequences > room:
            raise Refusal(
                429, f"{self.active} results are computed or wait, of at most {room}", kind=LIMIT, reason="queue_full",
                hint="try again later", retry_after=RETRY_AFTER,
            )  # fmt: skip

    def _failure(self) -> Refusal:
        return Refusal(500, f"the model failed: {self._failed}", kind=SERVER, reason="engine_failed")

    async def _in_time(self, job: Job, waiting: asyncio.Future[T]) -> T:
        try:
            return await asyncio.wait_for(waiting, job.deadline - time.monotonic())
        except TimeoutError:
            text = f"the request took more than {self.limits.seconds:g} s"
            raise Refusal(408, text, kind=SERVER, reason="request_timeout") from None

    async def _events(self, job: Job) -> AsyncIterator[Event]:
        left = len(job.prompts)
        while left:
            event = await self._in_time(job, asyncio.ensure_future(job.events.get()))
            if isinstance(event, Refusal):
                raise event
            left -= isinstance(event, Ended)
            yield event

    # --------------------------------------------------------------------------------------- in the thread of the core

    def _run(self) -> None:
        try:
            while self._obey():
                self._began = began = time.monotonic()
                self._publish(self.core.step(), began)
            self._end(Refusal(503, DRAINING, kind=SERVER, reason="shutting_down"))
        except Exception as error:  # a defect, or a device that is gone: nobody may wait for an answer for ever
            log.exception("the model failed")
            self._failed = str(error)
            self._end(self._failure())
        self._began = None

    def _obey(self) -> bool:
        """Carries out all commands; waits for one if there is nothing to compute. False: the thread ends."""
        while True:
            if not self.core:
                self._began = None
                command = self._commands.get()
            else:
                try:
                    command = self._commands.get_nowait()
                except queue.Empty:
                    return True
            if command.what == "stop":
                return False
            assert command.job is not None
            (self._add if command.what == "add" else self._abort)(command.job)

    def _add(self, job: Job) -> None:
        for number, prompt in enumerate(job.prompts):
            key = f"{job.id}-{number}"
            try:
                self.core.add(key, list(prompt), job.params, adapter=job.adapter, salt=job.salt)
            except ArcweldError as error:
                self._abort(job)
                self._tell([(job, refused(error), True)])
                return
            self._entries[key] = _Entry(job, number, self.core.requests[key].results)
        self._tell([(job, None, True)])

    def _abort(self, job: Job) -> None:
        """Ends what still runs of a job; of one that has ended nothing is left to do."""
        for number in range(len(job.prompts)):
            key = f"{job.id}-{number}"
            entry = self._entries.pop(key, None)
            if entry is not None:
                self.core.abort(key)
                self._count_ends(entry)

    def _end(self, refusal: Refusal) -> None:
        """Tells all jobs that nothing comes any more."""
        jobs = {id(e.job): e.job for e in self._entries.values()}
        while not self._commands.empty():
            command = self._commands.get()
            if command.what == "add" and command.job is not None:
                self._tell([(command.job, refusal, True)])
        for job in jobs.values():
            self._tell([(job, refusal, False)])
            if not self._failed:
                self._abort(job)

    def _publish(self, outputs: Sequence[RequestOutput], began: float) -> None:
        """What a step that began at ``began`` has brought."""
        now = time.monotonic()
        for entry in self._entries.values():
            if not entry.admitted and any(r.sequence.cached is not None for r in entry.results):
                entry.admitted = True
                self.metrics.queued.observe(began - entry.job.arrived)
        news: list[tuple[Job, Event | Refusal | None, bool]] = []
        for out in outputs:
            entry = self._entries[out.request_id]
            self._measure(entry, now)
            self._count_ends(entry)
            if entry.job.pieces:
                news += ((entry.job, piece, False) for piece in self._pieces(entry))
            if out.finished:
                del self._entries[out.request_id]
                self.metrics.whole.observe(now - entry.job.arrived)
                self.metrics.result_tokens.observe(sum(len(r.output.token_ids) for r in entry.results))
                news.append((entry.job, Ended(entry.prompt, out), False))
        self._tell(news)

    def _pieces(self, entry: _Entry) -> Iterator[Piece]:
        for place, result in enumerate(entry.results):
            out, text = result.output, result.settled
            characters, tokens = entry.shown.get(place, (0, 0))
            if place in entry.ended or (len(text) == characters and len(out.token_ids) == tokens and not out.finished):
                continue
            entry.shown[place] = len(text), len(out.token_ids)
            if out.finished:
                entry.ended.add(place)
            yield Piece(
                entry.prompt, place, text[characters:], tuple(out.token_ids[tokens:]),
                tuple((out.logprobs or ())[tokens:]), out.finish_reason, out.stop_reason, out.error,
            )  # fmt: skip

    def _measure(self, entry: _Entry, now: float) -> None:
        for place, result in enumerate(entry.results):
            count = len(result.output.token_ids)
            before, then = entry.latest.get(place, (0, 0.0))
            if count == before:
                continue
            if not entry.latest:
                self.metrics.first_token.observe(now - entry.job.arrived)
                self.metrics.prompt_tokens.observe(len(result.sequence.prompt))
                self.metrics.prompts.inc(len(result.sequence.prompt))
            if before == 0:
                self.metrics.looked_up.inc(len(result.sequence.prompt))
            else:
                for _ in range(count - before):
                    self.metrics.between_tokens.observe((now - then) / (count - before))
            entry.latest[place] = count, now

    def _count_ends(self, entry: _Entry) -> None:
        for place, result in enumerate(entry.results):
            reason = result.output.finish_reason
            if reason is not None and place not in entry.counted:
                entry.counted.add(place)
                self.metrics.ended(reason)

    def _tell(self, news: Sequence[tuple[Job, Event | Refusal | None, bool]]) -> None:
        """Hands news to the event loop: (job, what, whether it is the answer to the job's acceptance)."""
        if news:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(_deliver, list(news))


def _deliver(news: Sequence[tuple[Job, Event | Refusal | None, bool]]) -> None:
    for job, what, acceptance in news:
        if acceptance and not job.accepted.done():
            if isinstance(what, Refusal):
                job.accepted.set_exception(what)
            else:
                job.accepted.set_result(None)
        elif what is not None:
            job.events.put_nowait(what)
