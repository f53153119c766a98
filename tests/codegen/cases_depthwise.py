"""Kernels for the depthwise implementation: strides, padding, dilation, 1 to 3 spatial axes, odd channels, fused."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
from cases_conv import Shape, conv, conv_inputs, conv_kernel
from kernel_cases import Arrays, Case, Suite

from arcweld.codegen.kernel import Buffer, Kernel
from arcweld.codegen.templates.conv.depthwise import DepthwiseTactic
from arcweld.compiler.dims import symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import load

F16, BF16, F32 = DType.F16, DType.BF16, DType.F32


def depthwise_kernel(s: Shape, dtype: DType, prologue: bool = False, residual: bool = True) -> Kernel:
    """A conv kernel whose weights are packed [taps, channel]."""
    kernel = conv_kernel(s, dtype, prologue, residual)
    w = Buffer("in1", dtype, (*s.taps, s.co))
    channel, *taps, _ = kernel.loads["w"].attr[2]
    return replace(
        kernel, template="depthwise", stem="depthwise_add_relu",
        loads={**kernel.loads, "w": load("in1", dtype, [*taps, channel])},
        buffers=tuple(w if b.name == "in1" else b for b in kernel.buffers),
    )  # fmt: skip


def depthwise(i: Arrays, s: Shape, prologue: bool = False) -> Arrays:
    """``conv`` of the weights as [channel, taps, 1]."""
    return conv({**i, "in1": np.moveaxis(i["in1"], -1, 0)[..., None]}, s, prologue)


SHAPES: dict[str, tuple[Shape, DepthwiseTactic | None]] = {
    "3x3": (Shape(2, (7, 9), 24, 24, (3, 3), pad=1, groups=24), None),
    "3x3_four_pixels": (Shape(1, (7, 9), 16, 16, (3, 3), pad=1, groups=16), DepthwiseTactic(4, 64)),
    "3x3_stride": (Shape(1, (9, 11), 16, 16, (3, 3), stride=2, pad=1, groups=16), DepthwiseTactic(2, 128)),
    "5x5": (Shape(1, (8, 8), 8, 8, (5, 5), pad=2, groups=8), DepthwiseTactic(4, 32)),
    "no_padding": (Shape(1, (8, 9), 8, 8, (3, 3), groups=8), DepthwiseTactic(4, 32)),
    "no_padding_stride": (Shape(1, (8, 10), 8, 8, (3, 3), stride=2, groups=8), DepthwiseTactic(4, 32)),
    "dilated": (Shape(1, (9, 9), 8, 8, (3, 3), pad=2, dilation=2, groups=8), DepthwiseTactic(2, 32)),
    "odd_channels": (Shape(1, (6, 5), 7, 7, (3, 3), pad=1, groups=7), DepthwiseTactic(2, 32)),
    "1d": (Shape(2, (19,), 16, 16, (5,), pad=2, groups=16), DepthwiseTactic(4, 32)),
    "3d": (Shape(1, (4, 5, 6), 8, 8, (3, 3, 3), pad=1, groups=8), DepthwiseTactic(2, 32)),
    "1x1": (Shape(1, (5, 6), 16, 16, (1, 1), groups=16), DepthwiseTactic(2, 32)),
    "transposed": (
        Shape(1, (5, 4), 16, 16, (4, 4), stride=2, pad=1, groups=16, transposed=True), DepthwiseTactic(2, 32),
    ),
}


@functools.cache
def _suite() -> Suite:
    s, rng = Suite(), np.random.default_rng(7)

    def add(name: str, shape: Shape, dtype: DType, tactic: DepthwiseTactic | None, prologue: bool = False) -> None:
        env = {"H": 7, "W": 9} if name.startswith("symbolic") else {}
        kernel = depthwise_kernel(shape, dtype, prologue)
        inputs = conv_inputs(rng, kernel, env)
        s.add(name, kernel, inputs, functools.partial(depthwise, inputs, shape, prologue), env, tactic)

    for name, (shape, tactic) in SHAPES.items():
        for dtype in (F32, F16):
            add(f"{name}_{dtype.value}", shape, dtype, tactic)
    add("3x3_bf16", SHAPES["3x3"][0], BF16, None)
    add("3x3_prologue_f16", SHAPES["3x3"][0], F16, DepthwiseTactic(4, 64), prologue=True)
    h, w = symbol("H", 4, 64), symbol("W", 4, 64)
    add("symbolic_f16", Shape(2, (h, w), 16, 16, (3, 3), pad=1, groups=16), F16, DepthwiseTactic(4, 64))
    return s


def cases() -> list[Case]:
    return _suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return _suite().expected(case)
