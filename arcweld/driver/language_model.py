"""Builds a language model of transformers into one engine, with its tokenizer and its description."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from arcweld.compiler.checkpoints.caches import CacheScales
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import UsageError
from arcweld.compiler.ir import Value
from arcweld.compiler.ops.emit import Emitter
from arcweld.compiler.options import Options
from arcweld.compiler.ragged import cache_names
from arcweld.driver.api import CompileOptions, build_data
from arcweld.driver.sampler import build_sampler
from arcweld.runtime.llm.package import (
    AdaptedLayer,
    AdapterRoom,
    Cache,
    Description,
    Package,
    cache_dtype,
    packed,
    unpacked,
)

if TYPE_CHECKING:
    from arcweld.compiler.torch.causal_lm import LayerCache

FEW = 8  # sequences, whose steps have kernels for products of few rows
DEFAULT_TOKENS, DEFAULT_PAGE, DEFAULT_TILE, DEFAULT_RANK = 512, 16, 16, 16


def build_language_model(
    model: Any, *, length: int, page_size: int = DEFAULT_PAGE, tokens: int = DEFAULT_TOKENS, rows: int | None = None,
    tile: int = DEFAULT_TILE, tokenizer: str | None = None, template: str | None = None,
    tool_template: str | None = None, license_text: str | None = None, end_tokens: Sequence[int] = (),
    special: dict[str, str] | None = None, kv_cache_dtype: str = "auto", batch_invariant: bool = False,
    embeddings: bool = False, max_loras: int = 0, max_lora_rank: int = DEFAULT_RANK,
    weights: Callable[[Emitter, str], Value | None] | None = None,
    cache_scales: Callable[[str, int], CacheScales] | None = None, **options: Unpack[CompileOptions],
) -> Package:  # fmt: skip
    """The engine of a ``...ForCausalLM``.

    length, page_size, tokens, tile, weights   as in ``import_causal_lm``
    rows             the most tokens of a step whose logits are wanted; None: all
    tokenizer        the text of tokenizer.json
    template         the chat template
    tool_template    that of conversations with tools; None: it is the same
    license_text     the model's licence
    end_tokens       tokens at which a result ends
    special          names of special tokens, for the chat template
    kv_cache_dtype   the type of keys and values in pages: ``auto``, that of a build in 16 bits, else the module's;
                     ``float16`` or ``bfloat16``; ``fp8`` or ``fp8_e4m3``, floats of 8 bits; ``int8``, integers with a
                     scale for each token and head
    cache_scales     gives the scales of 8-bit floats, as in ``import_causal_lm``; None: they are 1
    batch_invariant  the bits of a token's logits do not depend on what is computed with it: all steps take the same
                     kernels, of which each sums in one order
    embeddings       the engine gives hidden states too, which ``LLM.embed`` takes
    max_loras        for how many LoRA adapters there is room at a time; 0: for none
    max_lora_rank    their greatest rank
    options          of the build: ``precision``, ``device``, ``arch``, ``verify``, ...

    Raises UsageError for sizes that are not positive or less than the import's ``LEAST``, for more positions than the
    model has, for an unknown ``kv_cache_dtype`` and for ``ranges`` of a batch-invariant build, and what
    ``import_causal_lm`` and ``arcweld.compile`` raise.
    """
    from arcweld.compiler.torch.adapted import Adapters
    from arcweld.compiler.torch.causal_lm import LEAST, import_causal_lm

    rows = tokens if rows is None else rows
    sizes = {"length": length, "page_size": page_size, "tokens": tokens, "rows": rows, "tile": tile}
    _check_sizes(model, LEAST, **sizes, max_lora_rank=max_lora_rank)
    if batch_invariant and options.get("ranges"):
        raise UsageError("batch_invariant excludes ranges: kernels of different ranges sum in different orders")
    tile = min(tile, tokens)
    narrowed = Options(precision=options.get("precision", "fp32")).float_type
    stored = cache_dtype(kv_cache_dtype) or (narrowed if narrowed.is_half else None)
    float8 = stored is not None and stored.is_storage
    found = import_causal_lm(
        model, length=length, page_size=page_size, tokens=tokens, rows=rows, tile=tile, weights=weights,
        stored=stored, hidden=embeddings, adapters=Adapters(max_loras, max_lora_rank) if max_loras else None,
        scales=cache_scales,
    )  # fmt: skip
    if options.get("ranges") is None:
        options["ranges"] = [] if batch_invariant else _ranges(tokens, rows)
    if options.get("sizes") is None:
        usual = {"tokens": (24, tokens), "rows": (3, rows), "tiles": (5, tokens), "tile": (8, tile)}
        options["sizes"] = {name: min(sizes) for name, sizes in usual.items()}
    build, _, _ = build_data(found.graph, **options)
    types = {v.name: v.dtype for v in found.graph.inputs}
    description = Description(
        architecture=type(model).__name__, length=length, page_size=page_size, tokens=tokens, rows=rows, tile=tile,
        vocabulary=found.vocabulary, end_tokens=tuple(end_tokens), special=special or {},
        caches=tuple(
            _cache(c, [types[n] for n in cache_names(k, stored is DType.I8)]) for k, c in enumerate(found.caches)
        ),
        batch_invariant=batch_invariant, embeddings=embeddings, calibrated=float8 and cache_scales is not None,
        adapters=_room(found.adapted, max_loras, max_lora_rank),
    )  # fmt: skip
    data = packed(
        build.data, description, sampler=build_sampler(build.data, rows, options), tokenizer=tokenizer,
        template=template, tool_template=tool_template, license_text=license_text,
    )  # fmt: skip
    return unpacked(data)


def _cache(layer: LayerCache, types: Sequence[DType]) -> Cache:
    """What a layer keeps, in pages of these types: of keys, of values and, if there are any, of their scales."""
    scales = types[2].value if len(types) > 2 else None
    return Cache(layer.heads, layer.key_size, layer.value_size, types[0].value, scales)


def _check_sizes(model: Any, least: Mapping[str, int], **sizes: int) -> None:
    for name, size in sizes.items():
        if size < least.get(name, 1):
            raise UsageError(f"{name} is {size}, not at least {least.get(name, 1)}")
    most, length = getattr(model.config, "max_position_embeddings", None), sizes["length"]
    if most is not None and length > most:
        raise UsageError(
            f"sequences of {length} tokens: the model has {most} positions", hint="give a smaller max_model_len"
        )


def _ranges(tokens: int, rows: int) -> list[Any]:
    """Steps of few sequences, of which each has one token; steps of more such sequences."""
    few = min(FEW, tokens)
    return [{"tile": 1, "tokens": (1, few), "tiles": (1, few), "rows": (1, min(few, rows))}, {"tile": 1}]


def _room(layers: Sequence[Any], count: int, rank: int) -> AdapterRoom | None:
    """What adapters may change; None if there is no room for any."""
    if not count:
        return None
    return AdapterRoom(count, rank, tuple(AdaptedLayer(x.name, x.inputs, x.outputs, x.a, x.b) for x in layers))
