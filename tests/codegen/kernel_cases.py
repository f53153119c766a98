"""What the template tests share: one case of a kernel, builders for its operands, and the comparison with
the oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from arcweld.codegen.kernel import Axis, Buffer, Store
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, load

Arrays = dict[str, np.ndarray]


class Case(NamedTuple):
    """A kernel, its inputs by canonical buffer name, the values of its dimensions, and a tactic (None: the
    default).
    """

    id: str
    kernel: Any
    inputs: Arrays
    env: dict[str, int]
    tactic: Any


class Suite:
    """Cases with an independent numpy oracle for each."""

    def __init__(self) -> None:
        self.cases: list[Case] = []
        self._oracles: dict[str, Callable[[], Mapping[str, np.ndarray]]] = {}

    def add(
        self,
        name: str,
        kernel: Any,
        inputs: Arrays,
        oracle: Callable[[], Mapping[str, np.ndarray]],
        env: Mapping[str, int] | None = None,
        tactic: Any = None,
    ) -> None:
        assert name not in self._oracles, name
        self.cases.append(Case(name, kernel, inputs, dict(env or {}), tactic))
        self._oracles[name] = oracle

    def expected(self, case: Case) -> dict[str, np.ndarray]:
        """What the oracle says the written buffers hold, in f64 for floating-point outputs."""
        return dict(self._oracles[case.id]())


def at(buffer: Buffer, coords: Sequence[Axis | Dim], mask: Expr | None = None) -> Expr:
    """The load of ``buffer`` at axes or index expressions."""
    return load(buffer.name, buffer.dtype, [c.index if isinstance(c, Axis) else c for c in coords], mask)


def put(buffer: Buffer, coords: Sequence[Axis | Dim], value: Expr) -> Store:
    """A store to ``buffer`` at axes or index expressions."""
    return Store(buffer.name, tuple(c.index if isinstance(c, Axis) else c for c in coords), value)


def random(rng: np.random.Generator, shape: Sequence[int], dtype: DType, scale: float = 1.0) -> np.ndarray:
    """Normal values for floating-point types, small integers otherwise, rounded to the storage type."""
    if dtype is DType.BOOL:
        return rng.random(shape) < 0.5
    if dtype.is_float:
        return (rng.standard_normal(shape) * scale).astype(dtype.numpy)
    return rng.integers(-20 if dtype.is_signed else 0, 20, shape).astype(dtype.numpy)


TOLERANCE = {DType.F64: 1e-12, DType.F32: 2e-6, DType.F16: 1.2e-3, DType.BF16: 1e-2}


def assert_close(
    kernel: Any, got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray], slack: float = 1.0
) -> None:
    """Integers and bools must be equal; floats agree within a few roundings of their type, NaN and inf in
    the same places.
    """
    assert set(got) == set(want)
    for name, expected in want.items():
        dtype = kernel.buffer(name).dtype
        if not dtype.is_float:
            np.testing.assert_array_equal(got[name], expected, err_msg=name)
            continue
        tolerance = TOLERANCE[dtype] * slack
        np.testing.assert_allclose(
            got[name].astype(np.float64), expected, rtol=tolerance, atol=tolerance, equal_nan=True, err_msg=name
        )


def matches(kernel: Any, got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray], slack: float = 1.0) -> bool:
    """True where ``assert_close`` passes."""
    try:
        assert_close(kernel, got, want, slack)
    except AssertionError:
        return False
    return True
