"""A client that measures a server: any that speaks OpenAI's API of completions, with streams and their usage.

Requests are sent so many at a time, or at random times of a rate (a Poisson process), and the times are noted at which
pieces of text arrive. Times are those of the event loop's clock, so that a test may bring a clock of its own.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from arcweld.compiler.errors import EnvironmentError_, UsageError

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MOST_TOLD = 200  # characters of a server's complaint that are kept
_WORDS = "the a of light water stone river seven green bread quick answer table music north paper glass window"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request's prompt, a text or token ids, and the most tokens of its answer."""

    prompt: str | Sequence[int]
    output: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """How requests are sent.

    concurrency  the most requests at a time; None: as many as arrive
    rate         requests a second on average; infinity: all arrive at once
    seed         of the times between arrivals
    ignore_eos   answers have the length that is asked for, by a field that not every server knows
    timeout      seconds that a request may last
    """

    concurrency: int | None = None
    rate: float = math.inf
    seed: int = 0
    ignore_eos: bool = True
    timeout: float = 600.0

    def __post_init__(self) -> None:
        if self.concurrency is not None and self.concurrency < 1:
            raise UsageError(f"the concurrency is {self.concurrency}, not at least 1")
        if not self.rate > 0:
            raise UsageError(f"the request rate is {self.rate}, not positive")
        if not 0 < self.timeout < math.inf:
            raise UsageError(f"the timeout is {self.timeout}, not a positive number of seconds")

    def arrivals(self, count: int) -> np.ndarray:
        """The seconds from the start to each request's arrival: f64[count], ascending."""
        if math.isinf(self.rate):
            return np.zeros(count)
        gaps = np.random.default_rng(self.seed).exponential(1 / self.rate, count)
        found: np.ndarray = gaps.cumsum()
        return found


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request. Times are seconds of the event loop's clock.

    pieces      when each piece of text arrived
    prompt      tokens of the prompt, and ``output`` those of the answer, as the server counts them
    error       the kind of its failure, such as ``http_429``, ``timeout`` or ``cut``; empty for none
    told        what the server or the system says of it
    """

    started: float
    ended: float
    pieces: tuple[float, ...] = ()
    prompt: int = 0
    output: int = 0
    error: str = ""
    told: str = ""


class _Failure(Exception):
    """A request failed: its kind, and what is said of it."""

    def __init__(self, kind: str, told: str = "") -> None:
        super().__init__(kind, told)
        self.kind, self.told = kind, told[:MOST_TOLD]


class Bench:
    """A server under test. ``http`` has its address and its key."""

    def __init__(self, http: httpx.AsyncClient, model: str, traffic: Traffic, *, chat: bool = False) -> None:
        self.http, self.model, self.traffic, self.chat = http, model, traffic, chat

    async def warm_up(self, prompts: Sequence[Prompt]) -> None:
        """Sends prompts one after another. Raises EnvironmentError_ if one fails."""
        for prompt in prompts:
            found = await self.one(prompt)
            if found.error:
                raise EnvironmentError_(
                    f"the server does not answer a first request: {found.error}: {found.told}",
                    node=str(self.http.base_url), hint="see what it logs",
                )  # fmt: skip

    async def run(self, prompts: Sequence[Prompt]) -> list[Outcome]:
        """The outcomes of prompts in their order."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        most: AbstractAsyncContextManager[Any] = (
            nullcontext() if self.traffic.concurrency is None else asyncio.Semaphore(self.traffic.concurrency)
        )

        async def send(prompt: Prompt, at: float) -> Outcome:
            await asyncio.sleep(max(0.0, start + at - loop.time()))
            async with most:
                return await self.one(prompt)

        times = self.traffic.arrivals(len(prompts)).tolist()
        return await asyncio.gather(*(send(p, at) for p, at in zip(prompts, times)))

    async def one(self, prompt: Prompt) -> Outcome:
        """Sends a prompt and reads its answer."""
        loop = asyncio.get_running_loop()
        started, pieces = loop.time(), list[float]()
        usage: dict[str, Any] = {}
        kind = told = ""
        try:
            async with asyncio.timeout(self.traffic.timeout), aclosing(self._events(prompt)) as events:
                async for event in events:
                    if any(_text(c) for c in event.get("choices") or ()):
                        pieces.append(loop.time())
                    usage = event.get("usage") or usage
            kind = "" if usage.get("completion_tokens") and pieces else "no_usage" if pieces else "no_text"
        except TimeoutError:
            kind, told = "timeout", f"it took more than {self.traffic.timeout:g} s"
        except _Failure as error:
            kind, told = error.kind, error.told
        except httpx.TransportError as error:
            kind, told = "connection", f"{type(error).__name__}: {error}"[:MOST_TOLD]
        read, made = (int(usage.get(k) or 0) for k in ("prompt_tokens", "completion_tokens"))
        return Outcome(started, loop.time(), tuple(pieces), read, made, kind, told)

    async def _events(self, prompt: Prompt) -> AsyncGenerator[dict[str, Any]]:
        """The objects of a stream. Raises _Failure for one that is refused, fails, is cut off or is no JSON."""
        path = CHAT if self.chat else TEXT
        async with self.http.stream("POST", path, json=self._body(prompt)) as response:
            if response.status_code != 200:
                raise _Failure(f"http_{response.status_code}", (await response.aread()).decode(errors="replace"))
            async for line in response.aiter_lines():
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                try:
                    event = json.loads(data)
                except ValueError as error:
                    raise _Failure("not_json", data) from error
                if not isinstance(event, dict) or event.get("error"):
                    raise _Failure("stream_error", data)
                yield event
        raise _Failure("cut", "the stream ended before [DONE]")

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        if self.chat:
            asked: dict[str, Any] = {"messages": [{"role": "user", "content": prompt.prompt}]}
        else:
            asked = {"prompt": prompt.prompt}
        return {
            **asked, "model": self.model, "max_tokens": prompt.output, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}, **({"ignore_eos": True} if self.traffic.ignore_eos else {}),
        }  # fmt: skip


