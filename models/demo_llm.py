"""The demonstration of language models, ``python -m arcweld.models.demo_llm``: from nothing to a streamed answer.

SmolLM2-135M-Instruct (a GGUF file of 98 MB, Apache-2.0) becomes one engine file, which is loaded and answers a
question. Without a GPU it runs on the simulator.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from arcweld.cli.common import progress_bar
from arcweld.compiler.errors import ArcweldError
from arcweld.compiler.paths import cache_dir
from arcweld.driver.checkpoint_models import build_checkpoint
from arcweld.driver.summary import bytes_text
from arcweld.models.reencode import smollm2
from arcweld.runtime.device import Device
from arcweld.runtime.devices import choose, open_device
from arcweld.runtime.engine_file import write_engine
from arcweld.runtime.llm.llm import LLM
from arcweld.runtime.llm.params import SamplingParams

QUESTION = "What is the capital of France, and what is it known for?"


def main(argv: Sequence[str] | None = None) -> int:
    """Fetches, builds, loads, asks; prints what each step took. Returns 1, with the reason, if one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--device", default="", help="cuda, cuda:N or sim; default: a GPU if there is one")
    options = parser.parse_args(argv)
    console = Console(highlight=False, soft_wrap=True)
    try:
        device = open_device(choose(options.device or None))
        engine = _engine(console, device)
        _answer(console, engine, device, options.question, options.max_tokens)
    except ArcweldError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _engine(console: Console, device: Device) -> Path:
    """Fetches the checkpoint and builds its engine file."""
    started = time.perf_counter()
    checkpoint = smollm2()
    console.print(f"checkpoint  {checkpoint.name}, {bytes_text(checkpoint.stat().st_size)}, {_since(started)}")
    started = time.perf_counter()
    with progress_bar(False) as report:
        package = build_checkpoint(checkpoint, length=1024, tokens=256, device=device, progress=report, verify="quick")
    path = cache_dir() / "demo" / "smollm2.engine"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_engine(path, package.data)
    launches = " or ".join(str(len(part.launches)) for part in package.data.program.parts())
    weights = sum(w.nbytes for w in package.data.weights.values())
    console.print(
        f"engine      {path}: {bytes_text(path.stat().st_size)}, of which {bytes_text(weights)} are weights as the "
        f"checkpoint stores them; {launches} kernels a step; verified on {device.name}; {_since(started)}"
    )
    return path


def _answer(console: Console, engine: Path, device: Device, question: str, tokens: int) -> None:
    started = time.perf_counter()
    llm = LLM(engine, device=device)
    pages = llm.stats().pages
    console.print(f"loaded      {pages} pages of {llm.core.description.page_size} tokens, {_since(started)}\n")
    console.print(f"> {question}")
    prompt = llm.chat_prompt([{"role": "user", "content": question}])
    started, first, shown = time.perf_counter(), 0.0, ""
    for out in llm.stream(prompt, SamplingParams(temperature=0, max_tokens=tokens)):
        first = first or time.perf_counter() - started
        text = out.outputs[0].text
        console.print(text[len(shown) :], end="")
        shown = text
    spent, count = time.perf_counter() - started, len(out.outputs[0].token_ids)
    rate = (count - 1) / (spent - first) if count > 1 else 0.0
    console.print(
        f"\n\n{len(prompt)} tokens of prompt, the first one after {first:.2f} s, then {rate:.1f} tokens a second on "
        f"{device.name}; nothing was compiled while it ran"
    )


def _since(started: float) -> str:
    return f"{time.perf_counter() - started:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
