"""A server that is killed in the middle of a stream, and started again at the same port, with the same caches."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from served import answer, package

from arcweld.runtime.engine_file import write_engine

PROMPT = "The sky is"


@contextmanager
def command(engine: Path, port: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command ``serve`` and the address that it says."""
    words = ["serve", str(engine), "--port", str(port), "--device", "sim", "--log-format", "json"]
    process = subprocess.Popen([sys.executable, "-m", "arcweld", *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        address = re.search(r"http://[^/]+", json.loads(line)["message"])
        assert address is not None, line
        yield process, address[0]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.slow
def test_a_server_that_is_killed_in_a_stream_starts_again(tmp_path: Path) -> None:
    engine = tmp_path / "small.engine"
    write_engine(engine, package().data)
    body = {"model": "small", "prompt": PROMPT, "temperature": 0}
    with command(engine, 0) as (process, address):
        long = {**body, "max_tokens": 110, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{address}/v1/completions", json=long, timeout=300) as response:
            lines = response.iter_lines()
            for _ in range(5):
                next(lines)
            process.send_signal(signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                list(lines)
        assert process.wait(60) == -signal.SIGKILL
    with command(engine, int(address.rpartition(":")[2])) as (process, again):
        assert again == address
        assert httpx.get(f"{address}/health").json() == {"status": "ok"}
        found = httpx.post(f"{address}/v1/completions", json={**body, "max_tokens": 9}, timeout=300).json()
        assert found["choices"][0]["text"] == answer(PROMPT, 9)[0]
        assert found["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
