"""Delta debugging of a failing case: the smallest one that still fails in the same stage and in the same way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from case import Case, Failure, check
from maker import SYMBOLS

from arcweld.debug.simpler import bypasses, cuts, extents, fewer_outputs, outputs, simplest, without_symbols

KEPT = {SYMBOLS}


def shrink(case: Case, failure: Failure, seconds: float) -> Case:
    """The first simpler case that fails like ``failure``, again and again until there is none or the time is over."""
    end = time.monotonic() + seconds
    return simplest(case, simpler, lambda c: c if failure.same(check(c, failure.stage)) else None, end)


def simpler(case: Case) -> Iterator[Case]:
    """Cases that are simpler by one step, the largest steps first."""
    return (c for c in _simpler(case) if c.graph.nodes)


def _simpler(case: Case) -> Iterator[Case]:
    graph = case.graph
    if case.precision != "fp32":
        yield replace(case, precision="fp32")
    if case.disable:
        yield replace(case, disable="")
    if len(case.sizes) > 1:
        yield from (replace(case, sizes=(sizes,)) for sizes in case.sizes)
    for fewer in (*outputs(graph, KEPT), *cuts(graph, KEPT), *bypasses(graph, KEPT)):
        if len(fewer.nodes) < len(graph.nodes):
            yield replace(case, graph=fewer)
    yield from (replace(case, graph=g) for g in fewer_outputs(graph, KEPT))
    if len(case.sizes) == 1:
        fixed = without_symbols(graph, case.sizes[0])
        yield from (replace(case, graph=g, sizes=(sizes,)) for g, sizes in fixed)
    yield from (replace(case, graph=g) for g in extents(graph))
