"""Kernels for the conv template: strides, padding, dilation, groups, 1 to 3 spatial axes, transposed, fused ends."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from kernel_cases import Arrays, Case, Suite, at, put, random

from arcweld.codegen.kernel import Buffer, Kernel, axis
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, binary, const, index, variable

F16, BF16, F32 = DType.F16, DType.BF16, DType.F32
PRECISION = {F16: "f16", BF16: "bf16", F32: "fp32"}


@dataclass(frozen=True)
class Shape:
    """A convolution: NHWC input, weights [out channel, taps, in channel of a group]."""

    n: Dim
    size: tuple[Dim, ...]
    ci: int
    co: int
    taps: tuple[int, ...]
    stride: int = 1
    pad: int = 0
    dilation: int = 1
    groups: int = 1
    transposed: bool = False

    @property
    def out(self) -> tuple[Dim, ...]:
        reach = [self.dilation * (t - 1) + 1 for t in self.taps]
        if self.transposed:
            return tuple((s - 1) * self.stride + r - 2 * self.pad for s, r in zip(self.size, reach))
        return tuple(dims.floordiv(s + 2 * self.pad - r, self.stride) + 1 for s, r in zip(self.size, reach))


def within(mask: Expr | None, p: Dim, size: Dim) -> Expr:
    """``mask`` and 0 <= p < size."""
    both = binary("and", binary("ge", index(p), const(0, DType.I64)), binary("lt", index(p), index(size)))
    return both if mask is None else binary("and", mask, both)


def conv_kernel(
    s: Shape, dtype: DType, prologue: bool = False, residual: bool = True, precision: str = "", planes: bool = False
) -> Kernel:
    """``relu(conv(x or relu(x), w) + bias + residual)``, channels last; with ``planes`` x is f32 and channels first."""
    n, g = axis("n", s.n), axis("g", s.groups)
    co, ci = axis("co", s.co // s.groups), axis("ci", s.ci // s.groups)
    outs = tuple(axis(f"o{i}", d) for i, d in enumerate(s.out))
    taps = tuple(axis(f"t{i}", d) for i, d in enumerate(s.taps))
    place: list[Dim] = []
    mask: Expr | None = None
    for o, t, size in zip(outs, taps, s.size):
        if s.transposed:
            p = o.index + s.pad - t.index * s.dilation
            if s.stride > 1:
                even = binary("eq", index(dims.mod(p, s.stride)), const(0, DType.I64))
                mask = even if mask is None else binary("and", mask, even)
                p = dims.floordiv(p, s.stride)
        else:
            p = o.index * s.stride + t.index * s.dilation - s.pad
        place.append(p)
        if s.pad or s.transposed:
            mask = within(mask, p, size)
    x = Buffer("in0", dtype, (s.n, *s.size, s.ci))
    w = Buffer("in1", dtype, (s.co, *s.taps, s.ci // s.groups))
    bias, res = Buffer("in2", dtype, (s.co,)), Buffer("in3", dtype, (s.n, *s.out, s.co))
    y = Buffer("out0", dtype, (s.n, *s.out, s.co), written=True)
    channel = g.index * co.extent + co.index
    a = at(x, [n, *place, g.index * ci.extent + ci.index], mask)
    if planes:
        x = Buffer("in0", F32, (s.n, s.ci, *s.size))
        a = at(x, [n, g.index * ci.extent + ci.index, *place], mask)
    value = variable("acc", F32) + at(bias, [channel])
    if residual:
        value = value + at(res, [n, *outs, channel])
    return Kernel(
        "conv", "conv_add_relu", {"n": (n,), "out": outs, "g": (g,), "co": (co,), "tap": taps, "ci": (ci,)},
        {"a": binary("max", a, const(0, F32)) if prologue else a, "w": at(w, [channel, *taps, ci])},
        (put(y, [n, *outs, channel], binary("max", value, const(0, F32))),),
        (x, w, bias, *([res] if residual else []), y),
        {"precision": precision or PRECISION[dtype], "strides": (s.stride,) * len(taps), "transposed": s.transposed,
         "dilations": (s.dilation,) * len(taps), "pads": (s.pad,) * 2 * len(taps)},
    )  # fmt: skip


def conv_inputs(rng: np.random.Generator, kernel: Kernel, env: dict[str, int]) -> Arrays:
    shapes = {b.name: tuple(dims.evaluate(d, env) for d in b.shape) for b in kernel.buffers if not b.written}
    return {name: random(rng, shape, kernel.buffer(name).dtype) for name, shape in shapes.items()}


def conv(i: Arrays, s: Shape, prologue: bool = False, planes: bool = False) -> Arrays:
    """The definition, tap by tap, in f64; a transposed convolution scatters where the other gathers."""
    if planes:
        rounded = np.moveaxis(i["in0"], 1, -1).astype(i["in1"].dtype)  # what the tensor cores multiply
        return conv({**i, "in0": rounded}, s, prologue)
    x, w = i["in0"].astype(np.float64), i["in1"].astype(np.float64)
    x = np.maximum(x, 0) if prologue else x
    size = x.shape[1:-1]
    reach = [s.dilation * (t - 1) + 1 for t in s.taps]
    grown = [(d - 1) * s.stride + r if s.transposed else d + 2 * s.pad for d, r in zip(size, reach)]
    out = [d - 2 * s.pad if s.transposed else (d - r) // s.stride + 1 for d, r in zip(grown, reach)]
    gi, go = s.ci // s.groups, s.co // s.groups
    if s.transposed:
        y = np.zeros((x.shape[0], *grown, s.co))
    else:
        y = np.zeros((x.shape[0], *out, s.co))
        x = np.pad(x, [(0, 0), *[(s.pad, s.pad)] * len(size), (0, 0)])
    for tap in itertools.product(*map(range, s.taps)):
        steps = size if s.transposed else out
        starts = [t * s.dilation for t in tap]
        window = tuple(slice(b, b + (d - 1) * s.stride + 1, s.stride) for b, d in zip(starts, steps))
        for g in range(s.groups):
            weight = w[(slice(g * go, (g + 1) * go), *tap)].T
            own, made = slice(g * gi, (g + 1) * gi), slice(g * go, (g + 1) * go)
            if s.transposed:
                y[(slice(None), *window, made)] += x[..., own] @ weight
            else:
                y[..., made] += x[(slice(None), *window, own)] @ weight
    if s.transposed and s.pad:
        y = y[(slice(None), *[slice(s.pad, -s.pad)] * len(size))]
    total = y + i["in2"].astype(np.float64)
    if "in3" in i:
        total = total + i["in3"].astype(np.float64)
    return {"out0": np.maximum(total, 0)}


SHAPES: dict[str, Shape] = {
    "pointwise": Shape(2, (5, 6), 16, 24, (1, 1)),
    "3x3": Shape(1, (9, 8), 16, 24, (3, 3), pad=1),
    "3x3_stride": Shape(2, (9, 8), 16, 16, (3, 3), stride=2, pad=1),
    "1x1_stride": Shape(1, (9, 8), 24, 16, (1, 1), stride=2),
    "odd_channels": Shape(1, (7, 7), 5, 11, (3, 3), pad=1),
    "first_layer": Shape(1, (16, 16), 3, 16, (7, 7), stride=2, pad=3),
    "dilated": Shape(1, (12, 11), 8, 16, (3, 3), pad=2, dilation=2),
    "groups": Shape(1, (6, 7), 32, 16, (3, 3), pad=1, groups=2),
    "no_padding": Shape(1, (8, 8), 8, 8, (3, 3)),
    "1d": Shape(2, (20,), 16, 8, (5,), pad=2),
    "3d": Shape(1, (4, 5, 6), 8, 16, (3, 3, 3), pad=1),
    "transposed": Shape(1, (5, 4), 16, 8, (2, 2), stride=2, transposed=True),
    "transposed_overlap": Shape(1, (5, 4), 16, 8, (4, 4), stride=2, pad=1, transposed=True),
}


@functools.cache
def _suite() -> Suite:
    s, rng = Suite(), np.random.default_rng(6)

    def add(name: str, shape: Shape, dtype: DType, env: dict[str, int] | None = None, **kw: Any) -> None:
        kernel = conv_kernel(shape, dtype, **kw)
        inputs = conv_inputs(rng, kernel, env or {})
        told = {k: v for k, v in kw.items() if k in ("prologue", "planes")}
        s.add(name, kernel, inputs, functools.partial(conv, inputs, shape, **told), env)

    for name, shape in SHAPES.items():
        for dtype in (F32, F16):
            add(f"{name}_{dtype.value}", shape, dtype)
    add("3x3_bf16", SHAPES["3x3"], BF16)
    for dtype in (F32, F16):
        add(f"planes_{dtype.value}", SHAPES["first_layer"], dtype, planes=True)
        add(f"planes_patches_{dtype.value}", Shape(2, (16, 24), 3, 16, (8, 8), stride=8), dtype, planes=True)
    add("3x3_prologue_f16", SHAPES["3x3"], F16, prologue=True)
    add("3x3_prologue_f32", SHAPES["3x3"], F32, prologue=True, residual=False)
    n, h, w = symbol("N", 1, 8), symbol("H", 8, 64), symbol("W", 8, 64)
    env = {"N": 2, "H": 9, "W": 10}
    for dtype in (F32, F16):
        add(f"symbolic_{dtype.value}", Shape(n, (h, w), 16, 24, (3, 3), pad=1), dtype, env)
        add(f"symbolic_stride_{dtype.value}", Shape(n, (h, w), 8, 8, (3, 3), stride=2, pad=1), dtype, env)
    return s


def cases() -> list[Case]:
    return _suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return _suite().expected(case)
