"""Kernels for the reduce template: every combiner and type, adjacent and scattered axes, prologues,
symbolic extents.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from kernel_cases import Arrays, Case, Suite, at, put, random

from arcweld.codegen.kernel import Buffer, Kernel, axis
from arcweld.codegen.templates.reduce.reduce import ReduceTactic
from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, cast, const, unary, variable

F32, F16 = DType.F32, DType.F16
Map = Callable[[Expr], Expr]


def reduce_kernel(
    shape: Sequence[Dim],
    reduced: Sequence[int],
    combine: str,
    dtype: DType,
    *,
    result: DType | None = None,
    before: Map | None = None,
    after: Map | None = None,
    last: bool = False,
) -> Kernel:
    """Reduces ``in0`` over the axes ``reduced`` into ``out0``, with a map before and one after the reduction."""
    axes = tuple(axis(f"i{n}", d) for n, d in enumerate(shape))
    out = tuple(a for n, a in enumerate(axes) if n not in reduced)
    arg = combine.startswith("arg")
    x = Buffer("in0", dtype, tuple(shape))
    y = Buffer("out0", DType.I64 if arg else result or dtype, tuple(a.extent for a in out), True)
    acc = variable("acc", DType.I64 if arg else dtype.compute)
    value = after(acc) if after else acc
    return Kernel(
        "reduce", f"reduce_{combine}", {"out": out, "reduce": tuple(axes[n] for n in reduced)},
        {"x": before(at(x, axes)) if before else at(x, axes)}, (put(y, out, cast(value, y.dtype)),), (x, y),
        {"combine": combine, "select_last": last},
    )  # fmt: skip


NUMPY: dict[str, Callable[..., np.ndarray]] = {"sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min}


def reduced(x: np.ndarray, axes: Sequence[int], combine: str, last: bool = False) -> np.ndarray:
    """numpy's result, floats in f64."""
    if x.dtype.kind in "fV":
        x = x.astype(np.float64)
    if combine in NUMPY:
        if combine in ("max", "min") and 0 in [x.shape[a] for a in axes]:
            return NUMPY[combine](x, axis=tuple(axes), initial=-np.inf if combine == "max" else np.inf)
        keep = {} if combine in ("max", "min") else {"dtype": x.dtype}
        return NUMPY[combine](x, axis=tuple(axes), **keep)
    pick = np.argmax if combine == "argmax" else np.argmin
    moved = np.moveaxis(x, axes, range(-len(axes), 0)).reshape(*[n for a, n in enumerate(x.shape) if a not in axes], -1)
    if last:
        return moved.shape[-1] - 1 - pick(moved[..., ::-1], axis=-1)
    return pick(moved, axis=-1)


@functools.cache
def suite() -> Suite:
    """All cases; small enough for the simulator."""
    s, rng = Suite(), np.random.default_rng(11)
    shapes: list[tuple[tuple[int, ...], tuple[int, ...], str, DType]] = [
        ((5, 300), (1,), "sum", F32),
        ((3, 1024), (1,), "sum", F16),
        ((300, 37), (0,), "max", F32),
        ((64, 128), (0,), "sum", F16),
        ((4, 6, 5, 7), (0, 2), "sum", F32),
        ((2, 24, 49), (2,), "sum", DType.BF16),
        ((3, 4, 8, 8), (0, 2, 3), "max", F16),
        ((9, 3), (1,), "prod", F32),
        ((2, 7, 11), (0, 1, 2), "sum", F32),
        ((6, 33), (1,), "sum", DType.I64),
        ((31, 16), (0,), "min", DType.I32),
        ((4, 50), (1,), "max", DType.BOOL),
        ((4, 50), (1,), "min", DType.U8),
        ((70, 3), (0,), "sum", DType.F64),
        ((3, 0), (1,), "sum", F32),
        ((3, 0), (1,), "max", F32),
        ((2, 5), (), "sum", F32),
    ]
    for shape, axes, combine, dtype in shapes:
        x = random(rng, shape, dtype)
        name = f"{combine}_{'x'.join(map(str, shape))}_over{''.join(map(str, axes))}_{dtype.value}"
        s.add(
            name, reduce_kernel(shape, axes, combine, dtype), {"in0": x},
            lambda x=x, axes=axes, combine=combine: {"out0": reduced(x, axes, combine)},
        )  # fmt: skip
    _add_args(s, rng)
    _add_fused(s, rng)
    return s


