"""Serves an application by uvicorn: a port of its own, and an end at which requests in progress get their answers."""

from __future__ import annotations

import errno
import logging
import socket
import time
from types import FrameType

import uvicorn

from arcweld.compiler.errors import EnvironmentError_
from arcweld.serving.app import Application

log = logging.getLogger("arcweld.serving")
_CLOSING = 5  # seconds that answers have to reach their clients when all requests have ended


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at ``host`` and ``port``; 0 takes a free port.

    Raises EnvironmentError_ if the port is in use, may not be opened, or the host is not one of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server((str(address[0]), int(address[1])), family=family, backlog=2048)
    except OSError as error:
        where = f"port {port} of {host}"
        if error.errno == errno.EADDRINUSE:
            raise EnvironmentError_(f"{where} is in use", hint="give another --port; 0 takes a free one") from error
        raise EnvironmentError_(f"{where} cannot be opened: {error.strerror or error}") from error


class Server(uvicorn.Server):
    """A server that, when it is asked to end, refuses new requests and waits for those in progress.

    Asked again, it ends at once.
    """

    def __init__(self, app: Application) -> None:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, lifespan="on",
            timeout_graceful_shutdown=_CLOSING,
        )  # fmt: skip
        super().__init__(config)
        self.worker, self.limits = app.worker, app.settings.limits
        self._asked: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM and SIGINT: the first one asks to end, the second one ends."""
        if self._asked is not None:
            super().handle_exit(sig, frame)
        else:
            self.drain()

    def drain(self) -> None:
        """Asks the server to end."""
        self._asked = time.monotonic()
        self.worker.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second by uvicorn: whether the server ends now."""
        if await super().on_tick(counter):
            return True
        if self._asked is None:
            return False
        if self.worker.active and time.monotonic() - self._asked < self.limits.drain:
            return False
        if self.worker.active:
            log.warning("%d results did not end within %g s", self.worker.active, self.limits.drain)
            await self.worker.stop()
        return True


def serve(app: Application, listening: socket.socket) -> None:
    """Serves until SIGTERM or SIGINT; then requests in progress have ``Limits.drain`` seconds."""
    host, port = listening.getsockname()[:2]
    log.info("%s is served at http://%s:%d/v1", app.settings.name, f"[{host}]" if ":" in host else host, port)
    Server(app).run(sockets=[listening])
