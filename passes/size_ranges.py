"""Ranges of sizes worth launches of their own: those at which products have few rows, beside sizes at which they don't.

    a decoder of b sequences of s tokens     s = 1, b = 1..8;  s = 1, b = 1..64;  s = 1;  all others
    one of a single sequence                 s = 1;  s = 1..64;  all others
    products whose rows are a batch n        n = 1..8;  n = 1..64;  all others

Few rows have engines that read weights once; up to SMALL_ROWS, tiles are small. Requires: the graph as imported. A
decode step is known by its state or its growing caches. Elsewhere the weights of such products must be most of what
products and convolutions read, and so many that reading them takes the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from arcweld.compiler.dims import Dim, IntExpr, Sym, bounds, coefficient, free_symbols, product, substitute, var
from arcweld.compiler.dtypes import DType
from arcweld.compiler.few_rows import most_few_rows
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.options import Options
from arcweld.compiler.size_ranges import SizeRange

SMALL_ROWS = 64  # for which a product takes smaller tiles
MANY_WEIGHTS = 1 << 20  # elements of weights from which on reading them takes longer than launching a kernel
CACHE_RANK = 4  # of keys or values: sequences, heads, positions and elements, in any order

Bounds: TypeAlias = dict[str, int | tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Product:
    """A product by a constant matrix: its rows, how many of them are few, and the elements of the matrix."""

    rows: Dim
    few: int
    elements: int


def size_ranges(graph: Graph, options: Options) -> tuple[SizeRange, ...]:
    """The ranges, narrowest first; none for a graph without symbols."""
    if not graph.symbols():
        return ()
    constant = _constants(graph)
    products = list(_products(graph, options, constant))
    symbols = {s for p in products if isinstance(p.rows, IntExpr) for s in free_symbols(p.rows)}
    symbols &= set(graph.symbols())
    tokens = {s for s in _tokens(graph) if s in symbols and s.lo <= 1 and s.multiple_of == 1 and s.hi != 1}
    one: Bounds = {s.name: 1 for s in tokens}
    batches = symbols - tokens
    found: list[SizeRange] = []
    if len(batches) == 1 and (tokens or _is_worth_it(graph, products, constant)):
        found += _of_rows(products, next(iter(batches)), one, tokens, (None, SMALL_ROWS))
    if tokens:
        found.append(SizeRange.of(one))
    if len(tokens) == 1 and not batches:
        found += _of_rows(products, next(iter(tokens)), {}, set(), (SMALL_ROWS,))
    return tuple(found)


def _of_rows(
    products: list[_Product], symbol: Sym, others: Bounds, ones: set[Sym], rows: tuple[int | None, ...]
) -> Iterator[SizeRange]:
    """The ranges of ``symbol`` in which some product has at most so many rows (None: few), those in ``ones`` being 1.

    Those that hold no size, or all sizes, are left out.
    """
    last, most = symbol.lo - 1, None if symbol.hi is None else bounds(symbol.hi)[1]
    for count in rows:
        end = _largest(products, symbol, ones, count)
        if last < end and (most is None or end < most):
            yield SizeRange.of({**others, symbol.name: (symbol.lo, end)})
            last = end


def _constants(graph: Graph) -> set[str]:
    """The names of weights, and of values that are made from them alone."""
    found = set(graph.weights)
    for n in graph.nodes:
        if n.operands() and all(v.name in found for v in n.operands()):
            found.update(o.name for o in n.outputs)
    return found


def _products(graph: Graph, options: Options, constant: set[str]) -> Iterator[_Product]:
    for n in graph.nodes:
        if n.op not in ("MatMul", "MatMulInteger", "MatMulFloat8", "Gemm") or n.output.name in constant:
            continue
        x, w = n.operands()[:2]
        if w.name in constant and w.type.rank == 2 and isinstance(w.type.numel, int):
            half = x.dtype.is_half or n.op == "MatMulFloat8" or (x.dtype is DType.F32 and options.float_type.is_half)
            yield _Product(product(n.output.shape[:-1]), most_few_rows(half, x.shape[-1]), w.type.numel)


def _largest(products: list[_Product], symbol: Sym, ones: set[Sym], count: int | None) -> int:
    """The largest size of ``symbol`` at which some product has at most ``count`` rows; 0 where none has."""
    best = 0
    for p in products:
        rows = substitute(p.rows, dict.fromkeys(ones, 1))
        factor = coefficient(rows, symbol)
        if isinstance(factor, int) and factor > 0 and rows == var(symbol) * factor:
            best = max(best, (p.few if count is None else count) // factor)
    return best // symbol.multiple_of * symbol.multiple_of


def _is_worth_it(graph: Graph, products: list[_Product], constant: set[str]) -> bool:
    """True if most elements of weights are in products that have few rows for a small batch, and they are many."""
    open_rows = [p for p in products if isinstance(p.rows, IntExpr)]
    few = sum(p.elements for p in open_rows if bounds(p.rows)[0] in range(p.few + 1))
    everything = 0
    for n in graph.nodes:
        if opdef(n.op).kind in (Kind.CONTRACT, Kind.CONV) or n.op == "Gemm":
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
