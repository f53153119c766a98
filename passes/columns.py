"""Which elements of a kernel's results are made from which columns of its product, and which they read together.

    RoPE over heads of 64        element d reads columns d and d +- 32: units of 2 columns, 32 apart
    silu(gate) * up over 2 * F   element f reads columns f and F + f: units of 2 columns, F apart
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from arcweld.compiler import dims, expr
from arcweld.compiler.dims import Dim, Sym
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr
from arcweld.compiler.inlining import Coords, Inliner
from arcweld.compiler.interpret import DIM_CALLS, interpret
from arcweld.compiler.ir import Node, Value
from arcweld.compiler.ops.movement import reshape_coords
from arcweld.compiler.ops.registry import Kind, opdef, statistic_type
from arcweld.compiler.region import Chain, Head, Part, Region

# members of a unit: powers of two, since a block computes whole units; the more blocks there are, the better
MEMBERS = (2, 4, 8, 16, 32, 64, 128, 256)
FLOATS = (DType.F32, DType.F16, DType.BF16)
# the columns of elements, those that they read, and where they do (None: everywhere)
_Read: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray | None]


class _Until(Inliner):
    """Expressions in which the results of some nodes are loads of their own names.

    The statistics of a row-wise operator stand for all that it reads: they are the sum of the row's ends.
    """

    def __init__(self, region: Region, *ends: Node) -> None:
        super().__init__(region.nodes)
        self.ends = {n.output.name for n in ends}

    def inlined(self, reader: Any, node: Node, value: Value, coords: Coords) -> Expr:
        row = opdef(node.op).row
        if row is None:
            return super().inlined(reader, node, value, coords)
        x = node.operands()[0]
        ends = [reader.read(x, (*coords[:-1], k)) for k in (0, x.shape[-1] - 1)]
        statistic = expr.cast(ends[0] + ends[1], statistic_type(x))
        scalars = {s.name: statistic for s in row(node).stages}
        return row(node).result(reader, node, reader.read(x, coords), scalars, coords)

    def leaf(self, value: Value, coords: Coords, mask: Expr | None) -> Expr | None:
        if value.name in self.ends:
            return expr.load(value.name, value.dtype, coords, mask)
        return super().leaf(value, coords, mask)

    def loads(self, end: Node, value: Value, shape: Sequence[Dim] = ()) -> list[Expr]:
        """The loads of ``end``'s result in any element of ``value``, at ``symbols(shape)`` of the value in that shape.

        ``shape`` defaults to the value's own.
        """
        shape = shape or value.shape
        found = expr.loads([self.read(value, reshape_coords(symbols(shape), shape, value.shape))])
        return [x for x in found if x.attr[0] == end.output.name]

    def indexes_by(self, end: Node, value: Value) -> bool:
        """True if such a load decides where another value is read."""
        root = self.read(value, symbols(value.shape))
        indices = [i for x in expr.walk([root]) for i in expr.run_time_indices(x)]
        return any(x.attr[0] == end.output.name for x in expr.loads(indices))


def symbols(shape: Sequence[Dim]) -> Coords:
    """The coordinates of any element of that shape: a symbol ``x0, x1, …`` for each axis that has more than one."""
    return tuple(dims.var(Sym(f"x{k}", 0, d - 1)) if d != 1 else 0 for k, d in enumerate(shape))


def reads_rows(region: Region, norm: Node) -> bool:
    """True if a product's left operand reads ``norm`` in its own row and column only, and nothing else reads it."""
    assert region.hero is not None
    left = region.hero.operands()[0]
    row = opdef(norm.op).row
    if row is None or len(norm.outputs) > 1 or row(norm).axes != 1 or norm.output.shape[-1] != left.shape[-1]:
        return False
    found = _Until(region, norm).loads(norm, left)
    places = {x.attr[2] for x in found}
    if len(places) != 1 or any(x.args for x in found):
        return False
    ((*row_at, column),) = places
    own = symbols(left.shape)[-1]
    if column != own or any(dims.free_symbols(own) & dims.free_symbols(c) for c in row_at):
        return False
    behind = _Until(region, region.hero, norm)
    return not any(behind.loads(norm, _enumerated(region, o)) for o in region.outputs)


