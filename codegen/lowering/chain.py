"""Lowers a chain: a product of few rows with the row-wise operator before it, and results behind it that read its tile.

The product's sums lie in a shared array ``tile``, and results read it at any columns of their own unit. Where there is
a row-wise operator, its result lies in a shared array ``left``, from which the product reads its left operand.
"""

from __future__ import annotations

from typing import Any

from arcweld.codegen.kernel import Axis, BoundKernel, Buffer, Store, axis
from arcweld.codegen.lowering.heroes import ELEMENT, lower_contract, row_stages
from arcweld.codegen.lowering.reading import RegionReader, delinearize, finish
from arcweld.codegen.lowering.scatter import scattered
from arcweld.compiler import dims, expr
from arcweld.compiler.dims import Dim
from arcweld.compiler.expr import Expr
from arcweld.compiler.inlining import Coords, inline
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.ops.movement import reshape_coords
from arcweld.compiler.ops.registry import Kind, opdef, statistic_type
from arcweld.compiler.region import Part, Region

TILE, LEFT = "tile", "left"


class _Reader(RegionReader):
    """Reads the product's result from the tile, and the results of row-wise operators by their statistics.

    Those of the operator before the product are variables of the template; those of heads lie in shared arrays.
    """

    def __init__(self, region: Region, graph: Graph) -> None:
        super().__init__(region, graph)
        assert region.hero is not None
        assert region.chain is not None
        self.product = region.hero
        self.rows = region.chain.rows
        self.members, _ = region.chain.unit
        self.row_at: Coords = ()  # where the product reads the result of ``rows``
        self.heads = {h.node.output.name: (j, h) for j, h in enumerate(region.chain.heads)}

    def leaf(self, value: Value, coords: Coords, mask: Expr | None) -> Expr | None:
        if value.name == self.product.output.name:
            row = dims.flat_index(coords[:-1], value.shape[:-1])
            return expr.load(TILE, value.dtype.compute, (row, coords[-1]), mask)
        return super().leaf(value, coords, mask)

    def inlined(self, reader: Any, node: Node, value: Value, coords: Coords) -> Expr:
        row = opdef(node.op).row
        if row is None:
            return inline(reader, node, coords)
        program, x = row(node), node.operands()[0]
        if node is self.rows:
            self.row_at = coords
            element = expr.variable(ELEMENT, x.dtype)
            return program.result(reader, node, element, row_stages(node, element)[1], coords)
        j, head = self.heads[node.output.name]
        place = reshape_coords(coords, x.shape, head.part.shape)
        at = head.part.row(place), dims.floordiv(head.part.column(place), self.members)
        found = {s.name: expr.load(statistic_name(j, s.name), statistic_type(x), at) for s in program.stages}
        return program.result(reader, node, reader.read(x, coords), found, coords)


def statistic_name(j: int, name: str) -> str:
    """The shared array of one statistic of head ``j``."""
    return f"head{j}_{name}"


def lower_chain(region: Region, graph: Graph) -> BoundKernel:
    """The kernel of a chain, in the roles that ``codegen/templates/contract/chain.py`` documents."""
    product, chain = region.hero, region.chain
    assert product is not None
    assert chain is not None
    reader = _Reader(region, graph)
    hero = lower_contract(reader, product)
    (m,), (n,), (k,) = hero.axes["m"], hero.axes["n"], hero.axes["k"]
    scratch = [Buffer(TILE, product.output.dtype.compute, (m.extent, n.extent), written=True)]
    attrs = {**hero.attrs, "unit": chain.unit, "stages": (), "heads": len(chain.heads)}
    if chain.rows is not None:
        left = product.operands()[0].dtype
        scratch.append(Buffer(LEFT, left, (m.extent, k.extent), written=True))
        hero.loads["row"], hero.loads["a"] = hero.loads["a"], expr.load(LEFT, left, (m.index, k.index))
        x = chain.rows.operands()[0]
        hero.loads["x"] = reader.read(x, reader.row_at)
        attrs["stages"], _ = row_stages(chain.rows, expr.variable(ELEMENT, x.dtype))
    values = {v.name: v for node in region.nodes for v in (*node.operands(), *node.outputs)}
    stores: list[Store] = []
    for i, (output, part) in enumerate(zip(region.outputs, chain.parts, strict=True)):
        value = values[part.value]
        hero.axes[f"part{i}"], at, attrs[f"part{i}"] = _place(value, part, f"n{i}", m)
        stores.append(_store(reader, output, value, at))
    for j, head in enumerate(chain.heads):
        x = head.node.operands()[0]
        hero.axes[f"head{j}"], at, attrs[f"head{j}"] = _place(x, head.part, f"h{j}", m)
        attrs[f"head{j}_stages"], _ = row_stages(head.node, reader.read(x, at))
        units = dims.floordiv(n.extent, chain.unit[0])
        scratch += [
            Buffer(statistic_name(j, s.name), statistic_type(x), (m.extent, units), written=True)
            for s in attrs[f"head{j}_stages"]
        ]
    return finish(
        region, reader, "chain", hero.axes, hero.loads, stores, attrs, hero.flops, scratch=tuple(scratch)
    )  # fmt: skip


def _place(
    value: Value, part: Part, name: str, m: Axis
) -> tuple[tuple[Axis, ...], Coords, tuple[int, tuple[int, ...]]]:
    """Axes over the part's columns, the coordinates of the element there and in row ``m``, and how columns are found.

    The latter: the first column, and the columns between neighbours along each axis. Axes that follow one
    another without a gap between columns are one. Where the part has repeats, the last axis runs over them.
    """
    runs: list[list[int]] = []
    for p, (k, stride) in enumerate(zip(part.columns, part.strides)):
        joins = p > 0 and part.strides[p - 1] == stride * part.shape[k]
        if joins:
            runs[-1].append(k)
        else:
            runs.append([k])
    stride_of = dict(zip(part.columns, part.strides))
    names = [name] if len(runs) == 1 else [f"{name}_{r}" for r in range(len(runs))]
    axes = tuple(axis(n, dims.product(part.shape[k] for k in run)) for n, run in zip(names, runs))
    at: dict[int, Dim] = {}
    for own, run in zip(axes, runs):
        at |= zip(run, delinearize(own.index, [part.shape[k] for k in run]))
    if part.repeats:
        again = [part.shape[k] for k in part.repeats]
        axes = (*axes, axis(f"{name}_again", dims.product(again)))
        at |= zip(part.repeats, delinearize(axes[-1].index, again))
    at |= zip(part.rows, delinearize(m.index, [part.shape[k] for k in part.rows]))
    coords = reshape_coords([at[k] for k in range(len(part.shape))], part.shape, value.shape)
    return axes, coords, (part.start, tuple(stride_of[run[-1]] for run in runs))


def _store(reader: _Reader, output: Value, value: Value, at: Coords) -> Store:
    node = reader.made[output.name]
    if opdef(node.op).kind is Kind.SCATTER:
        return scattered(reader, node, at)
    return Store(reader.buffer(output, written=True).name, at, reader.read(value, at))
