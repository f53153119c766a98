"""Engines of language models to alter: their descriptions, tokenizers, templates and samplers, beside what all have."""

from __future__ import annotations

import contextlib
import random
from functools import cache
from pathlib import Path

from alter import Members, altered, consistent, file_altered, flipped, read_members, written
from checkpoints import checkpoints, written_to

from arcweld.compiler.errors import ArcweldError
from arcweld.runtime.engine_file import FILES, engine_bytes
from arcweld.runtime.llm.package import DESCRIPTION, SAMPLER, TEMPLATE, TOKENIZER, TOOL_TEMPLATE

PARTS = {FILES + name for name in (DESCRIPTION, SAMPLER, TEMPLATE, TOKENIZER, TOOL_TEMPLATE)}


@cache
def llm_engines(folder: Path) -> tuple[bytes, ...]:
    """Engines of one small Llama: plain, and with caches of integers, room for adapters and hidden states."""
    from arcweld.driver.checkpoint_models import build_checkpoint

    path = written_to(checkpoints(folder)[0], folder / "llm")
    common = {"length": 32, "page_size": 8, "tokens": 16, "rows": 4, "device": "sim", "verify": "off", "arch": "sm_80"}
    more = {"kv_cache_dtype": "int8", "max_loras": 1, "max_lora_rank": 4, "embeddings": True}
    return tuple(engine_bytes(build_checkpoint(path, **common, **given).data) for given in ({}, more))


def altered_llm(original: bytes, rng: random.Random) -> bytes:
    """The engine with one to three of these parts altered, or altered as any engine; hashes agree in nine of ten."""
    if rng.random() < 0.3:
        return altered(original, rng)
    members = read_members(original)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        with contextlib.suppress(ValueError, IndexError, KeyError):
            members = _altered(members, rng)
    return written(consistent(members) if rng.random() < 0.9 else members)


def _altered(members: Members, rng: random.Random) -> Members:
    chosen = rng.choice([*sorted(PARTS & members.keys()), *[FILES + DESCRIPTION] * 4])
    body = members[chosen]
    if rng.random() < 0.1:
        return {n: b for n, b in members.items() if n != chosen}
    if rng.random() < 0.1:
        new = flipped(body, rng)
    elif chosen == FILES + SAMPLER:
        new = altered(body, rng)
    else:
        new = file_altered(chosen, body, rng)
    return {**members, chosen: new}


def open_llm(data: bytes, folder: Path) -> None:
    """Generates some tokens with it, chosen on the device and on the host, of a text and of a conversation."""
    from arcweld.driver.llm import LLM
    from arcweld.runtime.llm.params import SamplingParams

    path = folder / "altered.engine"
    path.write_bytes(data)
    llm = LLM(path, device="sim", sampler=("device", "host")[sum(data) % 2])
    params = SamplingParams(max_tokens=3, temperature=(0.0, 1.0)[sum(data) % 3 == 0], seed=1)
    llm.generate([[5, 6, 7], list(range(3, 20))], params)
    if sum(data) % 8 == 0:
        with contextlib.suppress(ArcweldError):
            llm.chat([{"role": "user", "content": "th"}], params)
