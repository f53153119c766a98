"""Random tables of pages for graphs with paged caches: what one says has to fit the pages and the other parts of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from arcweld.compiler.dims import Dim, IntExpr, evaluate, free_symbols, var
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.ops.registry import opdef

LOOKUPS = frozenset({"PagedLengths", "PagedSlots", "PagedRead"})
USUAL_SEQUENCES, USUAL_PAGES = 3, 32
EMPTY = 0.125  # share of sequences without pages


@dataclass(frozen=True, slots=True)
class PageTable:
    """A table among the graph's inputs, and what it indexes.

    indices    None if the graph asks for lengths only
    page_size  positions of a page
    pages      the number of pages of each tensor that is read through the table
    lengths    the most positions that each reader takes
    new        numbers of new positions, each with the most that there may be
    """

    indptr: Value
    indices: Value | None
    last: Value
    page_size: Dim
    pages: tuple[Dim, ...]
    lengths: tuple[Dim, ...]
    new: tuple[tuple[Value, Dim], ...] = ()


def page_tables(graph: Graph) -> list[PageTable]:
    """The tables whose parts are inputs of the graph, each with all that is read and written through it."""
    made = graph.producers()
    names = {v.name for v in graph.inputs}
    found: dict[str, PageTable] = {}
    for n in (n for n in graph.nodes if n.op in LOOKUPS):
        roles = (role.rstrip("?") for role in opdef(n.op).inputs)
        at = dict(zip(roles, (_source(made, v) for v in n.operands())))
        indptr, indices, last = at["indptr"], at.get("indices"), at["last_page_len"]
        if not {v.name for v in (indptr, indices, last) if v is not None} <= names:
            continue
        size = n.attrs["page_size"] if "page_size" in n.attrs else n.operands()[0].shape[1]
        known = found.get(indptr.name, PageTable(indptr, indices, last, size, (), ()))
        pages = (*known.pages, *_pages(graph, n))
        lengths = (*known.lengths, *([n.attrs["length"]] if n.op == "PagedRead" else []))
        new = (*known.new, *([(at["new"], n.attrs["count"])] if "new" in at else []))
        found[indptr.name] = PageTable(indptr, indices or known.indices, last, size, pages, lengths, new)
    return list(found.values())


def _source(made: Mapping[str, Node], v: Value) -> Value:
    """The value of which ``v`` is a conversion."""
    while v.name in made and made[v.name].op in ("Cast", "Identity"):
        v = made[v.name].operands()[0]
    return v


def _pages(graph: Graph, n: Node) -> list[Dim]:
    """How many pages there are where ``n`` reads, or where its places are written."""
    if n.op == "PagedRead":
        return [n.operands()[0].shape[0]]
    readers = graph.consumers().get(n.output.name, ()) if n.op == "PagedSlots" else ()
    return [r.operands()[0].shape[0] for r in readers if r.op == "ScatterND"]


def usual_sizes(graph: Graph) -> dict[str, int]:
    """Sizes for the symbols that count sequences, pages, and entries of a table: as many as make it a table."""
    sizes: dict[str, int] = {}
    for table in page_tables(graph):
        entries = [] if table.indices is None else [table.indices.shape[0]]
        for wanted, extents in ((USUAL_SEQUENCES, [table.last.shape[0]]), (USUAL_PAGES, [*table.pages, *entries])):
            for d in extents:
                only = next(iter(free_symbols(d)), None) if isinstance(d, IntExpr) else None
                if only is not None and d == var(only):
                    sizes[only.name] = wanted
    return sizes


def draw_tables(rng: np.random.Generator, graph: Graph, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Random arrays for the tables among the graph's inputs, by name.

    No page belongs to two sequences. Some sequences are empty, but not the first, if there is a page for it.
    """
    drawn: dict[str, np.ndarray] = {}
    for table in page_tables(graph):
        page_size = evaluate(table.page_size, sizes)
        entries = USUAL_PAGES if table.indices is None else evaluate(table.indices.shape[0], sizes)
        pages = min((evaluate(d, sizes) for d in table.pages), default=entries)
        longest = min((evaluate(d, sizes) for d in table.lengths), default=4 * page_size)
        batch = evaluate(table.last.shape[0], sizes)
        own = _shares(rng, batch, min(entries, pages), -(-longest // page_size))
        last = np.minimum(rng.integers(1, page_size + 1, batch), longest - (own - 1) * page_size)
        indices = np.concatenate([rng.permutation(pages), rng.integers(0, max(pages, 1), entries)])[:entries]
        drawn[table.indptr.name] = np.cumsum([0, *own]).astype(table.indptr.dtype.numpy)
        drawn[table.last.name] = np.where(own > 0, last, 0).astype(table.last.dtype.numpy)
        for v, count in table.new:
            if v.name in {i.name for i in graph.inputs}:
                drawn[v.name] = rng.integers(0, evaluate(count, sizes) + 1, batch).astype(v.dtype.numpy)
        if table.indices is not None:
            drawn[table.indices.name] = indices.astype(table.indices.dtype.numpy)
    return drawn


def _shares(rng: np.random.Generator, batch: int, pages: int, most: int) -> np.ndarray:
    """The numbers of pages of ``batch`` sequences: about even shares of ``pages``, none above ``most``."""
    own = np.zeros(batch, np.int64)
    for b in range(batch):
        left = pages - int(own.sum())
        share = min(most, left, max(1, 2 * left // (batch - b)))
        own[b] = 0 if share < 1 or (b and rng.random() < EMPTY) else rng.integers(1, share + 1)
    return own
