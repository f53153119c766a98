"""Builds the engine of a language model from its checkpoint, a Hugging Face folder or a GGUF file.

The architecture is that of transformers' code for it, made without weights; these are bound by name to what the
checkpoint stores, and stay packed where they are stored packed.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from arcweld.compiler.checkpoints.cache_settings import states_float8
from arcweld.compiler.checkpoints.caches import StoredScales
from arcweld.compiler.checkpoints.checkpoint import Checkpoint
from arcweld.compiler.checkpoints.graph import add_logical
from arcweld.compiler.checkpoints.names import Bound, bind
from arcweld.compiler.checkpoints.opening import open_checkpoint
from arcweld.compiler.checkpoints.stacked import Sources
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import EnvironmentError_, ModelError, UnsupportedError
from arcweld.compiler.ir import Value
from arcweld.compiler.ops.emit import Emitter
from arcweld.driver.api import CompileOptions
from arcweld.driver.checkpoint_texts import FILES_ALONE, Texts, check_vocabulary, read_texts
from arcweld.driver.language_model import DEFAULT_PAGE, DEFAULT_RANK, DEFAULT_TOKENS, build_language_model
from arcweld.runtime.llm.package import Package, cache_dtype

log = logging.getLogger("arcweld.llm")
DEFAULT_LENGTH = 2048


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A checkpoint whose architecture and tensors fit.

    module      transformers' module for it, without its weights
    parameters  the shapes of the module's parameters, by name
    bound       the stored tensors of the parameters
    """

    checkpoint: Checkpoint
    module: Any
    texts: Texts
    parameters: Mapping[str, tuple[int, ...]]
    bound: Bound

    def weights(self) -> Callable[[Emitter, str], Value | None]:
        """Gives the value of a parameter, as ``import_causal_lm`` asks for it."""
        return _Weights(self.bound, self.parameters)


def read_language_model(path: str | Path, tokenizer: bool = True) -> LanguageModel:
    """The checkpoint at ``path``, with or without its tokenizer; no weight is read. Raises as ``build_checkpoint``."""
    checkpoint = open_checkpoint(path)
    module, texts = _module(checkpoint, tokenizer)
    parameters = {n: tuple(p.shape) for n, p in module.named_parameters(remove_duplicate=False)}
    bound = bind(checkpoint, parameters, _tied(module), _sources(checkpoint, module))
    return LanguageModel(checkpoint, module, texts, parameters, bound)


def build_checkpoint(
    path: str | Path, *, length: int | None = None, page_size: int = DEFAULT_PAGE, tokens: int = DEFAULT_TOKENS,
    rows: int | None = None, kv_cache_dtype: str = "auto", batch_invariant: bool = False, embeddings: bool = False,
    max_loras: int = 0, max_lora_rank: int = DEFAULT_RANK, skip_tokenizer_init: bool = False,
    **options: Unpack[CompileOptions],
) -> Package:  # fmt: skip
    """The engine of the checkpoint at ``path``.

    length                  the most tokens of a sequence; None: the model's own, but at most 2,048
    page_size, tokens, rows, kv_cache_dtype, batch_invariant, embeddings, max_loras, max_lora_rank
                            as in ``build_language_model``
    skip_tokenizer_init     the engine takes and gives token ids: no tokenizer is read
    options                 of the build: ``precision``, ``device``, ``arch``, ``verify``, ...

    ``kv_cache_dtype="auto"`` is ``fp8`` where the checkpoint says that keys and values are kept so, and ``fp8`` takes
    the scales that the checkpoint stores; a line of the log says which.

    Raises what ``open_checkpoint`` and ``build_language_model`` raise, EnvironmentError_ without torch or transformers,
    ModelError for a tokenizer that cannot be read, and for a configuration or a tokenizer that does not fit the
    tensors, UnsupportedError for an architecture that transformers does not know.
    """
    found = read_language_model(path, not skip_tokenizer_init)
    texts = found.texts
    kv_cache_dtype, scales = _caches(found.checkpoint, found.bound, kv_cache_dtype)
    most = getattr(found.module.config, "max_position_embeddings", None) or DEFAULT_LENGTH
    return build_language_model(
        found.module, length=min(most, DEFAULT_LENGTH) if length is None else length, page_size=page_size,
        tokens=tokens, rows=rows, weights=found.weights(), tokenizer=texts.tokenizer, template=texts.template,
        tool_template=texts.tool_template, license_text=texts.license_text, end_tokens=texts.end_tokens,
        special=dict(texts.special), kv_cache_dtype=kv_cache_dtype, batch_invariant=batch_invariant,
        embeddings=embeddings, max_loras=max_loras, max_lora_rank=max_lora_rank, cache_scales=scales, **options,
    )  # fmt: skip


