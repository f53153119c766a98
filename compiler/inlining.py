"""Elements of values as expressions: what a set of nodes computes is inlined by their operators' lowerings.

Lowering a region, and asking where its results read a value, are both this; they differ in what is not inlined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arcweld.compiler import expr
from arcweld.compiler.demand import Notes, Request, demand
from arcweld.compiler.dims import Dim
from arcweld.compiler.errors import VerifyError
from arcweld.compiler.expr import Expr
from arcweld.compiler.ir import Node, Value
from arcweld.compiler.ops.registry import opdef

Coords = tuple[Dim, ...]


class Inliner:
    """Gives elements of values as expressions, in which the results of ``nodes`` are inlined."""

    mask: Expr | None = None

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.made = {o.name: n for n in nodes for o in n.outputs}
        self._values: dict[str, Value] = {}
        self._memo: dict[Request, Expr] = {}

    def leaf(self, value: Value, coords: Coords, mask: Expr | None) -> Expr | None:
        """The element of ``value`` at ``coords`` if it is not to be inlined, else None: here, a load of that name."""
        return None if value.name in self.made else expr.load(value.name, value.dtype, coords, mask)

    def inlined(self, reader: Any, node: Node, value: Value, coords: Coords) -> Expr:
        """The element at ``coords`` of ``node``'s result ``value``, whose operands ``reader`` reads."""
        return inline(reader, node, coords)

    def read(self, value: Value, coords: Sequence[Dim], mask: Expr | None = None) -> Expr:
        """The element of ``value`` at ``coords``, or 0 where ``mask`` is false.

        Raises VerifyError where a lowering gives another type than the value's.
        """
        return demand(self._request(value, coords, mask), self._memo, self._compute)

    def read_inside(self, notes: Notes, value: Value, coords: Sequence[Dim], mask: Expr | None) -> Expr:
        """``read`` for a lowering that is itself run by ``read``.

        It never recurses: what is not known yet is put down in ``notes``, a stand-in is returned, and the lowering is
        run again when all of it is known (``compiler/demand.py``).
        """
        request = self._request(value, coords, mask)
        found = self._memo.get(request)
        if found is None:
            # leaves may be numbered as they are read: with something missing before it, this one must wait too
            if notes.missing or value.name in self.made:
                return notes.stand_in(request, value.dtype)
            found = self._memo[request] = self._compute(request)
        return found

    def _request(self, value: Value, coords: Sequence[Dim], mask: Expr | None) -> Request:
        self._values[value.name] = value
        return value.name, tuple(coords), mask

    def _compute(self, request: Request) -> Expr:
        name, coords, mask = request
        value = self._values[name]
        found = self.leaf(value, coords, mask)
        if found is None:
            inside = _Inside(self, mask)
            found = inside.notes.checked(self.inlined(inside, self.made[name], value, coords))
        found = _zero_where_not(found, mask)
        if found.dtype is not value.dtype.compute:
            raise VerifyError(
                f"the lowering of {value.name} gives {found.dtype.value}, its type is {value.type}",
                node=value.name,
            )
        return found


class _Inside:
    """What the lowering of a node reads through: every read is also subject to ``mask``."""

    def __init__(self, reader: Inliner, mask: Expr | None) -> None:
        self.reader = reader
        self.mask = mask
        self.notes = Notes()

    def read(self, value: Value, coords: Sequence[Dim], mask: Expr | None = None) -> Expr:
        return self.reader.read_inside(self.notes, value, coords, expr.all_of([self.mask, mask]))


def inline(reader: Any, node: Node, coords: Coords) -> Expr:
    """The element at ``coords`` of a pointwise or movement node's result, whose operands ``reader`` reads.

    Raises VerifyError for an operator that has no such lowering.
    """
    lower = opdef(node.op).lower
    if lower is None:
        raise VerifyError(f"{node.op} has no element-wise lowering", node=node.name)
    return lower(reader, node, coords)


def _zero_where_not(e: Expr, mask: Expr | None) -> Expr:
    """``e`` where ``mask`` holds, else 0.

    A masked load is 0 there already, and so is its conversion, negation or absolute value.
    """
    if mask is None:
        return e
    source = e
    while source.op in ("cast", "neg", "abs"):
        source = source.args[0]
    return e if source.op == "load" and source.args else expr.where(mask, e, expr.const(0, e.dtype))
