"""Requests of the API as clients write them, and what they mean as ``SamplingParams``.

Fields and their meaning are those of OpenAI's reference of ``/v1/completions`` and ``/v1/chat/completions``, with
vLLM's additions to sampling. A field that is not listed here is refused, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from arcweld.runtime.llm.params import SamplingParams, StructuredOutputsParams
from arcweld.serving.errors import Refusal
from arcweld.serving.messages import (
    MOST_TOOLS,
    Body,
    Message,
    NamedTool,
    ResponseFormat,
    TextFormat,
    Tool,
    ToolChoice,
)  # fmt: skip

MOST_LOGPROBS = 20
MOST_STOPS = 16

Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(Body):
    """``include_usage``: the last chunk of a stream tells the tokens."""

    include_usage: bool = False


class StructuredOutputs(Body):
    """The form of answers: one of these fields, which mean what they do in ``StructuredOutputsParams``."""

    json_: Annotated[str | dict[str, Any] | None, Field(alias="json")] = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False

    def params(self) -> StructuredOutputsParams:
        """The same for the runtime. Raises UsageError for none of the forms or several."""
        return StructuredOutputsParams(
            json=self.json_, regex=self.regex, choice=self.choice, grammar=self.grammar,
            json_object=bool(self.json_object), disable_any_whitespace=self.disable_any_whitespace,
        )  # fmt: skip


class Generation(Body):
    """What both kinds of requests have. ``user`` and what follows it in the list has no effect here by its meaning."""

    model: str
    n: Annotated[int, Field(ge=1)] | None = 1
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 1.0
    top_k: Annotated[int, Field(ge=-1)] | None = 0
    min_p: Probability | None = 0.0
    presence_penalty: Penalty | None = 0.0
    frequency_penalty: Penalty | None = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = 1.0
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: Annotated[int, Field(ge=0)] = 0
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputs | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None

    @property
    def results(self) -> int:
        """How many results each prompt has."""
        return self.n or 1

    @property
    def with_usage(self) -> bool:
        """Whether a stream tells the tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def check_stream(self) -> None:
        """Raises Refusal for options of a stream without a stream."""
        if self.stream_options is not None and not self.stream:
            raise Refusal(400, "stream_options are for stream=true", param="stream_options")

    def sampling(self, *, max_tokens: int, logprobs: int | None, **more: Any) -> SamplingParams:
        """How tokens are chosen. Raises UsageError for settings that contradict each other."""
        given: dict[str, Any] = {
            "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p,
            "presence_penalty": self.presence_penalty, "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty, "logit_bias": self.logit_bias, "stop": self.stop,
            "stop_token_ids": self.stop_token_ids,
        }  # fmt: skip
        return SamplingParams(
            n=self.results, max_tokens=max_tokens, logprobs=logprobs, min_tokens=self.min_tokens,
            seed=None if self.seed is None else self.seed % 2**64, ignore_eos=self.ignore_eos,
            include_stop_str_in_output=self.include_stop_str_in_output, skip_special_tokens=self.skip_special_tokens,
            **{k: v for k, v in given.items() if v is not None}, **more,
        )  # fmt: skip


class CompletionRequest(Generation):
    """The body of ``/v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    best_of: Annotated[int, Field(ge=1)] | None = None
    echo: bool | None = False
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    suffix: str | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, texts or tokens. Raises Refusal for none."""
        given: Any = self.prompt
        alone = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
        if not given:
            raise Refusal(400, "the prompt is empty", param="prompt")
        return [given] if alone else list(given)

    def check(self) -> None:
        """Raises Refusal for what is not served and for what contradicts itself."""
        self.check_stream()
        if self.suffix:
            raise Refusal(400, "suffix is not served: the model only continues a text", param="suffix")
        if self.max_tokens == 0 and not self.echo:
            raise Refusal(400, "max_tokens is 0, which is for echo=true", param="max_tokens")
        if self.stream and (self.best_of or 1) > self.results:
            raise Refusal(400, "best_of knows its results at the end alone: they cannot be streamed", param="best_of")


_TEXT = TextFormat(type="text")


class ChatRequest(Generation):
    """The body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def most_tokens(self) -> int | None:
        """The most tokens of an answer; None: as many as there is room for."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        """How many of the most likely tokens are reported with each; None: not even its own probability."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self) -> None:
        """Raises Refusal for what is not served and for what contradicts itself."""
        self.check_stream()
        names = [t.function.name for t in self.tools or ()]
        if double := next((n for n in names if names.count(n) > 1), None):
            raise Refusal(400, f"there are several tools {double!r}", param="tools")
        if not names and self.tool_choice not in (None, "none", "auto"):
            raise Refusal(400, "tool_choice needs tools to choose from", param="tool_choice")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            text = f"there is no tool {self.tool_choice.function.name!r}"
            raise Refusal(400, text, param="tool_choice")
        if self.structured_outputs is not None and (names or (self.response_format or _TEXT).type != "text"):
            raise Refusal(
                400, "structured_outputs go with neither tools nor response_format", param="structured_outputs"
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise Refusal(400, "top_logprobs is for logprobs=true", param="top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise Refusal(400, "max_tokens and max_completion_tokens differ", param="max_completion_tokens")


class TokenizeRequest(Body):
    """The body of ``/tokenize``: a text, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True


class DetokenizeRequest(Body):
    """The body of ``/detokenize``."""

    model: str | None = None
    tokens: list[int]
