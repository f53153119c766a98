"""The API without a network: what it answers, and what it says to requests that nobody should send."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from language_models import model
from prometheus_client.parser import text_string_to_metric_families
from served import NAME, answer, application, client, conversation, idle_soon, tokenizer

from arcweld.runtime.llm.runner import Computed
from arcweld.serving.app import Application
from arcweld.serving.protocol import ChatRequest, CompletionRequest, Generation
from arcweld.serving.settings import Limits

Test = Callable[[httpx.AsyncClient, Application], Coroutine[Any, Any, None]]
GREEDY = {"model": NAME, "temperature": 0}


def run(test: Test, app: Application | None = None, **more: Any) -> None:
    """Runs a test with a client; at its end nothing of its requests is left."""

    async def whole() -> None:
        found = app or application()
        async with client(found, **more) as http:
            await test(http, found)
            await idle_soon(found)

    asyncio.run(whole())


def events(text: str) -> list[dict[str, Any]]:
    """The objects of a stream of events that is complete."""
    lines = text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def failed(http: httpx.AsyncClient, status: int, text: str, path: str, **more: Any) -> dict[str, Any]:
    """Posts what is refused; the error."""
    response = await http.post(path, **more)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert text in error["message"]
    return dict(error)


def test_completions_are_transformers() -> None:
    async def test(http: httpx.AsyncClient, app: Application) -> None:
        prompts = ["The sky is", "Water boils at", "xyz"]
        body = {**GREEDY, "max_tokens": 9}
        whole = (await http.post("/v1/completions", json={**body, "prompt": prompts})).json()
        assert whole["object"] == "text_completion"
        assert [(c["text"], c["finish_reason"]) for c in whole["choices"]] == [answer(p, 9) for p in prompts]
        assert [c["index"] for c in whole["choices"]] == [0, 1, 2]
        assert whole["usage"]["prompt_tokens"] == sum(map(len, prompts))
        ids = tokenizer().encode(prompts[1]).ids
        by_ids = (await http.post("/v1/completions", json={**body, "prompt": ids, "echo": True})).json()
        assert by_ids["choices"][0]["text"] == prompts[1] + answer(prompts[1], 9)[0]
        stream = {**body, "prompt": prompts, "stream": True, "stream_options": {"include_usage": True}}
        found = events((await http.post("/v1/completions", json=stream)).text)
        texts = ["", "", ""]
        for choice in (c for e in found for c in e["choices"]):
            texts[choice["index"]] += choice["text"]
        assert texts == [answer(p, 9)[0] for p in prompts]
        assert found[-1]["choices"] == []
        assert found[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]

    run(test)


def test_log_probabilities_with_echo_are_transformers() -> None:
    async def test(http: httpx.AsyncClient, app: Application) -> None:
        body = {**GREEDY, "prompt": "The sky is", "max_tokens": 0, "echo": True, "logprobs": 2}
        found = (await http.post("/v1/completions", json=body)).json()
        choice = found["choices"][0]
        ids = tokenizer().encode("The sky is").ids
        with torch.no_grad():
            rows = model("llama")(torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()
        logprobs = choice["logprobs"]
        assert choice["text"] == "".join(logprobs["tokens"]) == "The sky is"
        assert logprobs["text_offset"] == list(range(len(ids)))
        assert logprobs["token_logprobs"][0] is None
        want = [rows[k, t] for k, t in enumerate(ids[1:])]
        np.testing.assert_allclose(logprobs["token_logprobs"][1:], want, atol=1e-5)
        best = [tokenizer().decode([int(r.argmax())], skip_special_tokens=False) for r in rows[:-1]]
        assert [max(top, key=lambda k: top[k]) for top in logprobs["top_logprobs"][1:]] == best
        assert found["usage"]["completion_tokens"] == 0

    run(test)


def test_tokens_and_texts() -> None:
    async def test(http: httpx.AsyncClient, app: Application) -> None:
        ids = tokenizer().encode("hello").ids
        assert (await http.post("/tokenize", json={"prompt": "hello"})).json() == {
            "count": 5, "max_model_len": 128, "tokens": ids,
        }  # fmt: skip
        assert (await http.post("/detokenize", json={"tokens": ids})).json() == {"prompt": "hello"}
        chat = await http.post("/tokenize", json={"messages": [{"role": "user", "content": "hello"}]})
        assert chat.json()["tokens"] == tokenizer().encode(conversation("hello")).ids
        await failed(http, 400, "token 128", "/detokenize", json={"tokens": [128]})
        await failed(http, 400, "either", "/tokenize", json={})

    run(test)


JSON = {"content-type": "application/json"}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = {"model": NAME, "messages": [{"role": "user", "content": "hello"}]}
WRONG: list[tuple[str, dict[str, Any], int, str, str | None]] = [
    (TEXT, {"prompt": "a"}, 400, "model: Field required", "model"),
    (TEXT, {"model": "other", "prompt": "a"}, 404, "'other'", "model"),
    (TEXT, {"model": "\ud800", "prompt": "a"}, 404, "there is no model", "model"),
    (TEXT, {"model": NAME, "prompt": "\ud800"}, 400, "no Unicode", None),
    (TEXT, {"model": NAME, "prompt": "a", "stop": ""}, 400, "empty stop", None),
    (TEXT, {"model": NAME, "prompt": "a", "best_off": 2}, 400, "no parameter best_off", "best_off"),
    (TEXT, {"model": NAME, "prompt": "a" * 128}, 400, "128 tokens; at most 127", "prompt"),
    (TEXT, {"model": NAME, "prompt": []}, 400, "prompt is empty", "prompt"),
    (TEXT, {"model": NAME, "prompt": [[]]}, 400, "empty prompt", None),
    (TEXT, {"model": NAME, "prompt": [1, 128]}, 400, "token 128 is not one", "prompt"),
    (TEXT, {"model": NAME, "prompt": [-1]}, 400, "token -1 is not one", "prompt"),
    (TEXT, {"model": NAME, "prompt": [2**70], "echo": True}, 400, "is not one", "prompt"),
    (TEXT, {"model": NAME, "prompt": "a", "logit_bias": {"128": 1}}, 400, "token 128 is not one", None),
    (TEXT, {"model": NAME, "prompt": "a", "temperature": 2.5}, 400, "less than or equal to 2", "temperature"),
    (TEXT, {"model": NAME, "prompt": "a", "seed": 10**400}, 400, "seed", "seed"),
    (TEXT, {"model": NAME, "prompt": "a", "n": 10**9}, 400, "at most 264", None),
    (TEXT, {"model": NAME, "prompt": "a", "max_tokens": 0}, 400, "echo", "max_tokens"),
    (TEXT, {"model": NAME, "prompt": "a", "best_of": 2, "stream": True}, 400, "streamed", "best_of"),
    (TEXT, {"model": NAME, "prompt": "a", "suffix": "b"}, 400, "suffix", "suffix"),
    (TEXT, {"model": NAME, "prompt": "a", "stream_options": {}}, 400, "stream=true", "stream_options"),
    (CHAT, {"model": NAME, "messages": []}, 400, "at least 1", "messages"),
    (CHAT, {**HELLO, "tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tool calls", "tools"),
    (CHAT, {**HELLO, "top_logprobs": 2}, 400, "logprobs=true", "top_logprobs"),
    (CHAT, {**HELLO, "logprobs": True, "top_logprobs": 21}, 400, "20", "top_logprobs"),
    (CHAT, {"model": NAME, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
     400, "'text'", "messages.0.content.0.type"),
    ("/v1/embeddings", {"model": NAME, "input": []}, 400, "an input is empty", "input"),
    ("/v1/embeddings", {"model": NAME, "input": ["a", ""]}, 400, "an input is empty", "input"),
    ("/v1/embeddings", {"model": NAME, "input": "a", "dimensions": 8}, 400, "dimensions are fixed", "dimensions"),
    ("/v1/embeddings", {"model": NAME, "input": "a" * 200}, 400, "200 tokens; at most 127", "input"),
]  # fmt: skip


def test_requests_that_are_refused_with_the_reason() -> None:
    async def test(http: httpx.AsyncClient, app: Application) -> None:
        for path, body, status, text, param in WRONG:
            error = await failed(http, status, text, path, content=json.dumps(body), headers=JSON)
            assert error["type"] == "invalid_request_error"
            assert error["param"] == param, error

    run(test)


def test_what_the_core_refuses_is_an_error_and_no_stream() -> None:
    async def test(http: httpx.AsyncClient, app: Application) -> None:
        body = {"model": NAME, "prompt": ["fine", "also fine"], "logit_bias": {"128": 1}, "stream": True}
        await failed(http, 400, "token 128 is not one", TEXT, json=body)

    run(test)


VALUES = [
    None, True, False, 0, -1, 1, 2, 3.5, 1e300, 2**70, "", "a", "\ud800", [], ["a"], [1, 2], [[1], [2]], [None], {},
    {"a": 1}, {"1": 1}, {"type": "text"}, [{"role": "user", "content": "a"}], [{"role": 1}],
]  # fmt: skip


def test_any_value_of_any_field_is_answered_or_refused() -> None:
    """Never a defect: a status below 500, and errors in their form."""
    rng = np.random.default_rng(0)
    kinds: list[tuple[str, type[Generation], dict[str, Any]]] = [
        (TEXT, CompletionRequest, {"prompt": "a"}), (CHAT, ChatRequest, {"messages": HELLO["messages"]}),
    ]  # fmt: skip

    async def test(http: httpx.AsyncClient, app: Application) -> None:
        seen: dict[int, int] = {}
        for path, kind, least in kinds:
            for name in kind.model_fields:
                for value in rng.choice(np.array(VALUES, object), 5, replace=False):
                    body = json.dumps({"model": NAME, "max_tokens": 2, **least, name: value})
                    response = await http.post(path, content=body, headers=JSON)
                    seen[response.status_code] = seen.get(response.status_code, 0) + 1
                    if response.status_code != 200:
                        assert response.json()["error"]["message"], body
        assert set(seen) <= {200, 400, 404}, seen
        assert seen[200] > 40, seen
        assert seen[400] > 100, seen

    run(test)


def test_extremes_that_are_allowed_end_and_harm_nobody() -> None:
    """Settings at which quotients overflow, and random numbers of any seed."""

    async def test(http: httpx.AsyncClient, app: Application) -> None:
        for more in [{"temperature": 5e-324}, {"seed": -1}, {"seed": 2**63 - 1}, {"top_k": 10**30, "min_p": 1},
                     {"repetition_penalty": 0.01}, {"logit_bias": {str(k): -100 for k in range(128)}}]:  # fmt: skip
            response = await http.post(TEXT, json={"model": NAME, "prompt": "abc", "max_tokens": 3, **more})
            assert response.status_code == 200, (more, response.text)
        assert (await http.get("/health")).json() == {"status": "ok"}

    run(test)


def test_bodies_that_are_no_json() -> None:
    async def test(http: httpx.AsyncClient, app: Application) -> None:
        bodies = [b"\xff\xfe{", b'{"model": "\xff"}', b"{", b"", b"[" * 100_000, b"null", b'"x"', b'{"seed": 1e999}']
        for body in bodies:
            response = await http.post(CHAT, content=body, headers=JSON)
            assert response.status_code == 400, (body[:10], response.text)
            assert response.json()["error"]["type"] == "invalid_request_error"
        await failed(http, 400, "send it as application/json", CHAT, content=b"{}")
        response = await http.put(CHAT, content=b"{}")
        assert response.status_code == 405

    run(test)


def test_keys() -> None:
    async def test(http: httpx.AsyncClient, app: Application) -> None:
        for value in [b"", b"Bearer wrong", b"Basic one", b"Bearer \xe9"]:
            error = await failed(http, 401, "API key", CHAT, json=HELLO, headers={b"authorization": value})
            assert error["code"] == "invalid_api_key"
        for key in ("one", "two"):
            assert (await http.get("/v1/models", headers={"authorization": f"Bearer {key}"})).status_code == 200
        assert (await http.get("/health")).status_code == 200

    run(test, application(keys=("one", "two")))


def test_limits() -> None:
    async def test(http: httpx.AsyncClient, app: Application) -> None:
        error = await failed(http, 413, "more than 2000 bytes", CHAT, content=b" " * 2001, headers=JSON)
        assert error["code"] == "body_too_long"

        async def pieces() -> Any:
            for _ in range(100):
                yield b" " * 1000

        await failed(http, 413, "more than 2000 bytes", CHAT, content=pieces(), headers=JSON)
        error = await failed(http, 400, "21 tokens; at most 20", TEXT, json={"model": NAME, "prompt": "a" * 21})
        assert error["code"] == "context_length_exceeded"
        body = {"model": NAME, "prompt": "a", "max_tokens": 60, "ignore_eos": True}
        running = [asyncio.ensure_future(http.post(TEXT, json=body)) for _ in range(3)]
        while app.worker.active < 3:
            await asyncio.sleep(0)
        response = await http.post(TEXT, json=body)
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) > 0
        assert response.json()["error"]["code"] == "queue_full"
        assert [(await r).status_code for r in running] == [200] * 3

    run(test, application(Limits(body=2000, prompt=20, queue=2), max_num_seqs=1))


def test_requests_that_take_too_long_end_with_an_error() -> None:
    async def test(http: httpx.AsyncClient, app: Application) -> None:
        body = {"model": NAME, "prompt": "a", "max_tokens": 120, "ignore_eos": True}
        error = await failed(http, 408, "more than 0.02 s", TEXT, json=body)
        assert error["code"] == "request_timeout"
        found = events((await http.post(TEXT, json={**body, "stream": True})).text)
        assert found[-1]["error"]["code"] == "request_timeout"

    run(test, application(Limits(seconds=0.02)))


def test_logits_that_are_no_numbers_end_their_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    app = application()
    compute, device = app.worker.core.runner.compute, app.worker.core.runner.engine.device

    def broken(runs: Any) -> Computed:
        found = compute(runs)
        address, nbytes = found.results[0].address, 4 * found.results[0].shape[1]
        for r in runs:
            if 3 + ord("!") - 32 in r.tokens:  # the prompt of the one whose logits break
                device.fill(address, len(r.rows) * nbytes, 255)  # NaN
            address += len(r.rows) * nbytes
        return found

    monkeypatch.setattr(app.worker.core.runner, "compute", broken)

    async def test(http: httpx.AsyncClient, app: Application) -> None:
        body = {**GREEDY, "max_tokens": 9}
        good = asyncio.ensure_future(http.post(TEXT, json={**body, "prompt": "The sky is"}))
        error = await failed(http, 500, "not finite", TEXT, json={**body, "prompt": "oh!"})
        assert error == {**error, "type": "server_error", "code": "generation_failed"}
        found = events((await http.post(TEXT, json={**body, "prompt": "oh!", "stream": True})).text)
        assert found[-1]["error"]["code"] == "generation_failed"
        assert (await good).json()["choices"][0]["text"] == answer("The sky is", 9)[0]
        assert (await http.get("/health")).status_code == 200

    run(test, app)


def test_a_model_that_fails_is_said_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    app = application()

    def lost(runs: Any) -> Computed:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(app.worker.core.runner, "compute", lost)

    async def test() -> None:
        async with client(app) as http:
            for _ in range(2):
                error = await failed(http, 500, "the device is lost", CHAT, json=HELLO)
                assert error["code"] == "engine_failed"
            response = await http.get("/health")
            assert response.status_code == 503
            assert "the device is lost" in response.json()["error"]["message"]

    asyncio.run(test())


def test_a_step_that_is_stuck_is_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    app = application(Limits(step=0.05))
    compute, go = app.worker.core.runner.compute, threading.Event()

    def slow(runs: Any) -> Computed:
        assert go.wait(30)
        return compute(runs)

    monkeypatch.setattr(app.worker.core.runner, "compute", slow)

    async def test(http: httpx.AsyncClient, app: Application) -> None:
        assert (await http.get("/health")).status_code == 200
        asked = asyncio.ensure_future(http.post(TEXT, json={"model": NAME, "prompt": "a", "max_tokens": 1}))
        for _ in range(200):
            response = await http.get("/health")
            if response.status_code == 503:
                break
            await asyncio.sleep(0.01)
        assert "a step has taken" in response.json()["error"]["message"]
        go.set()
        assert (await asked).status_code == 200
        await idle_soon(app)
        assert (await http.get("/health")).status_code == 200

    run(test, app)


def test_metrics_count_what_was_done() -> None:
    async def test(http: httpx.AsyncClient, app: Application) -> None:
        body = {"model": NAME, "prompt": "The sky is", "max_tokens": 7, "n": 2, "ignore_eos": True}
        await http.post(TEXT, json=body)
        await http.post(TEXT, json={**body, "n": 1})
        await http.post(TEXT, json={**body, "model": "other"})
        text = (await http.get("/metrics")).text
        found = {
            (s.name, *(v for k, v in s.labels.items() if k != "model_name")): s.value
            for family in text_string_to_metric_families(text)
            for s in family.samples
        }
        assert found["vllm:prompt_tokens_total",] == 20
        assert found["vllm:generation_tokens_total",] == 21
        assert found["vllm:request_success_total", "length"] == 3
        assert found["vllm:time_to_first_token_seconds_count",] == 2
        assert found["vllm:inter_token_latency_seconds_count",] == 18
        assert found["vllm:e2e_request_latency_seconds_count",] == 2
        assert found["vllm:request_queue_time_seconds_count",] == 2
        first, queued = found["vllm:time_to_first_token_seconds_sum",], found["vllm:request_queue_time_seconds_sum",]
        assert 0 < queued < first  # the step itself is no waiting
        assert found["vllm:prefix_cache_queries_total",] == 30
        assert found["vllm:prefix_cache_hits_total",] > 0
        assert found["vllm:num_requests_running",] == found["vllm:kv_cache_usage_perc",] == 0
        assert found["arcweld:requests_refused_total", "404"] == 1
        assert found["arcweld:kernels_compiled_after_loading_total",] == 0

    run(test)


def test_a_kernel_that_is_compiled_late_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    app = application()
    runner = app.worker.core.runner
    loader, compute = runner.engine._loader, runner.compute

    def late(runs: Any) -> Computed:
        loader._handles.clear()
        loader.load([part.launches[0].variants[0] for part in runner.engine.program.parts()])
        return compute(runs)

    monkeypatch.setattr(runner, "compute", late)

    async def test(http: httpx.AsyncClient, app: Application) -> None:
        await http.post(TEXT, json={"model": NAME, "prompt": "a", "max_tokens": 1})
        lines = (await http.get("/metrics")).text.splitlines()
        (line,) = [x for x in lines if x.startswith("arcweld:kernels_compiled_after_loading_total{")]
        assert float(line.split()[-1]) > 0

    run(test, app)


def test_nothing_is_compiled_while_requests_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the simulator's compiler itself, for prompts and batches of many sizes."""
    app = application()

    def refused(*_: Any) -> Any:
        raise AssertionError("a kernel is compiled")

    monkeypatch.setattr("arcweld.runtime.sim.build._compile", refused)

    async def test(http: httpx.AsyncClient, app: Application) -> None:
        bodies = [{"model": NAME, "prompt": "a" * (1 + 11 * k), "max_tokens": 1 + k, "n": 1 + k % 3} for k in range(9)]
        found = await asyncio.gather(*(http.post(TEXT, json=body) for body in bodies))
        assert {r.status_code for r in found} == {200}
        assert app.worker.core.stats().compiled_late == 0

    run(test, app)


