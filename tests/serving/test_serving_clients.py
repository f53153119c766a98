"""The server on a port, with OpenAI's own client: answers, streams, errors, clients that leave, and the end."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from language_models import model
from served import NAME, answer, application, conversation, idle, package, served, tasks, tokenizer

from arcweld.cli.app import main
from arcweld.compiler.errors import EnvironmentError_
from arcweld.runtime.engine_file import write_engine
from arcweld.serving.app import Application
from arcweld.serving.server import listen
from arcweld.serving.settings import Limits


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[str, Application]]:
    app = application(keys=("secret",))
    with served(app) as (address, _):
        yield address, app


@pytest.fixture
def ai(running: tuple[str, Application]) -> Iterator[openai.OpenAI]:
    address, app = running
    with openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0, timeout=60) as found:
        yield found
    idle(app)


def said(text: str) -> Any:
    return [{"role": "user", "content": text}]


def test_embeddings(ai: openai.OpenAI) -> None:
    """Both encodings, texts and tokens, against transformers' hidden states; the client asks for base64 by default."""
    texts = ["What is a kernel?", "a", "Who are you?"]
    tokens = [tokenizer().encode(t).ids for t in texts]
    want = []
    for ids in tokens:
        with torch.no_grad():
            last = model("llama").model(torch.tensor([ids])).last_hidden_state[0, -1].double()
        want.append((last / last.norm()).numpy())
    for given in (texts, tokens):
        for more in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
            found = ai.embeddings.create(model=NAME, input=given, **more)
            assert [d.index for d in found.data] == [0, 1, 2]
            for entry, vector in zip(found.data, want):
                got = entry.embedding
                if isinstance(got, str):
                    got = np.frombuffer(base64.b64decode(got), "<f4")
                np.testing.assert_allclose(got, vector, atol=1e-5)
            assert found.usage.prompt_tokens == found.usage.total_tokens == sum(map(len, tokens))
    (alone,) = ai.embeddings.create(model=NAME, input=texts[0]).data
    np.testing.assert_allclose(alone.embedding, want[0], atol=1e-5)
    with pytest.raises(openai.BadRequestError, match="dimensions are fixed"):
        ai.embeddings.create(model=NAME, input="a", dimensions=3)


def test_a_chat(ai: openai.OpenAI) -> None:
    found = ai.chat.completions.create(model=NAME, messages=said("Who?"), temperature=0, max_tokens=12)
    text, reason = answer(conversation("Who?"), 12)
    assert (found.choices[0].message.content, found.choices[0].finish_reason) == (text, reason)
    assert found.choices[0].message.role == "assistant"
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(conversation("Who?"))
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "o?"}]}]
    again = ai.chat.completions.create(model=NAME, messages=parts, temperature=0, max_completion_tokens=12)
    assert again.choices[0].message.content == text


def test_a_stream_is_the_answer_in_pieces(ai: openai.OpenAI) -> None:
    chunks = list(ai.chat.completions.create(
        model=NAME, messages=said("Who?"), temperature=0, max_tokens=12, stream=True,
        stream_options={"include_usage": True}, logprobs=True,
    ))  # fmt: skip
    text, reason = answer(conversation("Who?"), 12)
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == text
    assert sum(map(bool, pieces)) > 6
    assert chunks[-2].choices[0].finish_reason == reason
    assert chunks[-1].usage is not None
    reported = [t for c in chunks if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.content or ()]
    assert len(reported) == chunks[-1].usage.completion_tokens


