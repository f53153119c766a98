"""Kernels for the transpose implementation: permutations of every rank, fused pointwise work, element sizes from
1 to 8 bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from kernel_cases import Arrays, Case, Suite, at, put, random

from arcweld.codegen.kernel import Buffer, Kernel, axis
from arcweld.codegen.templates.pointwise.transpose import TransposeTactic
from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, binary, cast, const, index, where

F32, F16 = DType.F32, DType.F16


def permute_kernel(shape: Sequence[Dim], perm: Sequence[int], dtype: DType, result: DType | None = None) -> Kernel:
    """``out0 = in0.transpose(perm)``, converted if ``result`` says so; ``shape`` is that of the input."""
    outs = tuple(axis(f"o{n}", shape[k]) for n, k in enumerate(perm))
    source = [outs[list(perm).index(n)] for n in range(len(shape))]
    x = Buffer("in0", dtype, tuple(shape))
    y = Buffer("out0", result or dtype, tuple(o.extent for o in outs), True)
    return Kernel("transpose", "permute", {"out": outs}, {}, (put(y, outs, cast(at(x, source), y.dtype)),), (x, y), {})


def fused_kernel(n: Dim, h: int, w: int, c: int) -> Kernel:
    """NHWC to NCHW of the sum of two images, with a scale per channel and a residual that is NCHW already."""
    b, ch, y, x = axis("b", n), axis("c", c), axis("y", h), axis("x", w)
    first, second = Buffer("in0", F16, (n, h, w, c)), Buffer("in1", F32, (n, h, w, c))
    scale, residual = Buffer("in2", F32, (c,)), Buffer("in3", F32, (n, c, h, w))
    out = Buffer("out0", F32, (n, c, h, w), True)
    image = (b, y, x, ch)
    value = (at(first, image) + at(second, image)) * at(scale, (ch,)) + at(residual, (b, ch, y, x))
    return Kernel(
        "transpose", "add_scale_permute", {"out": (b, ch, y, x)}, {}, (put(out, (b, ch, y, x), value),),
        (first, second, scale, residual, out), {},
    )  # fmt: skip


def fused(i: Arrays) -> dict[str, np.ndarray]:
    total = (i["in0"].astype(np.float64) + i["in1"]) * i["in2"]
    return {"out0": total.transpose(0, 3, 1, 2) + i["in3"]}


def padded_kernel(rows: int, cols: int, pad: int) -> Kernel:
    """The transpose of a matrix, with ``pad`` rows of -1 before and after it."""
    r, c = axis("r", cols + 2 * pad), axis("c", rows)
    x, y = Buffer("in0", F32, (rows, cols)), Buffer("out0", F32, (cols + 2 * pad, rows), True)
    place = r.index - pad
    i64 = DType.I64
    inside: Expr = binary(
        "and",
        binary("ge", index(place), const(0, i64)),
        binary("lt", index(place), const(cols, i64)),
    )
    value = where(inside, at(x, (c, place), inside), const(-1.0, F32))
    return Kernel("transpose", "pad_permute", {"out": (r, c)}, {}, (put(y, (r, c), value),), (x, y), {})


@functools.cache
def suite() -> Suite:
    """All cases; small enough for the simulator."""
    s, rng = Suite(), np.random.default_rng(3)
    rows: list[tuple[tuple[int, ...], tuple[int, ...], DType, TransposeTactic | None]] = [
        ((64, 64), (1, 0), F32, None),
        ((65, 33), (1, 0), F32, None),
        ((128, 72), (1, 0), F16, None),
        ((2, 10, 12, 16), (0, 3, 1, 2), F16, None),
        ((2, 3, 7, 9), (0, 2, 3, 1), F32, None),
        ((3, 40, 4, 16), (0, 2, 3, 1), DType.BF16, None),
        ((5, 6, 7, 8), (3, 1, 0, 2), F32, None),
        ((40, 36), (1, 0), DType.I8, None),
        ((35, 20), (1, 0), DType.I64, None),
        ((17, 24), (1, 0), DType.BOOL, None),
        ((100, 80), (1, 0), F32, TransposeTactic(64, 32, 128)),
    ]
    for shape, perm, dtype, tactic in rows:
        x = random(rng, shape, dtype)
        name = f"{'x'.join(map(str, shape))}_to{''.join(map(str, perm))}_{dtype.value}"
        s.add(
            name, permute_kernel(shape, perm, dtype), {"in0": x}, lambda x=x, perm=perm: {"out0": x.transpose(perm)},
            tactic=tactic,
        )  # fmt: skip
    x = random(rng, (48, 40), F16)
    s.add("cast", permute_kernel((48, 40), (1, 0), F16, F32), {"in0": x}, lambda: {"out0": x.T})
    for name, n in (("fused", 2), ("fused_symbolic", symbol("batch", 1))):
        i = {"in0": random(rng, (2, 5, 6, 24), F16), "in1": random(rng, (2, 5, 6, 24), F32)}
        i |= {"in2": random(rng, (24,), F32), "in3": random(rng, (2, 24, 5, 6), F32)}
        s.add(name, fused_kernel(n, 5, 6, 24), i, lambda i=i: fused(i), {"batch": 2})
    z = random(rng, (20, 30), F32)
    s.add(
        "padded",
        padded_kernel(20, 30, 3),
        {"in0": z},
        lambda: {"out0": np.pad(z.T, ((3, 3), (0, 0)), constant_values=-1)},
    )
    n, m = symbol("n", 1), symbol("m", 1)
    s.add("symbolic", permute_kernel((n, m), (1, 0), F32), {"in0": z}, lambda: {"out0": z.T}, {"n": 20, "m": 30})
    return s


def cases() -> list[Case]:
    return suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return suite().expected(case)
