"""The application: endpoints, keys, and every error in OpenAI's form."""

from __future__ import annotations

import hashlib
import hmac
import importlib.metadata
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from arcweld.compiler.errors import ArcweldError, InternalError
from arcweld.runtime.llm.llm import LLM
from arcweld.serving import schemas
from arcweld.serving.embeddings import EmbeddingRequest, embeddings
from arcweld.serving.errors import SERVER, Refusal, json_response, refused
from arcweld.serving.generation import Generator, Plan
from arcweld.serving.http import BodyLimit, EventStream, unless_disconnected
from arcweld.serving.metrics import Metrics
from arcweld.serving.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, Generation, TokenizeRequest
from arcweld.serving.settings import Settings
from arcweld.serving.worker import Worker

log = logging.getLogger("arcweld.serving")
_TYPE = re.compile(r"str|int|bool|.*\[.*")  # in the place of an error: which of a field's types it is about
_GONE = 499  # the client has left: nobody reads this answer


class Application(FastAPI):
    """The API of one model. Its life span is that of the thread that computes."""

    def __init__(self, llm: LLM, settings: Settings) -> None:
        """``llm`` belongs to the application from now on.

        Raises UsageError for adapters that it has no room for, and what reading them raises.
        """
        _load(llm, settings)

        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            self.worker.start()
            try:
                yield
            finally:
                await self.worker.stop()

        super().__init__(title="Arcweld", version=importlib.metadata.version("arcweld"), lifespan=lifespan)
        self.settings = settings
        self.started = int(time.time())
        self.metrics = Metrics(settings.name)
        self.worker = Worker(llm.core, self.metrics, settings.limits)
        self.generator = Generator(llm, self.worker, settings)
        self.add_middleware(BodyLimit, most=settings.limits.body)
        _add_errors(self)
        _add_generation(self)
        _add_the_rest(self)

    def openapi(self) -> dict[str, Any]:
        """The API's description."""
        return schemas.described(super().openapi(), bool(self.settings.keys))

    async def respond(self, request: Request, plan: Plan, body: Generation) -> Response:
        """The answer to a request that is understood."""
        plan = replace(plan, salt=_salt(request.state.key, body.cache_salt))
        if body.stream:
            return EventStream(lambda: self.generator.chunks(plan), self.note)
        return await self.whole(request, self.generator.whole(plan))

    async def whole(self, request: Request, answer: Coroutine[Any, Any, dict[str, Any]]) -> Response:
        """A complete answer, which is given up if the client leaves."""
        found = await unless_disconnected(request.receive, answer)
        return Response(status_code=_GONE) if found is None else json_response(found)

    def note(self, error: Refusal) -> None:
        """Counts and logs an error that a client gets."""
        self.metrics.refused(error.status)
        fields = {"status": error.status, "type": error.kind, "code": error.reason}
        log.info("request refused: %s", error.message, extra={"fields": fields})

    async def allow(self, request: Request) -> None:
        """Raises Refusal for a request without one of the keys."""
        keys = self.settings.keys
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        known = [hmac.compare_digest(given.encode(), key.encode()) for key in keys]
        if keys and not (scheme.lower() == "bearer" and any(known)):
            text = "no API key was given" if not given else "the API key is wrong"
            raise Refusal(401, text, reason="invalid_api_key", hint="send it as Authorization: Bearer KEY")
        request.state.key = given if keys else ""


def _load(llm: LLM, settings: Settings) -> None:
    """Loads each adapter once, so that none is refused while requests wait; the last ones stay as far as there is room.
    """  # fmt: skip
    for adapter in settings.adapters.values():
        llm.add_lora(adapter)


def application(llm: LLM, settings: Settings) -> Application:
    """The server of a language model as an ASGI application, for uvicorn or any other server of ASGI."""
    return Application(llm, settings)


def _salt(key: str, salt: str | None) -> bytes:
    """What keeps the prefix caches of API keys, and of salts that requests bring, apart; empty for none of both."""
    if not key and salt is None:
        return b""
    return hashlib.sha256(json.dumps([key, salt]).encode()).digest()


def _add_errors(app: Application) -> None:
    @app.exception_handler(ArcweldError)
    async def _(_: Request, error: ArcweldError) -> Response:
        found = _internal(error) if isinstance(error, InternalError) else refused(error)
        app.note(found)
        return found.response()

    @app.exception_handler(RequestValidationError)
    async def _(_: Request, error: RequestValidationError) -> Response:
        found = _invalid(error.errors())
        app.note(found)
        return found.response()

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> Response:
        found = _of_http(request, error)
        app.note(found)
        response = found.response()
        response.headers.update(error.headers or {})  # as Allow, which says what methods a path has
        return response

    @app.exception_handler(Exception)
    async def _(_: Request, error: Exception) -> Response:  # starlette raises it again, and the server logs it
        found = _internal(error)
        app.note(found)
        return found.response()


