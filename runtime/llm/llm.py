"""``LLM``: a language model's engine with everything round it, behind the names that vLLM has."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from arcweld.compiler.errors import UsageError
from arcweld.runtime.device import Device
from arcweld.runtime.engine import Engine
from arcweld.runtime.engine_file import read_engine
from arcweld.runtime.llm.adapters import LoRARequest
from arcweld.runtime.llm.core import Core
from arcweld.runtime.llm.device_sampler import DeviceSampler, SamplerPlace, sampler_place
from arcweld.runtime.llm.draft_model import ModelDrafter, check_draft
from arcweld.runtime.llm.guessing import Guessing
from arcweld.runtime.llm.outputs import RequestOutput
from arcweld.runtime.llm.package import Description, Package, unpacked
from arcweld.runtime.llm.params import SamplingParams
from arcweld.runtime.llm.pooling import (
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringRequestOutput,
    check_pairs,
    scores,
    vector_of,
)
from arcweld.runtime.llm.runner import Runner
from arcweld.runtime.llm.sizes import at_most, bytes_with_draft, page_count
from arcweld.runtime.llm.speculation import Drafter, NgramDrafter, Speculation
from arcweld.runtime.llm.stats import Stats
from arcweld.runtime.llm.tokenizer import Tokenizer

Prompt = str | Sequence[int]
DEFAULT_SEQUENCES = 8


class LLM:
    """A language model that generates text.

        llm = LLM("smollm2.engine")
        for output in llm.generate(["The capital of France is"], SamplingParams(temperature=0)):
            print(output.outputs[0].text)

    An instance is for one thread.
    """

    def __init__(
        self, model: str | os.PathLike[str] | Package, *, max_model_len: int | None = None,
        max_num_seqs: int | None = None, max_num_batched_tokens: int | None = None,
        max_prefill_chunk: int | None = None, enable_prefix_caching: bool = True,
        kv_cache_memory: int | str | None = None, num_pages: int | None = None,
        speculative: int | Mapping[str, Any] = 0, kv_cache_dtype: str = "auto", batch_invariant: bool = False,
        embeddings: bool = False, sampler: SamplerPlace = "auto",
        async_scheduling: bool = True,
        device: Device | str | None = None, trusted: bool = False,
    ) -> None:  # fmt: skip
        """Opens a language model's engine file.

        max_model_len           the most tokens of a sequence; at most what the engine was built for
        max_num_seqs            the most sequences that run together
        max_num_batched_tokens  the most tokens of a step; at most what the engine was built for
        max_prefill_chunk       the most tokens of one prompt in a step; None: max_num_batched_tokens
        enable_prefix_caching   prompts that begin alike share what was computed of their beginning
        kv_cache_memory         bytes for keys and values, as a number or a text such as "512M"; None: room for
                                ``max_num_seqs`` sequences of full length, but at most 1 GiB, and at least for one
        num_pages               the same as a number of pages
        speculative             how tokens are guessed: the fields of ``Speculation`` as a mapping, or how many are
                                guessed in a step from a sequence's own text. A draft model's keys and values are in
                                ``kv_cache_memory`` too, and have room for as many tokens
        kv_cache_dtype          the type of keys and values that the engine must have; auto: any
        batch_invariant         the engine must be one whose logits' bits don't depend on what else is in a step
        embeddings              the engine must give hidden states, as ``embed`` needs
        sampler                 where tokens are chosen: ``device``, with what it does not decide on the host; ``host``;
                                ``auto``: on a device with memory of its own, else on the host
        async_scheduling        where the device chooses tokens, the next step begins before the last one's are read
        device, trusted         as in ``arcweld.load``

        Raises UsageError for settings that the engine does not allow, EngineFileError and UntrustedError as
        ``arcweld.load`` does, DeviceError where the device has not enough memory.
        """
        package = model if isinstance(model, Package) else unpacked(read_engine(model))
        d = package.description
        d.require(kv_cache_dtype, batch_invariant, embeddings)
        self.template = package.template
        length = at_most("max_model_len", max_model_len, d.length)
        tokens = at_most("max_num_batched_tokens", max_num_batched_tokens, d.tokens)
        sequences = min(DEFAULT_SEQUENCES, d.rows, tokens) if max_num_seqs is None else max_num_seqs
        if not 1 <= sequences <= min(d.rows, tokens):
            raise UsageError(f"max_num_seqs is {sequences}, not 1 to {min(d.rows, tokens)}")
        speculation = Speculation.of(speculative, tokens)
        d = package.description.limited(length)
        draft = _draft(speculation, d, sequences)
        pages = page_count(
            num_pages, kv_cache_memory, sequences, -(-length // d.page_size),
            bytes_with_draft(d, None if draft is None else draft.description),
        )  # fmt: skip
        engine = Engine(package.data, device, trusted=trusted)
        guessing = None
        if speculation is not None:
            drafter: Drafter = NgramDrafter(speculation)
            if draft is not None:
                positions, size = pages * d.page_size, draft.description.page_size
                engine_of_draft = Engine(draft.data, engine.device, trusted=trusted)
                runner = Runner(engine_of_draft, draft.description, positions // size)
                drafter = ModelDrafter(runner, enable_prefix_caching)
            guessing = Guessing(d.length, drafter, speculation.num_speculative_tokens, speculation.adaptive)
        runner = Runner(engine, d, pages)
        chooser = None
        if _on_device(sampler, engine.device):
            chooser = DeviceSampler(
                Engine(package.sampler, engine.device, trusted=trusted), d.vocabulary, runner.transfers
            )
        self.core = Core(
            runner, package.tokenizer, sequences=sequences, tokens=tokens,
            chunk=max_prefill_chunk, caching=enable_prefix_caching, guessing=guessing, sampler=chooser,
            ahead=async_scheduling,
        )  # fmt: skip
        self._numbers = itertools.count()

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises UsageError if it has none."""
        if self.core.tokenizer is None:
            raise UsageError("the engine has no tokenizer", hint="give prompts as token ids")
        return self.core.tokenizer

    def generate(
        self, prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None, *, priority: int | Sequence[int] = 0,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
    ) -> list[RequestOutput]:  # fmt: skip
        """The results of prompts, texts or lists of token ids, in their order.

        ``sampling_params``, ``priority`` and ``lora_request`` are for all of them or one for each. Raises UsageError
        for a prompt that cannot be computed; then none is.
        """
        given = _prompts(prompts)
        params = _one_each("sampling_params", SamplingParams() if sampling_params is None else sampling_params, given)
        adapters = _one_each("lora_request", lora_request, given)
        ids = self._add(given, params, _one_each("priority", priority, given), adapters)
        done = {out.request_id: out for out in self.core.run()}
        return [done[i] for i in ids]

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, *, lora_request: LoRARequest | None = None
    ) -> Iterator[RequestOutput]:  # fmt: skip
        """The same result again and again as it grows; the last time it is finished."""
        (request,) = self._add(_prompts(prompt), [sampling_params or SamplingParams()], [0], [lora_request])
        try:
            while self.core:
                yield from (out for out in self.core.step() if out.request_id == request)
        finally:
            self.core.abort(request)

    def add_lora(self, lora_request: LoRARequest) -> None:
        """Loads an adapter now, and not with the first request that names it; another one may take its place later."""
        self.core.scheduler.places_for(lora_request).add(lora_request)

    def settled(self, request_id: str) -> str:
        """The text of a running request's first result that nothing takes back; without what may be a stop string."""
        return self.core.requests[request_id].results[0].settled

    def chat(
        self, messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None, *, add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
    ) -> list[RequestOutput]:  # fmt: skip
        """The answers of one conversation or of several, by the model's chat template."""
        several: Any = [messages] if messages and isinstance(messages[0], Mapping) else messages
        prompts = [self.chat_prompt(m, add_generation_prompt=add_generation_prompt, tools=tools) for m in several]
        return self.generate(prompts, sampling_params, lora_request=lora_request)

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """The tokens of a conversation, by ``ChatTemplate.render``. Raises UsageError if the model has no template."""
        if self.template is None:
            raise UsageError("the model has no chat template", hint="use generate with a prompt of its form")
        return self.tokenizer.encode(self.template.render(messages, **options), add_special_tokens=False)

    def encode(
        self, prompts: Prompt | Sequence[Prompt], *, pooling: Literal["last", "mean"] = "last", normalize: bool = False
    ) -> list[PoolingRequestOutput]:  # fmt: skip
        """The hidden states that logits would be made of, as one vector for each prompt: ``outputs.data``.

        pooling    the ``last`` token's, or the ``mean`` of all tokens'
        normalize  the vector gets the length 1

        Raises UsageError for an engine that was not built with embeddings, and as ``generate`` does.
        """
        found = self.generate(prompts, SamplingParams(max_tokens=1, pooling=pooling))
        return [
            PoolingRequestOutput(
                o.request_id, PoolingOutput(vector_of(o, normalize)), o.prompt_token_ids, o.num_cached_tokens
            )
            for o in found
        ]

    def embed(
        self, prompts: Prompt | Sequence[Prompt], *, pooling: Literal["last", "mean"] = "last", normalize: bool = True
    ) -> list[EmbeddingRequestOutput]:  # fmt: skip
        """As ``encode``; the vectors are lists of numbers, ``outputs.embedding``, and have the length 1."""
        return [
            EmbeddingRequestOutput(
                o.request_id, EmbeddingOutput(o.outputs.data.tolist()), o.prompt_token_ids, o.num_cached_tokens
            )
            for o in self.encode(prompts, pooling=pooling, normalize=normalize)
        ]

    def score(
        self, data_1: Prompt | Sequence[Prompt], data_2: Prompt | Sequence[Prompt], *,
        pooling: Literal["last", "mean"] = "last",
    ) -> list[ScoringRequestOutput]:  # fmt: skip
        """How alike texts are: the cosine of their embeddings, ``outputs.score``, of pairs or of one with several.

        Raises UsageError for other numbers of texts, and as ``encode`` does.
        """
        left, right = _prompts(data_1), _prompts(data_2)
        check_pairs(len(left), len(right))
        found = self.embed([*left, *right], pooling=pooling)
        return scores(found[: len(left)], found[len(left) :])

    def prompt_logprobs(self, prompts: Prompt | Sequence[Prompt]) -> list[list[float]]:
        """For each prompt the log probabilities of its tokens but the first, each given those before it."""
        found = self.generate(prompts, SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0))
        return [
            [entry[t].logprob for t, entry in zip(out.prompt_token_ids[1:], (out.prompt_logprobs or [])[1:]) if entry]
            for out in found
        ]

    def stats(self) -> Stats:
        """Counts since the start."""
        return self.core.stats()

    def _add(
        self, prompts: Sequence[Prompt], params: Sequence[SamplingParams], priority: Sequence[int],
        adapters: Sequence[LoRARequest | None],
    ) -> list[str]:  # fmt: skip
        ids: list[str] = []
        try:
            for prompt, p, first, adapter in zip(prompts, params, priority, adapters):
                text = prompt if isinstance(prompt, str) else None
                tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(t) for t in prompt]
                request = str(next(self._numbers))
                self.core.add(request, tokens, p, priority=first, text=text, adapter=adapter)
                ids.append(request)
        except BaseException:
            for i in ids:
                self.core.abort(i)
            raise
        return ids


def _on_device(sampler: str, device: Device) -> bool:
    """Whether the device chooses tokens."""
    place = sampler_place(sampler)
    return place == "device" or (place == "auto" and device.gpu_index is not None)


def _draft(speculation: Speculation | None, model: Description, sequences: int) -> Package | None:
    """The draft model; None if there is none."""
    if speculation is None or speculation.model is None:
        return None
    given = speculation.model
    draft = given if isinstance(given, Package) else unpacked(read_engine(given))
    check_draft(draft.description, model, sequences)
    return draft


def _prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _one_each(name: str, given: Any, prompts: Sequence[Prompt]) -> list[Any]:
    if not isinstance(given, Sequence):
        return [given] * len(prompts)
    if len(given) != len(prompts):
        raise UsageError(f"{len(given)} {name} for {len(prompts)} prompts")
    return list(given)
