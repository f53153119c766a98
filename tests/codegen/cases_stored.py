"""Kernels of few rows by stored weights: types, groups, zero points, tails of columns and of k, open rows."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from cases_contract import PRECISION, acc
from kernel_cases import Arrays, Case, Suite, at, put, random

from arcweld.codegen.kernel import Axis, Buffer, Kernel, axis
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import PLANES, DType, integer_range
from arcweld.compiler.expr import Expr, binary, cast, const

F16, BF16, F32, I32 = DType.F16, DType.BF16, DType.F32, DType.I32
EVERY = bool(os.environ.get("ARCWELD_EVERY"))  # all cases of two planes and small groups, not one of each kind
FLOATS = (DType.F8E4M3FN, DType.F8E5M2, DType.F4E2M1)


@dataclass(frozen=True, slots=True)
class Weights:
    """How weights are stored.

    ``group``: k of a group, 0 for all; ``zero``: none, literal or read; ``high``: the type of the bits above ``dtype``;
    ``unit``: k of the groups that share what integer scales are multiplied with, 0: they are floats.
    """

    dtype: DType
    group: int = 0
    zero: str = "none"
    scale: DType = F32
    high: DType | None = None
    unit: int = 0


def stored_kernel(
    m: Dim, n: Dim, k: Dim, dtype: DType, w: Weights, *, weight: bool = True, prologue: bool = False
) -> Kernel:
    """``a @ (scale * (q - zero)).T + bias`` with q [n, k], scales and zero points [n, groups] or [n]."""
    mm, nn, kk = axis("m", m), axis("n", n), axis("k", k)
    shape: tuple[Dim, ...] = (n, dims.ceildiv(k, w.group)) if w.group else (n,)
    place: list[Axis | Dim] = [nn, dims.floordiv(kk.index, w.group)] if w.group else [nn]
    a, q, scale = Buffer("in0", dtype, (m, k)), Buffer("in1", w.dtype, (n, k)), Buffer("in2", w.scale, shape)
    zero, bias = Buffer("in3", w.dtype, shape), Buffer("in4", dtype, (n,))
    y = Buffer("out0", dtype, (m, n), written=True)
    high = Buffer("in5", w.high or DType.U2, (n, k))
    stored: Expr = at(q, [nn, kk])
    if w.high is not None:
        stored = binary("bitor", stored, binary("shl", at(high, [nn, kk]), const(4, DType.U8)))
    number: Expr = stored if w.dtype in FLOATS else cast(stored, I32)
    if w.zero != "none":
        number = number - (cast(at(zero, place), I32) if w.zero == "read" else const(literal_of(w), I32))
    unit = Buffer("in6", F16, (n, dims.ceildiv(k, w.unit or 1)))
    step = at(scale, place)
    if w.unit:
        step = cast(cast(step, I32), F32) * cast(at(unit, [nn, dims.floordiv(kk.index, w.unit)]), F32)
    b = cast(number, F32) * step
    left = at(a, [mm, kk])
    read = (a, q, scale, *([zero] if w.zero == "read" else []), bias, *([] if w.high is None else [high]),
            *([unit] if w.unit else []))  # fmt: skip
    return Kernel(
        "contract", "stored_matmul", {"m": (mm,), "n": (nn,), "k": (kk,)},
        {"a": cast(left, F32) * 0.5 if prologue else left, "b": b}, (put(y, [mm, nn], acc() + at(bias, [nn])),),
        (*read, y), {"precision": PRECISION[dtype], "b_is_weight": weight},
    )  # fmt: skip


def literal(dtype: DType) -> int:
    """A zero point other than 0."""
    return {DType.U2: 2, DType.I2: -1, DType.U4: 8, DType.I4: -3, DType.U8: 131, DType.I8: -77}[dtype]


def literal_of(w: Weights) -> int:
    """The zero point of weights: of 6 bits 32, of 5 bits 16."""
    return literal(w.dtype) if w.high is None else 8 << w.high.bits


def name_of(w: Weights) -> str:
    """Their type, for tests' names."""
    return "_".join(d.value for d in (w.dtype, w.high) if d is not None) + ("_levels" if w.unit else "")