def _internal(error: Exception) -> Refusal:
    return Refusal(500, f"this is a defect of the server: {type(error).__name__}", kind=SERVER, reason="internal_error")


def _invalid(errors: Sequence[Any]) -> Refusal:
    """The complaint of pydantic's that goes deepest into a body: of a choice between types the one that fits best."""
    first = max(errors, key=lambda e: len(e["loc"]))
    place = [str(p) for p in first["loc"] if p != "body" and not _TYPE.fullmatch(str(p))]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", first["msg"])
        return Refusal(400, f"the body is no JSON: {reason}", reason="not_json")
    param = ".".join(place) or None
    if param is None:
        return Refusal(400, "the body is no JSON object", reason="not_json", hint="send it as application/json")
    if first["type"] == "extra_forbidden":
        return Refusal(400, f"there is no parameter {param}", param=param, reason="unknown_parameter")
    return Refusal(400, f"{param}: {first['msg']}", param=param, reason="invalid_value")


def _of_http(request: Request, error: HTTPException) -> Refusal:
    """An error of the framework's: no such path or method, a body that cannot be read."""
    path = f"{request.method} {request.url.path}"
    if error.status_code in (404, 405):
        return Refusal(error.status_code, f"there is no {path}", reason="unknown_url")
    if error.status_code == 400:
        return Refusal(400, "the body is no JSON in UTF-8", reason="not_json")
    return Refusal(error.status_code, str(error.detail), reason="body_too_long" if error.status_code == 413 else None)


def _add_generation(app: Application) -> None:
    @app.post("/v1/completions", dependencies=[Depends(app.allow)], responses=schemas.COMPLETION)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continues prompts."""
        return await app.respond(request, await app.generator.completion(body), body)

    @app.post("/v1/chat/completions", dependencies=[Depends(app.allow)], responses=schemas.CHAT)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answers a conversation."""
        return await app.respond(request, await app.generator.chat(body), body)

    @app.post("/v1/embeddings", dependencies=[Depends(app.allow)], responses=schemas.EMBEDDINGS)
    async def embed(body: EmbeddingRequest, request: Request) -> Response:
        """Vectors of texts."""
        return await app.whole(request, embeddings(app.generator, body, _salt(request.state.key, None)))

    @app.post("/tokenize", dependencies=[Depends(app.allow)], responses=schemas.TOKENS)
    async def tokenize(body: TokenizeRequest) -> Response:
        """The tokens of a text or a conversation."""
        app.generator.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise Refusal(400, "give either prompt or messages", param="prompt")
        if body.messages is not None:
            tokens = await app.generator.conversation(body.messages, body.add_generation_prompt, body.tools or ())
        else:
            tokens = await app.generator.encode(body.prompt or "", body.add_special_tokens)
        return json_response({"count": len(tokens), "max_model_len": app.generator.length, "tokens": tokens})

    @app.post("/detokenize", dependencies=[Depends(app.allow)], responses=schemas.TEXT)
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of tokens."""
        app.generator.check_model(body.model)
        vocabulary = app.worker.core.description.vocabulary
        if bad := [t for t in body.tokens if not 0 <= t < vocabulary]:
            raise Refusal(400, f"token {bad[0]} is not one of the model's {vocabulary}", param="tokens")
        tokenizer = app.generator.llm.tokenizer
        return json_response({"prompt": tokenizer.decode(body.tokens, skip_special_tokens=False)})


def _add_the_rest(app: Application) -> None:
    def card(name: str) -> dict[str, Any]:
        adapter = app.settings.adapters.get(name)
        more = {} if adapter is None else {"parent": app.settings.name, "root": str(adapter.lora_path)}
        return {
            "id": name, "object": "model", "created": app.started, "owned_by": "arcweld",
            "max_model_len": app.generator.length, **more,
        }  # fmt: skip

    @app.get("/v1/models", dependencies=[Depends(app.allow)], responses=schemas.CARDS)
    async def models() -> Response:
        """The model and its adapters."""
        return json_response({"object": "list", "data": [card(name) for name in app.settings.names]})

    @app.get("/v1/models/{name:path}", dependencies=[Depends(app.allow)], responses=schemas.CARD)
    async def model(name: str) -> Response:
        """The model, or an adapter, by its name."""
        app.generator.check_model(name)
        return json_response(card(name))

    @app.get("/health", responses=schemas.HEALTH)
    async def health() -> Response:
        """Whether the model answers: status 503 where a step is stuck, the model has failed or the server ends."""
        complaint = app.worker.complaint or ("the server is shutting down" if app.worker.draining else "")
        if complaint:
            return Refusal(503, complaint, kind=SERVER, reason="unhealthy").response()
        return json_response({"status": "ok"})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """What Prometheus scrapes."""
        return Response(app.metrics.text(), media_type=CONTENT_TYPE_LATEST)
