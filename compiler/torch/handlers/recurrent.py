"""ATen's LSTM, GRU and RNN over whole sequences: for each layer one matrix product for all steps, and a Recurrence."""

from __future__ import annotations

from collections.abc import Sequence

from arcweld.compiler.dims import Dim
from arcweld.compiler.ir import Value
from arcweld.compiler.ops.recurrence import CELLS
from arcweld.compiler.torch.context import AtenContext, Result, aten
from arcweld.compiler.torch.whole_layers import has_projections

# torch's gates in the order of Recurrence: of i, f, g, o those for i, o, f, c; of r, z, n those for z, r, h
_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}


@aten("lstm.input", "arcweld.lstm.default")
def lstm(c: AtenContext) -> Result:
    return _layers(c, "lstm", c["hx"])


@aten("gru.input", "arcweld.gru.default")
def gru(c: AtenContext) -> Result:
    return _layers(c, "gru", [c["hx"]])


@aten("rnn_tanh.input", "arcweld.rnn_tanh.default")
def rnn_tanh(c: AtenContext) -> Result:
    return _layers(c, "rnn", [c["hx"]])


@aten("rnn_relu.input", "arcweld.rnn_relu.default")
def rnn_relu(c: AtenContext) -> Result:
    return _layers(c, "rnn", [c["hx"]], ("Relu",))


def _layers(c: AtenContext, kind: str, states: Sequence[Value], activations: tuple[str, ...] = ()) -> Result:
    """All layers, each on the hidden states of the one before, and the last states of all of them."""
    x, params, biases, layers = c["input"], c["params"], bool(c["has_biases"]), c["num_layers"]
    if c["train"] and c["dropout"]:
        raise c.fail("dropout between the layers, in training")
    if has_projections(len(params), biases, layers, c["bidirectional"]):
        raise c.fail("projections of the hidden states")
    directions, each = 2 if c["bidirectional"] else 1, 4 if biases else 2
    if c["batch_first"]:
        x = c.transpose(x, (1, 0, 2))
    finals: list[list[Value]] = [[] for _ in states]
    for n in range(layers):
        own = params[n * directions * each : (n + 1) * directions * each]
        weights = [own[d * each : (d + 1) * each] for d in range(directions)]
        first = [c.slice(s, 0, n * directions, directions) for s in states]
        y, last = _layer(c, kind, x, weights, first, activations or CELLS[kind].activations)
        x = c.reshape(c.transpose(y, (0, 2, 1, 3)), (*x.shape[:2], directions * y.shape[3]))
        for found, state in zip(finals, last):
            found.append(state)
    out = c.transpose(x, (1, 0, 2)) if c["batch_first"] else x
    return (out, *(c.concat(found, 0) for found in finals))


def _layer(
    c: AtenContext, kind: str, x: Value, weights: Sequence[Sequence[Value]], first: Sequence[Value],
    activations: tuple[str, ...],
) -> tuple[Value, Sequence[Value]]:  # fmt: skip
    """The hidden states ``[T, D, B, H]`` of one layer and its last states; ``weights`` are those of each direction."""
    order, hidden = _ORDER[kind], weights[0][1].shape[1]
    ordered = [[_rows(c, w, order, hidden) for w in own] for own in weights]
    rows = len(order) * hidden
    products = c.emit("MatMul", x, c.transpose(c.concat([own[0] for own in ordered], 0), (1, 0)))
    recurrent = c.concat([c.reshape(own[1], (1, rows, hidden)) for own in ordered], 0)
    bias: Value | None = None
    if len(ordered[0]) > 2:
        together = [_bias(c, kind, own[2], own[3], hidden) for own in ordered]
        products = c.emit("Add", products, c.concat(together, 0))
        if kind == "gru":
            left = [c.reshape(c.slice(own[3], 0, 2 * hidden, hidden), (1, hidden)) for own in ordered]
            bias = c.concat(left, 0)
    y = c.emit(
        "Recurrence", products, recurrent, None, bias, None, *first, cell=kind, linear_before_reset=int(kind == "gru"),
        direction="bidirectional" if len(weights) == 2 else "forward", activations=activations * len(weights),
    )  # fmt: skip
    return y, c.rw.nodes[-1].outputs[1:]


def _rows(c: AtenContext, w: Value, order: Sequence[int], hidden: Dim) -> Value:
    """A weight or a bias with its gates in another order."""
    return c.concat([c.slice(w, 0, k * hidden, hidden) for k in order], 0)


def _bias(c: AtenContext, kind: str, own: Value, held: Value, hidden: Dim) -> Value:
    """What is added to the products up front: all of both biases, but that of a GRU's state in its last gate."""
    if kind == "gru":
        nothing = c.full(0.0, (hidden,), held.dtype)
        held = c.concat([c.slice(held, 0, 0, 2 * hidden), nothing], 0)
    return c.emit("Add", own, held)
