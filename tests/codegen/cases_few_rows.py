"""Kernels for the few_rows implementations: 1 to 16 rows of 16-bit numbers, tails of columns and of k, open sizes."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
from cases_contract import PRECISION, acc, matmul, matmul_kernel
from kernel_cases import Arrays, Case, Suite, at, put, random

from arcweld.codegen.kernel import Buffer, Kernel, axis
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import cast

F16, BF16, F32 = DType.F16, DType.BF16, DType.F32
MOST = {"m": 16, "n": 4096, "k": 4096}  # of open sizes
STEP = {"m": 1, "n": 1, "k": 8}


def wide_rows_kernel(m: Dim, n: int, k: int, dtype: DType) -> Kernel:
    """f32 rows times 16-bit weights, in tensor cores' precision: each element of a row has to be rounded, or split.

    No case of the suite: tactics differ in accuracy.
    """
    mm, nn, kk = axis("m", m), axis("n", n), axis("k", k)
    a, b, y = Buffer("in0", F32, (m, k)), Buffer("in1", dtype, (n, k)), Buffer("out0", F32, (m, n), written=True)
    return Kernel(
        "contract", "few_rows_wide", {"m": (mm,), "n": (nn,), "k": (kk,)},
        {"a": cast(at(a, [mm, kk]), F32) * 0.7, "b": at(b, [nn, kk])}, (put(y, [mm, nn], acc()),), (a, b, y),
        {"precision": PRECISION[dtype], "b_is_weight": True},
    )  # fmt: skip


def wide_rows(i: Arrays) -> Arrays:
    return {"out0": i["in0"].astype(np.float64) * np.float64(np.float32(0.7)) @ i["in1"].astype(np.float64).T}


def batched_kernel(batch: int, m: int, n: int, k: int) -> Kernel:
    """Some rows for each batch entry, as of decoding attention: no weights."""
    b, mm, nn, kk = axis("b", batch), axis("m", m), axis("n", n), axis("k", k)
    x, w = Buffer("in0", F16, (batch, m, k)), Buffer("in1", F16, (batch, n, k))
    y = Buffer("out0", F32, (batch, m, n), written=True)
    return Kernel(
        "contract", "few_rows_batched", {"batch": (b,), "m": (mm,), "n": (nn,), "k": (kk,)},
        {"a": at(x, [b, mm, kk]), "b": at(w, [b, nn, kk])}, (put(y, [b, mm, nn], acc()),), (x, w, y),
        {"precision": "f16"},
    )  # fmt: skip


@functools.cache
def _suite() -> Suite:
    s, rng = Suite(), np.random.default_rng(12)

    def add(name: str, size: tuple[int, int, int], dtype: DType, symbolic: str = "", **kw: Any) -> None:
        m, n, k = (symbol(c.upper(), 1, MOST[c], STEP[c]) if c in symbolic else d for c, d in zip("mnk", size))
        env = {c.upper(): d for c, d in zip("mnk", size) if c in symbolic}
        order = kw.setdefault("order", "mk,nk")
        kernel = replace(matmul_kernel(m, n, k, dtype, weight=True, **kw), stem="few_rows_add")
        shapes = [tuple(dims.evaluate(d, env) for d in b.shape) for b in kernel.buffers[:3]]
        inputs = {f"in{i}": random(rng, shape, dtype) for i, shape in enumerate(shapes)}
        told = {"order": order, "prologue": kw.get("prologue", False)}
        s.add(name, kernel, inputs, functools.partial(matmul, inputs, **told), env)

    for rows in range(1, 17):
        add(f"rows_{rows}", (rows, 40, 8 * rows + 256), (F16, BF16)[rows % 2])
    add("short", (2, 24, 8), F16)
    add("one_column", (3, 1, 64), BF16)
    add("several_tiles_each", (2, 4240, 72), F16)
    add("long", (5, 20, 4160), BF16)
    add("transposed_rows", (6, 24, 72), F16, order="km,nk")
    add("prologue", (3, 37, 104), F16, prologue=True)
    add("prologue_of_many", (12, 24, 80), BF16, prologue=True)
    for rows in (1, 7, 16):
        add(f"open_{rows}", (rows, 72, 136), F16, symbolic="m")
    add("open_all", (3, 45, 88), BF16, symbolic="mnk")
    add("open_all_prologue", (9, 45, 88), F16, symbolic="mnk", prologue=True)
    x = {"in0": random(rng, (5, 3, 40), F16), "in1": random(rng, (5, 24, 40), F16)}
    s.add("batched", batched_kernel(5, 3, 24, 40), x, functools.partial(_batched, x))
    return s


def _batched(x: Arrays) -> Arrays:
    return {"out0": np.einsum("bmk,bnk->bmn", x["in0"].astype(np.float64), x["in1"].astype(np.float64))}


def cases() -> list[Case]:
    return _suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return _suite().expected(case)