def _enumerated(region: Region, output: Value) -> Value:
    """The value whose elements a kernel enumerates for ``output``: of a scatter in place its updates."""
    scatter = _scatter(region, output)
    return output if scatter is None else scatter.operands()[2]


def _scatter(region: Region, output: Value) -> Node | None:
    """The scatter that writes ``output``, if one does."""
    node = next(n for n in region.nodes if output in n.outputs)
    return node if opdef(node.op).kind is Kind.SCATTER else None


def chain_of(region: Region, rows: Node | None) -> Chain | None:
    """What a region has round its product, with the smallest unit that serves it; None if no kernel can compute it.

    ``rows``: the row-wise operator before the product.
    """
    product = region.hero
    assert product is not None
    until = _Until(region, product)
    parts, heads, reads = [], [], []
    for o in region.outputs:
        scatter = _scatter(region, o)
        if scatter is not None and until.loads(product, scatter.operands()[1]):
            return None  # the product says where its own elements go
        value = _enumerated(region, o)
        found = None if until.indexes_by(product, value) else _part(until, product, value)
        if found is None:
            return None
        parts.append(found[0])
        reads += found[1]
    for n in region.nodes:
        if opdef(n.op).row is not None and n is not rows:
            x = n.operands()[0]
            found = _part(until, product, x)
            if found is None:
                return None
            heads.append(Head(n, found[0]))
    columns = product.output.shape[-1]
    assert isinstance(columns, int)
    unit = _unit(columns, reads)
    if unit is None or not all(_is_unit(h, unit) for h in heads) or (heads and unit[0] == columns):
        return None  # a single block would compute all columns of a row
    return Chain(rows, unit, tuple(parts), tuple(heads))


def is_head(region: Region) -> bool:
    """True for a row-wise region that a chain may compute behind its product: one over the last axis."""
    if region.hero is None or len(region.hero.outputs) > 1:
        return False
    row = opdef(region.hero.op).row
    return row is not None and row(region.hero).axes == 1 and region.hero.operands()[0].dtype in FLOATS


def _is_unit(head: Head, unit: tuple[int, int]) -> bool:
    """True if each row of the operator is one unit of neighbouring columns."""
    x = head.node.operands()[0]
    if not head.part.strides:
        return False  # a single column
    *outer, last = head.part.strides
    whole = last == 1 and all(s % unit[0] == 0 for s in (head.part.start, *outer))
    innermost = head.part.columns[-1] == len(head.part.shape) - 1 and head.part.shape[-1] == x.shape[-1]
    return unit == (x.shape[-1], 1) and whole and innermost and not head.part.repeats


def _part(until: _Until, product: Node, value: Value) -> tuple[Part, list[_Read]] | None:
    """How the elements of ``value`` correspond to columns, and the columns that each column's elements read.

    One of the loads of the product's result has to read another column for each element of a row; one without a mask is
    tried first.
    """
    if 0 in value.shape:
        return None
    shape = _split(value, until.loads(product, value))
    found = until.loads(product, value, shape)
    for x in sorted(found, key=lambda x: len(x.args)):
        part = _enumeration(product, value, shape, x.attr[2])
        reads = None if part is None else _columns_read(product, part, found)
        if part is not None and reads is not None:
            return part, reads
    return None


