"""Kernels for the gemv implementation: 1 to 8 rows, both orders of the matrix, narrow types, batches, fused ends."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
from cases_contract import matmul, matmul_kernel
from kernel_cases import Arrays, Case, Suite, at, put, random

from arcweld.codegen.kernel import Buffer, Kernel, axis
from arcweld.codegen.templates.contract.gemv import GemvTactic
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import cast, const, variable

F16, BF16, F32 = DType.F16, DType.BF16, DType.F32
MOST = {"m": 8, "n": 4096, "k": 4096}  # of open sizes


def dequantised_kernel(n: int, k: int, group: int = 16) -> Kernel:
    """One f32 row times int8 weights with a scale for each ``group`` of k: the weight's load has a prologue."""
    m, nn, kk = axis("m", 1), axis("n", n), axis("k", k)
    x, w = Buffer("in0", F32, (1, k)), Buffer("in1", DType.I8, (n, k))
    scale, y = Buffer("in2", F32, (n, k // group)), Buffer("out0", F32, (1, n), written=True)
    b = cast(at(w, [nn, kk]), F32) * at(scale, [nn, dims.floordiv(kk.index, group)])
    return Kernel(
        "contract", "gemv_dequantised", {"m": (m,), "n": (nn,), "k": (kk,)}, {"a": at(x, [m, kk]), "b": b},
        (put(y, [m, nn], variable("acc", F32) + const(1, F32)),), (x, w, scale, y), {"precision": "fp32"},
    )  # fmt: skip


def batched_kernel(batch: int, n: int, k: int) -> Kernel:
    """One row for each batch entry, as in decoding attention."""
    b, m, nn, kk = axis("b", batch), axis("m", 1), axis("n", n), axis("k", k)
    x, w = Buffer("in0", F16, (batch, k)), Buffer("in1", F16, (batch, k, n))
    y = Buffer("out0", F32, (batch, n), written=True)
    return Kernel(
        "contract", "gemv_batched", {"batch": (b,), "m": (m,), "n": (nn,), "k": (kk,)},
        {"a": at(x, [b, kk]), "b": at(w, [b, kk, nn])}, (put(y, [b, nn], variable("acc", F32)),), (x, w, y),
        {"precision": "f16"},
    )  # fmt: skip


@functools.cache
def _suite() -> Suite:
    s, rng = Suite(), np.random.default_rng(8)

    def add(name: str, size: tuple[int, int, int], dtype: DType, tactic: GemvTactic | None = None,
            symbolic: str = "", **kw: Any) -> None:  # fmt: skip
        m, n, k = (symbol(c.upper(), 1, MOST[c]) if c in symbolic else d for c, d in zip("mnk", size))
        env = {c.upper(): d for c, d in zip("mnk", size) if c in symbolic}
        kernel = replace(matmul_kernel(m, n, k, dtype, **kw), stem="gemv_add")
        shapes: list[tuple[Dim, ...]] = [tuple(dims.evaluate(d, env) for d in b.shape) for b in kernel.buffers[:3]]
        inputs: Arrays = {f"in{i}": random(rng, shape, dtype) for i, shape in enumerate(shapes)}  # type: ignore[arg-type]
        told = {x: kw[x] for x in ("order", "prologue") if x in kw}
        s.add(name, kernel, inputs, functools.partial(matmul, inputs, **told), env, tactic)

    for dtype in (F32, F16, BF16):
        for order in ("mk,nk", "mk,kn"):
            add(f"{dtype.value}_{order[3:]}", (1, 72, 400), dtype, order=order)
    add("f16_rows", (5, 40, 264), F16, order="mk,nk", weight=True)
    add("f16_rows_kn", (8, 40, 96), F16, weight=True)
    add("f16_odd", (3, 37, 101), F16, order="mk,nk", prologue=True)
    add("f16_odd_kn", (2, 37, 101), F16)
    add("f32_split", (1, 20, 520), F32, GemvTactic(2, 8, 2), order="mk,nk")
    add("f32_no_split", (2, 50, 130), F32, GemvTactic(4, 1, 2), order="mk,nk")
    add("f32_transposed", (4, 33, 60), F32, order="km,nk")
    add("f16_wide_kn", (1, 200, 70), F16, GemvTactic(8, 8, 2))
    add("f16_symbolic", (2, 72, 96), F16, order="mk,nk", symbolic="nk")
    add("f16_symbolic_kn", (2, 71, 93), F16, symbolic="nk")
    for rows in (1, 5, 8):
        add(f"f16_open_{rows}", (rows, 40, 264), F16, order="mk,nk", symbolic="m", weight=True)
    add("f32_open_kn", (3, 37, 101), F32, symbolic="mnk")
    add("tiny", (1, 1, 1), F32)
    _special(s, rng)
    return s


def _special(s: Suite, rng: np.random.Generator) -> None:
    q = {"in0": random(rng, (1, 96), F32), "in1": random(rng, (40, 96), DType.I8), "in2": random(rng, (40, 6), F32)}

    def dequantised() -> Arrays:
        w = q["in1"].astype(np.float64) * np.repeat(q["in2"].astype(np.float64), 16, axis=1)
        return {"out0": q["in0"].astype(np.float64) @ w.T + 1}

    s.add("dequantised", dequantised_kernel(40, 96), q, dequantised)
    x = {"in0": random(rng, (6, 32), F16), "in1": random(rng, (6, 32, 24), F16)}
    s.add(
        "batched", batched_kernel(6, 24, 32), x,
        lambda: {"out0": np.einsum("bk,bkn->bn", x["in0"].astype(np.float64), x["in1"].astype(np.float64))},
    )  # fmt: skip


def cases() -> list[Case]:
    return _suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return _suite().expected(case)