def test_prefix_caches_of_keys_and_of_salts_are_apart() -> None:
    prompt = "The sky is blue, and water boils at a hundred degrees."

    async def test(http: httpx.AsyncClient, app: Application) -> None:
        async def cached(key: str, **more: Any) -> int:
            body = {"model": NAME, "prompt": prompt, "max_tokens": 1, **more}
            response = await http.post(TEXT, json=body, headers={"authorization": f"Bearer {key}"})
            return int(response.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

        whole = (len(prompt) - 1) // 8 * 8
        for key, salt in [("one", None), ("two", None), ("one", "x"), ("one", "y"), ("two", "x")]:
            more = {"cache_salt": salt}
            assert await cached(key, **more) == 0, (key, more)
            assert await cached(key, **more) == whole

    run(test, application(keys=("one", "two")))


def test_without_keys_and_salts_prefixes_are_shared() -> None:
    async def test(http: httpx.AsyncClient, app: Application) -> None:
        body: dict[str, Any] = {"model": NAME, "prompt": "Water boils at a hundred degrees.", "max_tokens": 1}
        for salt, cached in [(None, 0), (None, 32), ("x", 0), ("x", 32)]:
            usage = (await http.post(TEXT, json={**body, "cache_salt": salt})).json()["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] == cached
        await failed(http, 400, "at least 1", TEXT, json={**body, "cache_salt": ""})

    run(test)


def test_the_api_describes_itself() -> None:
    async def test(http: httpx.AsyncClient, app: Application) -> None:
        paths = (await http.get("/openapi.json")).json()["paths"]
        assert {TEXT, CHAT, "/v1/models", "/tokenize", "/detokenize", "/health", "/metrics"} <= set(paths)

    run(test)
