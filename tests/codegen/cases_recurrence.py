"""Kernels of the recurrence template: every cell and option, with the tactics that a small case can have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import recurrence_oracle
from kernel_cases import Case

from arcweld.codegen.kernel import BoundKernel
from arcweld.codegen.lowering.lower import lower
from arcweld.codegen.templates.recurrence.recurrence import RecurrenceTactic
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType, from_numpy
from arcweld.compiler.ir import Graph, Node, TensorType, Value
from arcweld.compiler.ops.recurrence import CELLS, DIRECTIONS
from arcweld.compiler.ops.registry import check_attrs, opdef
from arcweld.passes.fusion import fuse

OPERANDS = ("x", "r", "lengths", "bias", "peephole", "first_h", "first_c")


@dataclass(frozen=True)
class Layer:
    """A recurrent layer: its sizes, attributes, and which optional operands it has."""

    cell: str
    hidden: int
    steps: Dim = 3
    batch: Dim = 2
    direction: str = "forward"
    extra: tuple[str, ...] = ()
    attrs: tuple[tuple[str, Any], ...] = ()
    dtype: DType = DType.F32

    @property
    def name(self) -> str:
        """What tests call it."""
        options = [*self.extra, *(k for k, _ in self.attrs)]
        sizes = f"{self.steps}x{self.batch}x{self.hidden}"
        return "-".join([self.cell, self.direction, sizes, *options, self.dtype.value])

    def full_attrs(self) -> dict[str, Any]:
        """All attributes of the operator."""
        names = CELLS[self.cell].activations * len(DIRECTIONS[self.direction])
        given = {"cell": self.cell, "direction": self.direction, "activations": names, **dict(self.attrs)}
        return check_attrs(opdef("Recurrence"), given, self.name)

    def shapes(self) -> dict[str, tuple[Dim, ...]]:
        """The shapes of the operands that it has."""
        d, rows = len(DIRECTIONS[self.direction]), CELLS[self.cell].gates * self.hidden
        every: dict[str, tuple[Dim, ...]] = {
            "x": (self.steps, self.batch, d * rows), "r": (d, rows, self.hidden), "lengths": (self.batch,),
            "bias": (d, self.hidden), "peephole": (d, 3 * self.hidden), "first_h": (d, self.batch, self.hidden),
            "first_c": (d, self.batch, self.hidden),
        }  # fmt: skip
        return {k: v for k, v in every.items() if k in ("x", "r", *self.extra)}

    def kernel(self) -> BoundKernel:
        """Its kernel, whose tensors have the operands' names, and ``y``, ``last_h`` and ``last_c``."""
        types = {k: TensorType(DType.I32 if k == "lengths" else self.dtype, s) for k, s in self.shapes().items()}
        operands = [Value(k, types[k]) if k in types else None for k in OPERANDS]
        attrs = self.full_attrs()
        results = opdef("Recurrence").infer([None if v is None else v.type for v in operands], attrs)
        outs = tuple(Value(n, t) for n, t in zip(("y", "last_h", "last_c"), results))
        node = Node("Recurrence", tuple(operands), outs, attrs, ("layer",))
        (region,) = fuse(Graph("layer", tuple(v for v in operands if v is not None), outs, (node,))).regions
        return lower(region, Graph("layer", tuple(v for v in operands if v is not None), outs, (node,)))

    def feeds(self, env: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray]:
        """Random operands."""
        rng, found = np.random.default_rng(seed), {}
        for k, shape in self.shapes().items():
            sizes = [d if isinstance(d, int) else env[str(d)] for d in shape]
            if k == "lengths":
                steps = self.steps if isinstance(self.steps, int) else env[str(self.steps)]
                found[k] = rng.integers(1, steps + 1, sizes).astype(np.int32)
            else:
                scale = self.hidden**-0.5 if k == "r" else 1.0
                found[k] = (rng.uniform(-1, 1, sizes) * scale).astype(self.dtype.numpy)
        return found

    def expected(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The results by an independent implementation."""
        found = recurrence_oracle.recurrence(self.full_attrs(), *(feeds.get(k) for k in OPERANDS))
        return dict(zip(("y", "last_h", "last_c"), found))

    def tactics(self) -> Sequence[RecurrenceTactic]:
        """One block for all units; blocks that share them, with weights that stay and weights that don't."""
        h = self.hidden
        return (
            RecurrenceTactic(h, 2), RecurrenceTactic(max(1, h // 3), 4), RecurrenceTactic(max(1, h // 3), 1),
            RecurrenceTactic(h // 2 + 1, 2, resident=False),
        )  # fmt: skip


def by_tensor(bound: BoundKernel, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays by the kernel's names, or by the tensors'."""
    return {b: arrays[t] for b, t in bound.tensors.items() if t in arrays}


def cases() -> list[Case]:
    """Each layer with each of its tactics."""
    found = []
    for layer in LAYERS:
        bound = layer.kernel()
        for tactic in layer.tactics():
            inputs = by_tensor(bound, layer.feeds({}))
            found.append(Case(f"{layer.name}-{tactic}", bound.kernel, inputs, {}, tactic))
    return found


def expected(case: Case) -> dict[str, np.ndarray]:
    """What the oracle says the written buffers hold."""
    (layer,) = (x for x in LAYERS if case.id.startswith(f"{x.name}-Rec"))
    return by_tensor(layer.kernel(), layer.expected(layer.feeds({})))


STATES = ("first_h", "first_c")
LAYERS = (
    *(Layer(c, h, direction=d) for c in CELLS for d, h in (("forward", 5), ("reverse", 7), ("bidirectional", 8))),
    *(Layer(c, 6, 5, 3, d, ("lengths", "first_h")) for c in CELLS for d in ("forward", "bidirectional")),
    Layer("lstm", 5, 4, 3, "reverse", ("lengths", "peephole", *STATES)),
    Layer("lstm", 9, 3, 1, extra=("peephole", *STATES), attrs=(("input_forget", 1), ("clip", 0.5))),
    Layer("gru", 7, 3, 2, "bidirectional", ("bias", "first_h"), (("linear_before_reset", 1),)),
    Layer("gru", 6, 4, 3, "reverse", ("lengths",), (("linear_before_reset", 1),)),
    Layer("lstm", 4, attrs=(("activations", ("HardSigmoid", "Relu", "Softsign")),)),
    Layer("rnn", 4, direction="bidirectional", attrs=(("activations", ("LeakyRelu", "Elu")),)),
    Layer("lstm", 6, 4, 3, "bidirectional", attrs=(("rounded", 1),)),
    *(Layer("lstm", 8, dtype=t) for t in (DType.F16, DType.BF16)),
    Layer("gru", 5, dtype=DType.F16),
    Layer("rnn", 1, 1, 1),
    Layer("lstm", 40, 6, 9),
)
TOLERANCE = {DType.F32: 2e-6, DType.F16: 2e-3, DType.BF16: 1.6e-2}


def assert_close(bound: BoundKernel, got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> None:
    """The kernel's results agree with the oracle's within the rounding of a few steps."""
    found = {bound.tensors[b]: a for b, a in got.items()}
    assert set(found) == set(want)
    for name, expected in want.items():
        tolerance = TOLERANCE[from_numpy(found[name].dtype)]
        wide = [a.astype(np.float64) for a in (found[name], expected)]
        np.testing.assert_allclose(*wide, rtol=tolerance, atol=tolerance, err_msg=name)
