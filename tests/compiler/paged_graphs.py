"""Graphs of one attention layer over paged and over contiguous caches, and tables for them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Rewriter, TensorType, Value
from arcweld.compiler.ops.emit import Emitter
from arcweld.compiler.paged import PagedCache, table_inputs

Arrays = dict[str, np.ndarray]
BATCH, PAGE = symbol("b", 1, 8), symbol("size", 1, 64)
PAGES, ENTRIES = symbol("pages", 1, 4096), symbol("entries", 1, 4096)
SCALE = 0.25


@dataclass(frozen=True)
class Problem:
    """Attention of the last ``new`` positions with ``heads`` query heads and ``groups`` heads of keys of size ``d``."""

    dtype: DType
    new: int = 1
    heads: int = 4
    groups: int = 2
    d: int = 16
    length: int = 130
    window: int | None = None
    batch: Dim = BATCH
    page_size: Dim = PAGE
    pages: Dim = PAGES
    entries: Dim = ENTRIES


def _cache(x: Problem, *more: Value) -> tuple[Rewriter, PagedCache, Value]:
    queries = Value("q", TensorType(x.dtype, (x.batch, x.heads, x.new, x.d)))
    table = table_inputs(x.batch, x.entries)
    rw = Rewriter(Graph("attention", (queries, *more, *table), (), ()))
    return rw, PagedCache(Emitter(rw, ("layer",)), *table, page_size=x.page_size, length=x.length), queries


@functools.cache
def paged(x: Problem) -> Graph:
    """Appends keys and values to their pages, then attends."""
    news = [Value(n, TensorType(x.dtype, (x.batch, x.groups, x.new, x.d))) for n in ("new_k", "new_v")]
    pages = [Value(n, TensorType(x.dtype, (x.pages, x.page_size, x.groups, x.d))) for n in ("k", "v")]
    rw, cache, queries = _cache(x, *news, *pages)
    keys, values = (cache.append(p, n) for p, n in zip(pages, news))
    y = cache.attend(queries, keys, values, scale=SCALE, window=x.window)
    return rw.finish().replace(
        outputs=(y, keys, values), output_labels=("y", "k_now", "v_now"), aliases={"k_now": "k", "v_now": "v"}
    )


@functools.cache
def reading(x: Problem) -> Graph:
    """Attention to pages that hold the last positions already."""
    pages = [Value(n, TensorType(x.dtype, (x.pages, x.page_size, x.groups, x.d))) for n in ("k", "v")]
    rw, cache, queries = _cache(x, *pages)
    y = cache.attend(queries, *pages, scale=SCALE, window=x.window)
    return rw.finish().replace(outputs=(y,), output_labels=("y",))


@functools.cache
def appending(x: Problem) -> Graph:
    """The append of keys alone."""
    new = Value("new_k", TensorType(x.dtype, (x.batch, x.groups, x.new, x.d)))
    pages = Value("k", TensorType(x.dtype, (x.pages, x.page_size, x.groups, x.d)))
    rw, cache, _ = _cache(x, new, pages)
    now = cache.append(pages, new)
    return rw.finish().replace(outputs=(now,), output_labels=("k_now",), aliases={"k_now": "k"})


@functools.cache
def contiguous(x: Problem) -> Graph:
    """The same attention to caches [batch, groups, length, d]; ``sized`` only says how large pages are."""
    caches = [Value(n, TensorType(x.dtype, (x.batch, x.groups, x.length, x.d))) for n in ("k", "v")]
    sized = Value("sized", TensorType(DType.I32, (x.page_size,)))
    rw, cache, queries = _cache(x, *caches, sized)
    y = cache.e.emit("Attention", queries, *caches, cache.visible(x.new, x.window), scale=SCALE)
    return rw.finish().replace(outputs=(y,), output_labels=("y",))


FORMS = {"paged": paged, "reading": reading, "appending": appending, "contiguous": contiguous}


@dataclass(frozen=True)
class Table:
    """A table, and how many pages there are."""

    indptr: np.ndarray
    indices: np.ndarray
    last: np.ndarray
    pages: int
    page_size: int

    @property
    def parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.indptr, self.indices, self.last

    @property
    def feeds(self) -> Arrays:
        return {"kv_indptr": self.indptr, "kv_indices": self.indices, "kv_last_page_len": self.last}


def table_of(lengths: list[int], page_size: int, rng: np.random.Generator, spare: int = 2) -> Table:
    """A table with pages in random order, some of which no sequence has; entries that no sequence has are no pages."""
    own = [-(-n // page_size) for n in lengths]
    count = sum(own) + spare
    indices = rng.permutation(count)[: sum(own)]
    indices = np.concatenate([indices, np.full(spare, 1 << 20)])
    last = [n - (k - 1) * page_size if k else 0 for n, k in zip(lengths, own)]
    indptr = np.cumsum([0, *own])
    return Table(*(np.asarray(a, np.int32) for a in (indptr, indices, last)), count, page_size)


# ------------------------------------------------------------------------------------------------------ whole layers


@dataclass(frozen=True)
class Decoder:
    """Decoder layers as Llama's, with RoPE by halves; ``batch`` sequences get ``new`` tokens each."""

    dtype: DType = DType.F32
    layers: int = 1
    batch: Dim = 3
    new: Dim = 1
    heads: int = 4
    groups: int = 2
    d: int = 16
    hidden: int = 32
    inner: int = 48
    length: int = 130
    page_size: Dim = 8
    pages: Dim = 40


