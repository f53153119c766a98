"""TfIdfVectorizer: how often each n-gram of a pool occurs in a sequence of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.base import Result, handles

MODES = ("TF", "IDF", "TFIDF")
MAX_PLACES = 1 << 24  # of a result


@handles("TfIdfVectorizer")
def _tfidf(c: NodeContext) -> Result:
    """Input: tokens ``[C]`` or ``[B, C]``; output: a number for each place that n-grams name, ``[D]`` or ``[B, D]``.

    An n-gram's tokens lie 1 to ``max_skip_count + 1`` apart; each occurrence at each distance counts.
    """
    if not c.operand(0).dtype.is_int:
        c.broken("the input is neither integers nor strings")
    return of_tokens(c, c.value(0), np.asarray(c.ints_attr("pool_int64s") or ()))


def of_tokens(c: NodeContext, given: Value, pool: np.ndarray) -> Value:
    """The result for the tokens ``given`` and a pool that are integers."""
    rank, mode = c.needs_rank(0, 1, 2), c.str_attr("mode", "")
    places, weights, grams = _pool(c, pool)
    if mode not in MODES:
        c.broken(f"mode is {mode!r}")
    x = c.cast(given, DType.I64)
    x = x if rank == 2 else c.reshape(x, (1, *x.shape))
    columns, used = int(places.max()) + 1, 1
    if columns > MAX_PLACES:
        c.unsupported(f"{columns} places (at most {MAX_PLACES})")
    parts = [c.expand(c.const(0.0, DType.F32), (x.shape[0], 1))]  # of places that no n-gram names
    source = np.zeros(columns, np.int64)  # where each place's number is among the parts
    for first, tokens in grams:
        counts, own = _occurrences(c, x, tokens), slice(first, first + len(tokens))
        if counts is None:
            continue
        if mode == "IDF":
            counts = c.cast(c.emit("Greater", counts, c.const(0.0, DType.F32)), DType.F32)
        parts.append(counts if mode == "TF" else c.emit("Mul", counts, c.const(weights[own], DType.F32)))
        source[places[own]] = used + np.arange(len(tokens))
        used += len(tokens)
    y = c.emit("Gather", c.emit("Concat", *parts, axis=1), c.const(source, DType.I64), axis=1)
    return y if rank == 2 else c.reshape(y, (columns,))


def _pool(c: NodeContext, pool: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[tuple[int, np.ndarray]]]:
    """The n-grams' places and weights, and for each wanted length the number of its first n-gram and its tokens."""
    starts = [*(c.ints_attr("ngram_counts") or ()), None]
    least, most = c.int_attr("min_gram_length", 1), c.int_attr("max_gram_length", 1)
    places = np.asarray(c.ints_attr("ngram_indexes") or ())
    if not len(places) or not len(pool) or len(starts) == 1 or not 1 <= least <= most or places.min() < 0:
        c.broken("it has no n-grams, or lengths or places that make no sense")
    grams, number = [], 0
    for n in range(1, len(starts)):
        own = pool[starts[n - 1] : starts[n]]
        if len(own) % n:
            c.broken(f"{len(own)} tokens are no {n}-grams")
        if len(own) and least <= n <= most:
            grams.append((number, own.reshape(-1, n)))
        number += len(own) // n
    weights = np.asarray(c.floats_attr("weights") or np.ones(number), np.float32)
    if len(places) != number or len(weights) != number:
        c.broken(f"{number} n-grams have {len(places)} places and {len(weights)} weights")
    if len(np.unique(places)) != number:
        c.unsupported("two n-grams with one place")
    return places, weights, grams


def _occurrences(c: NodeContext, x: Value, tokens: np.ndarray) -> Value | None:
    """How often each n-gram, ``tokens [P, n]``, occurs in each row of ``x [B, C]``: ``[B, P]``; None without room."""
    length, n = c.concrete(x.shape[1], "the number of tokens"), tokens.shape[1]
    counts: Value | None = None
    for apart in range(1, (c.int_attr("max_skip_count") if n > 1 else 0) + 2):
        room = length - apart * (n - 1)
        if room < 1:
            break
        equal: Sequence[Value] = [
            c.emit(
                "Equal", c.reshape(c.slice(x, 1, k * apart, room), (x.shape[0], 1, room)),
                c.const(tokens[:, k].reshape(1, -1, 1), DType.I64),
            )
            for k in range(n)
        ]  # fmt: skip
        found = equal[0]
        for other in equal[1:]:
            found = c.emit("And", found, other)
        here = c.emit("ReduceSum", c.cast(found, DType.F32), axes=(2,), keepdims=0)
        counts = here if counts is None else c.emit("Add", counts, here)
    return counts
