"""What the endpoints need of HTTP beyond FastAPI: clients that leave, streams of events, too long bodies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arcweld.serving.errors import Refusal, json_text

T = TypeVar("T")
TOO_LONG = 413


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of ``work``; None if the client leaves before. Then the work is cancelled and has cleaned up.

    The request's body must have been read: what is received next is that the client leaves.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
    return None if task.cancelled() else task.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events (WHATWG HTML, 9.2), each a JSON object, then ``[DONE]``.

    What the iterator raises before its first item has an ordinary error as its answer. A Refusal later is the last
    event, and ``ended`` is called with it. When the client leaves, the iterator is closed.
    """

    media_type = "text/event-stream"

    def __init__(self, items: Callable[[], AsyncIterator[Any]], ended: Callable[[Refusal], None]) -> None:
        super().__init__(headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._items, self._ended = items, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        await unless_disconnected(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        async with aclosing(self._items()) as items:  # type: ignore[type-var]
            first = await anext(items)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send(_event(json_text(first)))
            try:
                async for item in items:
                    await send(_event(json_text(item)))
            except Refusal as error:
                self._ended(error)
                await send(_event(json_text(error.body)))
        await send(_event(b"[DONE]"))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _event(data: bytes) -> Message:
    return {"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True}


class BodyLimit:
    """Refuses requests with more than ``most`` bytes, by what they announce or when too many have come."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > self.most:
            await too_long(self.most).response()(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.most:
                raise HTTPException(TOO_LONG, too_long(self.most).message)
            return message

        await self.app(scope, counted, send)


def too_long(most: int) -> Refusal:
    """The error of a body of more than ``most`` bytes."""
    return Refusal(TOO_LONG, f"the request has more than {most} bytes", reason="body_too_long")
