"""EqualRuns: the runs of equal elements of a vector in order, the heart of Unique."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import TensorType
from arcweld.compiler.ops.movement import operand
from arcweld.compiler.ops.registry import Attr, Case, Kind, OpDef, register
from arcweld.compiler.ops.shapes import NUMERIC, check_dtype, check_equal, check_rank, present

Attrs = Mapping[str, Any]
OP = "EqualRuns"


def _infer(types: Sequence[TensorType | None], attrs: Attrs) -> tuple[TensorType, ...]:
    x, order = present(OP, types, 2)
    check_dtype(OP, x, NUMERIC)
    check_dtype(OP, order, (DType.I64,))
    check_rank(OP, x, 1, 1)
    check_rank(OP, order, 1, 1)
    check_equal(OP, "elements and places", x.shape[0], order.shape[0])
    if attrs["by_place"] not in (0, 1):
        raise ModelError(f"{OP}: by_place is {attrs['by_place']}, must be 0 or 1")
    return (x, order, order, order, TensorType(DType.I64, (1,)))


def _reference(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> tuple[np.ndarray, ...]:
    """Run by run, as the elements follow each other."""
    x, order = operand(arrays), operand(arrays, 1)
    runs: list[list[int]] = []
    for place in order:
        known = runs and (x[runs[-1][0]] == x[place] or (x[place] != x[place] and x[runs[-1][0]] != x[runs[-1][0]]))
        if known:
            runs[-1].append(place)
        else:
            runs.append([place])
    if attrs["by_place"]:
        runs.sort(key=lambda run: run[0])
    values, first, kinds, counts = np.zeros_like(x), *(np.zeros(len(x), np.int64) for _ in range(3))
    for k, run in enumerate(runs):
        values[k], first[k], counts[k], kinds[run] = x[run[0]], run[0], len(run), k
    return values, first, kinds, counts, np.array([len(runs)], np.int64)


def _drawn(n: int, dtype: type[Any], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A few different elements, among floats NaNs and zeros of both signs, and the places that sort them."""
    x = np.random.default_rng(seed).integers(0, 12, n).astype(dtype)
    if np.issubdtype(dtype, np.floating):
        x[::7], x[1::9], x[2::9] = np.nan, 0.0, -0.0
    return x, np.argsort(x, kind="stable")


register(
    OpDef(
        OP, Kind.RUNS, ("x", "order"), _infer, _reference, {"by_place": Attr("int", 0)},
        cases=(
            *(Case(_drawn(n, np.float32, n), {"by_place": k}) for n in (1, 50, 3000) for k in (0, 1)),
            *(Case(_drawn(60, t, 3), {"by_place": k}) for t in (np.float64, np.int64, np.uint8) for k in (0, 1)),
            Case((np.zeros(0, np.int32), np.zeros(0, np.int64))),
        ),
        cost=16,
        doc="of a vector x and the places that sort it stably: the different elements, where each is first, which of "
        "them each element is, how often each is (all of as many elements as x, zeros behind the different ones), and "
        "their number [1]; sorted, or with by_place in the order of their first places; NaNs are equal",
    )
)  # fmt: skip
