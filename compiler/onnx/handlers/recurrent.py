"""Handlers of RNN, GRU and LSTM: unrolled over a known number of time steps.

The input's products are one matrix product for all steps; each step adds the product with the state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from arcweld.compiler.dims import Dim
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.handlers.base import MICROSOFT, Result, handles
from arcweld.compiler.onnx.handlers.quant import dynamic_quantize
from arcweld.compiler.onnx.remedies import fix_dimensions

MAX_STEPS = 256
QUANTISED = "DynamicQuantizeLSTM"

_PLAIN = ("Sigmoid", "Tanh", "Relu", "Softsign", "Softplus")
_ALPHA = {"LeakyRelu": 0.01, "Elu": 1.0, "ThresholdedRelu": 1.0}


@dataclass(frozen=True, slots=True)
class Cell:
    """One direction of a recurrent layer. Gates are in ONNX's order along the first axis of the weights."""

    c: NodeContext
    hidden: int
    gates: int
    recurrence: Value  # [H, gates * H]
    recurrent_bias: Value | None  # [gates * H], only where it cannot be added up front
    peephole: Value | None  # [3 * H]
    activations: tuple[Callable[[Value], Value], ...]
    clip: float | None

    def gate(self, x: Value, k: int) -> Value:
        return self.c.slice(x, x.type.rank - 1, k * self.hidden, self.hidden)

    def activate(self, k: int, x: Value) -> Value:
        if self.clip is not None:
            x = self.c.emit("Clip", x, min=-self.clip, max=self.clip)
        return self.activations[k](x)

    def add(self, a: Value, b: Value) -> Value:
        return self.c.emit("Add", a, b)

    def mul(self, a: Value, b: Value) -> Value:
        return self.c.emit("Mul", a, b)

    def one_minus(self, x: Value) -> Value:
        return self.c.emit("Sub", self.c.const(1.0, x.dtype), x)

    def peek(self, x: Value, state: Value, k: int) -> Value:
        """Adds a gate's peephole connection to the cell state."""
        return x if self.peephole is None else self.add(x, self.mul(self.gate(self.peephole, k), state))


def _rnn_step(cell: Cell, x: Value, state: list[Value]) -> list[Value]:
    return [cell.activate(0, cell.add(x, cell.c.emit("MatMul", state[0], cell.recurrence)))]


def _lstm_step(cell: Cell, x: Value, state: list[Value]) -> list[Value]:
    h, old = state
    if cell.c.op == QUANTISED:
        h = _rounded(cell.c, h)
    g = cell.add(x, cell.c.emit("MatMul", h, cell.recurrence))
    i = cell.activate(0, cell.peek(cell.gate(g, 0), old, 0))
    if cell.c.int_attr("input_forget"):
        f = cell.one_minus(i)
    else:
        f = cell.activate(0, cell.peek(cell.gate(g, 2), old, 2))
    new = cell.add(cell.mul(f, old), cell.mul(i, cell.activate(1, cell.gate(g, 3))))
    o = cell.activate(0, cell.peek(cell.gate(g, 1), new, 1))
    return [cell.mul(o, cell.activations[2](new)), new]


def _gru_step(cell: Cell, x: Value, state: list[Value]) -> list[Value]:
    c, (h,) = cell.c, state
    n = cell.hidden
    if c.int_attr("linear_before_reset"):
        g = c.emit("MatMul", h, cell.recurrence)
        if cell.recurrent_bias is not None:
            g = cell.add(g, cell.recurrent_bias)
        z = cell.activate(0, cell.add(cell.gate(x, 0), cell.gate(g, 0)))
        r = cell.activate(0, cell.add(cell.gate(x, 1), cell.gate(g, 1)))
        candidate = cell.activate(1, cell.add(cell.gate(x, 2), cell.mul(r, cell.gate(g, 2))))
    else:
        both = c.slice(cell.recurrence, 1, 0, 2 * n)
        g = c.emit("MatMul", h, both)
        z = cell.activate(0, cell.add(cell.gate(x, 0), cell.gate(g, 0)))
        r = cell.activate(0, cell.add(cell.gate(x, 1), cell.gate(g, 1)))
        last = c.emit("MatMul", cell.mul(r, h), cell.gate(cell.recurrence, 2))
        candidate = cell.activate(1, cell.add(cell.gate(x, 2), last))
    return [cell.add(cell.mul(cell.one_minus(z), candidate), cell.mul(z, h))]


