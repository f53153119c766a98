"""Kernels for the scan template: rows along and across memory, every type, symbolic sizes, fused neighbours."""

from __future__ import annotations

import functools

import numpy as np
from kernel_cases import Case, Suite, at, put, random

from arcweld.codegen.kernel import Buffer, Kernel, axis
from arcweld.codegen.templates.reduce.scan import ScanTactic
from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, binary, const, index, unary, variable

F32, F16, I64 = DType.F32, DType.F16, DType.I64


def scan_kernel(
    rows: Dim, cols: Dim, dtype: DType, *, across: bool = False, reverse: bool = False, exclusive: bool = False,
    combine: str = "sum",
) -> Kernel:  # fmt: skip
    """A scan of each row; ``across``: rows are columns in memory. Reading back to front makes it ``reverse``."""
    r, c = axis("r", rows), axis("c", cols)

    def place(column: Dim) -> tuple[Dim, ...]:
        column = cols - 1 - column if reverse else column
        return (column, r.index) if across else (r.index, column)

    shape = (cols, rows) if across else (rows, cols)
    src, dst = Buffer("in0", dtype, shape), Buffer("out0", dtype, shape, True)
    source: Dim = c.index - 1 if exclusive else c.index
    mask: Expr | None = binary("ge", index(source), const(0, I64)) if exclusive else None
    return Kernel(
        "scan", f"scan_{combine}", {"row": (r,), "col": (c,)}, {"x": at(src, place(source), mask)},
        (put(dst, place(c.index), variable("acc", dtype.compute)),), (src, dst), {"combine": combine},
    )  # fmt: skip


def scanned(x: np.ndarray, across: bool = False, reverse: bool = False, exclusive: bool = False) -> np.ndarray:
    """The same by numpy: in f64 for floats, in the type itself for integers."""
    wide = x.astype(np.float64) if x.dtype.kind not in "iu" else x
    rows = wide.T if across else wide
    rows = rows[:, ::-1] if reverse else rows
    y = np.cumsum(rows, 1, dtype=wide.dtype)
    if exclusive:
        y = np.pad(y, ((0, 0), (1, 0)))[:, :-1]
    y = y[:, ::-1] if reverse else y
    return y.T if across else y


def fused_kernel(rows: int, cols: int) -> Kernel:
    """Sums of squares of differences of two tensors, and their roots as a second result."""
    r, c = axis("r", rows), axis("c", cols)
    x, y = Buffer("in0", F16, (rows, cols)), Buffer("in1", F32, (cols,))
    total, root = Buffer("out0", F32, (rows, cols), True), Buffer("out1", F16, (rows, cols), True)
    d, acc = at(x, (r, c)) - at(y, (c,)), variable("acc", F32)
    return Kernel(
        "scan", "squares", {"row": (r,), "col": (c,)}, {"x": d * d},
        (put(total, (r, c), acc), put(root, (r, c), unary("sqrt", acc))), (x, y, total, root), {"combine": "sum"},
    )  # fmt: skip


def linear_kernel(rows: Dim, cols: Dim, dtype: DType, *, across: bool = False) -> Kernel:
    """Steps ``y = a * y + x`` of each row; ``across``: rows are columns in memory."""
    r, c = axis("r", rows), axis("c", cols)
    shape, place = ((cols, rows), (c, r)) if across else ((rows, cols), (r, c))
    a, x, dst = Buffer("in0", dtype, shape), Buffer("in1", dtype, shape), Buffer("out0", dtype, shape, True)
    return Kernel(
        "scan", "scan_linear", {"row": (r,), "col": (c,)}, {"a": at(a, place), "x": at(x, place)},
        (put(dst, place, variable("acc", dtype.compute)),), (a, x, dst), {"combine": "linear"},
    )  # fmt: skip


def stepped(a: np.ndarray, x: np.ndarray, across: bool = False) -> np.ndarray:
    """The same step by step, in f64."""
    factors, y = (v.astype(np.float64).T if across else v.astype(np.float64) for v in (a, x))
    y = y.copy()
    for t in range(1, y.shape[1]):
        y[:, t] += factors[:, t] * y[:, t - 1]
    return y.T if across else y


