"""Grows one random graph of registered operators, small enough to run in a moment.

Values stay near 1 and nothing discontinuous is computed from rounded numbers, so that any order of evaluation agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, evaluate, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.ir import Graph, Rewriter, TensorType, Value
from arcweld.compiler.ops.registry import make, unsupported_reason
from arcweld.debug.simpler import live

SIZES = {"N": 3, "S": 5}
S = symbol("S", 2, 64)
EXTENTS: tuple[Dim, ...] = (1, 2, 3, 4, 6, 8)
MOST = 6000  # elements
SYMBOLS = "sizes"  # the input that says what the symbols are, whatever else is read
INDICES = "at"  # inputs whose names begin so hold indices
FLOATS = (*[DType.F32] * 6, DType.F16, DType.F16, DType.BF16)
INTEGERS = (DType.I32, DType.I64, DType.U8)

Step = Callable[["Maker", Value], Value | None]


class Maker:
    """Grows one graph. ``pick(n)`` chooses a number below n; ``symbolic`` graphs have the extents N and S."""

    def __init__(self, pick: Callable[[int], int], symbolic: bool) -> None:
        self.pick = pick
        self.empty = self.chance(4)  # some graphs have axes of no elements
        self.n = symbol("N", 0 if self.empty else 1)
        self.least = {"N": 0 if self.empty else 1, "S": 2}
        self.extents: tuple[Dim, ...] = (*EXTENTS, 0) if self.empty else EXTENTS
        if symbolic:
            self.extents = (*EXTENTS, self.n, S)
        self.rw = Rewriter(Graph("random", (), (), ()))
        self.inputs: list[Value] = []
        self.values: list[Value] = []
        self.rng = np.random.default_rng(0)
        if symbolic:
            self.inputs.append(Value(self.rw.fresh(SYMBOLS), TensorType(DType.BOOL, (self.n, S))))

    # ----- choices

    def one(self, items: Sequence[Any]) -> Any:
        return items[self.pick(len(items))]

    def chance(self, of: int) -> bool:
        return self.pick(of) == 0

    def dtype(self) -> DType:
        chosen: DType = self.one((*FLOATS, *INTEGERS, DType.BOOL))
        return chosen

    def smallest(self, d: Dim) -> int:
        """An extent where every symbol is as small as its range allows."""
        return evaluate(d, self.least)

    # ----- values

    def input(self, shape: Sequence[Dim], dtype: DType = DType.F32, hint: str = "x") -> Value:
        v = Value(self.rw.fresh(hint), TensorType(dtype, tuple(shape)))
        self.inputs.append(v)
        return v

    def weight(self, array: np.ndarray, dtype: DType) -> Value:
        return self.rw.constant(array.astype(dtype.numpy), dtype, "w", source=f"w{len(self.rw.weights)}")

    def operand(self, shape: Sequence[Dim], dtype: DType) -> Value:
        """A new input, or a weight where the shape allows it."""
        if all(isinstance(d, int) for d in shape) and self.chance(2):
            size = tuple(int(d) for d in shape)  # type: ignore[arg-type]
            return self.weight(random_array(self.rng, size, dtype), dtype)
        return self.input(shape, dtype)

    def exact(self, x: Value) -> bool:
        """True for what no rounding has touched: a function of it may be discontinuous."""
        return not x.dtype.is_float or all(x.name != o.name for n in self.rw.nodes for o in n.outputs)

    def make(self, op: str, inputs: Sequence[Value | None], **attrs: Any) -> Value | None:
        """The node's result, or None (and no node) where the operator refuses or the result is large."""
        count = len(self.rw.nodes)
        try:
            v = make(self.rw, op, inputs, attrs, origin=(f"n{count}",), hint="v")
        except (ModelError, UnsupportedError):
            del self.rw.nodes[count:]
            return None
        least = 0 if self.empty else 1
        extents = [evaluate(d, sizes) for d in v.shape for sizes in (SIZES, self.least)]
        small = all(e >= least for e in extents) and evaluate(v.type.numel, SIZES) <= MOST
        if not small or unsupported_reason(self.rw.nodes[-1]) is not None:
            del self.rw.nodes[count:]
            return None
        return v

    # ----- growth

    def grow(self, steps: int, table: Sequence[Step]) -> Graph:
        """A graph of about ``steps`` steps out of ``table``; a few of its values are outputs."""
        for _ in range(1 + self.pick(2)):
            rank = self.one((1, 2, 3, 3, 4, 4, 4))
            self.values.append(self.input([self.one(self.extents) for _ in range(rank)], self.dtype()))
        for _ in range(steps):
            step = self.one(table)
            # mostly the newest value: long chains are what fuses
            x = self.values[-1] if self.pick(3) else self.one(self.values)
            y = step(self, x)
            if y is not None:
                self.values.append(y)
        made = [o for n in self.rw.nodes for o in n.outputs]
        outputs = [made[-1]] if made else [self.values[-1]]
        outputs += [v for v in made[:-1] if self.chance(6)]
        outputs += [v for v in self.inputs if made and self.chance(16)]
        graph = Graph("random", tuple(self.inputs), tuple(outputs), tuple(self.rw.nodes), self.rw.weights)
        return live(graph, {SYMBOLS})


def random_array(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    """Floats in [-1, 1], small integers, bools."""
    if dtype is DType.BOOL:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.is_int:
        return rng.integers(-3 if dtype.is_signed else 0, 4, shape).astype(dtype.numpy)
    return rng.uniform(-1, 1, shape).astype(dtype.numpy)


def feeds_of(graph: Graph, sizes: dict[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs for a graph; those called INDICES address any axis of at least two elements."""
    rng = np.random.default_rng(seed)
    out = {}
    for v in graph.inputs:
        shape = tuple(evaluate(d, sizes) for d in v.shape)
        indices = v.name.startswith(INDICES)
        out[v.name] = rng.integers(-2, 2, shape) if indices else random_array(rng, shape, v.dtype)
    return out