def drawn(rng: np.random.Generator, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of all values of a stored type."""
    if dtype in FLOATS:
        return rng.standard_normal(shape).astype(dtype.numpy)
    low, high = integer_range(dtype)
    return rng.integers(low, high + 1, shape).astype(dtype.numpy)


def inputs_of(rng: np.random.Generator, kernel: Kernel, w: Weights, env: dict[str, int]) -> Arrays:
    """Values of all that the kernel reads."""
    shapes = {b.name: tuple(dims.evaluate(d, env) for d in b.shape) for b in kernel.buffers if not b.written}
    typical = 1.0 if w.dtype in FLOATS else 1 / (1 << (w.dtype.bits - 1))
    found = {"in1": drawn(rng, w.dtype, shapes["in1"])}
    if w.high is not None:
        found["in5"] = drawn(rng, w.high, shapes["in5"])
    if w.unit:
        found["in6"] = (rng.uniform(0.5, 1.5, shapes["in6"]) / 64 * typical).astype(F16.numpy)
        typical = 60.0
    found["in2"] = (rng.uniform(0.5, 1.5, shapes["in2"]) * typical).astype(w.scale.numpy)
    if "in3" in shapes:
        found["in3"] = drawn(rng, w.dtype, shapes["in3"])
    return found | {name: random(rng, shapes[name], kernel.buffer(name).dtype) for name in ("in0", "in4")}


def product(i: Arrays, w: Weights, prologue: bool) -> Arrays:
    """In f64, on dequantised weights."""
    q, scale = i["in1"].astype(np.float64), i["in2"].astype(np.float64)
    if w.high is not None:
        q += 16 * i["in5"].astype(np.float64)
    if w.unit:
        scale *= np.repeat(i["in6"].astype(np.float64), w.unit // w.group, 1)[:, : scale.shape[1]]
    zero: Any = i["in3"].astype(np.float64) if w.zero == "read" else literal_of(w) if w.zero == "literal" else 0.0
    if w.group:
        spread = lambda x: np.repeat(x, w.group, 1)[:, : q.shape[1]] if isinstance(x, np.ndarray) else x
        b = spread(scale) * (q - spread(zero))
    else:
        b = scale[:, None] * (q - (zero[:, None] if isinstance(zero, np.ndarray) else zero))
    a = i["in0"].astype(np.float64) * (0.5 if prologue else 1.0)
    return {"out0": a @ b.T + i["in4"].astype(np.float64)}


@functools.cache
def _suite() -> Suite:
    s, rng = Suite(), np.random.default_rng(31)

    def add(name: str, size: tuple[int, int, int], dtype: DType, w: Weights, symbolic: str = "", **kw: Any) -> None:
        most, step = {"m": 16, "n": 2048, "k": 2048}, {"m": 1, "n": 1, "k": 128}
        m, n, k = (symbol(c.upper(), 1, most[c], step[c]) if c in symbolic else d for c, d in zip("mnk", size))
        env = {c.upper(): d for c, d in zip("mnk", size) if c in symbolic}
        kernel = stored_kernel(m, n, k, dtype, w, **kw)
        inputs = inputs_of(rng, kernel, w, env)
        s.add(name, kernel, inputs, functools.partial(product, inputs, w, kw.get("prologue", False)), env)

    rows = [1, 5, 16]
    for i, dtype in enumerate((DType.U4, DType.I4, DType.U8, DType.I8, DType.U2, DType.I2)):
        for j, group in enumerate((32, 64, 128, 0)):
            for z, zero in enumerate(("none", "literal", "read")):
                w = Weights(dtype, group, zero, (F32, F16, BF16)[(i + z) % 3])
                size = (rows[(i + j + z) % 3], 37 + j, 384 + 128 * z)
                add(f"{dtype.value}_{group}_{zero}", size, (F16, BF16)[(i // 2 + j + z) % 2], w)
    for i, dtype in enumerate(FLOATS):
        for j, group in enumerate((32, 128, 0)):
            add(f"{dtype.value}_{group}", (rows[(i + j) % 3], 40, 256), (F16, BF16)[(i + j) % 2], Weights(dtype, group))
    for i, high in enumerate(PLANES):
        for j, group in [*enumerate((32, 64, 128, 0))][:: 1 if EVERY else 2]:
            w = Weights(DType.U4, group, ("none", "literal")[(i + j) % 2], (F32, F16)[j % 2], high)
            size = (rows[(i + j) % 3], 37 + j, 384 + 128 * j)
            add(f"{high.value}_above_{group}", size, (F16, BF16)[(i + j // 2) % 2], w)
        w = Weights(DType.U4, 32, "literal", F16, high)
        for k in (128, 640, 1152) if EVERY else (640,):
            add(f"{high.value}_above_ragged_{k}", (3, 21, k), (F16, BF16)[i], w)
        add(f"{high.value}_above_many", (9, 2200, 384), F16, w)
        add(f"{high.value}_above_open", (3, 45, 384), BF16, w, symbolic="mnk")
    six = Weights(DType.U4, 16, "literal", DType.I8, DType.U2, 256)  # GGUF's Q6_K
    for m, n, k in ((3, 37, 768), (9, 2200, 512), (1, 21, 256), (16, 20, 4096))[: 4 if EVERY else 2]:
        add(f"two_levels_{m}_{k}", (m, n, k), (F16, BF16)[m % 2], six)
    add("two_levels_of_32", (3, 21, 512), F16, Weights(DType.U4, 32, "none", DType.U8, None, 256))
    for i, dtype in enumerate((DType.U4, DType.I8, DType.F4E2M1, DType.U2, DType.F8E4M3FN)[: 5 if EVERY else 3]):
        w = Weights(dtype, 16, "none" if dtype in FLOATS else ("literal", "none")[i % 2], (F32, F16)[i % 2])
        add(f"{dtype.value}_16", (rows[i % 3], 37, 384), (F16, BF16)[i % 2], w)
    add("ragged_halves", (3, 21, 160), F16, Weights(DType.U4, 16))
    asymmetric = Weights(DType.U4, 32, "read")
    for k in (32, 96, 160, 1184):
        add(f"ragged_{k}", (3, 21, k), F16, asymmetric)
    add("ragged_bytes", (3, 21, 80), BF16, Weights(DType.I8, 0, "read"))
    add("ragged_group", (2, 24, 160), F16, Weights(DType.U4, 128, "read"))
    add("several_tiles_each", (2, 4240, 96), F16, Weights(DType.U4, 32, "literal"))
    add("many_groups", (2, 20, 4096), F16, asymmetric)
    add("many_groups_bytes", (9, 20, 4096), BF16, Weights(DType.I8, 32, "read", F16))
    add("many_groups_of_two_bits", (3, 20, 4096), BF16, Weights(DType.U2, 32, "read", F16))
    add("long", (5, 20, 4224), BF16, asymmetric)
    add("long_bytes", (5, 20, 4224), F16, Weights(DType.I8, 128, "read"))
    for m in (1, 7, 16):
        add(f"open_{m}", (m, 72, 256), F16, asymmetric, symbolic="m")
    add("open_all", (3, 45, 384), BF16, Weights(DType.U4, 128, "read"), symbolic="mnk")
    add("prologue", (6, 24, 128), F16, Weights(DType.I4, 64), prologue=True)
    return s


def cases() -> list[Case]:
    return _suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return _suite().expected(case)
