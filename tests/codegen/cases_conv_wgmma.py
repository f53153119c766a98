"""Kernels for the conv template on wgmma: patches of several images, strides, dilation, groups, many channels."""

from __future__ import annotations

import functools

import numpy as np
from cases_conv import SHAPES, Shape, conv, conv_inputs, conv_kernel
from kernel_cases import Case, Suite

from arcweld.codegen.templates.conv.wgmma import ConvWgmmaTactic
from arcweld.compiler.dims import symbol
from arcweld.compiler.dtypes import DType

F16, BF16 = DType.F16, DType.BF16

LARGE: dict[str, tuple[Shape, ConvWgmmaTactic | None]] = {
    "7x7_images": (Shape(4, (7, 7), 72, 40, (3, 3), pad=1), None),
    "two_groups_of_rows": (Shape(1, (14, 14), 24, 48, (3, 3), pad=1), ConvWgmmaTactic(128, 64, 3, patch=(1, 4, 14))),
    "three_groups_of_rows": (Shape(1, (10, 9), 16, 40, (3, 3), pad=1), ConvWgmmaTactic(192, 128, 2, patch=(1, 7, 9))),
    "several_tiles_each": (
        Shape(2, (12, 12), 72, 72, (3, 3), pad=1), ConvWgmmaTactic(64, 96, 3, blocks=2, patch=(1, 5, 12)),
    ),
    "stride_images": (Shape(3, (8, 9), 16, 32, (3, 3), stride=2, pad=1), ConvWgmmaTactic(64, 32, 2, patch=(2, 4, 5))),
    "groups": (Shape(1, (6, 6), 128, 64, (3, 3), pad=1, groups=2), ConvWgmmaTactic(64, 32, 4, patch=(1, 6, 6))),
    "cluster": (Shape(1, (7, 7), 72, 40, (3, 3), pad=1), ConvWgmmaTactic(64, 32, 3, patch=(1, 7, 7), split=4)),
    "5x5_early": (Shape(1, (9, 9), 8, 16, (5, 5), pad=2), ConvWgmmaTactic(64, 32, 4, patch=(1, 7, 9), early=True)),
}


@functools.cache
def _suite() -> Suite:
    s, rng = Suite(), np.random.default_rng(10)

    def add(name: str, shape: Shape, dtype: DType, tactic: ConvWgmmaTactic | None) -> None:
        env = {"N": 2, "H": 9, "W": 10} if name.startswith("symbolic") else {}
        kernel = conv_kernel(shape, dtype)
        inputs = conv_inputs(rng, kernel, env)
        s.add(name, kernel, inputs, functools.partial(conv, inputs, shape), env, tactic)

    for name in ("pointwise", "3x3", "3x3_stride", "1x1_stride", "dilated", "no_padding", "1d"):
        add(name, SHAPES[name], F16, None)
    for name, (shape, tactic) in LARGE.items():
        add(f"large_{name}", shape, F16, tactic)
    add("3x3_bf16", SHAPES["3x3"], BF16, None)
    n, h, w = symbol("N", 1, 8), symbol("H", 8, 64), symbol("W", 8, 64)
    add("symbolic", Shape(n, (h, w), 16, 24, (3, 3), pad=1), F16, None)
    add("symbolic_stride", Shape(n, (h, w), 8, 8, (3, 3), stride=2, pad=1), F16, None)
    add("symbolic_1d_stride", Shape(n, (w,), 8, 8, (8,), stride=7, pad=3), F16, None)
    add("largest_stride", Shape(1, (40, 40), 8, 16, (8, 8), stride=8), F16, None)
    return s


def cases() -> list[Case]:
    return _suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return _suite().expected(case)
