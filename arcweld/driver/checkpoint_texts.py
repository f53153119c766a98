"""Reads what a checkpoint has for text: its tokenizer, chat templates, special tokens, end tokens and licence."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcweld.compiler.checkpoints.checkpoint import Checkpoint
from arcweld.compiler.checkpoints.files import COPY_AGAIN, read_json
from arcweld.compiler.errors import ModelError
from arcweld.compiler.paths import open_inside

log = logging.getLogger("arcweld.llm")
# transformers would ask at the terminal whether to run a checkpoint's own code, and look for files in the network
FILES_ALONE: Mapping[str, Any] = {"trust_remote_code": False, "local_files_only": True}
_GENERATION = "generation_config.json"
_READ = (".json", ".jinja", ".txt", ".model", ".vocab", ".tiktoken")  # names of files that tokenizers are in
_MOST_LICENSE = 1 << 20  # bytes of a licence that an engine keeps
_TOOL_USE = "tool_use"  # the name of the template of conversations with tools, where a model has several


@dataclass(frozen=True, slots=True)
class Texts:
    """What a checkpoint has for text: tokenizer.json, chat templates, special tokens, end tokens, the licence.

    tool_template  of conversations with tools, where it is another one
    """

    tokenizer: str | None
    template: str | None
    tool_template: str | None
    special: Mapping[str, str]
    end_tokens: tuple[int, ...]
    license_text: str | None


def read_texts(checkpoint: Checkpoint, folder: Path, place: dict[str, str], wanted: bool) -> Texts:
    """The texts; without a tokenizer, if it is not wanted, only the licence and the end tokens that files name."""
    import transformers

    if not wanted:
        return Texts(None, None, None, {}, tuple(sorted(set(_generation_ends(folder)))), _license(checkpoint, folder))
    if checkpoint.form != "GGUF":
        _check_links(folder)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **place, **FILES_ALONE)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the checkpoint's tokenizer cannot be read: {reason}", node=str(checkpoint.path),
            hint="fetch tokenizer.json again, or build an engine that takes token ids (--skip-tokenizer-init)",
        ) from error  # fmt: skip
    definition = getattr(tokenizer, "backend_tokenizer", None)
    ends = {tokenizer.eos_token_id} | set(_generation_ends(folder))
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    special = {n: str(getattr(tokenizer, n)) for n in names if getattr(tokenizer, n, None)}
    template, tool_template = _templates(checkpoint, tokenizer.chat_template)
    return Texts(
        None if definition is None else definition.to_str(), template, tool_template, special,
        tuple(sorted(t for t in ends if t is not None)), _license(checkpoint, folder),
    )  # fmt: skip


def _check_links(folder: Path) -> None:
    """Raises ModelError for files that transformers may read and that are links out of the folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and (path.suffix in _READ or not path.suffix):
            open_inside(folder, str(path.relative_to(folder)), "the checkpoint's texts", hub=True).close()


def _templates(checkpoint: Checkpoint, given: Any) -> tuple[str | None, str | None]:
    """The chat template, and the one for conversations with tools if it is another: a model may have several, by name.

    Raises ModelError for a template that is no text.
    """
    named = given if isinstance(given, Mapping) else {"default": given}
    found = named.get("default")
    tools = named.get(_TOOL_USE, checkpoint.config.get(f"tokenizer.chat_template.{_TOOL_USE}"))  # the latter is GGUF's
    if not all(t is None or isinstance(t, str) for t in (found, tools)):
        raise ModelError("the chat template is no text", node=str(checkpoint.path),
                         hint="fetch tokenizer_config.json and chat_template.jinja again")  # fmt: skip
    if found is None and named.keys() != {"default"}:
        log.warning("%s has chat templates called %s and none called default: none is used", checkpoint.path,
                    ", ".join(sorted(map(str, named))))  # fmt: skip
    return (found, None) if found is None or tools == found else (found, tools)


def check_vocabulary(texts: Texts, size: int | None, folder: Path) -> None:
    """Raises ModelError for a tokenizer, or end tokens, with numbers that the model has no embeddings for."""
    known = {} if texts.tokenizer is None else _numbers(texts.tokenizer)
    most = max([*known.values(), *texts.end_tokens], default=-1)
    if size is not None and most >= size:
        token = next((t for t, number in known.items() if number == most), "an end token")
        raise ModelError(
            f"the tokenizer gives the token {token[:80]!r} the number {most}, and the model's vocabulary has {size}",
            node=str(folder), hint="the tokenizer belongs to another model: fetch tokenizer.json and config.json again",
        )  # fmt: skip


def _numbers(definition: str) -> dict[str, int]:
    """The number of each token of a tokenizer.json."""
    from tokenizers import Tokenizer

    found: dict[str, int] = Tokenizer.from_str(definition).get_vocab(with_added_tokens=True)
    return found


def _generation_ends(folder: Path) -> list[int]:
    """The end tokens of generation_config.json."""
    given = (read_json(folder, _GENERATION) or {}).get("eos_token_id")
    found = [t for t in (given if isinstance(given, list) else [given]) if t is not None]
    wrong = [t for t in found if type(t) is not int or t < 0]
    if wrong:
        raise ModelError(f"eos_token_id is {str(wrong[0])[:80]!r}, which is no token", node=str(folder / _GENERATION),
                         hint=COPY_AGAIN)  # fmt: skip
    return found


def _license(checkpoint: Checkpoint, folder: Path) -> str | None:
    """The licence's text, or its name where only that is known."""
    if checkpoint.form != "GGUF":
        for name in ("LICENSE", "LICENSE.txt", "LICENSE.md"):
            if os.path.lexists(folder / name):
                with open_inside(folder, name, f"the file {name!r} of the checkpoint", hub=True) as file:
                    return file.read(_MOST_LICENSE).decode(errors="replace")
    named = checkpoint.config.get("general.license")
    return None if named is None else str(named)
