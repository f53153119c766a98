"""Lowers Recurrence: the formulas of its cell as expressions over one unit's sums, input products and states.

The template knows nothing of cells. It gets passes: which state the weights multiply, for which gates, and which states
are computed from the sums. A GRU whose reset gate comes before the product takes two passes, all others one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from arcweld.codegen.kernel import Axis, axis
from arcweld.codegen.lowering.reading import Hero, RegionReader
from arcweld.compiler import expr
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr
from arcweld.compiler.inlining import Coords, inline
from arcweld.compiler.ir import Node, TensorType, Value
from arcweld.compiler.ops.recurrence import ACTIVATIONS, CELLS, DIRECTIONS, activations_of, recurrence_flops
from arcweld.compiler.ops.registry import check_attrs, opdef

CELL_OUTPUT = 2  # the activation of an LSTM's new cell state, which is not clipped
HIDDEN, CELL, UPDATE, RESET = "h", "c", "z", "m"  # states: m is what a GRU's reset gate has left of h


@dataclass(frozen=True, slots=True)
class Pass:
    """One product of a step: gates ``first`` to ``end`` (excluded) are the weights times the state ``source``.

    ``updates``: the states that it computes, in order. The formula of each is the load ``next_<state>``, in which the
    variables ``x0, x1, …`` and ``s0, s1, …`` are the gates' input products and sums, and a state's name is its newest
    value.
    """

    source: str
    first: int
    end: int
    updates: tuple[str, ...]


def lower_recurrence(reader: RegionReader, node: Node) -> Hero:
    """Recurrence: axes ``step direction row gate unit k``; loads ``x``, ``r``, ``length``, ``first_*`` and ``next_*``.

    Where there is a load ``rounded``, it is what the weights multiply instead of the variable ``h``, an element of the
    states of a direction, which are from ``low`` to ``high``. The variables ``h`` and ``c`` of a store are a step's
    states, ``last_h`` and ``last_c`` those after the last step.
    """
    x, r, lengths, bias, peephole, first_h, first_c = [*node.inputs, *[None] * 7][:7]
    assert x is not None
    assert r is not None
    y, cell = node.outputs[0], CELLS[node.attrs["cell"]]
    hidden = y.shape[3]
    extents = {"step": y.shape[0], "direction": y.shape[1], "row": y.shape[2], "gate": cell.gates, "unit": hidden}
    axes = {name: axis(name, extent) for name, extent in (*extents.items(), ("k", hidden))}
    t, d, b, g, u, k = (a.index for a in axes.values())
    loads = {
        "x": reader.read(x, (t, b, (d * cell.gates + g) * hidden + u)),
        "r": reader.read(r, (d, g * hidden + u, k)),
        "first_h": _first(reader, first_h, (d, b, u), x.dtype),
    }
    if cell.states == 2:
        loads["first_c"] = _first(reader, first_c, (d, b, u), x.dtype)
    if lengths is not None:
        length = expr.cast(reader.read(lengths, (b,)), DType.I32)
        loads["length"] = expr.binary("min", length, expr.cast(expr.index(y.shape[0]), DType.I32))
    formulas = _Formulas(reader, node, (d, u), bias, peephole)
    passes = formulas.passes()
    if node.attrs["rounded"]:
        loads["rounded"] = _rounded(x.dtype)
    loads |= {f"next_{name}": e for name, e in formulas.next.items()}
    names = (HIDDEN, CELL)[: cell.states]
    hero = Hero(
        {name: (a,) for name, a in axes.items()}, loads, (t, d, b, u), lambda _: _variable(HIDDEN, x.dtype),
        {
            "passes": passes, "backwards": DIRECTIONS[node.attrs["direction"]],
            "r_is_weight": reader.of_weights(loads["r"]),
        },
        recurrence_flops(x.type, r.type),
    )  # fmt: skip
    for v, name in zip(node.outputs[1:], names):
        hero.visited[v.name] = ((d, b, u), _variable(f"last_{name}", x.dtype))
    return hero


def _variable(name: str, dtype: DType) -> Expr:
    return expr.variable(name, dtype.compute)


def _first(reader: RegionReader, state: Value | None, at: Coords, dtype: DType) -> Expr:
    return expr.const(0.0, dtype) if state is None else reader.read(state, at)


def _rounded(dtype: DType) -> Expr:
    """The element ``h`` of a tensor from ``low`` to ``high``, 0 among them, as DynamicQuantizeLinear represents it."""
    h, low, high = (_variable(name, dtype) for name in (HIDDEN, "low", "high"))
    scale = (high - low) / 255.0
    scale = expr.where(expr.binary("eq", scale, expr.const(0.0, dtype)), expr.const(1.0, dtype), scale)

    def bounded(e: Expr) -> Expr:
        return expr.binary("min", expr.binary("max", e, expr.const(0.0, dtype)), expr.const(255.0, dtype))

    zero = expr.unary("round", bounded(-low / scale))
    return (bounded(expr.unary("round", h / scale) + zero) - zero) * scale


class _Formulas:
    """The formulas of a node's cell. ``next``: state -> its value after the step."""

    def __init__(
        self, reader: RegionReader, node: Node, at: tuple[Dim, Dim], bias: Value | None, peephole: Value | None
    ) -> None:
        self.reader = reader
        self.node = node
        self.at = at
        self.bias = bias
        self.peephole = peephole
        self.dtype = node.output.dtype
        self.next: dict[str, Expr] = {}

    def passes(self) -> tuple[Pass, ...]:
        """The passes of the cell; fills ``next``."""
        attrs = self.node.attrs
        if attrs["cell"] == "rnn":
            self.next = {HIDDEN: self._activated(0, self._gate(0))}
            return (Pass(HIDDEN, 0, 1, (HIDDEN,)),)
        if attrs["cell"] == "lstm":
            self._lstm(bool(attrs["input_forget"]))
            return (Pass(HIDDEN, 0, 4, (CELL, HIDDEN)),)
        if attrs["linear_before_reset"]:
            inner = self._var("s2")
            if self.bias is not None:
                inner = inner + self.reader.read(self.bias, self.at)
            reset = self._activated(0, self._gate(1))
            self.next = {HIDDEN: self._mixed(self._activated(0, self._gate(0)), self._var("x2") + reset * inner)}
            return (Pass(HIDDEN, 0, 3, (HIDDEN,)),)
        self.next = {
            UPDATE: self._activated(0, self._gate(0)),
            RESET: self._activated(0, self._gate(1)) * self._var(HIDDEN),
            HIDDEN: self._mixed(self._var(UPDATE), self._gate(2)),
        }
        return Pass(HIDDEN, 0, 2, (UPDATE, RESET)), Pass(RESET, 2, 3, (HIDDEN,))

    def _lstm(self, input_forget: bool) -> None:
        """The cell state first: the output gate sees the new one."""
        c = self._var(CELL)
        i = self._activated(0, self._peeked(self._gate(0), 0, c))
        f = 1.0 - i if input_forget else self._activated(0, self._peeked(self._gate(2), 2, c))
        o = self._activated(0, self._peeked(self._gate(1), 1, c))
        self.next = {
            CELL: f * c + i * self._activated(1, self._gate(3)),
            HIDDEN: o * self._activated(2, c),
        }

    def _mixed(self, z: Expr, candidate: Expr) -> Expr:
        return (1.0 - z) * self._activated(1, candidate) + z * self._var(HIDDEN)

    def _var(self, name: str) -> Expr:
        return _variable(name, self.dtype)

    def _gate(self, k: int) -> Expr:
        return self._var(f"x{k}") + self._var(f"s{k}")

    def _peeked(self, gate: Expr, k: int, c: Expr) -> Expr:
        if self.peephole is None:
            return gate
        direction, unit = self.at
        return gate + self.reader.read(self.peephole, (direction, k * self.node.output.shape[3] + unit)) * c

    def _activated(self, k: int, x: Expr) -> Expr:
        """Activation ``k`` of the direction at hand: where the two directions differ, both are there."""
        if (clip := self.node.attrs["clip"]) and k < CELL_OUTPUT:
            x = expr.binary("min", expr.binary("max", x, expr.const(-clip, x.dtype)), expr.const(clip, x.dtype))
        count = len(DIRECTIONS[self.node.attrs["direction"]])
        found = [_applied(activations_of(self.node.attrs, d)[k], x) for d in range(count)]
        if all(f is found[0] for f in found):
            return found[0]
        backwards = expr.binary("eq", expr.index(self.at[0]), expr.const(1, DType.I64))
        return expr.where(backwards, found[1], found[0])


class _Variable:
    """A reader whose only value is an expression."""

    mask: Expr | None = None

    def __init__(self, e: Expr) -> None:
        self.e = e

    def read(self, value: Value, coords: Coords, mask: Expr | None = None) -> Expr:
        return self.e


def _applied(activation: str, x: Expr) -> Expr:
    """The operator of that name, applied to ``x``."""
    scalar = TensorType(x.dtype, ())
    attrs = check_attrs(opdef(activation), ACTIVATIONS[activation], activation)
    return inline(_Variable(x), Node(activation, (Value("x", scalar),), (Value("y", scalar),), attrs), ())


def roles(axes: Mapping[str, tuple[Axis, ...]]) -> tuple[Axis, ...]:
    """The axes step, direction, row, gate, unit and k."""
    return tuple(axes[name][0] for name in ("step", "direction", "row", "gate", "unit", "k"))
