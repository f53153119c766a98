"""Single steps: writes a recurrence of one step as products and pointwise operators.

    Recurrence(x, r, first_h=h) of one step  ->  Tanh(x + MatMul(h, r'))

Requires: nothing. Ensures: no Recurrence of one known step is left, except where rows have lengths, states are rounded,
or the weights are so few that one block does all. Other steps, of models that are called step by step, have no use for
weights that stay on the chip: as a product of few rows, a step is spread over the whole GPU, and fuses with others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.ops.emit import Emit
from arcweld.compiler.ops.recurrence import ACTIVATIONS, CELLS, DIRECTIONS, activations_of
from arcweld.compiler.options import Options
from arcweld.passes.common import Tracker, rewrite

ONE_BLOCK = 96 * 1024  # bytes of weights of a direction that the shared memory of one block holds


def single_steps(graph: Graph, options: Options) -> Graph:
    """Returns ``graph`` without recurrences of one step."""
    return rewrite(graph, _visit)


def _visit(rw: Tracker, node: Node) -> bool:
    if node.op != "Recurrence" or node.output.shape[0] != 1 or node.attrs["rounded"]:
        return False
    r = node.operands()[1].type
    rows = CELLS[node.attrs["cell"]].gates * _hidden(node)
    if rows * _hidden(node) * r.dtype.size <= ONE_BLOCK:
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return False
    new = replace(node, inputs=rw.inputs_of(node))
    e = Emit(rw, new)
    found = [_Step(e, new, d).states() for d in range(len(DIRECTIONS[node.attrs["direction"]]))]
    states = [e.concat([own[k] for own in found], 0) for k in range(CELLS[node.attrs["cell"]].states)]
    for old, value in zip(node.outputs, (e.reshape(states[0], node.output.shape), *states), strict=True):
        rw.alias(old, value)
    return True


def _hidden(node: Node) -> int:
    hidden = node.output.shape[3]
    assert isinstance(hidden, int), "the type rule wants a number"
    return hidden


class _Step:
    """The step of direction ``d``: all values are ``[rows, units]``."""

    def __init__(self, e: Emit, node: Node, d: int) -> None:
        self.e = e
        self.attrs = node.attrs
        self.names = activations_of(node.attrs, d)
        x, r, _, bias, peephole, *first = [*node.inputs, *[None] * 5][:7]
        assert x is not None
        assert r is not None
        rows, self.hidden = r.shape[1:]
        self.x = e.reshape(e.slice(x, 2, d * rows, rows), (x.shape[1], rows))
        self.r = e.transpose(e.reshape(e.slice(r, 0, d, 1), (rows, self.hidden)), (1, 0))
        self.bias, self.peephole = (None if v is None else self._own(v, d) for v in (bias, peephole))
        empty = (x.shape[1], self.hidden)
        self.first = [
            e("ConstantOfShape", shape=empty, value=0.0, dtype=x.dtype) if v is None else self._own(v, d) for v in first
        ]

    def _own(self, v: Value, d: int) -> Value:
        return self.e.reshape(self.e.slice(v, 0, d, 1), v.shape[1:])

    def states(self) -> list[Value]:
        """The states after the step, each ``[1, rows, units]``."""
        cell = {"rnn": self._rnn, "gru": self._gru, "lstm": self._lstm}[self.attrs["cell"]]
        return [self.e.reshape(s, (1, *s.shape)) for s in cell()]

    def _gate(self, v: Value, k: int, count: int = 1) -> Value:
        return self.e.slice(v, v.type.rank - 1, k * self.hidden, count * self.hidden)

    def _product(self, h: Value, first: int, count: int) -> Value:
        return self.e("MatMul", h, self._gate(self.r, first, count))

    def _activated(self, k: int, x: Value) -> Value:
        if (clip := self.attrs["clip"]) and k < 2:  # an LSTM's new cell state is not clipped
            x = self.e("Clip", x, min=-clip, max=clip)
        return self.e(self.names[k], x, **ACTIVATIONS[self.names[k]])

    def _add(self, a: Value, b: Value) -> Value:
        return self.e("Add", a, b)

    def _mul(self, a: Value, b: Value) -> Value:
        return self.e("Mul", a, b)

    def _one_minus(self, x: Value) -> Value:
        return self.e("Sub", self.e.const(1.0, x.dtype), x)

    def _rnn(self) -> Sequence[Value]:
        return [self._activated(0, self._add(self.x, self._product(self.first[0], 0, 1)))]

    def _gru(self) -> Sequence[Value]:
        h, count = self.first[0], 3 if self.attrs["linear_before_reset"] else 2
        g = self._product(h, 0, count)
        z, r = (self._activated(0, self._add(self._gate(self.x, k), self._gate(g, k))) for k in (0, 1))
        if count == 3:
            inner = self._gate(g, 2) if self.bias is None else self._add(self._gate(g, 2), self.bias)
            inner = self._mul(r, inner)
        else:
            inner = self._product(self._mul(r, h), 2, 1)
        candidate = self._activated(1, self._add(self._gate(self.x, 2), inner))
        return [self._add(self._mul(self._one_minus(z), candidate), self._mul(z, h))]

    def _lstm(self) -> Sequence[Value]:
        h, c = self.first
        g = self._add(self.x, self._product(h, 0, 4))
        i = self._activated(0, self._peeked(g, 0, c))
        f = self._one_minus(i) if self.attrs["input_forget"] else self._activated(0, self._peeked(g, 2, c))
        new = self._add(self._mul(f, c), self._mul(i, self._activated(1, self._gate(g, 3))))
        o = self._activated(0, self._peeked(g, 1, new))
        return [self._mul(o, self._activated(2, new)), new]

    def _peeked(self, g: Value, k: int, c: Value) -> Value:
        """Gate ``k`` with what its peephole sees of the cell state."""
        gate = self._gate(g, k)
        return gate if self.peephole is None else self._add(gate, self._mul(self._gate(self.peephole, k), c))
