"""``arcweld.LLM``: opens a language model's engine, or a checkpoint, whose engine it builds once and keeps.

    llm = arcweld.LLM("SmolLM2-135M-Instruct.gguf")
    for output in llm.generate(["The capital of France is"], arcweld.SamplingParams(temperature=0)):
        print(output.outputs[0].text)
"""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from arcweld.compiler.errors import UsageError
from arcweld.compiler.paths import cache_dir
from arcweld.driver.api import CompileOptions
from arcweld.driver.language_model import DEFAULT_RANK
from arcweld.runtime.devices import open_device
from arcweld.runtime.engine_file import read_engine, write_engine
from arcweld.runtime.llm.llm import LLM as Runtime
from arcweld.runtime.llm.package import AdapterRoom, Package, cache_dtype, unpacked

log = logging.getLogger("arcweld.llm")


class LLM(Runtime):
    """A language model that generates text; see ``arcweld.runtime.llm.llm.LLM`` for the arguments that are not here."""

    def __init__(
        self, model: str | os.PathLike[str] | Package, *, device: Any = None, max_model_len: int | None = None,
        max_num_batched_tokens: int | None = None, kv_cache_dtype: str = "auto", batch_invariant: bool = False,
        embeddings: bool = False, enable_lora: bool = False, max_loras: int | None = None,
        max_lora_rank: int | None = None, skip_tokenizer_init: bool = False, build: CompileOptions | None = None,
        **settings: Any,
    ) -> None:  # fmt: skip
        """Opens an engine file of ``arcweld build-llm``, a Hugging Face folder or a GGUF file.

        The engine of a checkpoint is built, and kept in the cache folder for the next time; ``build`` are options of
        that build, such as ``precision`` and ``verify``. With ``embeddings`` it gives hidden states too. A draft model
        of ``speculative`` is opened likewise. Raises what ``build_checkpoint`` raises, and UsageError for ``build``
        with an engine file.

        enable_lora          requests may name LoRA adapters
        max_loras            how many different ones at a time; None: 1, or what an engine file has room for
        max_lora_rank        their greatest rank; None: 16, or what an engine file has room for
        skip_tokenizer_init  prompts and results are token ids, and no tokenizer is read
        """
        where = open_device(device)
        wanted = {"length": max_model_len, "tokens": max_num_batched_tokens}
        sizes = {k: v for k, v in wanted.items() if v is not None}
        if not enable_lora and (max_loras, max_lora_rank) != (None, None):
            raise UsageError("max_loras and max_lora_rank are for enable_lora=True")
        if not isinstance(model, Package):
            cache_dtype(kv_cache_dtype)
            given: dict[str, Any] = {
                **sizes, "batch_invariant": batch_invariant, "embeddings": embeddings,
                "skip_tokenizer_init": skip_tokenizer_init,
                "kv_cache_dtype": None if kv_cache_dtype == "auto" else kv_cache_dtype,
            }  # fmt: skip
            if enable_lora:
                given |= {"max_loras": max_loras or 1, "max_lora_rank": max_lora_rank or DEFAULT_RANK}
            given = {k: v for k, v in given.items() if v is not None and v is not False}
            model = open_package(model, where, given, build or {})
        if skip_tokenizer_init:
            model = replace(model, tokenizer=None, template=None)
        if enable_lora:
            _check_room(model.description.adapters, max_loras or 1, max_lora_rank or 1)
        speculative = settings.get("speculative", 0)
        if isinstance(speculative, Mapping) and isinstance(speculative.get("model"), str | os.PathLike):
            draft = Path(speculative["model"])
            own = {**sizes, "skip_tokenizer_init": True}  # it is given tokens, and gives tokens
            opened = open_package(draft, where, own, {} if is_engine_file(draft) else build or {})
            settings["speculative"] = {**speculative, "model": opened}
        super().__init__(
            model, device=where, max_model_len=max_model_len, max_num_batched_tokens=max_num_batched_tokens,
            kv_cache_dtype=kv_cache_dtype, batch_invariant=batch_invariant, embeddings=embeddings, **settings,
        )  # fmt: skip


def _check_room(room: AdapterRoom | None, count: int, rank: int) -> None:
    """Raises UsageError for an engine without room for so many adapters of this rank."""
    if room is None or room.count < count or room.rank < rank:
        has = "none" if room is None else f"{room.count} of rank {room.rank}"
        raise UsageError(f"{count} LoRA adapters of rank {rank} are asked for, and the engine has room for {has}",
                         hint="arcweld build-llm --max-loras --max-lora-rank makes room")  # fmt: skip


def is_engine_file(path: Path) -> bool:
    """Whether the file is an archive, as engines are and checkpoints are not."""
    return path.is_file() and zipfile.is_zipfile(path)


def open_package(
    path: str | os.PathLike[str], device: Any, sizes: Mapping[str, Any], options: CompileOptions
) -> Package:  # fmt: skip
    """The language model at ``path``: an engine file's, or the one that is built of a checkpoint for ``device``.

    ``sizes`` are arguments of ``build_checkpoint`` that are not ``options`` of every build.
    """
    place = Path(path)
    if is_engine_file(place):
        if options:
            raise UsageError(f"{place} is an engine already: options of a build have no effect", hint="leave out build")
        return unpacked(read_engine(place))
    if not place.exists():
        raise UsageError(
            f"there is no model {os.fspath(path)!r}", hint="name an engine file, a Hugging Face folder or a GGUF file"
        )
    of, state = _key(place, device.arch, device.is_simulator, sizes, options)
    kept = cache_dir() / "llm" / f"{of}-{state}.engine"
    if not kept.exists():
        from arcweld.driver.checkpoint_models import build_checkpoint

        log.info("building the engine of %s, which is kept in %s", place, kept)
        given: CompileOptions = {**options, "device": device}
        package = build_checkpoint(place, **sizes, **given)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_engine(kept, package.data)
        for old in set(kept.parent.glob(f"{of}-*.engine")) - {kept}:
            old.unlink(missing_ok=True)  # which another process may have done
    return unpacked(read_engine(kept))


def _key(
    path: Path, arch: str, simulated: bool, sizes: Mapping[str, Any], options: CompileOptions
) -> tuple[str, str]:  # fmt: skip
    """What the engine of a checkpoint depends on: which checkpoint and build, and the state of what it is made of.

    Engines of one build replace each other: the checkpoint's files have changed, or Arcweld.
    """
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    seen = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    of = (str(path.resolve()), arch, simulated, sorted(sizes.items()), sorted(options.items(), key=str))
    state = (sources_hash(Path(__file__).parents[1]), seen)
    first, second = (hashlib.sha256(repr(parts).encode()).hexdigest() for parts in (of, state))
    return first[:16], second[:16]


@cache
def sources_hash(package: Path) -> str:
    """A hash of the sources in the folder ``package``: two commits of one version make different engines."""
    found: list[Path] = []
    for folder, inner, names in os.walk(package, followlinks=True):  # a working tree has links to its folders
        inner[:] = [name for name in inner if name != "__pycache__"]
        found += [Path(folder, name) for name in names]
    digest = hashlib.sha256()
    for path in sorted(found):
        digest.update(f"{path.relative_to(package)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()
