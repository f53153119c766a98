"""Kernels that fill a card: several tiles for each block, tiles that blocks leave unfinished, many heads and images.

For GPUs; the simulator takes seconds for each tactic.
"""

from __future__ import annotations

import functools

import numpy as np
from cases_attention import Shape as AttentionShape
from cases_attention import attend, attention_kernel, inputs
from cases_contract import matmul, matmul_kernel
from cases_conv import Shape as ConvShape
from cases_conv import conv, conv_inputs, conv_kernel
from kernel_cases import Arrays, Case, Suite, random

from arcweld.codegen.kernel import Kernel
from arcweld.compiler.dtypes import DType

F16, BF16, F32 = DType.F16, DType.BF16, DType.F32

PRODUCTS = {
    "few_rows": (100, 776, 2056, F16, "mk,nk"),
    "few_rows_kn": (100, 776, 1032, BF16, "mk,kn"),
    "one_row": (1, 8200, 4096, BF16, "mk,nk"),
    "sixteen_rows": (16, 4100, 8200, F16, "mk,nk"),
    "square": (1000, 776, 1096, F16, "mk,nk"),
    "square_kn": (1000, 776, 1096, F16, "mk,kn"),
    "many_rows": (5000, 1544, 264, F16, "mk,nk"),
    "many_rows_kn": (5000, 1544, 264, BF16, "mk,kn"),
    "f32": (500, 300, 260, F32, "mk,kn"),
}
CONVOLUTIONS = {
    "3x3": ConvShape(8, (28, 30), 72, 136, (3, 3), pad=1),
    "3x3_small": ConvShape(1, (14, 14), 256, 264, (3, 3), pad=1),
    "3x3_stride": ConvShape(4, (33, 29), 64, 128, (3, 3), stride=2, pad=1),
    "1x1": ConvShape(8, (28, 28), 64, 264, (1, 1)),
}
ATTENTION = {
    "plain": AttentionShape(b=2, h=12, s=1000, t=1000, d=64, dtype=F16),
    "head_128": AttentionShape(b=1, h=20, s=900, t=1100, d=128, dtype=BF16, layout="bshd"),
    "causal": AttentionShape(b=1, h=16, s=1100, t=1100, d=64, dtype=F16, causal=True),
    "packed": AttentionShape(b=4, h=12, s=200, t=200, d=64, dtype=F16, layout="packed", mask="key"),
    "grouped": AttentionShape(b=2, h=16, s=500, t=500, d=64, groups=4, dtype=F16, causal=True),
}


@functools.cache
def _suite() -> Suite:
    s, rng = Suite(), np.random.default_rng(15)
    for name, (m, n, k, dtype, order) in PRODUCTS.items():
        for weight in (False, True):
            kernel = matmul_kernel(m, n, k, dtype, order, weight=weight)
            data = _product_inputs(rng, kernel)
            s.add(f"product_{name}{'_weight' * weight}", kernel, data, functools.partial(matmul, data, order))
    for name, shape in CONVOLUTIONS.items():
        kernel = conv_kernel(shape, F16)
        data = conv_inputs(rng, kernel, {})
        s.add(f"conv_{name}", kernel, data, functools.partial(conv, data, shape))
    for name, problem in ATTENTION.items():
        data = inputs(problem, rng, {})
        s.add(f"attention_{name}", attention_kernel(problem), data, functools.partial(attend, problem, data, {}))
    return s


def _product_inputs(rng: np.random.Generator, kernel: Kernel) -> Arrays:
    """Values whose sums stay of order one, whatever the depth."""
    arrays: Arrays = {}
    for b in kernel.buffers:
        if not b.written:
            shape = tuple(int(str(d)) for d in b.shape)
            arrays[b.name] = random(rng, shape, b.dtype, scale=0.2)
    return arrays


def cases() -> list[Case]:
    return _suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return _suite().expected(case)
