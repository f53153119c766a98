"""Kernels for the contract template on wgmma: tiles, stages, strided views, storage orders of ``b``."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from cases_contract import matmul, matmul_kernel
from kernel_cases import Arrays, Case, Suite, at, put, random

from arcweld.codegen.kernel import Buffer, Kernel, axis
from arcweld.codegen.templates.contract.wgmma import ContractWgmmaTactic
from arcweld.compiler import dims
from arcweld.compiler.dims import symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import variable

F16, BF16, F32 = DType.F16, DType.BF16, DType.F32


def packed_heads_kernel(b: int, s: int, h: int, d: int) -> Kernel:
    """Each head of a packed (b, s, 3, h, d) tensor times its transposed neighbour: strided views with an offset."""
    nb, nh, m, n, k = axis("b", b), axis("h", h), axis("m", s), axis("n", s), axis("k", d)
    x, y = Buffer("in0", F16, (b, s, 3, h, d)), Buffer("out0", F16, (b, h, s, s), written=True)
    return Kernel(
        "contract", "contract_packed_heads", {"batch": (nb, nh), "m": (m,), "n": (n,), "k": (k,)},
        {"a": at(x, [nb, m, 0, nh, k]), "b": at(x, [nb, n, 1, nh, k])},
        (put(y, [nb, nh, m, n], variable("acc", F32) * 0.5),), (x, y), {"precision": "f16"},
    )  # fmt: skip


@functools.cache
def _suite() -> Suite:
    s, rng = Suite(), np.random.default_rng(9)

    def add(name: str, size: tuple[int, int, int], dtype: DType, tactic: ContractWgmmaTactic | None = None,
            symbolic: str = "", **kw: Any) -> None:  # fmt: skip
        m, n, k = (symbol(c.upper(), 1, 4096, 8) if c in symbolic else d for c, d in zip("mnk", size))
        env = {c.upper(): d for c, d in zip("mnk", size) if c in symbolic}
        kernel = matmul_kernel(m, n, k, dtype, **kw)
        shapes = [tuple(dims.evaluate(d, env) for d in b.shape) for b in kernel.buffers[:3]]
        inputs: Arrays = {f"in{i}": random(rng, shape, dtype) for i, shape in enumerate(shapes)}
        s.add(name, kernel, inputs, functools.partial(matmul, inputs, kw.get("order", "mk,kn")), env, tactic)

    for dtype in (F16, BF16):
        for order in ("mk,nk", "mk,kn"):
            add(f"{dtype.value}_{order[3:]}", (72, 136, 200), dtype, order=order)
    add("weight", (80, 96, 320), F16, ContractWgmmaTactic(64, 32, 3), order="mk,nk", weight=True)
    add("weight_late", (80, 64, 320), F16, ContractWgmmaTactic(64, 64, 2, early=False), weight=True)
    add("narrow", (64, 48, 64), F16, ContractWgmmaTactic(64, 48, 2), order="mk,nk")
    add("two_groups", (140, 130, 72), F16, ContractWgmmaTactic(128, 128, 2), order="mk,nk")
    add("two_groups_kn", (140, 136, 72), F16, ContractWgmmaTactic(128, 128, 2))
    add("three_groups", (200, 100, 72), F16, ContractWgmmaTactic(192, 128, 2), order="mk,nk")
    add("wide", (70, 264, 136), F16, ContractWgmmaTactic(64, 256, 3))
    several = ContractWgmmaTactic(64, 32, 3, blocks=3)
    add("several_tiles_each", (300, 100, 200), F16, several, order="mk,nk", weight=True)
    add("several_tiles_each_kn", (300, 136, 136), F16, ContractWgmmaTactic(64, 64, 4, blocks=2))
    add("cluster_of_two", (80, 96, 400), F16, ContractWgmmaTactic(64, 32, 3, split=2), order="mk,nk", weight=True)
    add("cluster_of_four", (130, 128, 600), BF16, ContractWgmmaTactic(128, 64, 2, split=4))
    idle = ContractWgmmaTactic(64, 64, 2, split=4, early=False)
    add("cluster_with_idle_blocks", (64, 64, 104), F16, idle, order="mk,nk")
    add("one_step", (65, 40, 8), F16, ContractWgmmaTactic(64, 32, 3), order="mk,nk", weight=True)
    add("symbolic", (72, 80, 136), F16, ContractWgmmaTactic(64, 32, 3), symbolic="m", order="mk,nk")
    add("symbolic_all", (72, 80, 136), F16, ContractWgmmaTactic(64, 64, 3, blocks=2), symbolic="mnk")
    x = {"in0": random(rng, (1, 40, 3, 2, 32), F16)}

    def packed() -> Arrays:
        f = x["in0"].astype(np.float64)
        return {"out0": 0.5 * np.einsum("bshd,bthd->bhst", f[:, :, 0], f[:, :, 1])}

    s.add("packed_heads", packed_heads_kernel(1, 40, 2, 32), x, packed)
    return s


def cases() -> list[Case]:
    return _suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return _suite().expected(case)