def _caches(checkpoint: Checkpoint, bound: Bound, kv_cache_dtype: str) -> tuple[str, StoredScales | None]:
    """The type of keys and values, and their scales if they are the checkpoint's.

    Raises UsageError for an unknown type, UnsupportedError for ``auto`` where the checkpoint states caches of another
    kind than 8-bit floats with static scales.
    """
    dtype, scales = cache_dtype(kv_cache_dtype), StoredScales(checkpoint, bound)
    if dtype is None and states_float8(checkpoint.settings):
        kv_cache_dtype, dtype = "fp8", cache_dtype("fp8")
        log.info("keys and values are kept in 8-bit floats, as %s says: kv_cache_dtype is fp8", checkpoint.path)
        if not scales:
            log.warning("%s stores no scales of keys and values: they are 1", checkpoint.path)
    if not scales:
        return kv_cache_dtype, None
    if dtype is None or not dtype.is_storage:
        log.warning("the scales of keys and values in %s are not used: caches are of another type", checkpoint.path)
        return kv_cache_dtype, None
    log.info("keys and values have the scales that %s stores", checkpoint.path)
    return kv_cache_dtype, scales


class _Weights:
    """Gives the values of parameters, each stored tensor once."""

    def __init__(self, bound: Bound, parameters: Collection[str]) -> None:
        self._bound, self._parameters = bound, parameters
        self._known: dict[int, tuple[Any, dict[str, Value]]] = {}

    def __call__(self, e: Emitter, name: str) -> Value | None:
        """The value of a parameter; None for what the module computes for itself."""
        tensor = self._bound.tensors.get(name)
        if tensor is None:
            if name in self._parameters:
                raise ModelError(f"the parameter {name} has no tensor", hint="please report it")
            return None
        rewriter, known = self._known.setdefault(id(e.rw), (e.rw, {}))
        if tensor.name not in known:
            known[tensor.name] = add_logical(rewriter, tensor, DType.F32)
        return known[tensor.name]


def _sources(checkpoint: Checkpoint, model: Any) -> dict[str, Sources]:
    """What parameters are made of that a folder stores by other names, or in parts."""
    from arcweld.compiler.torch.stored_names import stored_names

    return {} if checkpoint.form == "GGUF" else stored_names(model, checkpoint.tensors)


def _tied(model: Any) -> dict[str, str]:
    """Parameters that are another one, by name."""
    return {str(k): str(v) for k, v in getattr(model, "all_tied_weights_keys", {}).items()}


def _module(checkpoint: Checkpoint, tokenizer: bool) -> tuple[Any, Texts]:
    """The module of the checkpoint's architecture, and its texts, with or without its tokenizer."""
    try:
        import torch
        import transformers

        from arcweld.compiler.torch.hollow import hollow_causal_lm
    except ImportError as error:
        raise EnvironmentError_(
            f"building a language model needs torch and transformers: {error}",
            hint='pip install "arcweld[llm]"; the engine runs without them',
        ) from error
    folder, place = checkpoint.path, {}
    kind = checkpoint.config.get("model_type")
    if checkpoint.form == "GGUF":
        folder, place = checkpoint.path.parent, {"gguf_file": checkpoint.path.name}
    elif kind not in transformers.CONFIG_MAPPING:
        raise UnsupportedError(f"transformers has no model of the type {str(kind)[:80]!r}", node=str(folder),
                               hint="a newer transformers may; a checkpoint's own code is never run")  # fmt: skip
    with _read_once():
        try:
            config = transformers.AutoConfig.from_pretrained(folder, **place, **FILES_ALONE)
        except Exception as error:  # a configuration is anybody's text
            raise ModelError(f"the model's configuration cannot be read: {error}", node=str(checkpoint.path)) from error
        texts = read_texts(checkpoint, folder, place, tokenizer)
    for name in ("quantization_config",):  # the module itself is never quantised: its weights are bound
        if hasattr(config, name):
            delattr(config, name)
    check_vocabulary(texts, getattr(config.get_text_config(decoder=True), "vocab_size", None), folder)
    return hollow_causal_lm(config, torch.float32), texts


@contextmanager
def _read_once() -> Iterator[None]:
    """Lets transformers parse a GGUF file once: it does so for the configuration, and again for the tokenizer's."""
    from transformers import modeling_gguf_pytorch_utils as module

    parse, found = module.load_gguf_checkpoint, dict[str, Any]()

    def once(path: Any, return_tensors: bool = False, *more: Any, **named: Any) -> Any:
        if return_tensors or more or named:
            return parse(path, return_tensors, *more, **named)
        key = os.path.realpath(path)
        if key not in found:
            found[key] = parse(path)
        return copy.deepcopy(found[key])  # a reader takes what it knows out of it

    module.load_gguf_checkpoint = once
    try:
        yield
    finally:
        module.load_gguf_checkpoint = parse
