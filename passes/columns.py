"""Which elements of a kernel's results are made from which columns of its product, and which they read together.

    RoPE over heads of 64        element d reads columns d and d +- 32: units of 2 columns, 32 apart
    silu(gate) * up over 2 * F   element f reads columns f and F + f: units of 2 columns, F apart
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from arcweld.compiler import dims, expr
from arcweld.compiler.dims import Dim, Sym
from arcweld.compiler.expr import Expr
from arcweld.compiler.inlining import Coords, Inliner
from arcweld.compiler.interpret import interpret
from arcweld.compiler.ir import Node, Value
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.region import Part, Region

# members of a unit: powers of two, since a block computes whole units; the more blocks there are, the better
MEMBERS = (2, 4, 8, 16, 32)
CALLS = {"floordiv": np.floor_divide, "mod": np.mod, "max": np.maximum, "min": np.minimum}
# the columns of elements, those that they read, and where they do (None: everywhere)
_Read: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray | None]


class _Until(Inliner):
    """Expressions in which the results of some nodes are loads of their own names."""

    def __init__(self, region: Region, *ends: Node) -> None:
        super().__init__(region.nodes)
        self.ends = {n.output.name for n in ends}

    def leaf(self, value: Value, coords: Coords, mask: Expr | None) -> Expr | None:
        if value.name in self.ends:
            return expr.load(value.name, value.dtype, coords, mask)
        return super().leaf(value, coords, mask)

    def loads(self, end: Node, value: Value) -> list[Expr]:
        """The loads of ``end``'s result in the element of ``value`` at ``coordinates(value)``."""
        found = expr.loads([self.read(value, coordinates(value))])
        return [x for x in found if x.attr[0] == end.output.name]


def coordinates(v: Value) -> Coords:
    """The coordinates of any element of ``v``: a symbol ``x0, x1, …`` for each axis that has more than one."""
    return tuple(dims.var(Sym(f"x{k}", 0, d - 1)) if d != 1 else 0 for k, d in enumerate(v.shape))


def reads_rows(region: Region, norm: Node) -> bool:
    """True if a product's left operand reads ``norm`` in its own row and column only, and nothing else reads it."""
    assert region.hero is not None
    left = region.hero.operands()[0]
    row = opdef(norm.op).row
    if row is None or row(norm).axes != 1 or norm.output.shape[-1] != left.shape[-1]:
        return False
    found = _Until(region, norm).loads(norm, left)
    places = {x.attr[2] for x in found}
    if len(places) != 1 or any(x.args for x in found):
        return False
    ((*row_at, column),) = places
    own = coordinates(left)[-1]
    if column != own or any(dims.free_symbols(own) & dims.free_symbols(c) for c in row_at):
        return False
    behind = _Until(region, region.hero, norm)
    return not any(behind.loads(norm, _enumerated(region, o)) for o in region.outputs)


def _enumerated(region: Region, output: Value) -> Value:
    """The value whose elements a kernel enumerates for ``output``: of a scatter in place its updates."""
    node = next(n for n in region.nodes if output in n.outputs)
    return node.operands()[2] if opdef(node.op).kind is Kind.SCATTER else output


def parts_and_unit(region: Region) -> tuple[tuple[Part, ...], tuple[int, int]] | None:
    """The parts of a region round a product, and the smallest unit that serves them all; None if there is none."""
    product = region.hero
    assert product is not None
    until = _Until(region, product)
    parts, reads = [], []
    for o in region.outputs:
        if _scattered_by(until, product, region, o):
            return None
        value = _enumerated(region, o)
        found = _part(product, value, until.loads(product, value))
        if found is None:
            return None
        parts.append(found[0])
        reads += found[1]
    columns = product.output.shape[-1]
    assert isinstance(columns, int)
    unit = _unit(columns, reads)
    return None if unit is None else (tuple(parts), unit)


