"""The inputs of a causal language model over a ragged batch: tokens of several sequences, one after another.

    ids            i64[T]      token ids
    positions      i64[T]      the place of each token in its sequence, from 0 on
    rows           i64[R]      the tokens whose logits are wanted
    slots          i32[T, 2]   the page of each token and the place in it; -1 and -1: its keys are kept nowhere
    tile_rows      i32[N, q]   the tokens of each tile, right-aligned; what precedes them is any token
    token_places   i32[T, 2]   the tile of each token and the place in it
    kv_indptr, kv_indices, kv_last_page_len, new
                   the table of pages (``paged.py``) with tiles as sequences: each has the pages up to its last token;
                   ``new`` i32[N] is how many tokens it has
    adapter_ends   i32[A]      of models with LoRA adapters: how many of the first tokens have the first adapter, the
                               first two, and so on; tokens without one are last

A tile is a run of tokens of one sequence, which attention computes together. A sequence with more tokens than a tile
takes has several tiles, of which each ends where its last token is, so that attention is causal between them too.
"""

from __future__ import annotations

from collections.abc import Mapping

from arcweld.compiler.dtypes import DType

ADAPTER_ENDS = "adapter_ends"
# the type of each input, and its shape as programs have it
FORMS: Mapping[str, tuple[DType, tuple[str, ...]]] = {
    "ids": (DType.I64, ("tokens",)), "positions": (DType.I64, ("tokens",)), "rows": (DType.I64, ("rows",)),
    "slots": (DType.I32, ("tokens", "2")), "tile_rows": (DType.I32, ("tiles", "tile")),
    "token_places": (DType.I32, ("tokens", "2")), "kv_indptr": (DType.I32, ("tiles + 1",)),
    "kv_indices": (DType.I32, ("entries",)), "kv_last_page_len": (DType.I32, ("tiles",)),
    "new": (DType.I32, ("tiles",)),
}  # fmt: skip
INPUTS = tuple(FORMS)


def cache_names(layer: int, scaled: bool) -> tuple[str, ...]:
    """The inputs with the key and value pages of an attention layer: [pages, page size, heads, head size].

    ``scaled``: all layers have pages of scales too, those of keys and those of values: [pages, page size, heads, 1].
    """
    count = 4 if scaled else 2
    return tuple(f"pages_{count * layer + k}" for k in range(count))
