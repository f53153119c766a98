"""Kernels for the sort template: rows of every type, tiles and their borders, symbolic sizes, fused neighbours."""

from __future__ import annotations

import functools

import numpy as np
from kernel_cases import Case, Suite, at, put, random

from arcweld.codegen.kernel import Buffer, Kernel, axis
from arcweld.codegen.templates.sort.sort import SortTactic
from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import cast, unary, variable

F32, I64 = DType.F32, DType.I64
TYPES = (
    F32, DType.F16, DType.BF16, DType.F64, I64, DType.I32, DType.I16, DType.I8, DType.U8, DType.U16, DType.U32,
    DType.U64,
)  # fmt: skip


def sort_kernel(rows: Dim, cols: Dim, dtype: DType, *, largest: bool = False, fused: bool = False) -> Kernel:
    """``fused``: of absolute values, with places in i32."""
    r, c = axis("r", rows), axis("c", cols)
    x, out = Buffer("in0", dtype, (rows, cols)), Buffer("out0", DType.I32 if fused else I64, (rows, cols), True)
    element, acc = at(x, (r, c)), variable("acc", I64)
    value = cast(acc, DType.I32) if fused else acc
    return Kernel(
        "sort", "sort", {"row": (r,), "col": (c,)}, {"x": unary("abs", element) if fused else element},
        (put(out, (r, c), value),), (x, out), {"largest": largest},
    )  # fmt: skip


def order(x: np.ndarray, largest: bool) -> np.ndarray:
    """One row after the other by Python's own stable sort; NaN is the largest, and -0 equals 0."""
    sign = -1 if largest else 1
    rows = [[(sign, 0) if v != v else (0, sign * v) for v in row] for row in x.tolist()]
    return np.array([sorted(range(len(row)), key=row.__getitem__) for row in rows], np.int64).reshape(x.shape)


def keys(rng: np.random.Generator, cols: int, dtype: DType, apart: int) -> np.ndarray:
    """Three rows with the extremes of their type; of floats also zeros, and NaN ``apart`` columns apart."""
    x = random(rng, (3, cols), dtype)
    if dtype.is_float:
        x[:, 3::apart], x[0, 4], x[1, 5::8], x[2, 6], x[2, 7] = np.nan, np.inf, -0.0, -np.inf, 0.0
    else:
        info = np.iinfo(dtype.numpy)
        x[0, :3] = info.min, info.max, info.min
    return x


@functools.cache
def suite() -> Suite:
    """All cases; small enough for the simulator."""
    s, rng = Suite(), np.random.default_rng(4)
    for dtype in TYPES:
        for largest in (False, True):
            x = keys(rng, 37, dtype, 9)
            oracle = lambda x=x, largest=largest: {"out0": order(x, largest)}
            s.add(f"{dtype.value}_{largest}", sort_kernel(3, 37, dtype, largest=largest), {"in0": x}, oracle)
    forms = [
        (1, 1, None), (2, 2, None), (5, 64, None), (2, 65, SortTactic(32, 2)), (1, 1500, None),
        (2, 257, SortTactic(64, 2)), (1, 1300, SortTactic(32, 4)), (2, 300, SortTactic(32, 8, 3)),
        (1, 700, SortTactic(32, 2, 5)), (3, 129, SortTactic(32, 4, 2)), (1, 60, SortTactic(32, 2, 2)),
    ]  # fmt: skip
    for rows, cols, tactic in forms:
        x = rng.integers(-9, 9, (rows, cols)).astype(np.int32)
        s.add(f"{rows}x{cols}_{tactic}", sort_kernel(rows, cols, DType.I32), {"in0": x},
              lambda x=x: {"out0": order(x, False)}, tactic=tactic)  # fmt: skip
    b, n = symbol("b", 1), symbol("n", 1)
    alone, together = SortTactic(64, 4), SortTactic(32, 8, 4)
    for rows, cols, tactic in ((1, 1, alone), (3, 40, alone), (1, 1100, alone), (1, 1, together), (3, 257, together),
                               (1, 1100, together)):  # fmt: skip
        x = rng.integers(0, 50, (rows, cols)).astype(np.float32)
        s.add(f"symbolic_{rows}x{cols}_{tactic}", sort_kernel(b, n, F32, largest=True), {"in0": x},
              lambda x=x: {"out0": order(x, True)}, {"b": rows, "n": cols}, tactic)  # fmt: skip
    x = random(rng, (2, 50), F32)
    s.add("fused", sort_kernel(2, 50, F32, fused=True), {"in0": x}, lambda: {"out0": order(np.abs(x), False)})
    return s


def cases() -> list[Case]:
    return suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return suite().expected(case)