def _scattered_by(until: _Until, product: Node, region: Region, output: Value) -> bool:
    """True if a scatter's indices depend on the product."""
    node = next(n for n in region.nodes if output in n.outputs)
    return opdef(node.op).kind is Kind.SCATTER and bool(until.loads(product, node.operands()[1]))


def _part(product: Node, value: Value, found: Sequence[Expr]) -> tuple[Part, list[_Read]] | None:
    """How the elements of ``value`` correspond to columns, and the columns that each column's elements read.

    ``found`` are the loads of the product's result. One of them has to read every column from the first to the last
    once in each row; one without a mask is tried first.
    """
    if not all(isinstance(d, int) and d > 0 for d in value.shape):
        return None
    for x in sorted(found, key=lambda x: len(x.args)):
        part = _enumeration(product, value, x.attr[2])
        reads = None if part is None else _columns_read(product, value, part, found)
        if part is not None and reads is not None:
            return part, reads
    return None


def _row(product: Node, coords: Coords) -> Dim:
    row: Dim = 0
    for c, d in zip(coords[:-1], product.output.shape[:-1]):
        row = row * d + c
    return row


def _enumeration(product: Node, value: Value, read: Coords) -> Part | None:
    """The part in which each element of ``value`` belongs to the column that it reads at ``read``."""
    column = _strides(read[-1], value)
    row = _strides(_row(product, read), value)
    if column is None or row is None or row[0] != 0:
        return None
    axes = sorted((k for k, s in enumerate(column[1]) if s), key=lambda k: -column[1][k])
    others = [k for k, d in enumerate(value.shape) if d != 1 and k not in axes]
    if any(row[1][k] for k in axes) or not _is_dense(column[1], axes, value) or not _is_dense(row[1], others, value):
        return None
    width = dims.product(value.shape[k] for k in axes)
    total = product.output.shape[-1]
    assert isinstance(width, int)
    assert isinstance(total, int)
    if dims.product(value.shape[k] for k in others) != dims.product(product.output.shape[:-1]):
        return None
    return Part(value.name, column[0], tuple(axes)) if 0 <= column[0] <= total - width else None


def _strides(index: Dim, value: Value) -> tuple[int, list[int]] | None:
    """The constant and the factors of an index that is affine in the coordinates of ``value``; None if it isn't."""
    strides: list[int] = []
    for c in coordinates(value):
        symbol = next(iter(dims.free_symbols(c)), None)
        factor = 0 if symbol is None else dims.coefficient(index, symbol)
        if not isinstance(factor, int):
            return None
        strides.append(factor)
        index = index - c * factor
    return (index, strides) if isinstance(index, int) else None


def _is_dense(strides: Sequence[int], axes: Sequence[int], value: Value) -> bool:
    """True if these axes, the slowest first, enumerate ``0, 1, 2, …``."""
    expected: Dim = 1
    for k in reversed(axes):
        if strides[k] != expected:
            return False
        expected = expected * value.shape[k]
    return True


def _columns_read(product: Node, value: Value, part: Part, found: Sequence[Expr]) -> list[_Read] | None:
    """For each load of the product the columns, as arrays over the part's own; None if another row is read."""
    shape = [d for k in part.columns if isinstance(d := value.shape[k], int)]
    own = np.arange(int(np.prod(shape)))
    indices = dict(zip((f"x{k}" for k in part.columns), np.unravel_index(own, shape) if shape else ()))
    coords = coordinates(value)
    row: Dim = 0
    for k, d in enumerate(value.shape):
        if k not in part.columns:
            row = row * d + coords[k]
    reads: list[_Read] = []
    for x in found:
        c = x.attr[2]
        if _row(product, c) != row or dims.dynamic_atoms(c[-1]) or not _are_known(c[-1], indices):
            return None
        there = np.broadcast_to(dims.evaluate_with(c[-1], indices, CALLS), own.shape)
        reads.append((part.start + own, there, _where(x, indices, own.shape)))
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