def layer_weights(x: Decoder, seed: int = 0) -> list[Arrays]:
    """Random weights by name, for each layer."""
    rng, width = np.random.default_rng(seed), x.heads * x.d
    shapes = {
        "norm": (x.hidden,), "qkv": (x.hidden, width + 2 * x.groups * x.d), "out": (width, x.hidden),
        "norm2": (x.hidden,), "gate": (x.hidden, x.inner), "up": (x.hidden, x.inner), "down": (x.inner, x.hidden),
    }  # fmt: skip
    scaled = {n: (s, np.sqrt(s[0]) if len(s) > 1 else 1.0) for n, s in shapes.items()}
    return [
        {n: (rng.standard_normal(s) / by).astype(x.dtype.numpy) for n, (s, by) in scaled.items()}
        for _ in range(x.layers)
    ]


def angles(x: Decoder) -> np.ndarray:
    """What RoPE turns each position and pair by."""
    half = x.d // 2
    return np.outer(np.arange(x.length), 100.0 ** (-np.arange(half) / half))


def decoder(x: Decoder, seed: int = 0) -> Graph:
    """The layers, from hidden states to hidden states, with their pages as state."""
    hidden = Value("x", TensorType(x.dtype, (x.batch, x.new, x.hidden)))
    kinds = [(f"{kind}{i}", f"{kind}{i}_now") for i in range(x.layers) for kind in ("k", "v")]
    pages = [Value(n, TensorType(x.dtype, (x.pages, x.page_size, x.groups, x.d))) for n, _ in kinds]
    table, new = table_inputs(x.batch, x.pages), Value("new", TensorType(DType.I32, (x.batch,)))
    rw = Rewriter(Graph("decoder", (hidden, *pages, *table, new), (), ()))
    e = Emitter(rw, ("positions",))
    at = PagedCache(e, *table, page_size=x.page_size, length=x.length).positions(x.new)
    turns = [e.emit("Gather", e.const(np.tile(f(angles(x)), 2), x.dtype), at, axis=0) for f in (np.cos, np.sin)]
    turns = [e.reshape(t, (x.batch, 1, x.new, x.d)) for t in turns]
    y, now = hidden, list[Value]()
    for i, weights in enumerate(layer_weights(x, seed)):
        e = Emitter(rw, (f"layer {i}",))
        cache = PagedCache(e, *table, page_size=x.page_size, length=x.length, new=new)
        y, *both = _layer(x, cache, y, weights, pages[2 * i : 2 * i + 2], turns)
        now += both
    labels, state = ("y", *(label for _, label in kinds)), {label: name for name, label in kinds}
    return rw.finish().replace(outputs=(y, *now), output_labels=labels, aliases=state)


def _layer(
    x: Decoder, cache: PagedCache, y: Value, weights: Arrays, pages: list[Value], turns: list[Value]
) -> tuple[Value, Value, Value]:
    """One layer: the hidden states, and the pages of keys and of values."""
    e, start, parts = cache.e, 0, list[Value]()
    w = {n: e.const(a, x.dtype) for n, a in weights.items()}
    normed = e.emit("RMSNormalization", y, w["norm"], axis=2, epsilon=1e-5)
    joined = e.emit("MatMul", normed, w["qkv"])
    for count in (x.heads, x.groups, x.groups):
        part = e.reshape(e.slice(joined, 2, start * x.d, count * x.d), (x.batch, x.new, count, x.d))
        parts.append(e.transpose(part, (0, 2, 1, 3)))
        start += count
    queries, new_keys = (_turned(e, p, *turns) for p in parts[:2])
    keys, values = (cache.append(p, n) for p, n in zip(pages, (new_keys, parts[2])))
    found = e.transpose(cache.attend(queries, keys, values, scale=x.d**-0.5), (0, 2, 1, 3))
    found = e.reshape(found, (x.batch, x.new, x.heads * x.d))
    y = e.emit("Add", y, e.emit("MatMul", found, w["out"]))
    normed = e.emit("RMSNormalization", y, w["norm2"], axis=2, epsilon=1e-5)
    gate = e.emit("Silu", e.emit("MatMul", normed, w["gate"]))
    up = e.emit("Mul", gate, e.emit("MatMul", normed, w["up"]))
    return e.emit("Add", y, e.emit("MatMul", up, w["down"])), keys, values


def _turned(e: Emitter, x: Value, cos: Value, sin: Value) -> Value:
    half = x.shape[3] // 2
    a, b = e.slice(x, 3, 0, half), e.slice(x, 3, half, half)
    turned = e.concat([e.emit("Neg", b), a], 3)
    return e.emit("Add", e.emit("Mul", x, cos), e.emit("Mul", turned, sin))