def _add_args(s: Suite, rng: np.random.Generator) -> None:
    for shape, axes, dtype in (((4, 90), (1,), F32), ((90, 40), (0,), F16), ((3, 5, 8), (1,), DType.I64)):
        for combine, last in (("argmax", False), ("argmax", True), ("argmin", False)):
            x = np.round(random(rng, shape, dtype)).astype(dtype.numpy)  # many ties
            if dtype is F32:
                x[1, 30] = x[1, 60] = np.nan
                x[2, :] = -np.inf
            name = f"{combine}{'_last' if last else ''}_{'x'.join(map(str, shape))}_{dtype.value}"
            s.add(
                name, reduce_kernel(shape, axes, combine, dtype, last=last), {"in0": x},
                lambda x=x, axes=axes, combine=combine, last=last: {"out0": reduced(x, axes, combine, last)},
            )  # fmt: skip


def _mean_and_scale(rows: Dim, cols: Dim) -> Kernel:
    """Mean of squares over rows of (x - shift[col]), times a gain for each row, in f16 from two inputs."""
    r, c = axis("r", rows), axis("c", cols)
    x, shift, gain = Buffer("in0", F16, (rows, cols)), Buffer("in1", F32, (cols,)), Buffer("in2", F32, (rows,))
    y = Buffer("out0", F16, (rows,), True)
    d = at(x, (r, c)) - at(shift, (c,))
    mean = variable("acc", F32) * (1.0 / 64)
    return Kernel(
        "reduce", "sub_square_mean", {"out": (r,), "reduce": (c,)}, {"x": d * d},
        (put(y, (r,), mean * at(gain, (r,))),), (x, shift, gain, y), {"combine": "sum"},
    )  # fmt: skip


def _fused_oracle(i: Arrays) -> dict[str, np.ndarray]:
    d = i["in0"].astype(np.float64) - i["in1"]
    return {"out0": (d * d).mean(-1) * i["in2"]}


def _add_fused(s: Suite, rng: np.random.Generator) -> None:
    i = {"in0": random(rng, (10, 64), F16), "in1": random(rng, (64,), F32), "in2": random(rng, (10,), F32)}
    s.add("fused_mean", _mean_and_scale(10, 64), i, lambda: _fused_oracle(i))
    s.add("fused_mean_symbolic", _mean_and_scale(symbol("n", 1), 64), i, lambda: _fused_oracle(i), {"n": 10})
    n, m = symbol("n", 0), symbol("m", 0)
    x = random(rng, (19, 45), F32)
    for axes in ((0,), (1,)):
        s.add(
            f"symbolic_over{axes[0]}", reduce_kernel((n, m), axes, "sum", F32), {"in0": x},
            lambda axes=axes: {"out0": reduced(x, axes, "sum")}, {"n": 19, "m": 45},
        )  # fmt: skip
    logsumexp = reduce_kernel(
        (6, 20), (1,), "sum", F32, before=lambda e: unary("exp", e), after=lambda e: unary("log", e)
    )
    z = random(rng, (6, 20), F32)
    s.add("log_sum_exp", logsumexp, {"in0": z}, lambda: {"out0": np.log(np.exp(z.astype(np.float64)).sum(1))})
    big = random(rng, (1, 5000), F32)
    for lanes in (256, 1024):
        s.add(
            f"one_output_{lanes}", reduce_kernel((1, 5000), (1,), "max", F32), {"in0": big},
            lambda: {"out0": reduced(big, (1,), "max")}, tactic=ReduceTactic("row", lanes=lanes, unroll=8),
        )  # fmt: skip
    tall = random(rng, (600, 20), F16)
    s.add(
        "tall_column", reduce_kernel((600, 20), (0,), "sum", F16, result=F32), {"in0": tall},
        lambda: {"out0": reduced(tall, (0,), "sum")}, tactic=ReduceTactic("column", lanes=32, outputs=4),
    )  # fmt: skip
    count = reduce_kernel(
        (4, 30), (1,), "sum", DType.I64, before=lambda e: cast(unary("sign", e), DType.I64) + const(1, DType.I64)
    )
    k = random(rng, (4, 30), DType.I64)
    s.add("integer_prologue", count, {"in0": k}, lambda: {"out0": (np.sign(k) + 1).sum(1)})


def cases() -> list[Case]:
    return suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return suite().expected(case)