_STEPS = {"RNN": (1, 1, ("Tanh",), _rnn_step), "GRU": (3, 1, ("Sigmoid", "Tanh"), _gru_step),
          "LSTM": (4, 2, ("Sigmoid", "Tanh", "Tanh"), _lstm_step),
          QUANTISED: (4, 2, ("Sigmoid", "Tanh", "Tanh"), _lstm_step)}  # fmt: skip


@handles("RNN", "GRU", "LSTM")
@handles(QUANTISED, domain=MICROSOFT)
def _recurrent(c: NodeContext) -> Result:
    c.needs_rank(0, 3, 3)
    batch_first = bool(c.int_attr("layout"))
    x = c.value(0)
    if batch_first:
        x = c.transpose(x, (1, 0, 2))
    steps = _steps(c, x)
    direction = c.choice_attr("direction", "forward", ("forward", "reverse", "bidirectional"))
    runs = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    if steps * len(runs) > MAX_STEPS:
        both = f"{steps} time steps" + (f" in {len(runs)} directions, {steps * len(runs)} in all" if runs[1:] else "")
        c.unsupported(f"{c.op} over {both} (at most {MAX_STEPS} are unrolled)")
    done = [_direction(c, x, d, len(runs), steps, backwards, batch_first) for d, backwards in enumerate(runs)]
    y = c.concat([ys for ys, _ in done], 1)
    finals = [c.concat([state[k] for _, state in done], 0) for k in range(_STEPS[c.op][1])]
    if batch_first:
        y = c.transpose(y, (2, 0, 1, 3))
        finals = [c.transpose(f, (1, 0, 2)) for f in finals]
    return [y, *finals]


def _steps(c: NodeContext, x: Value) -> int:
    steps, batch = x.shape[0], x.shape[1]
    if not isinstance(steps, int):
        c.unsupported(f"{c.op} over the open number of time steps {steps}", fix_dimensions(steps))
    if c.has(4) and not (c.operand(4).shape == (batch,) and all(n == steps for n in c.ints(4))):
        c.unsupported("sequence_lens that differ from the number of time steps")
    if steps < 1:
        c.unsupported(f"{c.op} over no time steps")
    return steps


def _direction(
    c: NodeContext, x: Value, d: int, directions: int, steps: int, backwards: bool, batch_first: bool
) -> tuple[Value, list[Value]]:
    """The outputs ``[T, 1, B, H]`` and final states ``[1, B, H]`` of one direction."""
    gates, states, _, step = _STEPS[c.op]
    cell, products = _cell(c, x, d, directions)
    state = [_initial(c, 5 + k, d, directions, x.shape[1], cell.hidden, x, batch_first) for k in range(states)]
    shape = (1, 1, *state[0].shape)
    outputs: list[Value] = []
    for t in reversed(range(steps)) if backwards else range(steps):
        at_t = c.reshape(c.slice(products, 0, t, 1), (x.shape[1], gates * cell.hidden))
        state = step(cell, at_t, state)
        outputs.append(c.reshape(state[0], shape))
    if backwards:
        outputs.reverse()
    return c.concat(outputs, 0), [c.reshape(s, shape[1:]) for s in state]


