"""A step's tokens as the arrays that a causal language model takes (``compiler/ragged.py`` lists them).

Tokens of different sequences follow each other; prompts' chunks and single tokens may be mixed. Each run of tokens is
cut into tiles, which attention computes together. A step of single tokens has tiles of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from arcweld.compiler.ragged import ADAPTER_ENDS


@dataclass(frozen=True, slots=True)
class Run:
    """The tokens of one sequence that a step computes.

    tokens  their ids
    start   the position of the first one
    pages   the pages of the sequence's positions from 0 on, up to the last token at least
    rows    which of the tokens' logits are wanted, from the first token on
    adapter the place of its LoRA adapter, from 1 on; 0: it has none
    """

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]
    rows: Sequence[int]
    adapter: int = 0


def ragged_batch(runs: Sequence[Run], *, page_size: int, tile: int, adapters: int = 0) -> dict[str, np.ndarray]:
    """The inputs of a step that computes ``runs``, of at least one token and one row of logits in all.

    ``tile`` is the most tokens that a tile may have, ``adapters`` for how many LoRA adapters the model has room; with
    any, runs are in the order of these, and those without one are last. Raises ValueError for runs in another order,
    and for one whose pages end before its tokens.
    """
    counts = np.array([len(r.tokens) for r in runs])
    first = np.cumsum([0, *counts])
    width = min(tile, int(counts.max()))
    positions = np.concatenate([np.arange(r.start, r.start + n) for r, n in zip(runs, counts)])
    slots = np.concatenate([_slots(r, page_size) for r in runs])
    starts, ends, owners = _tiles(counts, width)  # of each tile, in its run
    new = ends - starts
    places = np.arange(width) - (width - new)[:, None]
    rows = np.where(places >= 0, first[owners][:, None] + starts[:, None] + places, 0)
    token_places = np.empty((first[-1], 2), np.int32)
    real = places >= 0
    token_places[rows[real]] = np.argwhere(real)
    lengths = np.array([runs[o].start for o in owners]) + ends
    pages = -(-lengths // page_size)
    more = {ADAPTER_ENDS: _adapter_ends(runs, counts, adapters)} if adapters else {}
    return {
        "ids": np.concatenate([np.asarray(r.tokens, np.int64) for r in runs]),
        "positions": positions.astype(np.int64),
        "rows": np.concatenate([f + np.asarray(r.rows, np.int64) for f, r in zip(first, runs)]),
        "slots": slots,
        "tile_rows": rows.astype(np.int32),
        "token_places": token_places,
        "kv_indptr": np.cumsum([0, *pages]).astype(np.int32),
        "kv_indices": np.concatenate([np.asarray(runs[o].pages[:n], np.int32) for o, n in zip(owners, pages)]),
        "kv_last_page_len": (lengths - (pages - 1) * page_size).astype(np.int32),
        "new": new.astype(np.int32),
        **more,
    }


def in_order_of_adapters(adapter: int) -> float:
    """The key by which runs are sorted."""
    return adapter or float("inf")


def _adapter_ends(runs: Sequence[Run], counts: np.ndarray, adapters: int) -> np.ndarray:
    """How many tokens have the first adapter, the first two, and so on: i32[adapters]."""
    order = [in_order_of_adapters(r.adapter) for r in runs]
    if order != sorted(order):
        raise ValueError(f"runs are not in the order of their adapters: {[r.adapter for r in runs]}")
    each = np.zeros(adapters + 1, np.int32)
    np.add.at(each, [r.adapter for r in runs], counts)
    return np.cumsum(each[1:], dtype=np.int32)


def _slots(run: Run, page_size: int) -> np.ndarray:
    """The page and the place in it of each token: i32[tokens, 2]."""
    at = np.arange(run.start, run.start + len(run.tokens))
    if at.size and at[-1] // page_size >= len(run.pages):
        raise ValueError(f"{len(run.pages)} pages of {page_size} positions do not hold position {at[-1]}")
    return np.stack([np.asarray(run.pages, np.int32)[at // page_size], at % page_size], 1).astype(np.int32)


def _tiles(counts: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each tile starts and ends in its run, and the number of the run."""
    many = -(-counts // width)
    owners = np.repeat(np.arange(len(counts)), many)
    number = np.arange(len(owners)) - np.repeat(np.cumsum(many) - many, many)
    starts = number * width
    return starts, np.minimum(starts + width, counts[owners]), owners
