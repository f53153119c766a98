"""Kernels for the contract template: operand orders, fused ends, masks, broadcasts, odd and symbolic sizes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from kernel_cases import Arrays, Case, Suite, at, put, random

from arcweld.codegen.kernel import Axis, Buffer, Kernel, axis
from arcweld.codegen.templates.contract.tactic import ContractTactic
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, binary, cast, const, index, unary, variable

F16, BF16, F32, F64 = DType.F16, DType.BF16, DType.F32, DType.F64
PRECISION = {F16: "f16", BF16: "bf16"}


def acc(dtype: DType = F32) -> Expr:
    return variable("acc", dtype)


def relu(x: Expr) -> Expr:
    return binary("max", x, const(0, x.dtype))


def matmul_kernel(
    m: Dim, n: Dim, k: Dim, dtype: DType, order: str = "mk,kn", precision: str = "", prologue: bool = False,
    weight: bool = False,
) -> Kernel:  # fmt: skip
    """``relu?(a) @ b + bias`` with the operands stored as ``order`` says."""
    axes = {"m": axis("m", m), "n": axis("n", n), "k": axis("k", k)}
    a_order, b_order = order.split(",")
    a = Buffer("in0", dtype, tuple(axes[c].extent for c in a_order))
    b = Buffer("in1", dtype, tuple(axes[c].extent for c in b_order))
    bias, y = Buffer("in2", dtype, (n,)), Buffer("out0", dtype, (m, n), written=True)
    load_a, load_b = at(a, [axes[c] for c in a_order]), at(b, [axes[c] for c in b_order])
    value = acc(load_a.dtype) + at(bias, [axes["n"]])
    return Kernel(
        "contract", "contract_matmul_add", {c: (x,) for c, x in axes.items()},
        {"a": relu(load_a) if prologue else load_a, "b": load_b}, (put(y, [axes["m"], axes["n"]], value),),
        (a, b, bias, y), {"precision": precision or PRECISION.get(dtype, "fp32"), "b_is_weight": weight},
    )  # fmt: skip


def tf32(x: np.ndarray) -> np.ndarray:
    """Rounds to ten mantissa bits, ties away from zero."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def matmul(i: Arrays, order: str = "mk,kn", precision: str = "", prologue: bool = False) -> Arrays:
    a, b = i["in0"], i["in1"]
    if precision == "tf32":
        a, b = tf32(a), tf32(b)
    exact = np.float64 if a.dtype.kind in "fV" or a.dtype.itemsize == 2 else a.dtype
    a, b, bias = (x.astype(exact) for x in (a, b, i["in2"]))
    a_order, b_order = order.split(",")
    return {"out0": np.einsum(f"{a_order},{b_order}->mn", np.maximum(a, 0) if prologue else a, b) + bias}


def _matmuls(s: Suite, rng: np.random.Generator) -> None:
    def add(name: str, size: tuple[int, int, int], dtype: DType, tactic: ContractTactic | None = None,
            symbolic: str = "", **kw: object) -> None:  # fmt: skip
        m, n, k = (symbol(c.upper(), 1, 4096) if c in symbolic else d for c, d in zip("mnk", size))
        env = {c.upper(): d for c, d in zip("mnk", size) if c in symbolic}
        kernel = matmul_kernel(m, n, k, dtype, **kw)  # type: ignore[arg-type]
        shapes = [tuple(dims.evaluate(d, env) for d in b.shape) for b in kernel.buffers[:3]]
        inputs = {f"in{i}": random(rng, shape, dtype) for i, shape in enumerate(shapes)}
        told = {x: kw[x] for x in ("order", "precision", "prologue") if x in kw}
        s.add(name, kernel, inputs, functools.partial(matmul, inputs, **told), env, tactic)  # type: ignore[arg-type]

    add("fp32_odd", (33, 35, 37), F32)
    add("fp32_transposed", (70, 36, 20), F32, order="km,nk")
    add("fp32_symbolic", (45, 39, 50), F32, symbolic="mnk")
    add("fp32_symbolic_rows_weight", (45, 64, 48), F32, symbolic="m", weight=True)
    add("fp32_large_tile", (130, 129, 40), F32, ContractTactic("ffma", 128, 128, 16, 8, 8))
    add("fp32_split", (40, 36, 130), F32, ContractTactic("ffma", 32, 32, 16, 4, 2, split=4))
    add("fp32_split_short", (40, 36, 20), F32, ContractTactic("ffma", 32, 32, 16, 4, 2, split=4))
    add("f64_split", (20, 40, 70), F64, ContractTactic("ffma", 16, 64, 16, 2, 4, split=2))
    add("fp32_prologue", (20, 24, 28), F32, prologue=True)
    add("fp32_one_column", (40, 1, 30), F32)
    add("f64", (19, 21, 23), F64)
    add("i32", (19, 21, 23), DType.I32)
    add("i64", (18, 20, 24), DType.I64, order="mk,nk")
    for dtype in (F16, BF16):
        for order in ("mk,kn", "mk,nk", "km,kn", "km,nk"):
            add(f"{dtype.value}_{order.replace(',', '_')}", (72, 40, 56), dtype, order=order)
    add("f16_weight", (72, 64, 160), F16, order="mk,nk", weight=True)
    add("f16_odd", (33, 35, 37), F16)
    add("f16_odd_both_transposed", (33, 35, 37), F16, order="km,nk", prologue=True)
    add("f16_prologue", (40, 48, 72), F16, prologue=True)
    add("f16_symbolic", (50, 48, 72), F16, symbolic="m")
    add("f16_symbolic_all", (50, 47, 71), F16, symbolic="mnk")
    add("f16_long", (40, 48, 400), F16, ContractTactic("mma", 32, 32, 32, 16, 16, stages=3))
    add("f16_large_tile", (140, 136, 96), F16, ContractTactic("mma", 128, 128, 32, 64, 32, stages=4, early=False))
    add("f16_split", (40, 48, 400), F16, ContractTactic("mma", 32, 32, 32, 16, 16, stages=3, split=4), weight=True)
    add("f16_split_odd", (70, 37, 171), F16, ContractTactic("mma", 64, 32, 64, 32, 16, stages=2, split=2))
    add("f16_wide_warp", (70, 136, 64), F16, ContractTactic("mma", 64, 128, 32, 32, 64, stages=3))
    for order in ("mk,kn", "mk,nk", "km,kn"):
        add(f"tf32_{order.replace(',', '_')}", (72, 40, 56), F32, order=order, precision="tf32")
    for order in ("mk,kn", "km,nk"):
        add(f"tf32x3_{order.replace(',', '_')}", (40, 48, 72), F32, order=order, precision="tf32x3")
    add("tf32_odd", (33, 35, 37), F32, precision="tf32")


