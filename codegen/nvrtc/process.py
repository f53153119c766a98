"""A compiler process: this side of the pipes to an NVRTC server (``worker.py``)."""

from __future__ import annotations

import functools
import logging
import os
import pickle
import subprocess
import sys

from arcweld.codegen.nvrtc import worker

log = logging.getLogger("arcweld.nvrtc")

# what the server takes from this process' environment: where libraries are
KEPT = ("LD_LIBRARY_PATH",)


class CompilerProcess:
    """One server. Not thread-safe: it answers one request at a time."""

    def __init__(self, library: str) -> None:
        """Starts it, with the path of NVRTC."""
        self._greeted = False
        environment = {name: os.environ[name] for name in KEPT if name in os.environ} | worker.ENVIRONMENT
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-P", worker.__file__, library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd="/",
            start_new_session=True,
        )

    def ask(self, request: worker.Request) -> worker.Reply:
        """The reply. Raises EOFError if the process died."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            worker.send(self.process.stdin, pickle.dumps(request, protocol=5))
            if not self._greeted:
                self._greeted = True
                if worker.receive(self.process.stdout) == worker.RANDOM:
                    _warn_of_random_addresses()
            body = worker.receive(self.process.stdout)
        except OSError as error:
            raise EOFError(str(error)) from None
        if body is None:
            raise EOFError(f"exit status {self.process.wait()}")
        return worker.decode(body)

    def close(self) -> None:
        """Closes the pipes, which ends the process."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # a pipe whose reader died holds unsent bytes
                    continue
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@functools.cache
def _warn_of_random_addresses() -> None:
    """Logs it once."""
    log.warning(
        "this system forbids personality(ADDR_NO_RANDOMIZE), as some containers do: NVRTC orders some instructions by "
        "addresses, which are now random, so that two builds of one model may differ in their object code"
    )
