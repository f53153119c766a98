"""Handlers of RNN, GRU and LSTM: one matrix product for the inputs of all steps, and a Recurrence over its result."""

from __future__ import annotations

from collections.abc import Sequence

from arcweld.compiler.dims import Dim
from arcweld.compiler.ir import Value
from arcweld.compiler.onnx.context import NodeContext
from arcweld.compiler.onnx.deduce import to_have_equal_numbers
from arcweld.compiler.onnx.handlers.base import MICROSOFT, Result, handles
from arcweld.compiler.onnx.handlers.quant import dynamic_quantize
from arcweld.compiler.ops.recurrence import ACTIVATIONS, CELLS, DIRECTIONS, Cell

QUANTISED = "DynamicQuantizeLSTM"


@handles("RNN", "GRU", "LSTM")
@handles(QUANTISED, domain=MICROSOFT)
def _recurrent(c: NodeContext) -> Result:
    c.needs_rank(0, 3, 3)
    batch_first = bool(c.int_attr("layout"))
    x = c.value(0)
    if batch_first:
        x = c.transpose(x, (1, 0, 2))
    if x.shape[0] == 0:
        c.unsupported(f"{c.op} over no time steps")
    direction = c.choice_attr("direction", "forward", tuple(DIRECTIONS))
    kind = "lstm" if c.op == QUANTISED else c.op.lower()
    cell, directions = CELLS[kind], len(DIRECTIONS[direction])
    weights, products, bias = _products(c, x, cell, directions)
    states = [_initial(c, 5 + k, x.shape[1], batch_first) for k in range(cell.states)]
    peephole = _own(c, 7, directions, 2, 2) if cell.states == 2 and c.has(7) else None
    y = c.emit(
        "Recurrence", products, weights, _lengths(c, x), bias, peephole, *states, cell=kind, direction=direction,
        activations=_activations(c, directions, cell.activations), clip=c.float_attr("clip", 0.0),
        linear_before_reset=int(bias is not None or (kind == "gru" and bool(c.int_attr("linear_before_reset")))),
        input_forget=int(kind == "lstm" and bool(c.int_attr("input_forget"))), rounded=int(c.op == QUANTISED),
    )  # fmt: skip
    finals = list(c.rw.nodes[-1].outputs[1:])
    if batch_first:
        y = c.transpose(y, (2, 0, 1, 3))
        finals = [c.transpose(f, (1, 0, 2)) for f in finals]
    return [y, *finals]


def _lengths(c: NodeContext, x: Value) -> Value | None:
    """The number of steps of each row; None where all have all of them."""
    if not c.has(4):
        return None
    given, (steps, batch) = c.operand(4), x.shape[:2]
    if given.rank == 1 and given.shape != (batch,):
        c.narrow(to_have_equal_numbers(batch, given.shape[0]))
    if given.known is not None and isinstance(steps, int) and all(n == steps for n in c.dims(4)):
        return None
    return c.value(4)


def _products(c: NodeContext, x: Value, cell: Cell, directions: int) -> tuple[Value, Value, Value | None]:
    """The state's weights ``[D, G*H, H]``, the input's products with all biases, and a bias that can't be in them."""
    w, r = (_weights(c, i, directions) for i in (1, 2))
    hidden = c.concrete(r.shape[2], "the hidden size")
    rows = cell.gates * hidden
    if r.shape != (directions, rows, hidden) or w.shape != (directions, rows, x.shape[2]):
        c.broken(f"weights of shapes {list(w.shape[1:])} and {list(r.shape[1:])} for an input of {x.shape[2]} features")
    if c.op == QUANTISED:
        x = _rounded(c, x)
    if c.op == QUANTISED:  # weights of 8 bits have scales of their own in each direction, and stay apart
        parts = [c.reshape(c.slice(w, 0, d, 1), w.shape[1:]) for d in range(directions)]
    else:
        parts = [c.reshape(w, (directions * rows, w.shape[2]))]
    products = c.concat([c.emit("MatMul", x, c.transpose(part, (1, 0))) for part in parts], 2)
    if not c.has(3):
        return r, products, None
    both = _own(c, 3, directions, 2, 2)
    if both.shape[1] != 2 * rows:
        c.broken(f"input 3 has the shape {list(both.shape)} for {rows} rows of weights")
    own, held = (c.slice(both, 1, k * rows, rows) for k in (0, 1))
    left: Value | None = None
    if c.op == "GRU" and c.int_attr("linear_before_reset"):
        left = c.slice(held, 1, 2 * hidden, hidden)
        nothing = c.emit("ConstantOfShape", shape=left.shape, value=0.0, dtype=left.dtype)
        held = c.concat([c.slice(held, 1, 0, 2 * hidden), nothing], 1)
    bias = c.reshape(c.emit("Add", own, held), (directions * rows,))
    return r, c.emit("Add", products, bias), left


def _rounded(c: NodeContext, x: Value) -> Value:
    """``x`` as its own dynamic 8-bit quantisation represents it."""
    quantised, scale, zero = dynamic_quantize(c, x)
    return c.emit("DequantizeLinear", quantised, scale, zero, axis=0)


def _weights(c: NodeContext, i: int, directions: int) -> Value:
    """Weights ``[D, gates * H, columns]``; quantised ones come transposed, with scales for each direction."""
    given = _own(c, i, directions, 3, 3)
    if c.op != QUANTISED:
        return given
    found = []
    for d in range(directions):
        own = c.reshape(c.slice(given, 0, d, 1), given.shape[1:])
        scale, zero = (_own(c, k, directions, 1, 2) for k in (6 + 2 * i, 7 + 2 * i))
        scale, zero = (c.reshape(c.slice(p, 0, d, 1), p.shape[1:]) for p in (scale, zero))
        wide = c.emit("DequantizeLinear", own, scale, zero, axis=1 if scale.type.rank else 0)
        found.append(c.reshape(c.transpose(wide, (1, 0)), (1, *reversed(own.shape))))
    return c.concat(found, 0)


def _own(c: NodeContext, i: int, directions: int, low: int, high: int) -> Value:
    """Weight input ``i`` of a rank from ``low`` to ``high``, which has an entry for each direction."""
    c.needs_rank(i, low, high)
    value = c.value(i)
    if value.shape[0] != directions:
        c.broken(f"input {i} has the shape {list(value.shape)} for {directions} direction(s)")
    return value


def _initial(c: NodeContext, i: int, batch: Dim, batch_first: bool) -> Value | None:
    if not c.has(i):
        return None
    value = c.value(i)
    if value.type.rank != 3:
        c.broken(f"input {i} has rank {value.type.rank}")
    value = c.transpose(value, (1, 0, 2)) if batch_first else value
    if value.shape[1] != batch:
        c.narrow(to_have_equal_numbers(batch, value.shape[1]))
    return value


def _activations(c: NodeContext, directions: int, defaults: Sequence[str]) -> tuple[str, ...]:
    names = c.strings_attr("activations") or tuple(defaults) * directions
    if len(names) != len(defaults) * directions:
        c.broken(f"{len(names)} activations are given")
    if c.has_attr("activation_alpha") or c.has_attr("activation_beta"):
        c.unsupported("activation_alpha and activation_beta")
    return tuple(_activation(c, n) for n in names)


def _activation(c: NodeContext, name: str) -> str:
    canonical = next((k for k in ACTIVATIONS if k.lower() == name.lower()), None)
    if canonical is None:
        c.unsupported(f"the activation {name}")
    return canonical
