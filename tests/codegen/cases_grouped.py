"""Kernels for products of rows in groups: uneven and empty groups, rows of none, ragged and open sizes, fused ends."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from kernel_cases import Arrays, Case, Suite, at, put, random

from arcweld.codegen.kernel import Buffer, Kernel, axis
from arcweld.codegen.templates.contract.tactic import ContractTactic
from arcweld.codegen.templates.contract.wgmma import ContractWgmmaTactic
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import const, unary, variable

F16, BF16, F32, F64 = DType.F16, DType.BF16, DType.F32, DType.F64
PRECISION = {F16: "f16", BF16: "bf16"}


def grouped_kernel(
    rows: Dim, groups: Dim, n: Dim, k: Dim, dtype: DType, order: str = "gkn", counted: DType = DType.I32,
    precision: str = "", epilogue: bool = False, parts: int = 1,
) -> Kernel:  # fmt: skip
    """``a @ b[group of the row]`` with ``b`` stored as ``order`` says; with ``epilogue`` tanh(...) * scale[row] + 1.

    ``a`` is the last one of so many parts, which lie side by side.
    """
    axes = {"m": axis("m", rows), "n": axis("n", n), "k": axis("k", k), "g": axis("g", groups)}
    a, b = Buffer("in0", dtype, (rows, parts * k)), Buffer("in1", dtype, tuple(axes[c].extent for c in order))
    end, scale = Buffer("in2", counted, (groups,)), Buffer("in3", dtype, (rows,))
    y = Buffer("out0", dtype, (rows, n), written=True)
    load_a = at(a, [axes["m"], (parts - 1) * k + axes["k"].index])
    value = variable("acc", load_a.dtype)
    if epilogue:
        value = unary("tanh", value) * at(scale, [axes["m"]]) + const(1, load_a.dtype)
    loads = {"a": load_a, "b": at(b, [axes[c] for c in order]), "ends": at(end, [axes["g"]])}
    return Kernel(
        "contract", "contract_grouped", {"batch": (axes["g"],), **{c: (axes[c],) for c in "mnk"}}, loads,
        (put(y, [axes["m"], axes["n"]], value),), (a, b, end, *([scale] if epilogue else []), y),
        {"precision": precision or PRECISION.get(dtype, "fp32"), "b_is_weight": True},
    )  # fmt: skip


def grouped(i: Arrays, order: str = "gkn", epilogue: bool = False, parts: int = 1) -> Arrays:
    """The same row by row, in f64: the first group that ends behind a row is its own."""
    a = np.split(i["in0"].astype(np.float64), parts, axis=1)[-1]
    b = np.einsum(f"{order}->gkn", i["in1"].astype(np.float64))
    y = np.zeros((len(a), b.shape[2]))
    for r, row in enumerate(a):
        own = np.flatnonzero(i["in2"] > r)
        if own.size:
            y[r] = row @ b[own[0]]
    return {"out0": np.tanh(y) * i["in3"].astype(np.float64)[:, None] + 1 if epilogue else y}


def _add(
    s: Suite, name: str, ends: Sequence[int], rows: int, n: int, k: int, dtype: DType,
    tactic: ContractTactic | ContractWgmmaTactic | None = None, symbolic: str = "", **kw: Any,
) -> None:  # fmt: skip
    rng = np.random.default_rng(len(s.cases))
    env = {"M": rows, "G": len(ends), "N": n, "K": k}
    size = [symbol(c, 0 if c == "M" else 1, 4096) if c in symbolic else d for c, d in env.items()]
    env = {c: d for c, d in env.items() if c in symbolic}
    kernel = grouped_kernel(*size, dtype, **kw)
    inputs = {
        b.name: random(rng, [dims.evaluate(d, env) for d in b.shape], dtype, 0.5)
        for b in kernel.buffers if not b.written and b.name != "in2"
    }  # fmt: skip
    inputs["in2"] = np.array(ends, kernel.buffer("in2").dtype.numpy)
    told = {x: kw[x] for x in ("order", "epilogue", "parts") if x in kw}
    s.add(name, kernel, inputs, functools.partial(grouped, inputs, **told), env, tactic)


SMALL, WARPS = ContractTactic("ffma", 32, 32, 16, 4, 2), ContractTactic("mma", 32, 32, 32, 16, 16, stages=3)


@functools.cache
def _suite() -> Suite:
    s = Suite()
    add = functools.partial(_add, s)
    add("f32_uneven", (3, 40, 41, 70), 70, 36, 20, F32, SMALL)
    add("f32_empty_groups", (0, 0, 33, 33, 50, 50), 50, 33, 17, F32, SMALL)
    add("f32_one_has_all", (0, 45, 45), 45, 40, 24, F32)
    add("f32_rows_of_none", (3, 20), 61, 20, 24, F32, SMALL)
    add("f32_no_rows", (0, 0), 0, 20, 24, F32, SMALL, symbolic="M")
    add("f32_one_group", (9,), 9, 20, 24, F32)
    add("f32_open", (5, 5, 37, 44), 44, 35, 19, F32, SMALL, symbolic="MGNK")
    add("f32_many_groups", tuple(np.minimum(np.arange(70) * 2, 110)), 120, 24, 16, F32, SMALL)
    add("f32_not_ascending", (9, -4, 7, 99, 3), 40, 20, 24, F32, SMALL)
    add("f32_split", (7, 40), 41, 36, 130, F32, ContractTactic("ffma", 32, 32, 16, 4, 2, split=4))
    add("f32_large_tile", (100, 260), 270, 130, 20, F32, ContractTactic("ffma", 128, 128, 16, 8, 8, early=False))
    add("f32_epilogue", (7, 30), 40, 24, 20, F32, SMALL, epilogue=True)
    add("f32_i64_ends", (7, 30), 40, 24, 20, F32, SMALL, counted=DType.I64)
    add("f64", (7, 30), 40, 24, 20, F64)
    for dtype in (F16, BF16):
        add(f"{dtype.value}_uneven", (3, 40, 41, 70), 70, 40, 56, dtype, WARPS)
        add(f"{dtype.value}_nk", (3, 40, 41, 64), 70, 40, 56, dtype, WARPS, order="gnk")
    add("f16_ragged", (3, 3, 35), 37, 35, 37, F16, WARPS)
    add("f16_open", (5, 5, 37, 44), 44, 40, 72, F16, WARPS, symbolic="M")
    add("f16_no_rows", (0, 0), 0, 40, 24, F16, WARPS, symbolic="M")
    add("f16_open_all", (5, 5, 37, 44), 49, 37, 71, F16, WARPS, symbolic="MGNK")
    add("f16_one_has_all", (0, 100, 100), 100, 64, 64, F16)
    add("f16_split", (9, 60), 60, 48, 400, F16, ContractTactic("mma", 32, 32, 32, 16, 16, stages=3, split=4))
    add("f16_epilogue", (7, 30), 40, 48, 64, F16, WARPS, epilogue=True)
    add("f16_many_groups", tuple(np.minimum(np.arange(70) * 3, 170)), 200, 40, 32, F16,
        ContractTactic("mma", 16, 64, 64, 16, 16, stages=4, early=False))  # fmt: skip
    for dtype, k in ((F32, 8), (F16, 16), (F16, 3)):  # as merged products of adapters have their operands
        add(f"{dtype.value}_a_part_{k}", (7, 30), 40, 48, k, dtype, parts=3)
    add("tf32", (7, 30), 40, 48, 64, F32, WARPS, precision="tf32x3")
    hopper = ContractWgmmaTactic(64, 64, 3)
    add("wgmma_uneven", (3, 40, 41, 140), 140, 40, 200, F16, hopper)
    add("wgmma_nk", (3, 40, 41, 130), 130, 40, 136, BF16, ContractWgmmaTactic(64, 32, 3), order="gnk")
    add("wgmma_several_tiles_each", (70, 70, 75, 300), 310, 72, 136, F16, ContractWgmmaTactic(64, 64, 3, blocks=3))
    add("wgmma_rows_of_none_first", (0, 0), 90, 64, 72, F16, ContractWgmmaTactic(64, 64, 2, blocks=2))
    add("wgmma_two_warpgroups", (100, 260), 270, 136, 72, F16, ContractWgmmaTactic(128, 128, 2, early=False))
    add("wgmma_open", (5, 5, 37, 144), 150, 40, 72, F16, hopper, symbolic="M", epilogue=True)
    add("wgmma_many_groups", tuple(np.minimum(np.arange(70) * 3, 170)), 200, 40, 64, F16, hopper)
    return s


def cases() -> list[Case]:
    """Every case."""
    return _suite().cases


def expected(case: Case) -> Arrays:
    """What numpy says the case gives."""
    return _suite().expected(case)
