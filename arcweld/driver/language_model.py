"""Builds a language model of transformers into one engine, with its tokenizer and its description."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Unpack

from arcweld.compiler.errors import UsageError
from arcweld.compiler.ir import Value
from arcweld.compiler.ops.emit import Emitter
from arcweld.driver.api import CompileOptions, build_data
from arcweld.runtime.llm.package import Cache, Description, Package, packed, unpacked

FEW = 8  # sequences, whose steps have kernels for products of few rows
DEFAULT_TOKENS, DEFAULT_PAGE, DEFAULT_TILE = 512, 16, 16


def build_language_model(
    model: Any, *, length: int, page_size: int = DEFAULT_PAGE, tokens: int = DEFAULT_TOKENS, rows: int | None = None,
    tile: int = DEFAULT_TILE, tokenizer: str | None = None, template: str | None = None,
    license_text: str | None = None, end_tokens: Sequence[int] = (), special: dict[str, str] | None = None,
    weights: Callable[[Emitter, str], Value | None] | None = None, **options: Unpack[CompileOptions],
) -> Package:  # fmt: skip
    """The engine of a ``...ForCausalLM``.

    length, page_size, tokens, tile, weights   as in ``import_causal_lm``
    rows           the most tokens of a step whose logits are wanted; None: all
    tokenizer      the text of tokenizer.json
    template       the chat template
    license_text   the model's licence
    end_tokens     tokens at which a result ends
    special        names of special tokens, for the chat template
    options        of the build: ``precision``, ``device``, ``arch``, ``verify``, ...

    Raises UsageError for sizes that are not positive and for more positions than the model has, and what
    ``import_causal_lm`` and ``arcweld.compile`` raise.
    """
    from arcweld.compiler.torch.causal_lm import import_causal_lm

    sizes = {"length": length, "page_size": page_size, "tokens": tokens, "tile": tile}
    for name, size in sizes.items():
        if size < 1:
            raise UsageError(f"{name} is {size}, not at least 1")
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and length > most:
        raise UsageError(
            f"sequences of {length} tokens: the model has {most} positions", hint="give a smaller max_model_len"
        )
    rows = tokens if rows is None else rows
    tile = min(tile, tokens)
    found = import_causal_lm(
        model, length=length, page_size=page_size, tokens=tokens, rows=rows, tile=tile, weights=weights
    )
    if options.get("ranges") is None:
        few = min(FEW, tokens)
        options["ranges"] = [
            {"tile": 1, "tokens": (1, few), "tiles": (1, few), "rows": (1, min(few, rows))},  # steps of few sequences
            {"tile": 1},
        ]
    if options.get("sizes") is None:
        usual = {"tokens": (24, tokens), "rows": (3, rows), "tiles": (5, tokens), "tile": (8, tile)}
        options["sizes"] = {name: min(sizes) for name, sizes in usual.items()}
    build, _, _ = build_data(found.graph, **options)
    pages = {v.name: v.dtype.value for v in found.graph.inputs}
    description = Description(
        architecture=type(model).__name__, length=length, page_size=page_size, tokens=tokens, rows=rows, tile=tile,
        vocabulary=found.vocabulary, end_tokens=tuple(end_tokens), special=special or {},
        caches=tuple(
            Cache(c.heads, c.key_size, c.value_size, pages[f"pages_{2 * k}"]) for k, c in enumerate(found.caches)
        ),
    )  # fmt: skip
    data = packed(
        build.data, description, tokenizer=tokenizer, template=template, license_text=license_text
    )
    return unpacked(data)
