"""Products of many rows by stored weights on wgmma: types, groups, zero points, tails of all sizes, open sizes."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
from cases_contract import acc
from cases_stored import EVERY, FLOATS, Weights, inputs_of, product, stored_kernel
from kernel_cases import Arrays, Case, Suite, at, put

from arcweld.codegen.kernel import Buffer, Kernel, axis
from arcweld.codegen.templates.contract.wgmma_stored import WgmmaStoredTactic
from arcweld.compiler import dims
from arcweld.compiler.dims import symbol
from arcweld.compiler.dtypes import PLANES, DType
from arcweld.compiler.expr import cast

F16, BF16, F32 = DType.F16, DType.BF16, DType.F32
SMALL, LARGE = WgmmaStoredTactic(64, 64, 3, 2), WgmmaStoredTactic(32, 128, 6, 2)


def planes(tactic: WgmmaStoredTactic, high: DType) -> WgmmaStoredTactic:
    """The tactic with room for upper bits."""
    return replace(tactic, high=32 * high.bits)


def batched_kernel(b: int, m: int, n: int, k: int, w: Weights, own: bool) -> Kernel:
    """Several products by one matrix, or each by its ``own``: ``a @ (scale * q).T + bias``."""
    bb, mm, nn, kk = axis("b", b), axis("m", m), axis("n", n), axis("k", k)
    each, which = ((b,), [bb]) if own else ((), [])
    a, q = Buffer("in0", F16, (b, m, k)), Buffer("in1", w.dtype, (*each, n, k))
    scale, bias = Buffer("in2", w.scale, (*each, n, k // w.group)), Buffer("in4", F16, (n,))
    y = Buffer("out0", F16, (b, m, n), written=True)
    number = cast(cast(at(q, [*which, nn, kk]), DType.I32), F32)
    weights = number * at(scale, [*which, nn, dims.floordiv(kk.index, w.group)])
    return Kernel(
        "contract", "stored_matmul", {"batch": (bb,), "m": (mm,), "n": (nn,), "k": (kk,)},
        {"a": at(a, [bb, mm, kk]), "b": weights}, (put(y, [bb, mm, nn], acc() + at(bias, [nn])),),
        (a, q, scale, bias, y), {"precision": "f16", "b_is_weight": True},
    )  # fmt: skip


def batched(i: Arrays, w: Weights) -> Arrays:
    """What ``batched_kernel`` computes, in f64."""
    weights = i["in1"].astype(np.float64) * np.repeat(i["in2"].astype(np.float64), w.group, -1)
    return {"out0": i["in0"].astype(np.float64) @ np.swapaxes(weights, -1, -2) + i["in4"].astype(np.float64)}


@functools.cache
def _suite() -> Suite:
    s, rng = Suite(), np.random.default_rng(37)

    def add(name: str, size: tuple[int, int, int], dtype: DType, w: Weights, tactic: WgmmaStoredTactic | None = None,
            symbolic: str = "", **kw: Any) -> None:  # fmt: skip
        most, step = {"m": 4096, "n": 2048, "k": 2048}, {"m": 1, "n": 1, "k": 128}
        m, n, k = (symbol(c.upper(), 1, most[c], step[c]) if c in symbolic else d for c, d in zip("mnk", size))
        env = {c.upper(): d for c, d in zip("mnk", size) if c in symbolic}
        kernel = stored_kernel(m, n, k, dtype, w, **kw)
        inputs = inputs_of(rng, kernel, w, env)
        s.add(name, kernel, inputs, functools.partial(product, inputs, w, False), env, tactic)

    rows = [64, 73, 130]
    for i, dtype in enumerate((DType.U4, DType.I4, DType.U8, DType.I8, DType.U2, DType.I2)):
        for j, group in enumerate((32, 64, 128, 0)):
            w = Weights(dtype, group, ("none", "literal", "read")[(i + j) % 3], (F32, F16, BF16)[(i + j // 2) % 3])
            size = (rows[(i + j) % 3], 70, 384 + 128 * (j % 2))
            add(f"{dtype.value}_{group}", size, (F16, BF16)[(i // 2 + j) % 2], w)
    for i, dtype in enumerate(FLOATS):
        for j, group in enumerate((32, 128, 0)):
            add(f"{dtype.value}_{group}", (rows[(i + j) % 3], 40, 256), (F16, BF16)[(i + j) % 2], Weights(dtype, group))
    for i, high in enumerate(PLANES):
        for j, group in [*enumerate((32, 64, 128, 0))][:: 1 if EVERY else 2]:
            w = Weights(DType.U4, group, ("none", "literal")[(i + j) % 2], (F32, F16)[j % 2], high)
            size = (rows[(i + j) % 3], 70, 384 + 128 * (j % 2))
            add(f"{high.value}_above_{group}", size, (F16, BF16)[(i + j // 2) % 2], w)
        w = Weights(DType.U4, 32, "literal", F16, high)
        for k in (128, 640, 1152) if EVERY else (640,):
            add(f"{high.value}_above_ragged_{k}", (65, 21, k), (F16, BF16)[i], w, planes(SMALL, high))
        add(f"{high.value}_above_two_warpgroups", (70, 200, 1024), F16, w, planes(LARGE, high))
        add(f"{high.value}_above_open", (67, 45, 384), BF16, w, planes(SMALL, high), symbolic="mnk")
    six = Weights(DType.U4, 16, "literal", DType.I8, DType.U2, 256)  # GGUF's Q6_K
    add("two_levels", (65, 70, 512), F16, six)
    add("two_levels_two_warpgroups", (40, 200, 768), BF16, six, planes(LARGE, DType.U2))
    add("two_levels_of_32", (65, 21, 512), F16, Weights(DType.U4, 32, "none", DType.U8, None, 256), SMALL)
    for dtype in (DType.U4, DType.I8, DType.F4E2M1):
        add(f"{dtype.value}_16", (65, 37, 384), F16, Weights(dtype, 16), SMALL)
    asymmetric = Weights(DType.U4, 32, "read")
    for k in (32, 96, 160, 1184):
        add(f"ragged_{k}", (65, 21, k), F16, asymmetric, SMALL)
    add("ragged_bytes", (70, 21, 80), BF16, Weights(DType.I8, 0, "read"))
    add("ragged_group", (70, 24, 160), F16, Weights(DType.U4, 128, "read"), LARGE)
    add("two_warpgroups", (70, 200, 1056), F16, asymmetric, LARGE)
    add("two_warpgroups_bytes", (20, 136, 640), BF16, Weights(DType.U8, 128, "read"), LARGE)
    add("long", (40, 72, 2080), BF16, asymmetric, WgmmaStoredTactic(32, 64, 7, 2, early=False), weight=False)
    add("wide", (300, 130, 192), F16, Weights(DType.I4, 0, "literal"), WgmmaStoredTactic(256, 128, 2, 2))
    add("many_rows", (512, 64, 128), F16, Weights(DType.U4, 128, "read", F16))
    add("group_256", (65, 24, 640), F16, Weights(DType.U4, 256, "read"), SMALL)
    add("group_1024", (65, 24, 1184), BF16, Weights(DType.I8, 1024), SMALL)
    add("few_rows", (17, 64, 256), F16, asymmetric, WgmmaStoredTactic(16, 64, 4, 2))
    for m in (1, 64, 200):
        add(f"open_{m}", (m, 72, 256), F16, asymmetric, symbolic="m")
    add("open_all", (67, 45, 384), BF16, Weights(DType.U4, 128, "read"), SMALL, symbolic="mnk")
    for own in (False, True):
        w = Weights(DType.U4, 64)
        kernel = batched_kernel(3, 65, 72, 192, w, own)
        inputs = inputs_of(rng, kernel, w, {})
        s.add(f"batch{'_of_both' if own else ''}", kernel, inputs, functools.partial(batched, inputs, w), {}, SMALL)
    return s


def cases() -> list[Case]:
    return _suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return _suite().expected(case)