def attention_scores(rng: np.random.Generator, dtype: DType) -> tuple[Kernel, Arrays, Callable[[], Arrays]]:
    """q (b s h d) times k (b t hk d) for grouped heads, scaled, causally masked, stored as (b h s t)."""
    nb, s, t, h, hk, d = 2, 20, 24, 4, 2, 16
    b, head, m, n, k = axis("b", nb), axis("h", h), axis("m", s), axis("n", t), axis("k", d)
    q, kk = Buffer("in0", dtype, (nb, s, h, d)), Buffer("in1", dtype, (nb, t, hk, d))
    y = Buffer("out0", F32, (nb, h, s, t), written=True)
    seen = binary("ge", index(m.index), index(n.index))
    value = acc() * 0.25 + cast(seen, F32)
    kernel = Kernel(
        "contract", "contract_scores", {"batch": (b, head), "m": (m,), "n": (n,), "k": (k,)},
        {"a": at(q, [b, m, head, k]), "b": at(kk, [b, n, dims.floordiv(head.index, h // hk), k])},
        (put(y, [b, head, m, n], value),), (q, kk, y), {"precision": PRECISION.get(dtype, "fp32")},
    )  # fmt: skip
    x = {"in0": random(rng, (nb, s, h, d), dtype), "in1": random(rng, (nb, t, hk, d), dtype)}

    def oracle() -> Arrays:
        wide = np.repeat(x["in1"].astype(np.float64), h // hk, axis=2)
        score = np.einsum("bshd,bthd->bhst", x["in0"].astype(np.float64), wide) * 0.25
        return {"out0": score + (np.arange(s)[:, None] >= np.arange(t))}

    return kernel, x, oracle


def split_axes(rng: np.random.Generator, dtype: DType) -> tuple[Kernel, Arrays, Callable[[], Arrays]]:
    """Two k axes, two n axes, and a store that is contiguous along m, with a residual and two outputs."""
    m, n0, n1, k0, k1 = axis("m", 40), axis("p", 3), axis("q", 8), axis("k", 5), axis("l", 8)
    a, b = Buffer("in0", dtype, (40, 5, 8)), Buffer("in1", dtype, (5, 8, 3, 8))
    res = Buffer("in2", dtype, (3, 8, 40))
    y, z = Buffer("out0", dtype, (3, 8, 40), written=True), Buffer("out1", dtype, (40, 3, 8), written=True)
    total = acc() + at(res, [n0, n1, m])
    kernel = Kernel(
        "contract", "contract_split", {"m": (m,), "n": (n0, n1), "k": (k0, k1)},
        {"a": at(a, [m, k0, k1]), "b": at(b, [k0, k1, n0, n1])},
        (put(y, [n0, n1, m], total), put(z, [m, n0, n1], relu(total))), (a, b, res, y, z),
        {"precision": PRECISION.get(dtype, "fp32")},
    )  # fmt: skip
    x = {c.name: random(rng, c.shape, dtype) for c in (a, b, res)}  # type: ignore[arg-type]

    def oracle() -> Arrays:
        f = {k: v.astype(np.float64) for k, v in x.items()}
        y = np.einsum("mkl,klpq->pqm", f["in0"], f["in1"]) + f["in2"]
        return {"out0": y, "out1": np.maximum(y.transpose(2, 0, 1), 0)}

    return kernel, x, oracle


def padded(rng: np.random.Generator, dtype: DType) -> tuple[Kernel, Arrays, Callable[[], Arrays]]:
    """Rows of ``a`` read two places up with zeros before the start: a masked load with aligned pieces."""
    m, n, k = axis("m", 35), axis("n", 24), axis("k", 32)
    a, b, y = Buffer("in0", dtype, (35, 32)), Buffer("in1", dtype, (32, 24)), Buffer("out0", dtype, (35, 24), True)
    mask = binary("ge", index(m.index - 2), const(0, DType.I64))
    kernel = Kernel(
        "contract", "contract_shifted", {"m": (m,), "n": (n,), "k": (k,)},
        {"a": at(a, [m.index - 2, k], mask), "b": at(b, [k, n])}, (put(y, [m, n], acc()),), (a, b, y),
        {"precision": PRECISION.get(dtype, "fp32")},
    )  # fmt: skip
    x = {"in0": random(rng, (35, 32), dtype), "in1": random(rng, (32, 24), dtype)}

    def oracle() -> Arrays:
        shifted = np.concatenate([np.zeros((2, 32)), x["in0"].astype(np.float64)[:-2]])
        return {"out0": shifted @ x["in1"].astype(np.float64)}

    return kernel, x, oracle


def activations(rng: np.random.Generator, dtype: DType) -> tuple[Kernel, Arrays, Callable[[], Arrays]]:
    """GELU (erf), SiLU and tanh of one product, in three buffers."""
    m, n, k = axis("m", 40), axis("n", 24), axis("k", 32)
    a, b = Buffer("in0", dtype, (40, 32)), Buffer("in1", dtype, (32, 24))
    outs = [Buffer(f"out{i}", dtype, (40, 24), written=True) for i in range(3)]
    x = acc()
    values = [
        x * 0.5 * (unary("erf", x * (0.5**0.5)) + 1), x / (unary("exp", -x) + 1), unary("tanh", x),
    ]  # fmt: skip
    kernel = Kernel(
        "contract", "contract_activations", {"m": (m,), "n": (n,), "k": (k,)},
        {"a": at(a, [m, k]), "b": at(b, [k, n])}, tuple(put(o, [m, n], v) for o, v in zip(outs, values)),
        (a, b, *outs), {"precision": PRECISION.get(dtype, "fp32")},
    )  # fmt: skip
    i = {"in0": random(rng, (40, 32), dtype, 0.5), "in1": random(rng, (32, 24), dtype, 0.5)}

    def oracle() -> Arrays:
        x = i["in0"].astype(np.float64) @ i["in1"].astype(np.float64)
        gelu = x * 0.5 * (1 + np.vectorize(math.erf)(x * 0.5**0.5))
        return {"out0": gelu, "out1": x / (1 + np.exp(-x)), "out2": np.tanh(x)}

    return kernel, i, oracle


def mixed(rng: np.random.Generator, dtype: DType) -> tuple[Kernel, Arrays, Callable[[], Arrays]]:
    """f32 times 16-bit weights with exact arithmetic: each operand in its own storage type."""
    m, n, k = axis("m", 24), axis("n", 40), axis("k", 48)
    a, b, y = Buffer("in0", F32, (24, 48)), Buffer("in1", dtype, (40, 48)), Buffer("out0", F32, (24, 40), True)
    kernel = Kernel(
        "contract", "contract_mixed", {"m": (m,), "n": (n,), "k": (k,)}, {"a": at(a, [m, k]), "b": at(b, [n, k])},
        (put(y, [m, n], acc()),), (a, b, y), {"precision": "fp32"},
    )  # fmt: skip
    x = {"in0": random(rng, (24, 48), F32), "in1": random(rng, (40, 48), dtype)}
    return kernel, x, lambda: {"out0": x["in0"].astype(np.float64) @ x["in1"].astype(np.float64).T}


@functools.cache
def _suite() -> Suite:
    s, rng = Suite(), np.random.default_rng(5)
    _matmuls(s, rng)
    builders: Sequence[Callable[..., Any]] = (attention_scores, split_axes, padded, activations)
    for build in builders:
        for dtype in (F32, F16):
            s.add(f"{build.__name__}_{dtype.value}", *build(rng, dtype))
    s.add("mixed_f16", *mixed(rng, F16))
    return s


def cases() -> list[Case]:
    return _suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return _suite().expected(case)


__all__ = ["Axis", "cases", "expected", "matmul", "matmul_kernel"]
