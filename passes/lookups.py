"""Operands whose rows a kernel looks up where they are, since a dense copy would cost more than the look-ups.

    Attention(Gather(q, tiles), PagedRead(keys), …)  ->  one kernel that reads q's rows at the indices

Attention looks keys and values up in a table of pages, however many blocks read them. Then it looks up queries too: no
bulk copy loads rows of pages. A product of few rows looks up the rows of its left operand, since its time is that of
its weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from arcweld.compiler.dims import bounds, product
from arcweld.compiler.few_rows import is_few_rows
from arcweld.compiler.ir import Node, Value
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.region import is_view

PAGES = frozenset({"PagedRead"})
ROWS = frozenset({"Gather", "GatherND"})
RUN = 16  # neighbouring elements that a looked-up row has at least: their index is read once for several


def lookups_of(hero: Node, operand: int, producers: Mapping[str, Node]) -> Collection[str]:
    """The operators that look up rows of an operand of ``hero`` and may be in its kernel."""
    kind = opdef(hero.op).kind
    if kind is Kind.ATTENTION and operand in (1, 2):
        return PAGES
    if kind is Kind.ATTENTION and operand == 0 and _reads_pages(hero.operands()[1], producers):
        return ROWS
    return ROWS if kind is Kind.CONTRACT and operand == 0 and is_few_rows(hero.operands()[0]) else ()


def looks_up_runs(p: Node) -> bool:
    """True for pages, and for a Gather or GatherND whose result consists of runs of neighbours of its operand."""
    if p.op == "PagedRead":
        return True
    x, indices = p.operands()
    depth = indices.shape[-1] if p.op == "GatherND" else 1
    if p.attrs["axis" if p.op == "Gather" else "batch_dims"] != 0 or not isinstance(depth, int):
        return False
    return (bounds(product(x.shape[depth:]))[0] or 0) >= RUN


def _reads_pages(v: Value, producers: Mapping[str, Node]) -> bool:
    p = producers.get(v.name)
    while p is not None and is_view(p):
        p = producers.get(p.operands()[0].name)
    return p is not None and p.op == "PagedRead"
