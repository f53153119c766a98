"""The loop of a language model: requests come in, a step computes tokens of many of them, results come out.

One thread drives it. ``LLM`` runs it until all is done; a server calls ``step`` for ever.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

from arcweld.compiler.errors import ArcweldError, UsageError
from arcweld.runtime.llm.adapters import AdapterPlaces, LoRARequest
from arcweld.runtime.llm.device_sampler import DeviceSampler
from arcweld.runtime.llm.grammar import Grammars
from arcweld.runtime.llm.guessing import Guessing
from arcweld.runtime.llm.outputs import RequestOutput
from arcweld.runtime.llm.pages import PagePool
from arcweld.runtime.llm.params import SamplingParams
from arcweld.runtime.llm.pipeline import Pipeline
from arcweld.runtime.llm.pooling import Pooling
from arcweld.runtime.llm.request import Owner, Request, hash_seed
from arcweld.runtime.llm.results import Result
from arcweld.runtime.llm.runner import Runner
from arcweld.runtime.llm.scheduler import Scheduler
from arcweld.runtime.llm.sequence import Sequence
from arcweld.runtime.llm.stats import Stats
from arcweld.runtime.llm.steps import Steps
from arcweld.runtime.llm.tokenizer import Tokenizer


class Core:
    """A model that runs, its pages, and the requests on them.

    guessing  makes guesses of the next tokens; None: there are none
    sampler   chooses tokens on the device; None: they are chosen on the host
    ahead     steps begin before the tokens of the last one are read (``pipeline.py``), where the device chooses them
    """

    def __init__(
        self, runner: Runner, tokenizer: Tokenizer | None, *, sequences: int, tokens: int, chunk: int | None = None,
        caching: bool = True, guessing: Guessing | None = None, sampler: DeviceSampler | None = None,
        ahead: bool = False,
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
        self._owners: dict[Sequence, Owner] = {}
        self.steps = Steps(runner, self.scheduler, self.guessing, self._owners, sampler)
        self.pipeline = Pipeline(self.steps, ahead)
        self.grammars = Grammars(tokenizer, d.vocabulary)
        self._count = 0

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
                self._owners[s] = Owner(request, result, request.seeds[index])
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
        changed = {r.output.request_id: r for r in self.pipeline.step()} | self._refused()
        return [self._changed(request) for request in changed.values()]

    def _refused(self) -> dict[str, Request]:
        """Requests with results that could not begin, by id; these results have ended."""
        found: dict[str, Request] = {}
        while self.scheduler.refused:
            s, error = self.scheduler.refused.pop()
            owner = self._owners[s]
            owner.result.fail(str(error))
            found[owner.request.output.request_id] = owner.request
        return found

    def _changed(self, request: Request) -> RequestOutput:
        for r in request.results:
            if r.output.finished and r.sequence in self._owners:
                self._drop(r.sequence)
        done = all(r.output.finished for r in request.results)
        return self._finish(request) if done else request.output

    # --------------------------------------------------------------------------------------------------- running

    def run(self) -> Iterator[RequestOutput]:
        """Steps until nothing is left to do; yields each request that has ended."""
        while self:
            yield from (out for out in self.step() if out.finished)

    def stats(self) -> Stats:
        """Counts since the start."""
        counts, gain, pool = self.steps.counts, self.guessing.gain, self.pool
        return Stats(
            self.runner.steps, counts.computed, counts.generated, counts.cached, self.scheduler.preemptions,
            gain.proposed, gain.accepted, pool.used, pool.cached, pool.count, len(self.scheduler.running),
            len(self.scheduler.waiting), self.runner.engine.loaded_late, counts.on_device, counts.on_host,
            self.runner.transfers.bytes_read, self.pipeline.ahead,
        )  # fmt: skip
