"""``bench-serve``: measures a server of language models, this one or any that speaks OpenAI's API."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arcweld.cli.common import check_writable, err, finite, out, print_json, serving_packages
from arcweld.compiler.errors import EnvironmentError_, InputError, UsageError

if TYPE_CHECKING:
    from arcweld.serving.bench import Outcome, Traffic

Opt = typer.Option
FAILED = 1  # the exit code where a request failed
_TARGET = "Address of a server, like http://127.0.0.1:8000; or an engine or a checkpoint, which is served meanwhile."
_LAST = 30  # seconds that a server of ours has to end


def bench_serve(
    target: Annotated[str, typer.Argument(help=_TARGET)],
    prompts: Annotated[int, Opt("--num-prompts", help="Requests to send.", min=1)] = 100,
    concurrency: Annotated[int | None, Opt("--concurrency", help="The most requests at a time.")] = None,
    rate: Annotated[float, Opt("--request-rate", help="Requests a second, at random times.")] = math.inf,
    input_len: Annotated[int, Opt("--input-len", help="Tokens of a prompt.", min=1)] = 128,
    output_len: Annotated[int, Opt("--output-len", help="Tokens of an answer.", min=1)] = 64,
    dataset: Annotated[str, Opt("--dataset", help="Prompts as JSON Lines, in place of random ones.")] = "",
    chat: Annotated[bool, Opt("--chat", help="Measure chat completions; needs --dataset.")] = False,
    model: Annotated[str, Opt("--model", help="The model's name; default: the first one of the server.")] = "",
    api_key: Annotated[str, Opt("--api-key", envvar="ARCWELD_API_KEY", help="The server's key.")] = "",
    warm: Annotated[int, Opt("--num-warmups", help="Requests before those that count.", min=0)] = 1,
    seed: Annotated[int, Opt("--seed", help="Of prompts and of the times of requests.", min=0)] = 0,
    ignore_eos: Annotated[bool, Opt("--ignore-eos/--no-ignore-eos", help="Answers have their full length.")] = True,
    timeout: Annotated[float, Opt("--timeout", help="Seconds of a request.")] = 600.0,
    result: Annotated[str, Opt("--out", help="A JSON file to write.")] = "",
    device: Annotated[str, Opt("--device", help="Where to serve an engine: cuda, cuda:N, sim.")] = "",
    as_json: Annotated[bool, Opt("--json", help="Print JSON.")] = False,
) -> None:  # fmt: skip
    """Sends requests to a server of language models, and prints how fast it answers.

    The exit code is 1 if a request fails.
    """
    with serving_packages("bench-serve"):
        from arcweld.serving.bench import Traffic
        from arcweld.serving.bench_report import first_complaints, measures
    if chat and not dataset:
        raise UsageError("--chat measures texts, and random prompts are tokens", hint="give --dataset")
    if result:
        check_writable(result, target)
    limited = 8 if concurrency is None and math.isinf(rate) else concurrency
    traffic = Traffic(limited, rate, seed, ignore_eos, timeout)
    sizes = (prompts, input_len, output_len, warm)
    with _served(target, device) as address:
        name, outcomes = asyncio.run(_measured(address, model, api_key, traffic, sizes, dataset, chat))
    found = {
        **_provenance(), "target": target, "model_id": name, "endpoint": "chat" if chat else "completions",
        "num_prompts": prompts, "request_rate": "inf" if math.isinf(rate) else rate, "max_concurrency": limited,
        "seed": seed, "dataset": dataset or None, "input_len": None if dataset else input_len, "output_len": output_len,
        "ignore_eos": ignore_eos, **measures(outcomes),
    }  # fmt: skip
    if result:
        Path(result).write_text(json.dumps(finite(found), indent=1) + "\n", encoding="utf-8")
    if as_json:
        print_json(found)
    else:
        _print(found)
    for kind, told in first_complaints(outcomes).items():
        err.print(f"{found['errors'][kind]} of {prompts} requests failed: {kind}: {told}")
    if found["failed"]:
        raise typer.Exit(FAILED)


async def _measured(
    address: str, model: str, key: str, traffic: Traffic, sizes: tuple[int, int, int, int], dataset: str, chat: bool
) -> tuple[str, list[Outcome]]:  # fmt: skip
    """The model's name, and the outcomes."""
    import httpx

    from arcweld.serving.bench import Bench, prompts_of_lines, random_prompts, served_model

    count, length, output, warm = sizes
    head = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=address, headers=head, limits=limits, timeout=traffic.timeout) as http:
        name = model or await served_model(http)
        if dataset:
            given = prompts_of_lines(_read(dataset), output, count + warm)
        else:
            given = await random_prompts(http, name, count + warm, length, output, traffic.seed)
        bench = Bench(http, name, traffic, chat=chat)
        await bench.warm_up(given[count:])
        return name, await bench.run(given[:count])


