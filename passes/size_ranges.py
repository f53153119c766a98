"""Ranges of sizes worth launches of their own: those at which products have few rows, beside sizes at which they don't.

    a decoder with open numbers of sequences b and of tokens s:   s = 1, b = 1..8;   s = 1;   all others
    products whose rows are a batch n:                            n = 1..8;   all others

Requires: the graph as imported. A decode step is known by its state or its growing caches. Elsewhere the weights of
such products must be most of what products and convolutions read, and so many that reading them takes the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from arcweld.compiler.dims import Dim, IntExpr, Sym, bounds, coefficient, free_symbols, product, var
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.region import FEW_ROWS
from arcweld.compiler.size_ranges import SizeRange

MANY_WEIGHTS = 1 << 20  # elements of weights from which on reading them takes longer than launching a kernel
CACHE_RANK = 4  # of keys or values: sequences, heads, positions and elements, in any order


@dataclass(frozen=True, slots=True)
class _Product:
    """A product by a constant matrix: its rows, and the elements of the matrix."""

    rows: Dim
    elements: int


def size_ranges(graph: Graph) -> tuple[SizeRange, ...]:
    """The ranges, narrowest first; none for a graph without symbols."""
    if not graph.symbols():
        return ()
    constant = _constants(graph)
    products = list(_products(graph, constant))
    symbols = {s for p in products if isinstance(p.rows, IntExpr) for s in free_symbols(p.rows)}
    symbols &= set(graph.symbols())
    tokens = {s for s in _tokens(graph) if s in symbols and s.lo <= 1 and s.multiple_of == 1 and s.hi != 1}
    one: dict[str, int | tuple[int, int]] = {s.name: 1 for s in tokens}
    batches = symbols - tokens
    found = [SizeRange.of(one)] if tokens else []
    if len(batches) == 1:
        (batch,) = batches
        few, most = _most(products, batch, tokens), None if batch.hi is None else bounds(batch.hi)[1]
        if few >= batch.lo and (most is None or few < most) and (tokens or _is_worth_it(graph, products, constant)):
            found.insert(0, SizeRange.of({**one, batch.name: (batch.lo, few)}))
    return tuple(found)


def _constants(graph: Graph) -> set[str]:
    """The names of weights, and of values that are made from them alone."""
    found = set(graph.weights)
    for n in graph.nodes:
        if n.operands() and all(v.name in found for v in n.operands()):
            found.update(o.name for o in n.outputs)
    return found


def _products(graph: Graph, constant: set[str]) -> Iterator[_Product]:
    for n in graph.nodes:
        if n.op not in ("MatMul", "Gemm") or n.output.name in constant:
            continue
        w = n.operands()[1]
        if w.name in constant and w.type.rank == 2 and isinstance(w.type.numel, int):
            yield _Product(product(n.output.shape[:-1]), w.type.numel)


def _most(products: list[_Product], batch: Sym, tokens: set[Sym]) -> int:
    """The largest size of ``batch`` within its range at which some product has few rows; 0 where none has."""
    best = 0
    for p in products:
        rows = p.rows
        for s in tokens:
            factor = coefficient(rows, s)
            rows = rows if factor is None or factor == 0 else factor
        factor = coefficient(rows, batch)
        if isinstance(factor, int) and factor > 0 and rows == var(batch) * factor:
            best = max(best, FEW_ROWS // factor)
    return best // batch.multiple_of * batch.multiple_of


def _is_worth_it(graph: Graph, products: list[_Product], constant: set[str]) -> bool:
    """True if most elements of weights are in products that have few rows for a small batch, and they are many."""
    few = sum(p.elements for p in products if isinstance(p.rows, IntExpr) and bounds(p.rows)[0] in range(FEW_ROWS + 1))
    everything = 0
    for n in graph.nodes:
        if n.op in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
            everything += sum(_elements(v) for v in n.operands()[1:2] if v.name in constant)
    return few >= MANY_WEIGHTS and 2 * few >= everything


def _elements(v: Value) -> int:
    return v.type.numel if isinstance(v.type.numel, int) else 0


# ------------------------------------------------------------------------------------------------------ decode steps


def _tokens(graph: Graph) -> set[Sym]:
    """The symbols that count the new tokens of a decoder's sequences.

    Where caches are state, they are the symbols in which no cache is measured. Where caches grow, new keys of such a
    number are concatenated with those of an input.
    """
    caches = [v for v in graph.inputs if v.name in graph.aliases.values() and v.type.rank >= CACHE_RANK]
    if caches:
        return set(graph.symbols()) - {s for v in caches for s in _symbols(v.shape)}
    past = {v.name: v for v in graph.inputs if v.dtype.is_float}
    found: set[Sym] = set()
    for n in graph.nodes:
        if n.op in ("Transpose", "Reshape", "Identity", "Cast") and n.operands()[0].name in past:
            past[n.output.name] = n.output
        elif n.op == "Concat":
            found |= _appended(n, past)
    return found


def _appended(n: Node, past: Mapping[str, Value]) -> set[Sym]:
    """The symbols that count what a Concat appends to an input of an open length."""
    sizes = [(v.shape[n.attrs["axis"]], v.name in past) for v in n.operands()]
    if not any(given and isinstance(d, IntExpr) for d, given in sizes):
        return set()
    return {s for d, given in sizes if not given for s in _symbols((d,)) if d == var(s)}


def _symbols(shape: tuple[Dim, ...]) -> set[Sym]:
    return {s for d in shape if isinstance(d, IntExpr) for s in free_symbols(d)}
