"""The sizes at which a build is verified: those asked for or usual, the least, small odd ones, and beyond every tile.

A kernel for symbolic sizes can be right at one size and wrong at another: a lost tile offset shows from the second tile
on, a wrong pitch from the second row on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from arcweld.codegen.kernel import KernelSource
from arcweld.compiler.dims import Dim, IntExpr, Sym, evaluate, free_symbols
from arcweld.compiler.ir import Graph
from arcweld.driver.build import Build
from arcweld.driver.object_code import Planned
from arcweld.driver.samples import allowed, graph_dims, roomy

Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Point:
    """Sizes of all symbols to verify at.

    ``name``: base (asked for, or usual), a range of sizes that has launches of its own, border (of such a range),
    least, odd or beyond.
    """

    name: str
    sizes: Sizes


@dataclass(frozen=True, slots=True)
class Goal:
    """``extent`` should be more than ``count``, a full round of what the kernel ``entry`` tiles."""

    entry: str
    extent: Dim
    count: int

    def met(self, sizes: Sizes) -> bool:
        """True if these sizes go beyond the round."""
        return evaluate(self.extent, sizes) > self.count


def small_points(graph: Graph, base: Sizes) -> list[Point]:
    """The least sizes and small odd ones, of those that differ from ``base`` and leave no value of the graph empty.

    Odd sizes differ from symbol to symbol, so that one taken for another is seen. They come a second time with the
    least sizes of all symbols but the first, for models that would take too long otherwise.
    """
    symbols = [s for s in graph.symbols() if s.name in base]
    if not symbols:
        return []
    dims = graph_dims(graph)
    least = {s.name: allowed(s, 1) for s in symbols}
    odd = {s.name: allowed(s, s.multiple_of * (3 + 2 * k)) for k, s in enumerate(symbols)}
    first = symbols[0].name
    found: list[Point] = []
    for name, sizes in (("odd", odd), ("odd", {**least, first: odd[first]}), ("least", least)):
        point = roomy(symbols, dims, {**base, **sizes})
        if point is not None and point != dict(base) and all(point != p.sizes for p in found):
            found.append(Point(name, point))
    return found


# ------------------------------------------------------------------------------------------------- ranges of sizes


def within(build: Build, part: Planned, base: Sizes) -> Sizes | None:
    """Sizes near ``base`` that ``part`` serves; None where none are found."""
    symbols = {s.name: s for s in build.imported.symbols()}
    bounds = {} if part.sizes is None else {n: (lo, hi) for n, lo, hi in part.sizes.bounds}
    start = {n: min(max(v, bounds[n][0]), bounds[n][1]) if n in bounds else v for n, v in base.items()}
    others = [start]
    for n, _, hi in (b for p in build.parts if p.sizes is not None and p is not part for b in p.sizes.bounds):
        others.append({**start, n: allowed(symbols[n], hi + 1)})
    dims = graph_dims(build.imported)
    good = (s for s in others if build.part_at(s) is part and all(evaluate(d, s) > 0 for d in dims))
    return next(good, None)


def borders(build: Build, base: Sizes) -> list[Point]:
    """The last sizes of each range and the first behind it, one symbol after another."""
    symbols = {s.name: s for s in build.imported.symbols()}
    dims = graph_dims(build.imported)
    found: list[Point] = []
    for part in (p for p in build.parts if p.sizes is not None):
        near = within(build, part, base)
        for n, _, hi in part.sizes.bounds if near is not None and part.sizes is not None else ():
            for size in (hi, allowed(symbols[n], hi + 1)):
                point = Point("border", {**(near or {}), n: size})
                if point not in found and all(evaluate(d, point.sizes) > 0 for d in dims):
                    found.append(point)
    return found


# ------------------------------------------------------------------------------------------------------ beyond tiles


def goals(sources: Sequence[KernelSource]) -> list[Goal]:
    """What to exceed so that every tile loop and every grid of the kernels goes round more than once."""
    return list(dict.fromkeys(Goal(s.entry, extent, count) for s in sources for extent, count in s.tiled))


def beyond(
    graph: Graph, wanted: Sequence[Goal], start: Sizes, cost: Callable[[Sizes, frozenset[str]], float], limit: float
) -> tuple[Point | None, list[Goal]]:
    """Sizes that meet as many goals as ``limit`` allows, and the goals that they leave.

    ``cost`` is asked about sizes and the kernels (by entry) that would run there: those with a goal that the sizes
    meet. Goals that need the least growth are tried first. The point is None if no goal can be met.
    """
    symbols = {s.name: s for s in graph.symbols() if s.name in start}
    dims = graph_dims(graph)
    sizes, met, left = dict(start), list[Goal](), list[Goal]()
    for goal in sorted(wanted, key=lambda g: g.count / max(1, evaluate(g.extent, start))):
        entries = frozenset(g.entry for g in [*met, goal])
        grown = [s for s in _growths(goal, sizes, symbols) if all(evaluate(d, s) > 0 for d in dims)]
        cheapest = min(grown, key=lambda s: cost(s, entries), default=None)
        if cheapest is not None and cost(cheapest, entries) <= limit:
            sizes = cheapest
            met.append(goal)
        else:
            left.append(goal)
    return (Point("beyond", sizes) if met else None), left


def _growths(goal: Goal, sizes: dict[str, int], symbols: Mapping[str, Sym]) -> Iterator[dict[str, int]]:
    """``sizes`` if they meet the goal; else sizes with one symbol grown so that they do, if it can, for each symbol."""
    if goal.met(sizes):
        yield sizes
        return
    names = {s.name for s in free_symbols(goal.extent)} if isinstance(goal.extent, IntExpr) else set()
    for s in (symbols[n] for n in sorted(names & symbols.keys())):
        low, n = sizes[s.name], sizes[s.name]
        while not goal.met({**sizes, s.name: n}):
            larger = allowed(s, 2 * n + 1)
            if larger <= n or larger > 1 << 24:
                break
            low, n = n, larger
        else:
            while n - low > s.multiple_of:  # the least size that is enough
                middle = allowed(s, (low + n) // 2)
                if middle in (low, n):
                    break
                low, n = (low, middle) if goal.met({**sizes, s.name: middle}) else (middle, n)
            yield {**sizes, s.name: n}
