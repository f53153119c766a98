"""The benchmark client against a scripted server on a clock of its own, and against the tiny model."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from served import NAME, application, served

from arcweld.cli.app import main
from arcweld.compiler.errors import EnvironmentError_, UsageError
from arcweld.serving.bench import Bench, Outcome, Prompt, Traffic, prompts_of_lines, random_prompts
from arcweld.serving.bench_report import measures


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time goes on at once where all wait for it, and not at all while something runs."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled  # type: ignore[attr-defined]
        if not ready and scheduled:
            self.now = max(self.now, scheduled[0].when())
        super()._run_once()  # type: ignore[misc]


def in_clock(coroutine: Any) -> Any:
    with asyncio.Runner(loop_factory=Clock) as runner:
        return runner.run(coroutine)


class Stream(httpx.AsyncByteStream):
    def __init__(self, lines: AsyncGenerator[str]) -> None:
        self.lines = lines

    async def aclose(self) -> None:
        await self.lines.aclose()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for line in self.lines:
            yield f"data: {line}\n\n".encode()


def event(**more: Any) -> str:
    return json.dumps({"choices": [], **more})


class Script(httpx.AsyncBaseTransport):
    """A server that waits ``first`` seconds, sends a piece of ``each`` tokens, and another after each of ``gaps``.

    ``fails`` gives a response or an error in place of it, by the request's number.
    """

    def __init__(
        self, first: float, gaps: Sequence[float], each: int = 1,
        fails: Callable[[int], httpx.Response | Exception | list[str] | None] = lambda number: None,
    ) -> None:  # fmt: skip
        self.first, self.gaps, self.each, self.fails = first, gaps, each, fails
        self.arrived: list[float] = []
        self.bodies: list[Any] = []
        self.running = self.most = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.arrived.append(asyncio.get_running_loop().time())
        self.bodies.append(json.loads(await request.aread()))
        bad = self.fails(len(self.arrived) - 1)
        if isinstance(bad, Exception):
            raise bad
        if isinstance(bad, httpx.Response):
            return bad
        return httpx.Response(200, stream=Stream(self.lines(bad)))

    async def lines(self, scripted: list[str] | None) -> AsyncGenerator[str]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            async for line in self.script(scripted):
                yield line
        finally:
            self.running -= 1

    async def script(self, scripted: list[str] | None) -> AsyncGenerator[str]:
        yield event(choices=[{"text": ""}])  # an opening is no token
        await asyncio.sleep(self.first)
        for line in scripted or ():
            yield line
        if scripted is None:
            yield event(choices=[{"text": "a"}])
            for gap in self.gaps:
                await asyncio.sleep(gap)
                yield event(choices=[{"text": "b"}])
            count = self.each * (1 + len(self.gaps))
            yield event(usage={"prompt_tokens": 7, "completion_tokens": count})
            yield "[DONE]"


def bench(script: Script, traffic: Traffic, count: int, chat: bool = False) -> list[Outcome]:
    async def whole() -> list[Outcome]:
        async with httpx.AsyncClient(transport=script, base_url="http://127.0.0.1") as http:
            return await Bench(http, NAME, traffic, chat=chat).run([Prompt("p", 4)] * count)

    found: list[Outcome] = in_clock(whole())
    return found


def test_times_are_those_of_the_script() -> None:
    """Ten requests, three at a time, of 0.5 s to the first piece, then gaps of 0.1 to 0.4 s: 1.5 s each."""
    script = Script(0.5, [0.1, 0.2, 0.3, 0.4], each=2)
    found = measures(bench(script, Traffic(concurrency=3), 10))
    assert script.most == 3
    assert (found["completed"], found["failed"], found["errors"]) == (10, 0, {})
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (70, 100)
    want = {
        "duration": 6.0, "request_throughput": 10 / 6, "output_throughput": 100 / 6, "total_token_throughput": 170 / 6,
        "mean_ttft_ms": 500, "p99_ttft_ms": 500, "std_ttft_ms": 0, "mean_e2el_ms": 1500, "median_tpot_ms": 1000 / 9,
        "mean_itl_ms": 250, "median_itl_ms": 250,
        **{f"p{p}_itl_ms": np.percentile([100, 200, 300, 400] * 10, p) for p in (50, 90, 99)},
    }  # fmt: skip
    for name, value in want.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


def test_requests_arrive_at_the_times_of_their_rate() -> None:
    script = Script(30.0, [])
    traffic = Traffic(rate=4.0, seed=5)
    bench(script, traffic, 200)
    gaps = np.diff([1000.0, *script.arrived])
    np.testing.assert_allclose(gaps, np.random.default_rng(5).exponential(0.25, 200), atol=1e-6)
    assert script.most > 60  # nobody waits for another's answer
    assert abs(gaps.mean() - 0.25) < 0.05


def test_errors_are_counted_by_kind() -> None:
    text = event(choices=[{"text": "a"}])
    fails: list[httpx.Response | Exception | list[str] | None] = [
        httpx.Response(429, text="later"), httpx.Response(500, text="defect"), httpx.ConnectError("refused"),
        httpx.ReadError("gone"), [text], ["{"], [event(error={"message": "lost"})], [text, "[DONE]"],
        [event(usage={"prompt_tokens": 7, "completion_tokens": 1}), "[DONE]"], None, httpx.Response(429, text="again"),
    ]  # fmt: skip
    outcomes = bench(Script(0.5, [], fails=lambda number: fails[number]), Traffic(concurrency=1), len(fails))
    found = measures(outcomes)
    assert found["errors"] == {
        "http_429": 2, "http_500": 1, "connection": 2, "cut": 1, "not_json": 1, "stream_error": 1, "no_usage": 1,
        "no_text": 1,
    }  # fmt: skip
    assert (found["completed"], found["failed"], found["total_output_tokens"]) == (1, 10, 1)
    assert outcomes[0].told == "later"
    slow = measures(bench(Script(50.0, []), Traffic(timeout=3.0), 2))
    assert (slow["errors"], slow["duration"], slow["mean_ttft_ms"]) == ({"timeout": 2}, 3.0, None)


def test_what_is_asked_for() -> None:
    script = Script(0.0, [])
    bench(script, Traffic(ignore_eos=False), 1)
    bench(script, Traffic(), 1, chat=True)
    text, chat = script.bodies
    assert (text["prompt"], text["max_tokens"], text["stream_options"]) == ("p", 4, {"include_usage": True})
    assert "ignore_eos" not in text
    assert (chat["messages"], chat["ignore_eos"]) == ([{"role": "user", "content": "p"}], True)


def test_prompts_of_a_file() -> None:
    text = '{"prompt": "a"}\n\n{"prompt": "b", "output_tokens": 9}\n'
    assert prompts_of_lines(text, 4, 3) == [Prompt("a", 4), Prompt("b", 9), Prompt("a", 4)]
    for bad in ("", "{", "[]", '{"prompt": 1}', '{"prompt": "a", "output_tokens": 0}', '{"text": "a"}'):
        with pytest.raises(UsageError, match=r"line 1|no prompts"):
            prompts_of_lines(bad, 4, 3)


@pytest.mark.parametrize("bad", [{"concurrency": 0}, {"rate": 0.0}, {"rate": math.nan}, {"timeout": math.inf}])
def test_loads_that_make_no_sense(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Traffic(**bad)


def test_our_own_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = application(keys=("secret",))
    path = tmp_path / "found.json"
    words = ["--num-prompts", "12", "--concurrency", "4", "--input-len", "20", "--output-len", "6", "--out", str(path)]
    with served(app) as (address, _):
        assert main(["bench-serve", address, *words, "--api-key", "secret"]) == 0
        shown = capsys.readouterr().out
        assert main(["bench-serve", address, *words]) == 4
        assert "status 401" in capsys.readouterr().err
    found = json.loads(path.read_text(encoding="utf-8"))
    assert (found["completed"], found["failed"], found["model_id"]) == (12, 0, NAME)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (240, 72)
    assert 0 < found["p50_itl_ms"] < found["p50_e2el_ms"]
    assert found["mean_ttft_ms"] <= found["mean_e2el_ms"]
    assert found["versions"]["arcweld"]
    assert "time to first token" in shown
    stats = app.worker.core.stats()
    assert stats.generated_tokens == 13 * 6  # one more to warm up


def test_a_server_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["bench-serve", "http://127.0.0.1:9"]) == 4
    assert "GET /v1/models failed" in capsys.readouterr().err
    assert main(["bench-serve", "http://127.0.0.1:9", "--chat"]) == 2
    assert main(["bench-serve", str(tmp_path / "missing.engine")]) == 4
    assert "there is no model" in capsys.readouterr().err

    async def without_tokenize() -> None:
        transport = httpx.MockTransport(lambda request: httpx.Response(404, text="nothing here"))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            with pytest.raises(EnvironmentError_, match="status 404: nothing here"):
                await random_prompts(http, "m", 1, 1, 1)

    asyncio.run(without_tokenize())
