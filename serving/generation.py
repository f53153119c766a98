"""From a request to its answer: prompts to tokens, tokens to the worker, results to the form of the endpoint."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from arcweld.runtime.llm.adapters import LoRARequest
from arcweld.runtime.llm.llm import LLM
from arcweld.runtime.llm.outputs import RequestOutput
from arcweld.runtime.llm.params import SamplingParams, StructuredOutputsParams
from arcweld.runtime.llm.tokenizer import Tokenizer
from arcweld.serving.answers import ChatForm, CompletionForm, Envelope, usage, usage_of
from arcweld.serving.errors import SERVER, Refusal
from arcweld.serving.messages import Message, Tool, plain_messages
from arcweld.serving.protocol import ChatRequest, CompletionRequest
from arcweld.serving.settings import Settings
from arcweld.serving.structure import Offer, offered, structured_form
from arcweld.serving.tool_calls.forms import FORMS, form_of
from arcweld.serving.worker import Ended, Event, Piece, Worker

log = logging.getLogger("arcweld.serving")


@dataclass(frozen=True, slots=True)
class Plan:
    """A request that is understood.

    prompts   their tokens
    openings  what each result of a stream begins with; None: nothing
    counted   whether the results' tokens count; those of a request that wants its prompts alone do not
    usage     whether a stream tells the tokens
    adapter   that the request names as its model
    salt      the prefix cache's pages are shared among requests with the same one
    """

    prompts: Sequence[Sequence[int]]
    params: SamplingParams
    envelope: Envelope
    openings: Sequence[str] | None = None
    counted: bool = True
    usage: bool = False
    identifier: str = ""
    adapter: LoRARequest | None = None
    arrived: float = field(default_factory=time.monotonic)
    salt: bytes = b""


class Generator:
    """Answers requests by the worker of ``llm``."""

    def __init__(self, llm: LLM, worker: Worker, settings: Settings) -> None:
        self.llm, self.worker, self.settings = llm, worker, settings
        self._compiling = asyncio.Lock()  # one thread at most, so that others have threads for their texts

    # ------------------------------------------------------------------------------------------------------- prompts

    @property
    def length(self) -> int:
        """The most tokens of a sequence."""
        return self.llm.core.description.length

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, if it has one."""
        return self.llm.core.tokenizer

    def check_model(self, name: str | None) -> None:
        """Raises Refusal for a name that is neither the model's nor an adapter's; None is the model."""
        if name not in (None, *self.settings.names):
            known = " and ".join(map(repr, self.settings.names))
            raise Refusal(
                404, f"there is no model {name!r}; the server has {known}", reason="model_not_found", param="model"
            )  # fmt: skip

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text. Raises Refusal for one that is no Unicode text."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"the text is no Unicode: {error.reason} at {error.start}"
            raise Refusal(400, message, reason="not_unicode") from None
        return await asyncio.to_thread(self.llm.tokenizer.encode, text, add_special_tokens)

    async def conversation(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, tools: Sequence[Tool] = ()
    ) -> list[int]:
        """The tokens of a conversation, by the model's chat template. Raises Refusal."""
        template = self.llm.template
        if template is None:
            raise Refusal(400, "the model has no chat template", hint="use /v1/completions with a prompt of its form")
        shown = [t.model_dump(exclude_none=True) for t in tools]
        text = await asyncio.to_thread(
            template.render, plain_messages(messages, template.joins_arguments(bool(shown))),
            add_generation_prompt=add_generation_prompt, tools=shown or None,
        )  # fmt: skip
        return await self.encode(text, add_special_tokens=False)

    def check_length(self, prompt: Sequence[int], param: str) -> None:
        """Raises Refusal for a prompt that is too long, which is in the field ``param``."""
        most = min(self.length - 1, self.settings.limits.prompt or self.length)
        if len(prompt) > most:
            raise Refusal(
                400, f"the prompt has {len(prompt)} tokens; at most {most} are allowed", param=param,
                reason="context_length_exceeded",
            )  # fmt: skip

    def _check_tokens(self, prompt: Sequence[int]) -> None:
        vocabulary = self.worker.core.description.vocabulary
        if bad := [t for t in prompt if not 0 <= t < vocabulary]:
            raise Refusal(400, f"token {bad[0]} is not one of the model's {vocabulary}", param="prompt")

    def _room(self, prompt: Sequence[int]) -> int:
        """The most tokens that may follow a prompt: what the length and the pages allow."""
        pool = self.worker.core.pool
        return max(1, min(self.length, pool.count * pool.page_size) - len(prompt))

    # --------------------------------------------------------------------------------------------------------- plans

    async def completion(self, body: CompletionRequest) -> Plan:
        """What a request of ``/v1/completions`` asks for."""
        self.check_model(body.model)
        body.check()
        structured = None if body.structured_outputs is None else body.structured_outputs.params()
        await self.compile_form(structured)
        prompts = [p if isinstance(p, list) else await self.encode(p) for p in body.prompts]
        for p in prompts:
            self.check_length(p, "prompt")
            self._check_tokens(p)
        bare = body.max_tokens == 0
        most = max(1, body.max_tokens) if body.max_tokens is not None else min(map(self._room, prompts))
        echo = [self._text(given, p) for given, p in zip(body.prompts, prompts)] if body.echo else None
        if body.stream and echo is not None and (bare or body.logprobs is not None):
            raise Refusal(400, "echo with logprobs or without results cannot be streamed", param="stream")
        params = body.sampling(
            max_tokens=most, logprobs=body.logprobs, best_of=body.best_of,
            prompt_logprobs=body.logprobs if body.echo else None, structured_outputs=structured,
        )  # fmt: skip
        identifier = f"cmpl-{uuid.uuid4().hex}"
        form = CompletionForm(self.tokenizer, body.logprobs, echo, bare)
        return Plan(
            prompts, params, Envelope(form, identifier, body.model), echo, not bare, body.with_usage, identifier,
            self.settings.adapters.get(body.model),
        )  # fmt: skip

    def _text(self, given: str | list[int], tokens: Sequence[int]) -> str:
        if isinstance(given, str):
            return given
        return "" if self.tokenizer is None else self.tokenizer.decode(tokens, skip_special_tokens=False)

    def _offer(self, body: ChatRequest) -> Offer | None:
        if not body.tools or body.tool_choice == "none":
            return None
        template = self.llm.template
        form = self.settings.calls or (None if template is None else form_of(template.tool_text))
        if form is None:
            raise Refusal(
                400, "the model's chat template has no form of tool calls that is known here", param="tools",
                hint=f"the server's option --tool-call-parser names one: {', '.join(FORMS)}",
            )  # fmt: skip
        return offered(body, form, self.llm.tokenizer)

    async def compile_form(self, form: StructuredOutputsParams | None) -> None:
        """Compiles the form of answers before a step needs it, one after another. Raises UsageError."""
        if form is not None:
            async with self._compiling:
                await asyncio.to_thread(self.worker.core.grammars.start, form)

    async def chat(self, body: ChatRequest) -> Plan:
        """What a request of ``/v1/chat/completions`` asks for."""
        self.check_model(body.model)
        body.check()
        offer = self._offer(body)
        structured = structured_form(body, offer)
        await self.compile_form(structured)
        prompt = await self.conversation(body.messages, tools=() if offer is None else offer.shown)
        self.check_length(prompt, "messages")
        params = body.sampling(
            max_tokens=body.most_tokens or self._room(prompt), logprobs=body.wanted_logprobs,
            structured_outputs=structured,
        )  # fmt: skip
        if offer is not None and offer.has_special_tags:
            params = dataclasses.replace(params, skip_special_tokens=False)
        identifier = f"chatcmpl-{uuid.uuid4().hex}"
        form = ChatForm(self.llm.tokenizer, body.wanted_logprobs, None if offer is None else offer.reader)
        return Plan(
            [prompt], params, Envelope(form, identifier, body.model), [""], True, body.with_usage, identifier,
            self.settings.adapters.get(body.model),
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------------- answers

    def _request(self, plan: Plan, *, pieces: bool) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        return self.worker.request(plan.prompts, plan.params, pieces=pieces, adapter=plan.adapter, salt=plan.salt)

    async def whole(self, plan: Plan) -> dict[str, Any]:
        """The complete answer. Raises Refusal."""
        found: dict[int, RequestOutput] = {}
        async with self._request(plan, pieces=False) as events:
            async for event in events:
                assert isinstance(event, Ended)
                found[event.prompt] = event.output
        outputs = [found[k] for k in sorted(found)]
        for out in outputs:
            for r in out.outputs:
                _check(r.finish_reason, r.error)
        choices = [
            plan.envelope.form.choice(number * plan.params.n + r.index, number, out, r)
            for number, out in enumerate(outputs)
            for r in out.outputs
        ]
        counts = usage_of(outputs)
        if not plan.counted:
            counts = usage(counts["prompt_tokens"], counts["prompt_tokens_details"]["cached_tokens"], 0)
        _note(plan, counts)
        return plan.envelope.whole(choices, counts)

    async def chunks(self, plan: Plan) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a stream. Raises Refusal."""
        form, n = plan.envelope.form, plan.params.n
        more: Mapping[str, Any] = {"usage": None} if plan.usage else {}
        outputs: list[RequestOutput] = []
        async with self._request(plan, pieces=True) as events:
            places = [(number, number * n + k) for number in range(len(plan.prompts)) for k in range(n)]
            for number, index in places:
                text = "" if plan.openings is None else plan.openings[number]
                yield plan.envelope.chunk([form.opening(index, text)], **more)
            async for event in events:
                if isinstance(event, Piece):
                    _check(event.finish_reason, event.error)
                    choice = form.delta(event.prompt * n + event.index, event)
                    if event.logprobs or event.finish_reason or choice.get("delta", event.text):
                        yield plan.envelope.chunk([choice], **more)
                else:
                    outputs.append(event.output)
        counts = usage_of(outputs)
        _note(plan, counts)
        if plan.usage:
            yield plan.envelope.chunk([], usage=counts)


def _check(reason: str | None, error: str) -> None:
    if reason == "error":
        raise Refusal(500, f"the request failed: {error}", kind=SERVER, reason="generation_failed")


def _note(plan: Plan, counts: Mapping[str, Any]) -> None:
    log.info(
        "request ended",
        extra={"fields": {
            "request": plan.identifier, "prompt_tokens": counts["prompt_tokens"],
            "completion_tokens": counts["completion_tokens"], "seconds": round(time.monotonic() - plan.arrived, 4),
        }},
    )  # fmt: skip