def test_several_results_with_a_seed(ai: openai.OpenAI) -> None:
    given: Any = {"model": NAME, "messages": said("Who?"), "n": 3, "seed": 5, "max_tokens": 8}
    first = ai.chat.completions.create(**given)
    texts = [c.message.content for c in first.choices]
    assert [c.index for c in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert [c.message.content for c in ai.chat.completions.create(**given).choices] == texts
    streamed = ["", "", ""]
    for chunk in ai.chat.completions.create(**given, stream=True):
        for c in chunk.choices:
            streamed[c.index] += c.delta.content or ""
    assert streamed == texts


def test_stop_strings(ai: openai.OpenAI) -> None:
    text, _ = answer("The sky is", 20)
    stop = text[7:9]
    want = text[: text.index(stop)]
    given: Any = {"model": NAME, "prompt": "The sky is", "temperature": 0, "max_tokens": 20, "stop": [stop, "@@@"]}
    found = ai.completions.create(**given)
    assert (found.choices[0].text, found.choices[0].finish_reason) == (want, "stop")
    assert "".join(c.choices[0].text for c in ai.completions.create(**given, stream=True)) == want


def test_log_probabilities(ai: openai.OpenAI) -> None:
    found = ai.chat.completions.create(
        model=NAME, messages=said("Who?"), temperature=0, max_tokens=6, logprobs=True, top_logprobs=3
    )
    logprobs = found.choices[0].logprobs
    assert logprobs is not None
    content = logprobs.content or []
    assert found.usage is not None
    assert len(content) == found.usage.completion_tokens
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token  # the most likely one was taken
        assert token.top_logprobs[0].logprob == token.logprob <= 0
        assert bytes(token.bytes or []).decode() == token.token


def test_the_model_is_listed(ai: openai.OpenAI) -> None:
    assert [m.id for m in ai.models.list()] == [NAME]
    assert ai.models.retrieve(NAME).owned_by == "arcweld"


def test_errors_have_the_clients_types(ai: openai.OpenAI, running: tuple[str, Application]) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        ai.chat.completions.create(model=NAME, messages=said("a" * 200))
    assert bad.value.code == "context_length_exceeded"
    assert bad.value.param == "messages"
    with pytest.raises(openai.NotFoundError) as missing:
        ai.chat.completions.create(model="other", messages=said("a"))
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        ai.models.retrieve("other")
    with pytest.raises(openai.BadRequestError, match="tool calls"):
        ai.chat.completions.create(
            model=NAME, messages=said("a"), tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]
        )
    with (
        openai.OpenAI(base_url=f"{running[0]}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_fifty_streams_at_once(running: tuple[str, Application]) -> None:
    address, app = running
    prompts = [f"Prompt {k % 10}" for k in range(50)]

    async def stream(ai: openai.AsyncOpenAI, prompt: str) -> str:
        chunks = await ai.completions.create(model=NAME, prompt=prompt, temperature=0, max_tokens=8, stream=True)
        return "".join([c.choices[0].text async for c in chunks])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0, timeout=120) as ai:
            return await asyncio.gather(*(stream(ai, p) for p in prompts))

    assert asyncio.run(all_of_them()) == [answer(p, 8)[0] for p in prompts]
    idle(app)


def test_clients_that_leave_free_their_pages(running: tuple[str, Application]) -> None:
    """Some before the first event, some after a few, some of answers that are no streams."""
    address, app = running
    count = 1000 if os.environ.get("ARCWELD_EVERY") else 100
    body = {"model": NAME, "prompt": "The sky is", "max_tokens": 110, "ignore_eos": True}

    async def leave(http: httpx.AsyncClient, number: int) -> None:
        if number % 3 == 0:
            soon = httpx.Timeout(60, read=0.02, pool=None)
            with pytest.raises(httpx.ReadTimeout):
                await http.post("/v1/completions", json={**body, "n": 4}, timeout=soon)
            return
        seen = 0
        async with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            async for _ in response.aiter_lines():
                seen += 1
                if seen > number % 5:
                    return

    async def all_of_them() -> None:
        head = {"authorization": "Bearer secret"}
        limits = httpx.Limits(max_connections=8)
        wait = httpx.Timeout(60, pool=None)  # the last ones wait for all others
        async with httpx.AsyncClient(base_url=address, headers=head, limits=limits, timeout=wait) as http:
            await asyncio.gather(*(leave(http, k) for k in range(count)))

    assert httpx.get(f"{address}/health").status_code == 200  # it has started
    before, usual = app.worker.core.stats().generated_tokens, tasks(app)
    asyncio.run(all_of_them())
    idle(app)
    until = time.monotonic() + 30
    while tasks(app) > usual and time.monotonic() < until:
        time.sleep(0.05)
    assert tasks(app) <= usual
    assert app.worker.core.stats().pages_used == 0
    made = app.worker.core.stats().generated_tokens - before
    assert made < count * 110 / 2  # they were not computed to their ends


def test_a_server_that_ends_answers_what_it_has_taken() -> None:
    app = application()
    text, _ = answer("The sky is", 30)
    body = {"model": NAME, "prompt": "The sky is", "temperature": 0, "max_tokens": 30}
    found: list[httpx.Response] = []
    with served(app) as (address, server), httpx.Client(base_url=address, timeout=60) as http:
        assert http.get("/health").status_code == 200  # this connection stays open
        asked = threading.Thread(target=lambda: found.append(httpx.post(f"{address}/v1/completions", json=body)))
        asked.start()
        while not app.worker.active:
            time.sleep(0.001)
        server.drain()
        late = http.post("/v1/completions", json=body)
        assert late.status_code == 503
        assert late.json()["error"]["code"] == "shutting_down"
        assert int(late.headers["retry-after"]) > 0
        asked.join(60)
    assert found[0].json()["choices"][0]["text"] == text
    idle(app)


def test_requests_that_do_not_end_in_time_are_told() -> None:
    app = application(Limits(drain=0))
    body = {"model": NAME, "prompt": "a", "max_tokens": 120, "ignore_eos": True, "stream": True}
    with served(app) as (address, server), httpx.stream("POST", f"{address}/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        server.drain()
        assert any("shutting_down" in line for line in lines)
    idle(app)


def test_a_port_that_is_in_use(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EnvironmentError_, match=f"port {port} of 127.0.0.1 is in use"):
            listen("127.0.0.1", port)
        assert main(["serve", str(tmp_path / "missing.engine"), "--port", str(port)]) == 4
    shown = capsys.readouterr().err
    assert shown.count("\n") == 2, shown
    assert shown.startswith(f"error: port {port} of 127.0.0.1 is in use")
    with pytest.raises(EnvironmentError_, match="cannot be opened"):
        listen("no such host", 0)


@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    path = tmp_path / "small.engine"
    write_engine(path, package().data)
    words = ["serve", str(path), "--port", "0", "--device", "sim", "--log-format", "json"]
    process = subprocess.Popen([sys.executable, "-m", "arcweld", *words], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        first = json.loads(process.stderr.readline())
        address = re.search(r"http://\S+", first["message"])
        assert address is not None, first
        body = {"model": "small", "prompt": "The sky is", "temperature": 0, "max_tokens": 9}
        found = httpx.post(f"{address[0]}/completions", json=body, timeout=300).json()
        assert found["choices"][0]["text"] == answer("The sky is", 9)[0]
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read().splitlines()
        assert process.wait(60) == 0
        ended = [json.loads(line) for line in rest]
        assert [(e["message"], e["prompt_tokens"]) for e in ended] == [("request ended", 10)]
        assert len(tokenizer().encode("The sky is").ids) == 10
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
