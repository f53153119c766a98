"""Kernels for the runs template: runs of every type, borders of blocks, symbolic sizes, some or all results."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from kernel_cases import Case, Suite, at, put, random

from arcweld.codegen.kernel import Buffer, Kernel, axis
from arcweld.codegen.templates.sort.runs import RESULTS, RunsTactic
from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import variable

F32, I64 = DType.F32, DType.I64


def runs_kernel(n: Dim, dtype: DType, *, by_place: bool = False, results: Sequence[str] = RESULTS) -> Kernel:
    """Each of ``results`` in a buffer ``out0``, ``out1``, …, in that order."""
    c, g = axis("c", n), axis("g", n)
    x, order = Buffer("in0", dtype, (n,)), Buffer("in1", I64, (n,))
    buffers, stores = [x, order], []
    for k, name in enumerate(results):
        element = dtype if name == "value" else I64
        where: Dim = {"kind": c.index, "number": 0}.get(name, g.index)
        buffers.append(Buffer(f"out{k}", element, (1 if name == "number" else n,), True))
        stores.append(put(buffers[-1], (where,), variable(name, element)))
    return Kernel(
        "runs", "runs", {"col": (c,), "run": (g,)}, {"x": at(x, (c,)), "order": at(order, (c,))}, tuple(stores),
        tuple(buffers), {"by_place": by_place},
    )  # fmt: skip


def told(x: np.ndarray, by_place: bool, results: Sequence[str] = RESULTS) -> dict[str, np.ndarray]:
    """By Python: elements are equal as they are printed, but for the signs of zeros and of NaNs."""
    names = [str(abs(v)) if v == 0 or v != v else repr(v) for v in x.tolist()]
    by_value = sorted(set(names), key=lambda s: (s == "nan", float(s)) if x.dtype.kind == "f" else (False, int(s)))
    kinds = list(dict.fromkeys(names)) if by_place else by_value
    first = [names.index(s) for s in kinds]
    rest = len(x) - len(kinds)
    found = {
        "value": np.concatenate([x[first], np.zeros(rest, x.dtype)]), "first": np.array([*first, *[0] * rest]),
        "counts": np.array([*map(names.count, kinds), *[0] * rest]), "kind": np.array([kinds.index(s) for s in names]),
        "number": np.array([len(kinds)]),
    }  # fmt: skip
    return {f"out{k}": found[name] for k, name in enumerate(results)}


def feeds(x: np.ndarray) -> dict[str, np.ndarray]:
    """The vector and the places that sort it."""
    return {"in0": x, "in1": np.argsort(x.astype(np.float64) if x.dtype.kind == "V" else x, kind="stable")}


@functools.cache
def suite() -> Suite:
    """All cases; small enough for the simulator."""
    s, rng = Suite(), np.random.default_rng(8)
    for dtype in (F32, DType.F16, DType.F64, I64, DType.I32, DType.I16, DType.I8, DType.U8, DType.U16, DType.U32,
                  DType.U64):  # fmt: skip
        for by_place in (False, True):
            x = random(rng, (150,), dtype)
            if dtype.is_float:
                x = np.round(x).astype(x.dtype)
                x[3::19], x[4], x[5::8], x[6], x[7] = np.nan, np.inf, -0.0, -np.inf, 0.0
            else:
                info = np.iinfo(dtype.numpy)
                x[:3] = info.min, info.max, info.min
            s.add(f"{dtype.value}_{by_place}", runs_kernel(150, dtype, by_place=by_place), feeds(x),
                  lambda x=x, by_place=by_place: told(x, by_place), tactic=RunsTactic(32, 3))  # fmt: skip
    for n, high, tactic in ((1, 1, None), (2, 1, None), (70, 1000, RunsTactic(32, 7)), (600, 1, RunsTactic(64, 3)),
                            (5, 9, RunsTactic(32, 8)), (700, 90, RunsTactic(128, 2)), (2000, 30, None)):  # fmt: skip
        for by_place in (False, True):
            x = rng.integers(-high, high, n).astype(np.int32)
            s.add(f"{n}_{high}_{by_place}", runs_kernel(n, DType.I32, by_place=by_place), feeds(x),
                  lambda x=x, by_place=by_place: told(x, by_place), tactic=tactic)  # fmt: skip
    n = symbol("n")
    for count in (0, 1, 64, 65, 300):
        x = rng.integers(0, 40, count).astype(np.float32)
        s.add(f"symbolic_{count}", runs_kernel(n, F32, by_place=True), feeds(x), lambda x=x: told(x, True),
              {"n": count}, RunsTactic(32, 2))  # fmt: skip
    x = rng.integers(0, 40, 200).astype(np.float32)
    for by_place in (False, True):
        for results in (*((name,) for name in RESULTS), ("value", "counts"), ("kind", "number")):
            kernel = runs_kernel(200, F32, by_place=by_place, results=results)
            s.add(f"{'_'.join(results)}_{by_place}", kernel, feeds(x),
                  lambda by_place=by_place, results=results: told(x, by_place, results),
                  tactic=RunsTactic(32, 2))  # fmt: skip
    return s


def cases() -> list[Case]:
    return suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return suite().expected(case)