def _text(choice: dict[str, Any]) -> str:
    """The new text of a choice in either kind of completion."""
    delta = choice.get("delta") or {}
    return choice.get("text") or delta.get("content") or delta.get("reasoning_content") or ""


# ------------------------------------------------------------------------------------------------- before a measurement


async def served_model(http: httpx.AsyncClient) -> str:
    """The first model that a server lists. Raises EnvironmentError_ where there is none."""
    found = (await _json(http, "GET", "/v1/models")).get("data")
    if not isinstance(found, list) or not found:
        raise EnvironmentError_("the server lists no model", node=str(http.base_url), hint="name it by --model")
    return str(found[0]["id"])


async def random_prompts(
    http: httpx.AsyncClient, model: str, count: int, length: int, output: int, seed: int = 0
) -> list[Prompt]:  # fmt: skip
    """Prompts of ``length`` tokens drawn from those of some words, by the server's ``/tokenize``.

    Raises EnvironmentError_ for a server without it.
    """
    found = await _json(http, "POST", "/tokenize", {"model": model, "prompt": _WORDS, "add_special_tokens": False})
    ids = found.get("tokens")
    if not isinstance(ids, list) or not ids:
        raise EnvironmentError_("the server's /tokenize gives no tokens", node=str(http.base_url))
    drawn = np.random.default_rng(seed).choice(np.unique(ids), (count, length)).tolist()
    return [Prompt(tokens, output) for tokens in drawn]


def prompts_of_lines(text: str, output: int, count: int) -> list[Prompt]:
    """``count`` prompts of a file in JSON Lines, from its start again where it has fewer.

    A line is an object with ``prompt`` and, where its answer has another length than ``output``, ``output_tokens``.
    Raises UsageError for a line that is none.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            most = entry.get("output_tokens", output)
            fits = isinstance(entry["prompt"], str) and isinstance(most, int) and most > 0
        except (ValueError, KeyError, AttributeError):
            fits = False
        if not fits:
            raise UsageError(f"line {number} is no object with a text as prompt", hint='as in {"prompt": "Who?"}')
        found.append(Prompt(entry["prompt"], most))
    if not found:
        raise UsageError("the file has no prompts")
    return [found[k % len(found)] for k in range(count)]


async def _json(http: httpx.AsyncClient, method: str, path: str, body: Any = None) -> dict[str, Any]:
    try:
        response = await http.request(method, path, json=body)
        found = response.json() if response.status_code == 200 else None
    except (httpx.HTTPError, ValueError) as error:
        raise EnvironmentError_(f"{method} {path} failed: {error}", node=str(http.base_url),
                                hint="is this the address of a server, without /v1?") from error  # fmt: skip
    if not isinstance(found, dict):
        raise EnvironmentError_(
            f"{method} {path} is answered by status {response.status_code}: {response.text[:MOST_TOLD]}",
            node=str(http.base_url),
        )  # fmt: skip
    return found
