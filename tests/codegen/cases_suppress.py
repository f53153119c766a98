"""Kernels for the suppress template: rows of boxes, tiles and their borders, symbolic sizes, fused neighbours."""

from __future__ import annotations

import functools

import numpy as np
from kernel_cases import Case, Suite, at, put

from arcweld.codegen.kernel import Buffer, Kernel, axis
from arcweld.codegen.templates.suppress.suppress import CORNERS, SuppressTactic
from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import cast, unary, variable

F32, BOOL = DType.F32, DType.BOOL


def suppress_kernel(rows: Dim, cols: Dim, *, fused: bool = False) -> Kernel:
    """``in0``: boxes, ``in1``: which count, ``in2``: the limit, ``in3``: how many.

    ``fused``: of negated boxes, with numbers as results.
    """
    r, c = axis("r", rows), axis("c", cols)
    boxes, valid = Buffer("in0", F32, (rows, cols, 4)), Buffer("in1", BOOL, (rows, cols))
    limit, most = Buffer("in2", F32, (1,)), Buffer("in3", DType.I64, (1,))
    out = Buffer("out0", DType.I32 if fused else BOOL, (rows, cols), True)
    corners = (2, 3, 0, 1) if fused else (0, 1, 2, 3)
    loads = {n: at(boxes, (r, c, k)) for n, k in zip(CORNERS, corners)}
    if fused:
        loads = {n: unary("neg", e) for n, e in loads.items()}
    loads |= {"open": at(valid, (r, c)), "overlap": at(limit, (0,)), "most": at(most, (0,))}
    acc = variable("acc", BOOL)
    value = cast(acc, DType.I32) if fused else acc
    axes = {"row": (r,), "col": (c,)}
    return Kernel("suppress", "suppress", axes, loads, (put(out, (r, c), value),), (boxes, valid, limit, most, out))


def drawn(seed: int, rows: int, cols: int, extent: int = 12) -> dict[str, np.ndarray]:
    """Boxes with whole corners in a square of ``extent``, and nine tenths of them that count."""
    rng = np.random.default_rng(seed)
    low = rng.integers(0, extent, (rows, cols, 2))
    boxes = np.concatenate([low, low + rng.integers(0, max(2, extent // 3), (rows, cols, 2))], -1)
    return {"in0": boxes.astype(np.float32), "in1": rng.random((rows, cols)) < 0.9}


def stays(boxes: np.ndarray, valid: np.ndarray, limit: float, most: int) -> np.ndarray:
    """One box after the other, with whole numbers: the common part is more than p/q of what both cover."""
    p, q = (np.float32(limit)).as_integer_ratio()
    found = np.zeros(valid.shape, bool)
    for row in range(len(boxes)):
        kept: list[list[int]] = []
        for k, (box, counts) in enumerate(zip(boxes[row].astype(int).tolist(), valid[row])):
            if counts and len(kept) < most and not any(_beyond(box, other, p, q) for other in kept):
                kept.append(box)
                found[row, k] = True
    return found


def _beyond(a: list[int], b: list[int], p: int, q: int) -> bool:
    common = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return common * q > p * (area - common)


@functools.cache
def suite() -> Suite:
    """All cases; small enough for the simulator."""
    s = Suite()
    forms = [
        (1, 1, 0.5, 9, None), (3, 31, 0.5, 99, None), (2, 64, 0.0, 99, None), (2, 70, 0.25, 99, SuppressTactic(32)),
        (1, 200, 0.5, 999, SuppressTactic(64)), (1, 300, 0.75, 999, SuppressTactic(128)), (2, 100, 0.5, 5, None),
        (2, 100, 0.5, 0, None), (1, 40, 0.5, -3, None), (1, 520, 0.5, 999, None), (2, 96, 1.0, 33, SuppressTactic(32)),
    ]  # fmt: skip
    for k, (rows, cols, limit, most, tactic) in enumerate(forms):
        given = drawn(k, rows, cols) | {"in2": np.array([limit], np.float32), "in3": np.array([most], np.int64)}
        oracle = lambda g=given: {"out0": stays(g["in0"], g["in1"], float(g["in2"][0]), int(g["in3"][0]))}
        s.add(f"{rows}x{cols}_{limit}_{most}_{k}", suppress_kernel(rows, cols), given, oracle, tactic=tactic)
    b, n = symbol("b", 1), symbol("n", 1)
    for rows, cols in ((1, 1), (3, 50), (2, 300)):
        given = drawn(rows, rows, cols, 20) | {"in2": np.array([0.5], np.float32), "in3": np.array([70], np.int64)}
        oracle = lambda g=given: {"out0": stays(g["in0"], g["in1"], 0.5, 70)}
        s.add(f"symbolic_{rows}x{cols}", suppress_kernel(b, n), given, oracle, {"b": rows, "n": cols})
    given = drawn(9, 2, 60) | {"in2": np.array([0.5], np.float32), "in3": np.array([70], np.int64)}
    given["in0"] = -given["in0"]
    oracle = lambda: {"out0": stays(-given["in0"], given["in1"], 0.5, 70).astype(np.int32)}
    fused = suppress_kernel(2, 60, fused=True)
    mirrored = given | {"in0": given["in0"][..., [2, 3, 0, 1]]}
    s.add("fused", fused, mirrored, oracle)
    return s


def cases() -> list[Case]:
    return suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return suite().expected(case)
