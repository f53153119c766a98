"""A small language model with a tokenizer of characters, served; and what transformers' code answers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import tokenizers
from language_models import VOCABULARY, greedy, model

from arcweld.driver.language_model import build_language_model
from arcweld.runtime.llm.llm import LLM
from arcweld.runtime.llm.package import Package
from arcweld.serving.app import Application
from arcweld.serving.server import Server, listen
from arcweld.serving.settings import Limits, Settings

NAME, END, PAGE = "tiny", 2, 8
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@functools.cache
def tokenizer() -> tokenizers.Tokenizer:
    """A token for each printable character of ASCII; those beyond are words."""
    characters = [chr(c) for c in range(32, 127)] + ["\n"]
    words = ["<pad>", "<s>", "</s>", *characters]
    words += [f"w{k}" for k in range(len(words), VOCABULARY)]
    found = tokenizers.Tokenizer(
        tokenizers.models.BPE({w: k for k, w in enumerate(words)}, [], unk_token="<pad>", fuse_unk=False)
    )
    found.decoder = tokenizers.decoders.Fuse()
    found.add_special_tokens(["<pad>", "<s>", "</s>"])
    return found


@functools.cache
def package() -> Package:
    """The model's engine."""
    return build_language_model(
        model("llama"), length=128, page_size=PAGE, tokens=64, device="sim", verify="off", end_tokens=[END],
        tokenizer=tokenizer().to_str(), template=TEMPLATE, embeddings=True,
    )  # fmt: skip


def conversation(text: str) -> str:
    """What the template makes of one message of a user's."""
    return f"<user>{text}\n<assistant>"


@functools.cache
def answer(prompt: str, count: int) -> tuple[str, str]:
    """The ``count`` most likely tokens behind a prompt up to the end token, by transformers, and why they end."""
    ids = greedy(model("llama"), tokenizer().encode(prompt).ids, count)
    ended = END in ids
    ids = ids[: ids.index(END)] if ended else ids
    return tokenizer().decode(ids), "stop" if ended else "length"


def application(limits: Limits | None = None, keys: tuple[str, ...] = (), **settings: Any) -> Application:
    """The model served with these limits."""
    llm = LLM(package(), device="sim", **settings)
    return Application(llm, Settings(NAME, keys, limits or Limits()))


@contextlib.asynccontextmanager
async def client(app: Application, **more: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client that calls the application without a network, while it lives."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60, **more) as found,
    ):
        yield found


@contextlib.contextmanager
def served(app: Application) -> Iterator[tuple[str, Server]]:
    """The application on a free port, by uvicorn in a thread; its address and its server."""
    with listen("127.0.0.1", 0) as listening:
        server = Server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", server
        finally:
            server.drain()
            thread.join(60)
            assert not thread.is_alive()


def idle(app: Application) -> None:
    """Checks that soon no page is used and no request is left."""
    core = app.worker.core
    until = time.monotonic() + 10
    while (core or app.worker.active) and time.monotonic() < until:
        time.sleep(0.01)
    assert not core
    assert not core.requests
    assert app.worker.active == 0
    core.pool.check([])


def tasks(app: Application) -> int:
    """How many tasks the event loop of a served application has, beside the one that counts."""
    loop = app.worker._loop
    assert loop is not None

    async def count() -> int:
        return len(asyncio.all_tasks()) - 1

    return asyncio.run_coroutine_threadsafe(count(), loop).result(60)


async def idle_soon(app: Application) -> None:
    """The same, from the event loop that serves."""
    await asyncio.to_thread(idle, app)
