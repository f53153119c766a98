"""Kernels for the select template: rows of every type, borders of parts and tiles, symbolic sizes, neighbours."""

from __future__ import annotations

import functools

import numpy as np
from cases_sort import TYPES, keys, order
from kernel_cases import Case, Suite, at, put, random

from arcweld.codegen.kernel import Buffer, Kernel, axis
from arcweld.codegen.templates.sort.select import SelectTactic
from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import cast, unary, variable

F32, I64 = DType.F32, DType.I64


def select_kernel(
    rows: Dim, cols: Dim, k: Dim, dtype: DType, *, largest: bool = False, fused: bool = False, values: bool = True
) -> Kernel:
    """Places in ``out0`` and elements in ``out1``; ``fused``: of absolute values, with places in i32."""
    r, c, n = axis("r", rows), axis("c", cols), axis("k", k)
    x, out = Buffer("in0", dtype, (rows, cols)), Buffer("out0", DType.I32 if fused else I64, (rows, k), True)
    element, acc = at(x, (r, c)), variable("acc", I64)
    element = unary("abs", element) if fused else element
    stores, buffers = [put(out, (r, n), cast(acc, DType.I32) if fused else acc)], [x, out]
    if values:
        buffers.append(Buffer("out1", dtype, (rows, k), True))
        stores.append(put(buffers[-1], (r, n), variable("x", dtype)))
    return Kernel(
        "select", "select", {"row": (r,), "col": (c,), "out": (n,)}, {"x": element}, tuple(stores), tuple(buffers),
        {"largest": largest},
    )  # fmt: skip


def first(x: np.ndarray, k: int, largest: bool) -> dict[str, np.ndarray]:
    """What Python's stable sort puts first."""
    places = order(x, largest)[:, :k]
    return {"out0": places, "out1": np.take_along_axis(x, places, 1)}


@functools.cache
def suite() -> Suite:
    """All cases; small enough for the simulator."""
    s, rng = Suite(), np.random.default_rng(6)
    for dtype in TYPES:
        for largest in (False, True):
            x = keys(rng, 75, dtype, 19)
            s.add(f"{dtype.value}_{largest}", select_kernel(3, 75, 11, dtype, largest=largest), {"in0": x},
                  lambda x=x, largest=largest: first(x, 11, largest), tactic=SelectTactic(32, 2))  # fmt: skip
    forms = [
        (1, 1, 1, None), (2, 2, 1, None), (5, 64, 3, None), (2, 65, 64, None), (1, 900, 5, SelectTactic(32, 3)),
        (3, 259, 1, SelectTactic(64, 4)), (1, 1500, 400, None), (2, 40, 39, SelectTactic(32, 8)),
        (1, 2600, 7, SelectTactic(32, 1)), (1, 5000, 3, None), (2, 1030, 1024, SelectTactic(64, 2)),
    ]  # fmt: skip
    for rows, cols, k, tactic in forms:
        x = rng.integers(-90, 90, (rows, cols)).astype(np.int32)
        s.add(f"{k}_of_{rows}x{cols}", select_kernel(rows, cols, k, DType.I32), {"in0": x},
              lambda x=x, k=k: first(x, k, False), tactic=tactic)  # fmt: skip
    for name, x in (("falling", -np.arange(1200)), ("rising", np.arange(1200)), ("equal", np.zeros(1200))):
        row = x.astype(np.int32)[None]  # each element is better than all before it, or none is
        s.add(name, select_kernel(1, 1200, 9, DType.I32), {"in0": row}, lambda x=row: first(x, 9, False),
              tactic=SelectTactic(32, 2))  # fmt: skip
    b, n, k = symbol("b", 1), symbol("n", 1), symbol("k", 1, 40)
    for rows, cols, count, tactic in ((1, 1, 1, None), (3, 40, 40, None), (2, 1100, 7, None),
                                      (2, 1100, 7, SelectTactic(32, 5)), (2, 9, 8, SelectTactic(32, 5))):  # fmt: skip
        x = rng.integers(0, 50, (rows, cols)).astype(np.float32)
        s.add(f"symbolic_{count}_of_{rows}x{cols}_{tactic}", select_kernel(b, n, k, F32, largest=True), {"in0": x},
              lambda x=x, count=count: first(x, count, True), {"b": rows, "n": cols, "k": count},
              tactic=tactic)  # fmt: skip
    x = random(rng, (2, 150), F32)
    s.add("fused", select_kernel(2, 150, 6, F32, fused=True), {"in0": x}, lambda: first(np.abs(x), 6, False))
    s.add("places", select_kernel(2, 150, 6, F32, values=False), {"in0": x},
          lambda: {"out0": first(x, 6, False)["out0"]})  # fmt: skip
    return s


def cases() -> list[Case]:
    return suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return suite().expected(case)
