"""Lowers a chain: a product of few rows with the row-wise operator before it, and results behind it that read its tile.

The product's sums lie in a shared array ``tile``, and results read it at any columns of their own unit. Where there is
a row-wise operator, its result lies in a shared array ``left``, from which the product reads its left operand.
"""

from __future__ import annotations

from arcweld.codegen.kernel import Axis, BoundKernel, Buffer, Stage, Store, axis
from arcweld.codegen.lowering.heroes import lower_contract
from arcweld.codegen.lowering.reading import RegionReader, delinearize, finish
from arcweld.codegen.lowering.scatter import scattered
from arcweld.compiler import dims, expr
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr
from arcweld.compiler.inlining import Coords, inline
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.region import Part, Region

TILE, LEFT = "tile", "left"
ELEMENT = "x"  # of a row, in the expressions of its statistics and of what becomes of it


class _Reader(RegionReader):
    """Reads the product's result from the tile, and gives the row-wise operator's result by its statistics."""

    def __init__(self, region: Region, graph: Graph) -> None:
        super().__init__(region, graph)
        assert region.chain is not None
        self.norm = region.chain.rows
        self.row_at: Coords = ()

    def leaf(self, value: Value, coords: Coords, mask: Expr | None) -> Expr | None:
        product = self.region.hero
        assert product is not None
        if value.name == product.output.name:
            return expr.load(TILE, value.dtype.compute, (_row(product, coords), coords[-1]), mask)
        return super().leaf(value, coords, mask)

    def inlined(self, reader: RegionReader, node: Node, value: Value, coords: Coords) -> Expr:
        if node is not self.norm:
            return inline(reader, node, coords)
        self.row_at = coords
        program = opdef(node.op).row
        assert program is not None
        x = node.operands()[0]
        names = {s.name: expr.variable(s.name, _statistic(x)) for s in program(node).stages}
        return program(node).result(reader, node, expr.variable(ELEMENT, x.dtype), names, coords)

    def statistics(self) -> tuple[Expr, tuple[Stage, ...]]:
        """The row's element where the operator's result was read, and the statistics of the row."""
        assert self.norm is not None
        program = opdef(self.norm.op).row
        assert program is not None
        x = self.norm.operands()[0]
        known: dict[str, Expr] = {}
        stages = []
        for s in program(self.norm).stages:
            value = s.value(expr.variable(ELEMENT, x.dtype), known)
            known[s.name] = expr.variable(s.name, _statistic(x))
            done = s.finish(known[s.name], dict(known)) if s.finish else None
            stages.append(Stage(s.name, s.combine, value, done))
        return self.read(x, self.row_at), tuple(stages)


def _statistic(x: Value) -> DType:
    return DType.F64 if x.dtype is DType.F64 else DType.F32


def _row(product: Node, coords: Coords) -> Dim:
    row: Dim = 0
    for c, d in zip(coords[:-1], product.output.shape[:-1]):
        row = row * d + c
    return row


def lower_chain(region: Region, graph: Graph) -> BoundKernel:
    """The kernel of a chain, in the roles that ``codegen/templates/contract/chain.py`` documents."""
    product, chain = region.hero, region.chain
    assert product is not None
    assert chain is not None
    reader = _Reader(region, graph)
    hero = lower_contract(reader, product)
    (m,), (n,), (k,) = hero.axes["m"], hero.axes["n"], hero.axes["k"]
    scratch = [Buffer(TILE, product.output.dtype.compute, (m.extent, n.extent), written=True)]
    attrs = {**hero.attrs, "unit": chain.unit, "starts": tuple(p.start for p in chain.parts), "stages": ()}
    if chain.rows is not None:
        left = product.operands()[0].dtype
        scratch.append(Buffer(LEFT, left, (m.extent, k.extent), written=True))
        hero.loads["row"], hero.loads["a"] = hero.loads["a"], expr.load(LEFT, left, (m.index, k.index))
        hero.loads["x"], attrs["stages"] = reader.statistics()
    values = {v.name: v for node in region.nodes for v in (*node.operands(), *node.outputs)}
    stores: list[Store] = []
    axes: dict[str, tuple[Axis, ...]] = {}
    for i, (output, part) in enumerate(zip(region.outputs, chain.parts, strict=True)):
        value = values[part.value]
        own = axis(f"p{i}", dims.product(value.shape[c] for c in part.columns))
        stores.append(_store(reader, output, value, _place(value, part, own, m)))
        axes[f"part{i}"] = (own,)
    return finish(
        region, reader, "chain", {**hero.axes, **axes}, hero.loads, stores, attrs, hero.flops, scratch=tuple(scratch)
    )


def _place(value: Value, part: Part, own: Axis, m: Axis) -> Coords:
    """The coordinates of the element of ``value`` that belongs to row ``m`` and the part's column ``own``."""
    across = delinearize(own.index, [value.shape[k] for k in part.columns])
    others = [k for k in range(value.type.rank) if k not in part.columns]
    down = delinearize(m.index, [value.shape[k] for k in others])
    at = dict(zip(part.columns, across)) | dict(zip(others, down))
    return tuple(at[k] for k in range(value.type.rank))


def _store(reader: _Reader, output: Value, value: Value, at: Coords) -> Store:
    node = reader.made[output.name]
    if opdef(node.op).kind is Kind.SCATTER:
        return scattered(reader, node, at)
    return Store(reader.buffer(output, written=True).name, at, reader.read(value, at))