@contextmanager
def _served(target: str, device: str) -> Iterator[str]:
    """The address of a server: the one that is named, or one of our own in a process of its own."""
    if re.match(r"https?://", target):
        yield target.rstrip("/").removesuffix("/v1")
        return
    words = ["serve", target, "--port", "0", "--log-format", "json", *(["--device", device] if device else [])]
    environment = {k: v for k, v in os.environ.items() if k != "ARCWELD_API_KEY"}
    process = subprocess.Popen(
        [sys.executable, "-m", "arcweld", *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env=environment,
    )  # fmt: skip
    assert process.stderr is not None
    rest = threading.Thread(target=process.stderr.read)  # a pipe that nobody reads would stop the server
    try:
        address = _address(process.stderr)
        rest.start()
        yield address
    finally:
        process.terminate()
        try:
            process.wait(_LAST)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if rest.is_alive():
            rest.join()
        process.stderr.close()


def _address(lines: Iterator[str]) -> str:
    """The address that a server's log says. Raises EnvironmentError_ where it ends before."""
    seen = []
    for line in lines:
        if match := re.search(r"(http://\S+)/v1\b", line):
            return match[1]
        seen.append(line.strip())
    raise EnvironmentError_(f"the model cannot be served: {' '.join(seen)[-1000:]}")


def _provenance() -> dict[str, Any]:
    """When, by which version, on which machine."""
    packages = {n: importlib.metadata.version(n) for n in ("arcweld", "httpx", "numpy")}
    return {
        "date": datetime.now(UTC).strftime("%Y%m%d-%H%M%S"), "versions": packages,
        "python": platform.python_version(), "commit": _commit(),
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "processor": platform.machine()},
    }  # fmt: skip


def _commit() -> str | None:
    """The commit of the checkout that this code is in; None where it is installed."""
    folder = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    tracked = done.returncode == 0 and (folder.parent / "pyproject.toml").is_file()
    return done.stdout.strip() if tracked else None


def _print(found: dict[str, Any]) -> None:
    from arcweld.serving.bench_report import PERCENTILES, TIMES

    out.print(
        f"{found['completed']} of {found['num_prompts']} requests in {found['duration']:.2f} s, "
        f"{found['total_input_tokens']} tokens of prompts, {found['total_output_tokens']} of answers"
    )
    names = {"request": "requests", "output": "tokens of answers", "total_token": "tokens"}
    rates = [f"{_number(found[f'{k}_throughput'])} {text}" for k, text in names.items()]
    out.print(f"a second: {', '.join(rates)}")
    out.print(_row("milliseconds", ["mean", *(f"p{p}" for p in PERCENTILES)]))
    for name, text in TIMES.items():
        columns = ["mean", *(f"p{p}" for p in PERCENTILES)]
        out.print(_row(text, [_number(found[f"{c}_{name}_ms"]) for c in columns]))


def _row(text: str, cells: Sequence[str]) -> str:
    return f"{text:<22}" + "".join(f"{c:>12}" for c in cells)


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.2f}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the prompts {path} cannot be read: {error}") from error