def _split(value: Value, found: Sequence[Expr]) -> tuple[Dim, ...]:
    """The shape of ``value`` with axes split where their coordinate is divided, so that reads may become affine."""
    calls = {a for x in found for c in x.attr[2] for a in dims.atoms(c) if isinstance(a, dims.Call)}
    shape: list[Dim] = []
    for coordinate, extent in zip(symbols(value.shape), value.shape):
        for inner in sorted({c.b for c in calls if c.a == coordinate and isinstance(c.b, int)}, reverse=True):
            if isinstance(extent, int) and extent % inner == 0 and extent != inner:
                shape.append(extent // inner)
                extent = inner
        shape.append(extent)
    return tuple(shape)


def _row(product: Node, coords: Coords) -> Dim:
    return dims.flat_index(coords[:-1], product.output.shape[:-1])


def _enumeration(product: Node, value: Value, shape: tuple[Dim, ...], read: Coords) -> Part | None:
    """The part in which each element of ``value`` belongs to the column that it reads at ``read``."""
    column = _strides(read[-1], shape)
    row = _strides(_row(product, read), shape)
    if column is None or row is None or row[0] != 0:
        return None
    start, strides = column
    axes = sorted((k for k, s in enumerate(strides) if s), key=lambda k: -strides[k])
    repeats = tuple(k for k, d in enumerate(shape) if d != 1 and not strides[k] and not row[1][k])
    others = [k for k, d in enumerate(shape) if d != 1 and k not in axes and k not in repeats]
    if any(row[1][k] for k in axes) or [row[1][k] for k in others] != _dense([shape[k] for k in others]):
        return None
    extents = {k: d for k, d in enumerate(shape) if isinstance(d, int)}
    if not {*axes, *repeats} <= extents.keys():
        return None  # only the number of rows may be open
    if any(strides[a] < strides[b] * extents[b] for a, b in itertools.pairwise(axes)):
        return None  # two elements have one column
    last = start + sum(strides[k] * (extents[k] - 1) for k in axes)
    inside = min(start, *(strides[k] for k in axes), 1) >= 0 and dims.is_nonneg(product.output.shape[-1] - 1 - last)
    if not inside or dims.product(shape[k] for k in others) != dims.product(product.output.shape[:-1]):
        return None
    return Part(value.name, shape, start, tuple(axes), tuple(strides[k] for k in axes), repeats)


def _strides(index: Dim, shape: Sequence[Dim]) -> tuple[int, list[int]] | None:
    """The constant and the factors of an index that is affine in ``symbols(shape)``; None if it isn't."""
    strides: list[int] = []
    for c in symbols(shape):
        symbol = next(iter(dims.free_symbols(c)), None)
        factor = 0 if symbol is None else dims.coefficient(index, symbol)
        if not isinstance(factor, int):
            return None
        strides.append(factor)
        index = index - c * factor
    return (index, strides) if isinstance(index, int) else None


def _dense(shape: Sequence[Dim]) -> list[Dim]:
    """The strides with which axes of ``shape`` enumerate ``0, 1, 2, …``."""
    return [dims.product(shape[k + 1 :]) for k in range(len(shape))]


def _columns_read(product: Node, part: Part, found: Sequence[Expr]) -> list[_Read] | None:
    """For each load of the product the columns, as arrays over the part's own; None if another row is read."""
    shape = [d for d in (part.shape[k] for k in part.columns) if isinstance(d, int)]
    at = np.unravel_index(np.arange(math.prod(shape)), shape) if shape else ()
    own = part.start + sum((s * i for s, i in zip(part.strides, at)), np.zeros(math.prod(shape), np.int64))
    indices = dict(zip((f"x{k}" for k in part.columns), at))
    row = part.row(symbols(part.shape))
    reads: list[_Read] = []
    for x in found:
        *_, column = x.attr[2]
        if _row(product, x.attr[2]) != row or dims.dynamic_atoms(column) or not _are_known(column, indices):
            return None
        there = np.broadcast_to(dims.evaluate_with(column, indices, DIM_CALLS), own.shape)
        reads.append((own, there, _where(x, indices, own.shape)))
    return reads


def _are_known(index: Dim, indices: Mapping[str, np.ndarray]) -> bool:
    return {s.name for s in dims.free_symbols(index)} <= indices.keys()


def _where(x: Expr, indices: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray | None:
    """Where a read with a mask takes place, if the mask is one of these indices alone; else None: anywhere."""
    if not x.args or expr.loads(x.args):
        return None
    if not all(_are_known(d, indices) for e in expr.walk(x.args) for d in expr.coordinates(e)):
        return None
    return np.broadcast_to(interpret(x.args[0], {}, indices), shape)


def _unit(columns: int, reads: Sequence[_Read]) -> tuple[int, int] | None:
    """The smallest unit (members, stride) such that every read stays inside of its own; None if there is none."""
    pairs = [(own, there) if where is None else (own[where], there[where]) for own, there, where in reads]
    if any(((there < 0) | (there >= columns)).any() for _, there in pairs):
        return None
    apart = {int(d) for own, there in pairs for d in np.unique(np.abs(there - own))} - {0}
    if not apart:
        return 1, 1
    for members in MEMBERS:
        for stride in sorted({1, *apart}, reverse=True):
            period = members * stride
            if columns % period == 0 and all(
                (own // period == there // period).all() and (own % stride == there % stride).all()
                for own, there in pairs
            ):
                return members, stride
    return None
