"""Recurrence: LSTM, GRU and RNN over all time steps, given the products of the input with its weights.

The gates are in ONNX's order along the rows of the weights: z, r, h of a GRU; i, o, f, c of an LSTM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import TensorType
from arcweld.compiler.ops.elementwise import widen
from arcweld.compiler.ops.registry import Attr, Case, Kind, OpDef, check_attrs, opdef, register
from arcweld.compiler.ops.shapes import FLOATS, INTS, check_dtype, check_equal, check_rank, same_dtype, split_optional

Attrs = Mapping[str, Any]
Function = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Cell:
    """A kind of cell: its gates, its states (the hidden one, an LSTM's cell state too), its activations by default."""

    gates: int
    states: int
    activations: tuple[str, ...]


CELLS: Mapping[str, Cell] = {
    "rnn": Cell(1, 1, ("Tanh",)),
    "gru": Cell(3, 1, ("Sigmoid", "Tanh")),
    "lstm": Cell(4, 2, ("Sigmoid", "Tanh", "Tanh")),
}
# for each direction in order, whether it runs from the last step to the first
DIRECTIONS: Mapping[str, tuple[bool, ...]] = {
    "forward": (False,),
    "reverse": (True,),
    "bidirectional": (False, True),
}
# the activations of a cell, and the attributes that ONNX gives them by default
ACTIVATIONS: Mapping[str, Mapping[str, float]] = {
    **{name: {} for name in ("Sigmoid", "Tanh", "Relu", "Softsign", "Softplus")},
    "LeakyRelu": {"alpha": 0.01},
    "Elu": {"alpha": 1.0},
    "ThresholdedRelu": {"alpha": 1.0},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
}


def activations_of(attrs: Attrs, direction: int) -> tuple[str, ...]:
    """The names of the activations of one direction."""
    count = len(CELLS[attrs["cell"]].activations)
    return tuple(attrs["activations"][direction * count : (direction + 1) * count])


# ---------------------------------------------------------------------------------------------------------- the types


def _check_attrs(attrs: Attrs) -> tuple[Cell, int]:
    """The kind of cell and the number of directions. Raises ModelError for attributes that don't fit."""
    if attrs["cell"] not in CELLS or attrs["direction"] not in DIRECTIONS:
        raise ModelError(f"Recurrence: no cell {attrs['cell']!r} runs {attrs['direction']!r}")
    cell, directions = CELLS[attrs["cell"]], len(DIRECTIONS[attrs["direction"]])
    names = attrs["activations"]
    if len(names) != directions * len(cell.activations):
        raise ModelError(f"Recurrence: {len(names)} activations for {directions} direction(s) of {attrs['cell']}")
    unknown = [n for n in names if n not in ACTIVATIONS]
    if unknown:
        raise ModelError(f"Recurrence: no activation is called {unknown[0]}")
    return cell, directions


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> tuple[TensorType, ...]:
    cell, directions = _check_attrs(attrs)
    (x, r), optional = split_optional("Recurrence", types, 2, 7)
    lengths, bias, peephole, first_h, first_c = optional
    check_dtype("Recurrence", x, FLOATS)
    same_dtype("Recurrence", [x, r, *(t for t in (bias, peephole, first_h, first_c) if t is not None)])
    check_rank("Recurrence", x, 3, 3)
    check_rank("Recurrence", r, 3, 3)
    hidden = r.shape[2]
    if not isinstance(hidden, int) or hidden < 1:
        raise ModelError(f"Recurrence: the hidden size has to be a positive number, not {hidden}")
    steps, batch = x.shape[:2]
    if steps == 0:
        raise ModelError("Recurrence over no time steps")
    wanted: dict[str, tuple[TensorType | None, tuple[Dim, ...]]] = {
        "products": (x, (steps, batch, directions * cell.gates * hidden)),
        "weights": (r, (directions, cell.gates * hidden, hidden)),
        "lengths": (lengths, (batch,)),
        "bias": (bias, (directions, hidden)),
        "peepholes": (peephole, (directions, 3 * hidden)),
        "first hidden state": (first_h, (directions, batch, hidden)),
        "first cell state": (first_c, (directions, batch, hidden)),
    }
    for what, (t, shape) in wanted.items():
        if t is not None:
            check_rank("Recurrence", t, len(shape), len(shape))
            for given, needed in zip(t.shape, shape):
                check_equal("Recurrence", what, given, needed)
    if lengths is not None:
        check_dtype("Recurrence", lengths, INTS)
    only_lstm = peephole is not None or first_c is not None or attrs["rounded"]
    if (bias is not None and attrs["cell"] != "gru") or (only_lstm and attrs["cell"] != "lstm"):
        raise ModelError(f"Recurrence: an operand or an attribute that a cell {attrs['cell']} doesn't have")
    if attrs["rounded"]:
        check_dtype("Recurrence", x, (DType.F32,))
    state = x.with_shape((directions, batch, hidden))
    return (x.with_shape((steps, directions, batch, hidden)), *[state] * cell.states)


# ------------------------------------------------------------------------------------------------ the meaning in numpy


def _activation(name: str, clip: float) -> Function:
    op = opdef(name)
    attrs = check_attrs(op, ACTIVATIONS[name], name)

    def function(x: np.ndarray) -> np.ndarray:
        return op.reference([np.clip(x, -clip, clip) if clip else x], attrs)[0]

    return function


def _reference(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> tuple[np.ndarray, ...]:
    given = arrays[0]
    assert given is not None
    padded = [*arrays, *[None] * (7 - len(arrays))]
    x, r, lengths, bias, peephole, h, c = (None if a is None else widen(a) for a in padded)
    assert x is not None
    assert r is not None
    steps, batch = x.shape[:2]
    directions, rows, hidden = r.shape
    valid = np.full(batch, steps) if lengths is None else np.minimum(lengths, steps)
    zeros = np.zeros((directions, batch, hidden), x.dtype)
    ys, finals = [], []
    for d, backwards in enumerate(DIRECTIONS[attrs["direction"]]):
        step = _Step(
            attrs, r[d].T, None if bias is None else bias[d], None if peephole is None else peephole[d],
            # the gates' inputs are clipped, an LSTM's new cell state is not
            [_activation(n, attrs["clip"] if k < 2 else 0.0) for k, n in enumerate(activations_of(attrs, d))],
        )  # fmt: skip
        own = x[:, :, d * rows : (d + 1) * rows]
        state = [(zeros if s is None else s)[d] for s in (h, c)[: CELLS[attrs["cell"]].states]]
        y, state = _run(step, own, state, valid, backwards)
        ys.append(y)
        finals.append(state)
    out = (np.stack(ys, 1), *(np.stack(s) for s in zip(*finals)))
    return tuple(a.astype(given.dtype, copy=False) for a in out)


def _run(
    step: Callable[[np.ndarray, list[np.ndarray]], list[np.ndarray]], x: np.ndarray, state: list[np.ndarray],
    valid: np.ndarray, backwards: bool,
) -> tuple[np.ndarray, list[np.ndarray]]:  # fmt: skip
    """The hidden states of all steps, zeros behind each row's end, and the last states."""
    steps, batch = x.shape[:2]
    y = np.zeros((steps, *state[0].shape), x.dtype)
    row = np.arange(batch)
    for s in range(steps):
        at = np.where(s < valid, valid - 1 - s, s) if backwards else np.full(batch, s)
        new = step(x[at, row], state)
        runs = (s < valid)[:, None]
        state = [np.where(runs, after, before) for after, before in zip(new, state)]
        y[at, row] = np.where(runs, state[0], 0)
    return y, state


def _rounded(h: np.ndarray) -> np.ndarray:
    """What 8 bits over the range of ``h``, which includes 0, represent."""
    quantised, scale, zero = opdef("DynamicQuantizeLinear").reference([h], {})
    assert quantised is not None
    return np.asarray((quantised.astype(h.dtype) - zero.astype(h.dtype)) * scale)


@dataclass(frozen=True, slots=True)
class _Step:
    """One step of one direction; ``r`` is transposed."""

    attrs: Attrs
    r: np.ndarray
    bias: np.ndarray | None
    peephole: np.ndarray | None
    f: Sequence[Function]

    def __call__(self, x: np.ndarray, state: list[np.ndarray]) -> list[np.ndarray]:
        if self.attrs["cell"] == "rnn":
            return self._rnn(x, *state)
        return self._gru(x, *state) if self.attrs["cell"] == "gru" else self._lstm(x, *state)

    def _rnn(self, x: np.ndarray, h: np.ndarray) -> list[np.ndarray]:
        return [self.f[0](x + h @ self.r)]

    def _gru(self, x: np.ndarray, h: np.ndarray) -> list[np.ndarray]:
        n = h.shape[1]
        zr = self.f[0](x[:, : 2 * n] + h @ self.r[:, : 2 * n])
        z, reset = zr[:, :n], zr[:, n:]
        if self.attrs["linear_before_reset"]:
            inner = h @ self.r[:, 2 * n :]
            inner = reset * (inner if self.bias is None else inner + self.bias)
        else:
            inner = (reset * h) @ self.r[:, 2 * n :]
        return [(1 - z) * self.f[1](x[:, 2 * n :] + inner) + z * h]

    def _lstm(self, x: np.ndarray, h: np.ndarray, c: np.ndarray) -> list[np.ndarray]:
        n = h.shape[1]
        h = _rounded(h) if self.attrs["rounded"] else h
        i, o, f, g = np.split(x + h @ self.r, 4, axis=1)
        p = np.zeros(3 * n, x.dtype) if self.peephole is None else self.peephole
        i = self.f[0](i + p[:n] * c)
        f = 1 - i if self.attrs["input_forget"] else self.f[0](f + p[2 * n :] * c)
        new = f * c + i * self.f[1](g)
        return [self.f[0](o + p[n : 2 * n] * new) * self.f[2](new), new]


def recurrence_flops(x: TensorType, r: TensorType) -> Dim:
    """The operations of all steps, about."""
    return product((*x.shape[:2], *r.shape, 2))


def _case(
    cell: str, steps: int, batch: int, hidden: int, *extra: Any, direction: str = "forward", dtypes: Any = ("f32",),
    **attrs: Any,
) -> Case:  # fmt: skip
    """A case; ``extra`` are the operands behind the weights: a name of a kind, an array, or None."""
    kind, d = CELLS[cell], len(DIRECTIONS[direction])
    shapes = {"bias": (d, hidden), "peephole": (d, 3 * hidden), "state": (d, batch, hidden)}
    operands = [shapes.get(e, e) if isinstance(e, str) else e for e in extra]
    names = attrs.pop("activations", kind.activations * d)
    return Case(
        ((steps, batch, d * kind.gates * hidden), (d, kind.gates * hidden, hidden), *operands),
        {"cell": cell, "direction": direction, "activations": names, **attrs}, dtypes, -1.0, 1.0,
    )  # fmt: skip


_LENGTHS = np.array([4, 1, 3], np.int32)
register(
    OpDef(
        "Recurrence", Kind.RECURRENCE,
        ("x", "r", "lengths?", "bias?", "peephole?", "first_h?", "first_c?"), _infer, _reference,
        {
            "cell": Attr("str", required=True), "direction": Attr("str", "forward"),
            "activations": Attr("strs", required=True), "clip": Attr("float", 0.0),
            "linear_before_reset": Attr("int", 0), "input_forget": Attr("int", 0), "rounded": Attr("int", 0),
        },
        cost=256, needs=lambda node: node.operands()[0].shape[:1],
        cases=(
            _case("lstm", 4, 2, 5, dtypes=("f32", "f16", "bf16", "f64")),
            _case("gru", 4, 2, 5, dtypes=("f32", "f16")),
            _case("rnn", 4, 2, 5, dtypes=("f32", "f16")),
            *(_case(c, 3, 2, 5, direction=d) for c in CELLS for d in ("reverse", "bidirectional")),
            _case("lstm", 5, 1, 7, None, None, "peephole", "state", "state", direction="bidirectional"),
            _case("lstm", 4, 3, 5, _LENGTHS, None, None, "state", "state", direction="bidirectional"),
            _case("gru", 4, 3, 5, _LENGTHS, None, None, "state", direction="reverse"),
            _case("gru", 4, 2, 5, None, "bias", None, "state", linear_before_reset=1),
            _case("gru", 3, 2, 5, direction="bidirectional", linear_before_reset=1),
            _case("lstm", 6, 2, 4, clip=0.4),
            _case("lstm", 3, 2, 4, None, None, "peephole", input_forget=1),
            _case("lstm", 2, 2, 3, activations=("HardSigmoid", "Relu", "Softsign")),
            _case("rnn", 3, 2, 3, activations=("LeakyRelu", "Elu"), direction="bidirectional"),
            _case("lstm", 3, 3, 5, direction="bidirectional", rounded=1),
            _case("rnn", 1, 1, 1),
        ),
        doc="x [T,B,D*G*H]: the input's products with its weights, with all biases; r [D,G*H,H]; lengths [B]: the steps"
        " of each row; bias [D,H]: what a GRU with linear_before_reset adds to the product before its reset gate;"
        " peephole [D,3*H]: of i, o, f; clip: of the gates' inputs, 0 for none; results [T,D,B,H], and the last states"
        " [D,B,H]; with ``rounded``, an LSTM's weights multiply what DynamicQuantizeLinear makes of the hidden states"
        " of all rows of a direction",
    )
)  # fmt: skip
