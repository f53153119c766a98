"""The form of answers, for the API's description alone: what is sent is made in ``answers.py``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from arcweld.serving.messages import Body, ToolCall


class ErrorDetail(Body):
    """What went wrong: ``type`` says whose fault it is, ``param`` which field's, ``code`` is a stable identifier."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Body):
    """An error."""

    error: ErrorDetail


class CachedTokens(Body):
    """Tokens of the prompt that were found in pages of earlier requests."""

    cached_tokens: int


class Usage(Body):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class CompletionLogprobs(Body):
    """Log probabilities of a text's tokens; those of a prompt's first token are null."""

    text_offset: list[int]
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Body):
    """A result of a prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: int | str | None = None


class Completion(Body):
    """The answer of ``/v1/completions``, and each chunk of its stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class LikelyToken(Body):
    """A token and its log probability; ``bytes`` is null for a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprobs(LikelyToken):
    """A token of the answer, with the most likely ones in its place."""

    top_logprobs: list[LikelyToken]


class ChatLogprobs(Body):
    """Log probabilities of an answer's tokens."""

    content: list[TokenLogprobs]
    refusal: None


class Answer(Body):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(Body):
    """An answer to a conversation."""

    index: int
    message: Answer
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    stop_reason: int | str | None


class ChatCompletion(Body):
    """The answer of ``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionPiece(Body):
    """A piece of a call: the name where the call begins, and arguments."""

    name: str | None = None
    arguments: str


class CallPiece(Body):
    """A piece of the call with this index; ``id`` and ``type`` come where it begins."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionPiece


class Delta(Body):
    """What is new of an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[CallPiece] | None = None


class ChatDelta(Body):
    """What is new of one answer to a conversation."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatChunk(Body):
    """A chunk of a stream of ``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatDelta]
    usage: Usage | None = None


class Embedding(Body):
    """The vector of an input; as a text it is the base64 form of its floats of 32 bits, little-endian."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class PromptUsage(Body):
    """Counts of tokens where none are generated."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(Body):
    """The answer of ``/v1/embeddings``."""

    id: str
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: PromptUsage


class Card(Body):
    """A model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class Cards(Body):
    """All models."""

    object: Literal["list"]
    data: list[Card]


class Tokens(Body):
    """The tokens of a text."""

    count: int
    max_model_len: int
    tokens: list[int]


class Detokenized(Body):
    """The text of tokens."""

    prompt: str


class Health(Body):
    """The model answers."""

    status: Literal["ok"]


_PLACE = "#/components/schemas/{model}"
_REASONS = {
    400: "The request makes no sense; the message says where.", 401: "There is no such key.",
    404: "There is no such model.", 408: "The request took too long.", 413: "The body is too long.",
    429: "Too many requests wait; Retry-After says when to come again.", 500: "The request failed.",
    503: "The server ends, or is unhealthy.",
}  # fmt: skip
POSTED = (400, 401, 404, 413)  # what any request with a body may get
GENERATED = (*POSTED, 408, 429, 500, 503)


def answers(
    answer: type[BaseModel], *errors: int, chunk: type[BaseModel] | None = None
) -> dict[int | str, dict[str, Any]]:
    """The description of an operation's answers: of status 200, ``chunk`` those of a stream, and errors by status."""
    found: dict[int | str, dict[str, Any]] = {s: {"model": Error, "description": _REASONS[s]} for s in errors}
    for status in {429, 503} & set(errors):
        found[status]["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    found[200] = {"model": answer, "description": "The answer."}
    if chunk is not None:
        found[200]["content"] = {"text/event-stream": {"schema": _event(chunk)}}
    return found


def _event(chunk: type[BaseModel]) -> dict[str, Any]:
    """The description of each event of a stream: a chunk, at its end an error or not, and then ``[DONE]``."""
    payload = {"anyOf": [{"$ref": _PLACE.format(model=m.__name__)} for m in (chunk, Error)]}
    as_json = {"contentMediaType": "application/json", "contentSchema": payload, "pattern": r"^\{"}
    data = {"type": "string", "anyOf": [as_json, {"const": "[DONE]"}]}
    return {"type": "object", "properties": {"data": data}, "required": ["data"]}


COMPLETION = answers(Completion, *GENERATED, chunk=Completion)
CHAT = answers(ChatCompletion, *GENERATED, chunk=ChatChunk)
EMBEDDINGS = answers(Embeddings, *GENERATED)
TOKENS, TEXT = answers(Tokens, *POSTED), answers(Detokenized, *POSTED)
CARDS, CARD = answers(Cards, 401), answers(Card, 401, 404)
HEALTH = answers(Health, 503)


def described(openapi: dict[str, Any], keyed: bool) -> dict[str, Any]:
    """FastAPI's description without the answer that it adds by itself, and if ``keyed`` with the keys of requests."""
    for path, item in openapi["paths"].items():
        for operation in item.values():
            operation["responses"].pop("422", None)
            if keyed and path not in ("/health", "/metrics"):
                operation["security"] = [{"key": []}]
    parts = openapi.setdefault("components", {})
    chunk = ChatChunk.model_json_schema(ref_template=_PLACE)  # which FastAPI does not see: it is in streams alone
    parts["schemas"] |= {**chunk.pop("$defs"), ChatChunk.__name__: chunk}
    if keyed:
        parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for unused in ("HTTPValidationError", "ValidationError"):
        parts.get("schemas", {}).pop(unused, None)
    return openapi
