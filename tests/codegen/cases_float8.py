"""Kernels that multiply 8-bit floats: types, operand orders, scales of rows and columns, odd and symbolic sizes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from cases_conv import Shape, within
from kernel_cases import Arrays, Case, Suite, at, put, random

from arcweld.codegen.kernel import Buffer, Kernel, axis
from arcweld.codegen.templates.contract.gemv import GemvTactic
from arcweld.codegen.templates.contract.tactic import ContractTactic
from arcweld.codegen.templates.contract.wgmma import ContractWgmmaTactic
from arcweld.codegen.templates.conv.wgmma import ConvWgmmaTactic
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, binary, cast, const, variable

E4M3, E5M2, F16, F32 = DType.F8E4M3FN, DType.F8E5M2, DType.F16, DType.F32
TYPES = ((E4M3, E4M3), (E4M3, E5M2), (E5M2, E4M3), (E5M2, E5M2))
PAIR = TYPES[0]


def precision(types: tuple[DType, DType]) -> str:
    return f"{types[0].value} x {types[1].value}"


def matmul_kernel(
    m: Dim, n: Dim, k: Dim, types: tuple[DType, DType] = PAIR, order: str = "mk,nk", prologue: bool = False,
    weight: bool = False, batch: Dim = 1,
) -> Kernel:  # fmt: skip
    """``a @ b * row scale * column scale + bias`` in f32, and a quarter of it in f16; with ``prologue``, a is >= 1."""
    axes = {"b": axis("b", batch), "m": axis("m", m), "n": axis("n", n), "k": axis("k", k)}
    a_order, b_order = order.split(",")
    a = Buffer("in0", types[0], tuple(axes[c].extent for c in a_order))
    b = Buffer("in1", types[1], tuple(axes[c].extent for c in b_order))
    rows, columns, bias = Buffer("in2", F32, (m,)), Buffer("in3", F32, (n,)), Buffer("in4", F32, (n,))
    out = [axes[c] for c in ("bmn" if "b" in a_order else "mn")]
    shape = tuple(x.extent for x in out)
    y, q = Buffer("out0", F32, shape, written=True), Buffer("out1", F16, shape, written=True)
    load_a, load_b = at(a, [axes[c] for c in a_order]), at(b, [axes[c] for c in b_order])
    scaled = variable("acc", F32) * at(rows, [axes["m"]]) * at(columns, [axes["n"]])
    total = scaled + at(bias, [axes["n"]])
    return Kernel(
        "contract", "contract_matmulfloat8",
        {"batch": (axes["b"],) if "b" in a_order else (), **{c: (axes[c],) for c in "mnk"}},
        {"a": binary("max", load_a, const(1, F32)) if prologue else load_a, "b": load_b},
        (put(y, out, total), put(q, out, cast(total * 0.25, F16))), (a, b, rows, columns, bias, y, q),
        {"precision": precision(types), "b_is_weight": weight},
    )  # fmt: skip


def matmul(i: Arrays, order: str = "mk,nk", prologue: bool = False) -> Arrays:
    a_order, b_order = order.split(",")
    a, b, rows, columns, bias = (i[f"in{k}"].astype(np.float64) for k in range(5))
    out = "bmn" if "b" in a_order else "mn"
    total = np.einsum(f"{a_order},{b_order}->{out}", np.maximum(a, 1) if prologue else a, b)
    total = total * rows[:, None] * columns + bias
    return {"out0": total, "out1": (total * 0.25).astype(np.float32).astype(np.float16)}


def inputs_of(rng: np.random.Generator, kernel: Kernel, env: dict[str, int]) -> Arrays:
    """Normal values; scales are positive and less than 1."""
    found = {}
    for b in kernel.buffers:
        if not b.written:
            shape = tuple(dims.evaluate(d, env) for d in b.shape)
            is_scale = b.name in ("in2", "in3") and kernel.template == "contract"
            found[b.name] = rng.uniform(0.1, 0.5, shape).astype(np.float32) if is_scale else random(rng, shape, b.dtype)
    return found


def conv_kernel(s: Shape, types: tuple[DType, DType] = PAIR) -> Kernel:
    """``conv(x, w) * 0.5 + bias`` in f32, channels last; ``w`` is [out channel, taps, in channel]."""
    n, g = axis("n", s.n), axis("g", s.groups)
    co, ci = axis("co", s.co // s.groups), axis("ci", s.ci // s.groups)
    outs = tuple(axis(f"o{i}", d) for i, d in enumerate(s.out))
    taps = tuple(axis(f"t{i}", d) for i, d in enumerate(s.taps))
    place = [o.index * s.stride + t.index * s.dilation - s.pad for o, t in zip(outs, taps)]
    mask: Expr | None = None
    for p, size in zip(place, s.size):
        mask = within(mask, p, size) if s.pad else None
    x, w = Buffer("in0", types[0], (s.n, *s.size, s.ci)), Buffer("in1", types[1], (s.co, *s.taps, s.ci // s.groups))
    bias, y = Buffer("in2", F32, (s.co,)), Buffer("out0", F32, (s.n, *s.out, s.co), written=True)
    channel = g.index * co.extent + co.index
    total = variable("acc", F32) * 0.5 + at(bias, [channel])
    return Kernel(
        "conv", "conv_convfloat8", {"n": (n,), "out": outs, "g": (g,), "co": (co,), "tap": taps, "ci": (ci,)},
        {"a": at(x, [n, *place, g.index * ci.extent + ci.index], mask), "w": at(w, [channel, *taps, ci])},
        (put(y, [n, *outs, channel], total),), (x, w, bias, y),
        {"precision": precision(types), "strides": (s.stride,) * len(taps), "transposed": False,
         "dilations": (s.dilation,) * len(taps), "pads": (s.pad,) * 2 * len(taps)},
    )  # fmt: skip


def conv(i: Arrays, s: Shape) -> Arrays:
    """The definition, tap by tap, in f64."""
    x, w = i["in0"].astype(np.float64), i["in1"].astype(np.float64)
    x = np.pad(x, [(0, 0), *[(s.pad, s.pad)] * len(s.taps), (0, 0)])
    total = np.zeros((x.shape[0], *s.out, s.co))
    gi, go = s.ci // s.groups, s.co // s.groups
    for tap in np.ndindex(*s.taps):
        starts = [t * s.dilation for t in tap]
        window = tuple(slice(b, b + (d - 1) * s.stride + 1, s.stride) for b, d in zip(starts, s.out))
        for g in range(s.groups):
            weight = w[(slice(g * go, (g + 1) * go), *tap)].T
            total[..., g * go : (g + 1) * go] += x[(slice(None), *window, slice(g * gi, (g + 1) * gi))] @ weight
    return {"out0": total * 0.5 + i["in2"]}


SHAPES: dict[str, Shape] = {
    "pointwise": Shape(2, (5, 6), 16, 24, (1, 1)),
    "3x3": Shape(1, (9, 8), 16, 24, (3, 3), pad=1),
    "stride": Shape(2, (9, 8), 32, 16, (3, 3), stride=2, pad=1),
    "odd_channels": Shape(1, (7, 7), 5, 11, (3, 3), pad=1),
    "dilated": Shape(1, (12, 11), 16, 16, (3, 3), pad=2, dilation=2),
    "groups": Shape(1, (6, 7), 32, 16, (3, 3), pad=1, groups=2),
    "1d": Shape(2, (20,), 16, 8, (5,), pad=2),
    "depthwise": Shape(1, (6, 5), 8, 8, (3, 3), pad=1, groups=8),
}


@functools.cache
def _suite() -> Suite:
    s, rng = Suite(), np.random.default_rng(15)

    def add(name: str, size: tuple[int, int, int], types: tuple[DType, DType] = PAIR,
            tactic: ContractTactic | GemvTactic | None = None, symbolic: str = "", most: int = 4096, **kw: Any,
    ) -> None:  # fmt: skip
        m, n, k = (symbol(c.upper(), 1, most) if c in symbolic else d for c, d in zip("mnk", size))
        env = {c.upper(): d for c, d in zip("mnk", size) if c in symbolic}
        kernel = matmul_kernel(m, n, k, types, **kw)
        inputs = inputs_of(rng, kernel, env)
        told = {x: kw[x] for x in ("order", "prologue") if x in kw}
        s.add(name, kernel, inputs, functools.partial(matmul, inputs, **told), env, tactic)

    for types in TYPES:
        add(precision(types).replace(" x ", "_"), (40, 48, 96), types)
    for order in ("mk,kn", "mk,nk", "km,kn", "km,nk"):
        add(order.replace(",", "_"), (80, 48, 112), order=order)
    add("batched", (24, 40, 48), order="bmk,bkn", batch=3)
    add("odd", (33, 35, 37), (E4M3, E5M2))
    add("odd_both_transposed", (33, 35, 37), order="km,nk", prologue=True)
    add("prologue", (40, 48, 80), prologue=True)
    add("symbolic", (50, 48, 80), symbolic="m")
    add("symbolic_all", (50, 47, 71), symbolic="mnk")
    add("weight", (72, 64, 320), weight=True)
    add("long", (40, 48, 800), PAIR, ContractTactic("mma", 32, 32, 64, 16, 16, stages=3))
    add("large_tile", (140, 136, 192), PAIR, ContractTactic("mma", 128, 128, 64, 64, 32, stages=4, early=False))
    large = ContractTactic("mma", 128, 128, 64, 64, 32, stages=4)
    add("large_tile_kn", (140, 144, 192), (E5M2, E4M3), large, order="km,kn")
    add("split", (40, 48, 800), PAIR, ContractTactic("mma", 32, 32, 64, 16, 16, stages=3, split=4), weight=True)
    add("split_odd", (70, 37, 341), PAIR, ContractTactic("mma", 64, 32, 128, 32, 16, stages=2, split=2))
    add("ordinary", (40, 48, 80), PAIR, ContractTactic("ffma", 32, 32, 16, 4, 2))
    for rows, order in ((1, "mk,nk"), (5, "mk,nk"), (8, "mk,kn"), (12, "mk,nk")):
        add(f"few_{rows}_{order[3:]}", (rows, 72, 400), (E4M3, E5M2), order=order, weight=True)
    add("few_long", (4, 24, 1600), weight=True)
    add("few_odd", (3, 37, 101), prologue=True)
    add("few_open", (5, 40, 272), symbolic="m", most=16)
    add("few_prologue", (4, 37, 112), TYPES[3], prologue=True)
    add("few_batched", (2, 24, 96), order="bmk,bnk", batch=3)
    for name, shape in SHAPES.items():
        kernel = conv_kernel(shape)
        inputs = inputs_of(rng, kernel, {})
        s.add(f"conv_{name}", kernel, inputs, functools.partial(conv, inputs, shape))
    return s


@functools.cache
def _wgmma_suite() -> Suite:
    s, rng = Suite(), np.random.default_rng(16)

    def add(name: str, size: tuple[int, int, int], types: tuple[DType, DType] = PAIR,
            tactic: ContractWgmmaTactic | None = None, symbolic: str = "", **kw: Any) -> None:  # fmt: skip
        m, n, k = (symbol(c.upper(), 1, 4096, 16) if c in symbolic else d for c, d in zip("mnk", size))
        env = {c.upper(): d for c, d in zip("mnk", size) if c in symbolic}
        kernel = matmul_kernel(m, n, k, types, **kw)
        inputs = inputs_of(rng, kernel, env)
        s.add(name, kernel, inputs, functools.partial(matmul, inputs), env, tactic)

    for types in TYPES:
        add(precision(types).replace(" x ", "_"), (72, 136, 400), types)
    add("weight", (80, 96, 640), tactic=ContractWgmmaTactic(64, 32, 3), weight=True)
    add("narrow_late", (64, 48, 128), tactic=ContractWgmmaTactic(64, 48, 2, early=False))
    add("two_groups", (140, 130, 144), tactic=ContractWgmmaTactic(128, 128, 2))
    add("wide", (70, 200, 272), tactic=ContractWgmmaTactic(64, 192, 3))
    add("several_tiles_each", (200, 200, 400), tactic=ContractWgmmaTactic(64, 128, 3, blocks=2), weight=True)
    add("cluster_of_two", (80, 96, 800), tactic=ContractWgmmaTactic(64, 32, 3, split=2), weight=True)
    add("cluster_of_four", (130, 128, 1200), TYPES[1], ContractWgmmaTactic(128, 64, 2, split=4))
    add("one_step", (65, 40, 16), tactic=ContractWgmmaTactic(64, 32, 3), weight=True)
    add("symbolic_all", (72, 80, 272), tactic=ContractWgmmaTactic(64, 64, 3, blocks=2), symbolic="mnk")
    return s


WGMMA_SHAPES: dict[str, tuple[Shape, ConvWgmmaTactic | None]] = {
    "3x3": (Shape(1, (9, 8), 16, 24, (3, 3), pad=1), None),
    "images": (Shape(4, (7, 7), 144, 40, (3, 3), pad=1), None),
    "stride": (Shape(3, (8, 9), 32, 32, (3, 3), stride=2, pad=1), ConvWgmmaTactic(64, 32, 2, patch=(2, 4, 5))),
    "groups": (Shape(1, (6, 6), 256, 64, (3, 3), pad=1, groups=2), ConvWgmmaTactic(64, 32, 4, patch=(1, 6, 6))),
    "cluster": (Shape(1, (7, 7), 144, 40, (3, 3), pad=1), ConvWgmmaTactic(64, 32, 3, patch=(1, 7, 7), split=4)),
    "several": (
        Shape(2, (12, 12), 144, 72, (3, 3), pad=1), ConvWgmmaTactic(64, 96, 3, blocks=2, patch=(1, 5, 12)),
    ),
}


@functools.cache
def _conv_wgmma_suite() -> Suite:
    s, rng = Suite(), np.random.default_rng(17)
    for name, (shape, tactic) in WGMMA_SHAPES.items():
        kernel = conv_kernel(shape)
        inputs = inputs_of(rng, kernel, {})
        s.add(f"conv_{name}", kernel, inputs, functools.partial(conv, inputs, shape), None, tactic)
    return s


def wgmma_cases() -> list[Case]:
    return [*_wgmma_suite().cases, *_conv_wgmma_suite().cases]


def wgmma_expected(case: Case) -> dict[str, np.ndarray]:
    suite = _conv_wgmma_suite() if case.id.startswith("conv_") else _wgmma_suite()
    return suite.expected(case)


def cases() -> list[Case]:
    return _suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return _suite().expected(case)


__all__ = ["cases", "conv", "conv_kernel", "expected", "matmul", "matmul_kernel", "wgmma_cases", "wgmma_expected"]
