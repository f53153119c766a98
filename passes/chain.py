"""Chains: a product of few rows takes the norm before it, and what reads its result at other elements behind it.

    y = RMSNorm(x) @ [wq wk wv]; RoPE(y's q), RoPE(y's k) into a cache, y's v into a cache       one kernel
    y = RMSNorm(x) @ [wgate wup]; silu(y's gate) * y's up                                        one kernel

A product of few rows takes as long as reading its weights. So each block may compute the norm of all rows again, and
keep its columns of the product in shared memory, where the results behind it find what they read: columns that they
read together, a *unit*, belong to one block. Fusion cannot do this: it gives each element of a product to one thread.

Requires: regions with what is written in place. Ensures: the same results, by fewer regions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from arcweld.compiler import dims
from arcweld.compiler.ir import Node, Value
from arcweld.compiler.region import FEW_ROWS, FusedGraph, Region
from arcweld.passes.columns import FLOATS, chain_of, is_head, reads_rows
from arcweld.passes.schedule import dependences

if TYPE_CHECKING:
    import networkx as nx

MAX_OPERANDS = 24  # tensors, weights aside, that the kernel of a chain reads
MAX_NODES = 240
ROW_BYTES = 96 << 10  # of shared memory for the rows before a product


def chain(fused: FusedGraph) -> FusedGraph:
    """The regions, with those that a product of few rows can take joined to it; in no particular order."""
    if not any(_is_few_rows(r) for r in fused.regions):
        return fused
    return _Chainer(fused).run()


def _is_few_rows(r: Region) -> bool:
    """True for the product of a few rows by a matrix."""
    if r.template != "contract" or r.hero is None or r.in_place:
        return False
    a, b = r.hero.operands()
    shape = (*r.hero.output.shape, a.shape[-1])
    if b.type.rank != 2 or a.dtype not in FLOATS or not all(isinstance(d, int) for d in shape):
        return False
    return 0 < _rows(r.hero) <= FEW_ROWS and 0 not in shape


def _rows(product: Node) -> int:
    rows = dims.product(product.output.shape[:-1])
    assert isinstance(rows, int)
    return rows


def _row_bytes(product: Node) -> int:
    left = product.operands()[0]
    depth = left.shape[-1]
    assert isinstance(depth, int)
    return _rows(product) * depth * left.dtype.size


class _Chainer:
    """The regions by number, and which wait for which while they are joined."""

    def __init__(self, fused: FusedGraph) -> None:
        self.fused = fused
        self.regions = dict(enumerate(fused.regions))
        self.waits: nx.DiGraph[int] = dependences(fused)
        self.position = {o.name: i for i, n in enumerate(fused.graph.nodes) for o in n.outputs}
        self.outputs = fused.graph.output_names()
        self.readers: dict[str, set[int]] = {}
        for i, r in self.regions.items():
            for v in r.inputs:
                self.readers.setdefault(v.name, set()).add(i)

    def run(self) -> FusedGraph:
        """The graph with chains."""
        products = [i for i, r in self.regions.items() if _is_few_rows(r)]
        for i in products:
            self._take_readers(i)
        for k in [k for k, r in self.regions.items() if r.template == "rowwise"]:
            self._spread_rows(k)
        return replace(self.fused, regions=tuple(self.regions.values()))

    # ----- behind the product

    def _take_readers(self, i: int) -> None:
        """Joins regions that read the product's results, one after another, as long as any fits."""
        refused: set[int] = set()
        while True:
            near = {k for o in self.regions[i].outputs for k in self.readers.get(o.name, ())} - {i} - refused
            if not near:
                return
            k = min(near, key=lambda k: self.position[self.regions[k].outputs[0].name])
            joined = self._joined(i, k)
            if joined is None:
                refused.add(k)
            else:
                self._replace(i, k, joined)
                self._remove(k)

    def _joined(self, i: int, k: int) -> Region | None:
        """The region that ``k``, a reader of ``i``, and ``i`` are together, or None if they can't be one kernel."""
        product, reader = self.regions[i], self.regions[k]
        appends = reader.template == "scatter" and reader.in_place
        if not (reader.template == "pointwise" or appends or is_head(reader)):
            return None
        if any(o.name in product.in_place for o in product.outputs if o.name in {v.name for v in reader.inputs}):
            return None  # it reads a whole cache
        if self._conflict(product, reader) or self._detour(i, k):
            return None
        nodes = self._in_order((*product.nodes, *reader.nodes))
        outputs = [o for o in product.outputs if o.name in self.outputs or self.readers[o.name] - {i, k}]
        outputs += [o for o in reader.outputs if o.name not in {v.name for v in outputs}]
        joined = _region(product, nodes, outputs, {**product.in_place, **reader.in_place})
        return self._with_parts(joined, product.chain.rows if product.chain else None)

    def _with_parts(self, joined: Region, rows: Node | None) -> Region | None:
        if len(joined.nodes) > MAX_NODES or self._operands(joined) > MAX_OPERANDS:
            return None
        found = chain_of(joined, rows)
        return None if found is None else replace(joined, template="chain", chain=found)

    # ----- before the product

    def _spread_rows(self, k: int) -> None:
        """Lets every reader of the row-wise region ``k`` compute its result, if all of them can."""
        norm = self.regions[k]
        (rows, *more) = norm.outputs
        readers = sorted(self.readers.get(rows.name, ()))
        if more or rows.name in self.outputs or not readers:
            return
        joined = [self._with_rows(i, k) for i in readers]
        if all(j is not None for j in joined):
            for i, region in zip(readers, joined):
                assert region is not None
                self._replace(i, k, region)
            self._remove(k)

    def _with_rows(self, i: int, k: int) -> Region | None:
        product, norm = self.regions[i], self.regions[k]
        if product.hero is None or norm.hero is None or not (product.chain or _is_few_rows(product)):
            return None
        if product.chain and product.chain.rows:
            return None
        if _row_bytes(product.hero) > ROW_BYTES or self._conflict(product, norm) or self._detour(k, i):
            return None
        nodes = self._in_order((*norm.nodes, *product.nodes))
        joined = _region(product, nodes, product.outputs, product.in_place)
        if not reads_rows(joined, norm.hero):
            return None
        return self._with_parts(joined, norm.hero)

    # ----- bookkeeping

    def _conflict(self, a: Region, b: Region) -> bool:
        """True if one of them writes over what the other one reads: in one kernel nothing would order the two."""
        return any(set(x.in_place.values()) & {v.name for v in y.inputs} for x, y in ((a, b), (b, a)))

    def _detour(self, first: int, second: int) -> bool:
        """True if ``second`` waits for ``first`` also by way of a third region."""
        import networkx as nx

        return any(nx.has_path(self.waits, s, second) for s in self.waits.successors(first) if s != second)

    def _replace(self, i: int, k: int, joined: Region) -> None:
        """Makes ``joined`` the region ``i``, which then does the work of ``k`` too."""
        for v in self.regions[i].inputs:
            self.readers[v.name].discard(i)
        for v in joined.inputs:
            self.readers.setdefault(v.name, set()).add(i)
        self.regions[i] = joined
        self.waits.add_edges_from((p, i) for p in self.waits.predecessors(k) if p != i)
        self.waits.add_edges_from((i, s) for s in self.waits.successors(k) if s != i)

    def _remove(self, k: int) -> None:
        for v in self.regions.pop(k).inputs:
            self.readers[v.name].discard(k)
        self.waits.remove_node(k)

    def _operands(self, r: Region) -> int:
        return sum(v.name not in self.fused.graph.weights for v in r.inputs)

    def _in_order(self, nodes: Iterable[Node]) -> tuple[Node, ...]:
        unique = {n.output.name: n for n in nodes}
        return tuple(sorted(unique.values(), key=lambda n: self.position[n.output.name]))


def _region(product: Region, nodes: tuple[Node, ...], outputs: Sequence[Value], in_place: Mapping[str, str]) -> Region:
    made = {o.name for n in nodes for o in n.outputs}
    inputs = {v.name: v for n in nodes for v in n.operands() if v.name not in made}
    return replace(product, nodes=nodes, inputs=tuple(inputs.values()), outputs=tuple(outputs), in_place=in_place)