def _linear(s: Suite, rng: np.random.Generator) -> None:
    batch, seq = symbol("batch", 1), symbol("seq", 1)
    for name, rows, cols, dtype, across, tactic, is_open in (
        ("rows", 5, 37, F32, False, None, False), ("across", 37, 70, F32, True, None, False),
        ("f16", 3, 72, F16, False, None, False), ("bf16_across", 6, 33, DType.BF16, True, None, False),
        ("f64", 3, 50, DType.F64, False, None, False), ("warps", 2, 1000, F32, False, ScanTactic(2, 128), False),
        ("one_column", 4, 1, F32, False, None, False), ("open", 5, 133, F32, False, None, True),
    ):  # fmt: skip
        shape = (cols, rows) if across else (rows, cols)
        a = rng.uniform(-1, 1, shape).astype(dtype.numpy)
        a.reshape(-1)[0] = np.nan  # the first factor counts not
        x = random(rng, shape, dtype)
        kernel = linear_kernel(*((batch, seq) if is_open else (rows, cols)), dtype, across=across)
        env = {"batch": rows, "seq": cols} if is_open else {}
        oracle = lambda a=a, x=x, across=across: {"out0": stepped(a, x, across)}
        s.add(f"linear_{name}", kernel, {"in0": a, "in1": x}, oracle, env, tactic)


@functools.cache
def suite() -> Suite:
    """All cases; small enough for the simulator."""
    s, rng = Suite(), np.random.default_rng(11)
    forms = [
        {"across": a, "reverse": r, "exclusive": e} for a in (False, True) for r in (False, True) for e in (False, True)
    ]
    for dtype in (F32, F16, DType.BF16, DType.F64, DType.I32, I64, DType.U8, DType.I8, DType.U64):
        for k, form in enumerate(forms if dtype in (F32, I64) else forms[:1]):
            shape = (37, 5) if form["across"] else (5, 37)
            x = random(rng, shape, dtype)
            s.add(
                f"{dtype.value}_{k}", scan_kernel(5, 37, dtype, **form), {"in0": x},
                lambda x=x, form=form: {"out0": scanned(x, **form)},
            )  # fmt: skip
    for rows, cols, tactic in (
        (3, 1, None), (1, 1000, None), (1, 300, ScanTactic(lanes=64)), (2, 2304, ScanTactic(lanes=256)),
        (2, 1100, ScanTactic(1, 1024)), (9, 24, ScanTactic(4, 4)), (200, 16, ScanTactic(8, 1)),
    ):  # fmt: skip
        x = random(rng, (rows, cols), F32)
        name = f"{rows}x{cols}" + (f"_l{tactic.lanes}" if tactic else "")
        s.add(name, scan_kernel(rows, cols, F32), {"in0": x}, lambda x=x: {"out0": scanned(x)}, tactic=tactic)
    batch, seq = symbol("batch", 1), symbol("seq", 1)
    for b, n in ((1, 1), (5, 33), (2, 1030)):
        x = random(rng, (b, n), F32)
        env = {"batch": b, "seq": n}
        s.add(f"symbolic_{b}x{n}", scan_kernel(batch, seq, F32), {"in0": x}, lambda x=x: {"out0": scanned(x)}, env)
    i = {"in0": random(rng, (3, 200), F16), "in1": random(rng, (200,), F32)}

    def squares() -> dict[str, np.ndarray]:
        total = np.cumsum((i["in0"].astype(np.float64) - i["in1"]) ** 2, 1)
        return {"out0": total, "out1": np.sqrt(total)}

    s.add("fused", fused_kernel(3, 200), i, squares)
    x = random(rng, (4, 70), F32)
    largest = lambda: {"out0": np.maximum.accumulate(x, 1)}
    _linear(s, rng)
    s.add("max", scan_kernel(4, 70, F32, combine="max"), {"in0": x}, largest)
    return s


def cases() -> list[Case]:
    return suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return suite().expected(case)