def _cell(c: NodeContext, x: Value, d: int, directions: int) -> tuple[Cell, Value]:
    """The cell of direction ``d``, and the input's products for all steps ``[T, B, gates * H]``."""
    gates, states, defaults, _ = _STEPS[c.op]
    w, r = (_weights(c, i, d, directions) for i in (1, 2))
    if c.op == QUANTISED:
        x = _rounded(c, x)
    hidden = c.concrete(r.shape[-1], "the hidden size")
    if r.shape != (gates * hidden, hidden) or w.shape != (gates * hidden, x.shape[2]):
        c.broken(f"weights of shapes {list(w.shape)} and {list(r.shape)} for an input of {x.shape[2]} features")
    products = c.emit("MatMul", x, c.transpose(w, (1, 0)))
    held: Value | None = None
    if c.has(3):
        bias = _own(c, 3, d, directions)
        own, held = c.slice(bias, 0, 0, gates * hidden), c.slice(bias, 0, gates * hidden, gates * hidden)
        products = c.emit("Add", products, own)
        if not (c.op == "GRU" and c.int_attr("linear_before_reset")):
            products, held = c.emit("Add", products, held), None
    peephole = _own(c, 7, d, directions) if states == 2 and c.has(7) else None
    clip = c.float_attr("clip", 0.0) or None
    activations = _activations(c, d, directions, defaults)
    return Cell(c, hidden, gates, c.transpose(r, (1, 0)), held, peephole, activations, clip), products


def _rounded(c: NodeContext, x: Value) -> Value:
    """``x`` as its own dynamic 8-bit quantisation represents it."""
    quantised, scale, zero = dynamic_quantize(c, x)
    return c.emit("DequantizeLinear", quantised, scale, zero, axis=0)


def _weights(c: NodeContext, i: int, d: int, directions: int) -> Value:
    """Weights ``[gates * H, columns]`` of direction ``d``; quantised ones come transposed, with scales."""
    own = _own(c, i, d, directions)
    if c.op != QUANTISED:
        return own
    scale, zero = (c.value(k) for k in (6 + 2 * i, 7 + 2 * i))
    scale, zero = (c.reshape(c.slice(p, 0, d, 1), p.shape[1:]) for p in (scale, zero))
    return c.transpose(c.emit("DequantizeLinear", own, scale, zero, axis=1 if scale.type.rank else 0), (1, 0))


def _own(c: NodeContext, i: int, d: int, directions: int) -> Value:
    """Direction ``d`` of weight input ``i``."""
    value = c.value(i)
    if value.type.rank < 2 or value.shape[0] != directions:
        c.broken(f"input {i} has the shape {list(value.shape)} for {directions} direction(s)")
    return c.reshape(c.slice(value, 0, d, 1), value.shape[1:])


def _initial(
    c: NodeContext, i: int, d: int, directions: int, batch: Dim, hidden: int, x: Value, batch_first: bool
) -> Value:
    if not c.has(i):
        return c.emit("ConstantOfShape", shape=(batch, hidden), value=0.0, dtype=x.dtype)
    value = c.value(i)
    if value.type.rank != 3:
        c.broken(f"input {i} has rank {value.type.rank}")
    if batch_first:
        value = c.transpose(value, (1, 0, 2))
    return c.reshape(c.slice(value, 0, d, 1), (batch, hidden))


def _activations(
    c: NodeContext, d: int, directions: int, defaults: Sequence[str]
) -> tuple[Callable[[Value], Value], ...]:
    names = c.attrs.get("activations") or tuple(defaults) * directions
    if len(names) != len(defaults) * directions or not all(isinstance(n, str) for n in names):
        c.broken(f"{len(names)} activations are given")
    if c.has_attr("activation_alpha") or c.has_attr("activation_beta"):
        c.unsupported("activation_alpha and activation_beta")
    mine = names[d * len(defaults) : (d + 1) * len(defaults)]
    return tuple(_activation(c, n) for n in mine)


def _activation(c: NodeContext, name: str) -> Callable[[Value], Value]:
    canonical = next((k for k in (*_PLAIN, *_ALPHA, "HardSigmoid") if k.lower() == name.lower()), None)
    if canonical is None:
        c.unsupported(f"the activation {name}")
    if canonical in _ALPHA:
        return lambda x: c.emit(canonical, x, alpha=_ALPHA[canonical])
    if canonical == "HardSigmoid":
        return lambda x: c.emit("HardSigmoid", x, alpha=0.2, beta=0.5)
    return lambda x: c.emit(canonical, x)
