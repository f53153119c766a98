"""The loop of a language model: requests come in, a step computes tokens of many of them, results come out.

One thread drives it. ``LLM`` runs it until all is done; a server calls ``step`` for ever.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from arcweld.compiler.errors import ArcweldError, UsageError
from arcweld.runtime.llm.adapters import AdapterPlaces, LoRARequest
from arcweld.runtime.llm.batch import Run, in_order_of_adapters
from arcweld.runtime.llm.grammar import Grammars
from arcweld.runtime.llm.guessing import Guessing
from arcweld.runtime.llm.outputs import RequestOutput
from arcweld.runtime.llm.pages import PagePool
from arcweld.runtime.llm.params import SamplingParams
from arcweld.runtime.llm.pooling import Pooling
from arcweld.runtime.llm.results import Result
from arcweld.runtime.llm.runner import Runner
from arcweld.runtime.llm.sampling import LogitsError, choose, log_softmax, most_likely
from arcweld.runtime.llm.scheduler import Scheduled, Scheduler
from arcweld.runtime.llm.sequence import Sequence
from arcweld.runtime.llm.speculation import Guess
from arcweld.runtime.llm.stats import Stats
from arcweld.runtime.llm.tokenizer import Tokenizer


@dataclass(slots=True, eq=False)
class Request:
    """A prompt with its results, several if ``n`` or ``best_of`` says so."""

    output: RequestOutput
    params: SamplingParams
    results: list[Result] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    pooling: Pooling | None = None


class Core:
    """A model that runs, its pages, and the requests on them.

    guessing  makes guesses of the next tokens; None: there are none
    """

    def __init__(
        self, runner: Runner, tokenizer: Tokenizer | None, *, sequences: int, tokens: int, chunk: int | None = None,
        caching: bool = True, guessing: Guessing | None = None,
    ) -> None:  # fmt: skip
        d = runner.description
        self.runner, self.tokenizer, self.description = runner, tokenizer, d
        self.pool = PagePool(runner.pages, d.page_size, caching)
        self.adapters = None if d.adapters is None else AdapterPlaces(runner.engine, d.adapters)
        self.scheduler = Scheduler(
            self.pool, sequences=sequences, tokens=tokens, length=d.length, chunk=chunk, adapters=self.adapters
        )
        self.requests: dict[str, Request] = {}
        self.guessing = guessing or Guessing(d.length)
        self.grammars = Grammars(tokenizer, d.vocabulary)
        self._owners: dict[Sequence, tuple[Request, Result, int]] = {}
        self._count = 0
        self._computed = self._generated = self._cached = 0

    # -------------------------------------------------------------------------------------------------- requests

    def add(
        self, request_id: str, prompt: list[int], params: SamplingParams, *, priority: int = 0,
        text: str | None = None, salt: bytes = b"", adapter: LoRARequest | None = None,
    ) -> None:  # fmt: skip
        """A new request. Raises UsageError for one that cannot be computed; then nothing has changed.

        priority  smaller comes first
        text      the prompt as text, for the result
        salt      keeps the prefix cache's pages apart from those of requests with another salt
        adapter   what its tokens are computed with, beside the model
        """
        if request_id in self.requests:
            raise UsageError(f"the request id {request_id!r} is taken")
        d, vocabulary = self.description, self.description.vocabulary
        used = [*prompt, *params.logit_bias, *params.stop_token_ids]
        if bad := [t for t in used if not 0 <= t < vocabulary]:
            raise UsageError(f"token {bad[0]} is not one of the model's {vocabulary}")
        if self.tokenizer is None and params.stop_strings:
            raise UsageError("stop strings need a tokenizer, and the engine has none", hint="use stop_token_ids")
        if params.pooling and not self.description.embeddings:
            raise UsageError("the engine gives no hidden states", hint="build it with --embeddings")
        request = Request(RequestOutput(request_id, text, list(prompt), []), params)
        request.pooling = Pooling(params.pooling) if params.pooling else None
        if params.prompt_logprobs is not None:
            request.output.prompt_logprobs = [None]
        if params.wants_prompt:
            salt = secrets.token_bytes(8)  # results of tokens in cached pages would be missing
        seed = secrets.randbits(63) if params.seed is None else params.seed
        added: list[Sequence] = []
        try:
            for index, constraint in enumerate(self.grammars.of_results(params)):
                s = Sequence(self._count, list(prompt), params, priority, salt, lora=adapter)
                self.scheduler.add(s)
                added.append(s)
                self._count += 1
                result = Result(s, index, self.tokenizer, d.end_tokens, d.length, constraint)
                request.results.append(result)
                request.seeds.append(hash_seed(seed, index))
                self._owners[s] = request, result, index
        except ArcweldError:
            for s in added:
                self._drop(s)
            raise
        request.output.outputs = [r.output for r in request.results]
        self.requests[request_id] = request

    def abort(self, request_id: str) -> RequestOutput | None:
        """Ends a request at once: its pages are free. Returns what there is of it; None for an unknown one."""
        request = self.requests.get(request_id)
        if request is None:
            return None
        for r in request.results:
            if not r.output.finished:
                r.end("abort", None)
                self._drop(r.sequence)
        return self._finish(request)

    def _drop(self, s: Sequence) -> None:
        self.scheduler.remove(s)
        self._owners.pop(s, None)
        self.guessing.keep(self.scheduler.running)

    def _finish(self, request: Request) -> RequestOutput:
        """Takes a request whose results are complete out of the list."""
        out, params = request.output, request.params
        del self.requests[out.request_id]
        if len(out.outputs) > params.n:
            best = sorted(out.outputs, key=lambda o: -o.cumulative_logprob / max(1, len(o.token_ids)))[: params.n]
            out.outputs = best
            for index, o in enumerate(best):
                o.index = index
        out.finished = True
        return out

    # ----------------------------------------------------------------------------------------------------- steps

    def __bool__(self) -> bool:
        """Whether anything is left to do."""
        return len(self.scheduler) > 0

    def step(self) -> list[RequestOutput]:
        """Computes a step; returns the requests that have new tokens or have ended."""
        before, guesses = self._generated, self.guessing.begin(self.scheduler.running, self._seed)
        scheduled = self.scheduler.schedule({s: self._owners[s][1].possible(g) for s, g in guesses.items()})
        changed = self._refused()
        if not scheduled:
            return [self._changed(request) for request in changed.values()]
        scheduled.sort(key=lambda x: in_order_of_adapters(x.sequence.adapter))
        logits = self.runner.logits([self._run(x) for x in scheduled])
        self._computed += sum(x.count for x in scheduled)
        row = 0
        for x in scheduled:
            request, result, index = self._owners[x.sequence]
            self._note(x, request, result)
            rows = slice(row, row + len(self._rows(x)))
            found = guesses.get(x.sequence, ())
            if (
                self._take(x, logits[rows], request, result, request.seeds[index], found)
                if request.pooling is None
                else self._take_hidden(x, rows, request, result)
            ):
                changed[request.output.request_id] = request
            row = rows.stop
        self.guessing.end(scheduled, self._generated - before)
        return [self._changed(request) for request in changed.values()]

    def _refused(self) -> dict[str, Request]:
        """Requests with results that could not begin, by id; these results have ended."""
        found: dict[str, Request] = {}
        while self.scheduler.refused:
            s, error = self.scheduler.refused.pop()
            request, result, _ = self._owners[s]
            result.fail(str(error))
            found[request.output.request_id] = request
        return found

    def _changed(self, request: Request) -> RequestOutput:
        for r in request.results:
            if r.output.finished and r.sequence in self._owners:
                self._drop(r.sequence)
        done = all(r.output.finished for r in request.results)
        return self._finish(request) if done else request.output

    def _seed(self, s: Sequence) -> int:
        request, _, index = self._owners[s]
        return request.seeds[index]

    def _rows(self, x: Scheduled) -> range:
        """The tokens of a scheduled sequence whose logits are wanted, from its first scheduled token on."""
        s = x.sequence
        if s.params.wants_prompt and s.computed < len(s.prompt):
            return range(x.count)
        return range(x.count - len(x.drafts) - 1, x.count) if x.reaches_end else range(0)

    def _run(self, x: Scheduled) -> Run:
        s = x.sequence
        tokens = [*s.tokens(s.computed, s.computed + x.count - len(x.drafts)), *x.drafts]
        return Run(tokens, s.computed, s.pages, self._rows(x), s.adapter)

    def _take(
        self, x: Scheduled, logits: np.ndarray, request: Request, result: Result, seed: int,
        guesses: tuple[Guess, ...],
    ) -> bool:  # fmt: skip
        """What the logits of a sequence's rows make of it. True if it has new tokens."""
        s, own = x.sequence, x.count - len(x.drafts)
        if s.params.prompt_logprobs is not None and s.computed < len(s.prompt):
            self._prompt_logprobs(x, logits, request)
            logits = logits[own - 1 :]
        ends = x.reaches_end
        self.scheduler.computed(x, own)
        if not ends:
            return False
        right = 0
        for k, row in enumerate(logits):
            drawn = guesses[k] if k < len(x.drafts) and guesses[k].tokens is not None else None
            draw = None if drawn is None else drawn.accepted_or_other
            try:
                choice = choose(row, s.params, seed, s.prompt, s.output, result.forbidden, result.allowed, draw)
            except LogitsError as error:
                result.fail(str(error))
                break
            result.add(choice)
            self._generated += 1
            if result.output.finished or k >= len(x.drafts) or choice.token != x.drafts[k]:
                break
            right += 1
            self.scheduler.computed(x, 1)
        if x.drafts:
            self.guessing.gain.count(len(x.drafts), right)
        return True

    def _note(self, x: Scheduled, request: Request, result: Result) -> None:
        """Counts, once for each sequence, what it found in the prefix cache."""
        s = x.sequence
        if not s.noted:
            s.noted = True
            self._cached += s.cached or 0
            if result is request.results[0]:
                request.output.num_cached_tokens = s.cached or 0

    def _take_hidden(self, x: Scheduled, rows: slice, request: Request, result: Result) -> bool:
        """What the hidden states of a prompt's rows make of its vector. True if that is complete."""
        assert request.pooling is not None
        hidden, ends = self.runner.hidden[rows], x.reaches_end
        if len(hidden):
            request.pooling.add(x.sequence.computed, hidden)
        self.scheduler.computed(x, x.count)
        if ends:
            vector = request.pooling.vector()
            if np.isfinite(vector).all():
                request.output.embedding = vector
                result.end("stop", None)
            else:
                result.fail("the hidden states are not finite")
        return ends

    def _prompt_logprobs(self, x: Scheduled, logits: np.ndarray, request: Request) -> None:
        s, wanted = x.sequence, request.output.prompt_logprobs
        assert wanted is not None
        assert s.params.prompt_logprobs is not None
        for k, row in enumerate(logits):
            place = s.computed + k + 1  # of the token that the row is about
            if place < len(s.prompt) and place == len(wanted):
                wanted.append(dict(most_likely(log_softmax(row), s.params.prompt_logprobs, s.prompt[place])))

    # --------------------------------------------------------------------------------------------------- running

    def run(self) -> Iterator[RequestOutput]:
        """Steps until nothing is left to do; yields each request that has ended."""
        while self:
            yield from (out for out in self.step() if out.finished)

    def stats(self) -> Stats:
        """Counts since the start."""
        return Stats(
            self.runner.steps, self._computed, self._generated, self._cached, self.scheduler.preemptions,
            self.guessing.gain.proposed, self.guessing.gain.accepted, self.pool.used, self.pool.cached, self.pool.count,
            len(self.scheduler.running), len(self.scheduler.waiting), self.runner.engine.loaded_late,
        )  # fmt: skip


def hash_seed(seed: int, index: int) -> int:
    """The seed of one of a request's results."""
    if index == 0:
        return seed
    return int(np.random.SeedSequence([seed & (1 << 64) - 1, index]).generate_state(1, np.uint64)[0])
