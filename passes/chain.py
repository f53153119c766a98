"""Chains: a product of few rows takes the norm before it, and what reads its result at other elements behind it.

    y = RMSNorm(x) @ [wq wk wv]; RoPE(y's q), RoPE(y's k) into a cache, y's v into a cache       one kernel
    y = RMSNorm(x) @ [wgate wup]; silu(y's gate) * y's up                                        one kernel

A product of few rows takes as long as reading its weights. So each block may compute the norm of all rows again, and
keep its columns of the product in shared memory, where the results behind it find what they read: columns that they
read together, a *unit*, belong to one block. Fusion cannot do this: it gives each element of a product to one thread.

Requires: regions with what is written in place. Ensures: the same results, by fewer regions.
"""

from __future__ import annotations

from dataclasses import replace

from arcweld.compiler import dims
from arcweld.compiler.few_rows import FEW_ROWS, is_few_rows
from arcweld.compiler.ir import Node, Value
from arcweld.compiler.region import FusedGraph, Region
from arcweld.passes.columns import FLOATS, chain_of, is_head, reads_rows
from arcweld.passes.fusion import MAX_NODES
from arcweld.passes.joining import Joiner

PIECE_BITS = 128  # of packed weights that are copied at once
GROUP = 32  # elements of k: groups that share a scale are multiples of it, or half of it if no zero points are read
MAX_OPERANDS = 24  # tensors, weights aside, that the kernel of a chain reads
ROW_BYTES = 96 << 10  # of shared memory for the rows before a product
MANY_ROW_BYTES = 64 << 10  # the same for more than FEW_ROWS rows, which need more for their results


def chain(fused: FusedGraph) -> FusedGraph:
    """The regions, with those that a product of few rows can take joined to it; in no particular order."""
    if not any(_is_few_rows(r) for r in fused.regions):
        return fused
    return _Chainer(fused).run()


def _is_few_rows(r: Region) -> bool:
    """True for the product of a few rows by a matrix."""
    if r.template != "contract" or r.hero is None or r.in_place:
        return False
    a, b = r.hero.operands()[:2]
    columns, depth = r.hero.output.shape[-1], a.shape[-1]
    if b.type.rank != 2 or a.dtype not in FLOATS or not isinstance(columns, int) or not isinstance(depth, int):
        return False
    few = is_few_rows(a) and columns > 0 and depth > 0
    return few and (_most_rows(r.hero) <= FEW_ROWS or _is_stored_along_k(r, b))


def _most_rows(product: Node) -> int:
    _, most = dims.bounds(dims.product(product.output.shape[:-1]))
    assert most is not None
    return most


def _is_stored_along_k(r: Region, b: Value) -> bool:
    """True if the right operand [k, n] is read from memory as [n, k], as weights of 16-bit types are.

    Or if it is packed there, in a form that products of few rows copy as it is (``contract/stored.py``).
    """
    made = {o.name: n for n in r.nodes for o in n.outputs}
    node = made.get(b.name)
    if node is None or node.op != "Transpose" or node.attrs["perm"] != (1, 0):
        return False
    (stored,) = node.operands()
    while (node := made.get(stored.name)) is not None and _converts(node):
        stored = node.operands()[0]
    return stored.name in {v.name for v in r.inputs} or (node is not None and _is_packed_along_k(node))


def _converts(node: Node) -> bool:
    """True for a Cast, and for what makes floats of the 16-bit ones that a model stores."""
    return node.op == "Cast" or (node.op == "DequantizeLinear" and node.operands()[0].dtype.is_half)


def _is_packed_along_k(node: Node) -> bool:
    """True for a DequantizeLinear of whole pieces of 16 bytes, with scales for columns or groups, and integer zeros."""
    if node.op != "DequantizeLinear":
        return False
    x, scale, zero, offset, high = [*node.inputs, None, None, None][:5]
    assert x is not None
    assert scale is not None
    if offset is not None and offset.shape:
        return False
    pieces = x.dtype.bits <= 8 and dims.is_multiple(x.shape[-1], PIECE_BITS // x.dtype.bits)
    axis, block = node.attrs["axis"], node.attrs["block"]
    least = GROUP // 2 if zero is None or not zero.shape else GROUP
    groups = (axis == 1 and block % least == 0) if block else (axis == 0 and scale.type.rank == 1)
    in_range = zero is None or zero.dtype is x.dtype or (high is not None and zero.dtype.is_int and not zero.shape)
    return pieces and groups and scale.type.numel != 1 and in_range


def _row_bytes(product: Node) -> int:
    """The most bytes that a product's left operand has."""
    left = product.operands()[0]
    _, most = dims.bounds(left.type.numel)
    assert most is not None
    return most * left.dtype.size


class _Chainer(Joiner):
    """One run of the pass."""

    def run(self) -> FusedGraph:
        """The graph with chains."""
        products = [i for i, r in self.regions.items() if _is_few_rows(r)]
        for i in products:
            self._take_readers(i)
        for k in [k for k, r in self.regions.items() if r.template == "rowwise"]:
            self._spread_rows(k)
        return self.result()

    # ----- behind the product

    def _take_readers(self, i: int) -> None:
        """Joins regions that read the product's results, one after another, as long as any fits."""
        refused: set[int] = set()
        while True:
            near = {k for o in self.regions[i].outputs for k in self.readers.get(o.name, ())} - {i} - refused
            if not near:
                return
            k = min(near, key=lambda k: self.position[self.regions[k].outputs[0].name])
            joined = self._taken(i, k)
            if joined is None:
                refused.add(k)
            else:
                self.replace(i, k, joined)
                self.remove(k)

    def _taken(self, i: int, k: int) -> Region | None:
        """The region that ``k``, a reader of ``i``, and ``i`` are together, or None if they can't be one kernel."""
        product, reader = self.regions[i], self.regions[k]
        appends = reader.template == "scatter" and reader.in_place
        if not (reader.template == "pointwise" or appends or is_head(reader)):
            return None
        if product.in_place.keys() & {v.name for v in reader.inputs}:
            return None  # it reads a whole cache
        if self.conflict(product, reader) or self.detour(i, k):
            return None
        return self._with_parts(self.joined(i, k), product.chain.rows if product.chain else None)

    def _with_parts(self, joined: Region, rows: Node | None) -> Region | None:
        if len(joined.nodes) > MAX_NODES or self.operands(joined) > MAX_OPERANDS:
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
                self.replace(i, k, region)
            self.remove(k)

    def _with_rows(self, i: int, k: int) -> Region | None:
        product, norm = self.regions[i], self.regions[k]
        if product.hero is None or norm.hero is None or not (product.chain or _is_few_rows(product)):
            return None
        if product.chain and product.chain.rows:
            return None
        room = ROW_BYTES if _most_rows(product.hero) <= FEW_ROWS else MANY_ROW_BYTES
        if _row_bytes(product.hero) > room or self.conflict(product, norm) or self.detour(k, i):
            return None
        joined = self.joined(i, k, stored=product.outputs)
        if not reads_rows(joined, norm.hero):
            return None
        return self._with_parts(joined, norm.hero)
