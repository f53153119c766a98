"""Kernels that multiply 8-bit integers: signs, operand orders, fused ends, masks, odd and symbolic sizes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from cases_conv import Shape, within
from kernel_cases import Arrays, Case, Suite, at, put

from arcweld.codegen.kernel import Buffer, Kernel, axis
from arcweld.codegen.templates.contract.gemv import GemvTactic
from arcweld.codegen.templates.contract.tactic import ContractTactic
from arcweld.codegen.templates.contract.wgmma import ContractWgmmaTactic
from arcweld.codegen.templates.conv.wgmma import ConvWgmmaTactic
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, binary, cast, const, unary, variable, where

I8, U8, I32, F32 = DType.I8, DType.U8, DType.I32, DType.F32
SCALE = 1 / 512


def whole_range(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    """Integers from the whole range of an 8-bit type, or i32 of some thousands."""
    info = np.iinfo(dtype.numpy) if dtype.size == 1 else np.iinfo(np.int16)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype.numpy)


def requantised(acc: Expr, zero: Expr) -> Expr:
    """``round(acc / 512) + zero`` in i8, clamped."""
    y = unary("round", cast(acc, F32) * SCALE) + cast(zero, F32)
    return cast(binary("min", binary("max", y, const(-128, F32)), const(127, F32)), I8)


def requantise(acc: np.ndarray, zero: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(acc * SCALE) + zero, -128, 127).astype(np.int8)


def matmul_kernel(
    m: Dim, n: Dim, k: Dim, types: tuple[DType, DType], order: str = "mk,kn", prologue: bool = False,
    weight: bool = False, batch: Dim = 1, zeros: str = "",
) -> Kernel:  # fmt: skip
    """``a @ b + bias`` in i32 and requantised; with ``prologue``, a is 3 at least.

    ``zeros``: the axes of the zero points of b, in4.
    """
    axes = {"b": axis("b", batch), "m": axis("m", m), "n": axis("n", n), "k": axis("k", k)}
    a_order, b_order = order.split(",")
    a = Buffer("in0", types[0], tuple(axes[c].extent for c in a_order))
    b = Buffer("in1", types[1], tuple(axes[c].extent for c in b_order))
    bias, zero = Buffer("in2", I32, (n,)), Buffer("in3", I8, (1,))
    out = [axes[c] for c in ("bmn" if "b" in a_order else "mn")]
    shape = tuple(x.extent for x in out)
    y, q = Buffer("out0", I32, shape, written=True), Buffer("out1", I8, shape, written=True)
    load_a, load_b = at(a, [axes[c] for c in a_order]), at(b, [axes[c] for c in b_order])
    total = variable("acc", I32) + at(bias, [axes["n"]])
    points = Buffer("in4", types[1], tuple(axes[c].extent for c in zeros))
    zero_of = {"zero": at(points, [axes[c] for c in zeros])} if zeros else {}
    return Kernel(
        "contract", "contract_matmulinteger",
        {"batch": (axes["b"],) if "b" in a_order else (), **{c: (axes[c],) for c in "mnk"}},
        {"a": binary("max", load_a, const(3, types[0])) if prologue else load_a, "b": load_b, **zero_of},
        (put(y, out, total), put(q, out, requantised(total, at(zero, [0])))),
        (a, b, bias, zero, *([points] if zeros else []), y, q),
        {"precision": "int8", "b_is_weight": weight},
    )  # fmt: skip


def matmul(i: Arrays, order: str = "mk,kn", prologue: bool = False, zeros: str = "") -> Arrays:
    a_order, b_order = order.split(",")
    a, b = i["in0"].astype(np.int64), i["in1"].astype(np.int64)
    if zeros:
        b = b - np.expand_dims(i["in4"].astype(np.int64), [k for k, c in enumerate(b_order) if c not in zeros])
    out = "bmn" if "b" in a_order else "mn"
    total = np.einsum(f"{a_order},{b_order}->{out}", np.maximum(a, 3) if prologue else a, b) + i["in2"]
    return {"out0": total, "out1": requantise(total, i["in3"])}


def inputs_of(rng: np.random.Generator, kernel: Kernel, env: dict[str, int]) -> Arrays:
    read = [b for b in kernel.buffers if not b.written]
    return {b.name: whole_range(rng, tuple(dims.evaluate(d, env) for d in b.shape), b.dtype) for b in read}


def conv_kernel(
    s: Shape, types: tuple[DType, DType], fill: int | str = 0, planes: bool = False, depthwise: bool = False,
    zeros: bool = False,
) -> Kernel:  # fmt: skip
    """``conv(x, w) + bias`` in i32 and requantised, channels last; padding is ``fill``, or read from in4.

    ``zeros``: the filters have zero points, in5.
    """
    n, g = axis("n", s.n), axis("g", s.groups)
    co, ci = axis("co", s.co // s.groups), axis("ci", s.ci // s.groups)
    outs = tuple(axis(f"o{i}", d) for i, d in enumerate(s.out))
    taps = tuple(axis(f"t{i}", d) for i, d in enumerate(s.taps))
    place = [o.index * s.stride + t.index * s.dilation - s.pad for o, t in zip(outs, taps)]
    mask: Expr | None = None
    for p, size in zip(place, s.size):
        mask = within(mask, p, size) if s.pad else None
    x = Buffer("in0", types[0], (s.n, s.ci, *s.size) if planes else (s.n, *s.size, s.ci))
    w = Buffer("in1", types[1], (*s.taps, s.co) if depthwise else (s.co, *s.taps, s.ci // s.groups))
    bias, zero, pad = Buffer("in2", I32, (s.co,)), Buffer("in3", I8, (1,)), Buffer("in4", types[0], (1,))
    shape = (s.n, *s.out, s.co)
    y, q = Buffer("out0", I32, shape, written=True), Buffer("out1", I8, shape, written=True)
    channel = g.index * co.extent + co.index
    source = g.index * ci.extent + ci.index
    a = at(x, [n, source, *place] if planes else [n, *place, source], mask)
    if mask is not None and fill != 0:
        a = where(mask, a, at(pad, [0]) if isinstance(fill, str) else const(fill, types[0]))
    points = Buffer("in5", types[1], (s.co,))
    total, out = variable("acc", I32) + at(bias, [channel]), [n, *outs, channel]
    return Kernel(
        "conv", "conv_convinteger", {"n": (n,), "out": outs, "g": (g,), "co": (co,), "tap": taps, "ci": (ci,)},
        {"a": a, "w": at(w, [*taps, channel] if depthwise else [channel, *taps, ci])}
        | ({"zero": at(points, [channel])} if zeros else {}),
        (put(y, out, total), put(q, out, requantised(total, at(zero, [0])))),
        (x, w, bias, zero, *([pad] if isinstance(fill, str) else []), *([points] if zeros else []), y, q),
        {"precision": "int8", "strides": (s.stride,) * len(taps), "transposed": False,
         "dilations": (s.dilation,) * len(taps), "pads": (s.pad,) * 2 * len(taps)},
    )  # fmt: skip


def conv(
    i: Arrays, s: Shape, fill: int | str = 0, planes: bool = False, depthwise: bool = False, zeros: bool = False
) -> Arrays:
    """The definition, element by element of the filter, in i64."""
    x, w = i["in0"].astype(np.int64), i["in1"].astype(np.int64)
    x = np.moveaxis(x, 1, -1) if planes else x
    w = np.moveaxis(w, -1, 0)[..., None] if depthwise else w
    if zeros:
        w = w - i["in5"].astype(np.int64).reshape(-1, *(1,) * (w.ndim - 1))
    value = int(i["in4"][0]) if isinstance(fill, str) else fill
    rank = len(s.taps)
    x = np.pad(x, [(0, 0), *[(s.pad, s.pad)] * rank, (0, 0)], constant_values=value)
    out = [(d - s.dilation * (t - 1) - 1) // s.stride + 1 for d, t in zip(x.shape[1:-1], s.taps)]
    total = np.zeros((x.shape[0], *out, s.co), np.int64)
    gi, go = s.ci // s.groups, s.co // s.groups
    for tap in np.ndindex(*s.taps):
        starts = [t * s.dilation for t in tap]
        window = tuple(slice(b, b + (d - 1) * s.stride + 1, s.stride) for b, d in zip(starts, out))
        for g in range(s.groups):
            weight = w[(slice(g * go, (g + 1) * go), *tap)].T
            total[..., g * go : (g + 1) * go] += x[(slice(None), *window, slice(g * gi, (g + 1) * gi))] @ weight
    total += i["in2"]
    return {"out0": total, "out1": requantise(total, i["in3"])}


SHAPES: dict[str, tuple[Shape, dict[str, Any]]] = {
    "pointwise": (Shape(2, (5, 6), 16, 24, (1, 1)), {}),
    "3x3": (Shape(1, (9, 8), 16, 24, (3, 3), pad=1), {}),
    "3x3_filled": (Shape(1, (9, 8), 32, 24, (3, 3), pad=1), {"fill": 131}),
    "3x3_stride_filled": (Shape(2, (9, 8), 16, 16, (3, 3), stride=2, pad=1), {"fill": 7}),
    "fill_that_is_read": (Shape(1, (6, 7), 16, 16, (3, 3), pad=1), {"fill": "in4"}),
    "odd_channels_filled": (Shape(1, (7, 7), 5, 11, (3, 3), pad=1), {"fill": 9}),
    "first_layer": (Shape(1, (16, 16), 3, 16, (7, 7), stride=2, pad=3), {"fill": 128, "planes": True}),
    "dilated": (Shape(1, (12, 11), 16, 16, (3, 3), pad=2, dilation=2), {}),
    "groups": (Shape(1, (6, 7), 32, 16, (3, 3), pad=1, groups=2), {"fill": 3}),
    "1d": (Shape(2, (20,), 16, 8, (5,), pad=2), {}),
    "3d": (Shape(1, (4, 5, 6), 16, 16, (3, 3, 3), pad=1), {"fill": 1}),
    "zeros": (Shape(1, (9, 8), 16, 24, (3, 3), pad=1), {"zeros": True}),
    "zeros_filled": (Shape(2, (9, 8), 16, 24, (3, 3), stride=2, pad=1), {"zeros": True, "fill": 131}),
    "zeros_fill_that_is_read": (Shape(1, (6, 7), 5, 11, (3, 3), pad=1), {"zeros": True, "fill": "in4"}),
    "zeros_groups": (Shape(1, (6, 7), 32, 16, (3, 3), pad=1, groups=2), {"zeros": True, "fill": 3}),
}  # fmt: skip
DEPTHWISE: dict[str, tuple[Shape, dict[str, Any]]] = {
    "depthwise": (Shape(2, (7, 9), 24, 24, (3, 3), pad=1, groups=24), {"fill": 100}),
    "depthwise_stride": (Shape(1, (9, 11), 16, 16, (3, 3), stride=2, pad=1, groups=16), {}),
    "depthwise_zeros": (Shape(1, (7, 9), 24, 24, (3, 3), pad=1, groups=24), {"zeros": True, "fill": 100}),
    "depthwise_odd": (Shape(1, (6, 5), 7, 7, (3, 3), pad=1, groups=7), {"fill": "in4"}),
}


@functools.cache
def _suite() -> Suite:
    s, rng = Suite(), np.random.default_rng(15)

    def add(name: str, size: tuple[int, int, int], types: tuple[DType, DType] = (U8, I8),
            tactic: ContractTactic | GemvTactic | None = None, symbolic: str = "", most: int = 4096, **kw: Any,
    ) -> None:  # fmt: skip
        m, n, k = (symbol(c.upper(), 1, most) if c in symbolic else d for c, d in zip("mnk", size))
        env = {c.upper(): d for c, d in zip("mnk", size) if c in symbolic}
        kernel = matmul_kernel(m, n, k, types, **kw)
        inputs = inputs_of(rng, kernel, env)
        told = {x: kw[x] for x in ("order", "prologue", "zeros") if x in kw}
        s.add(name, kernel, inputs, functools.partial(matmul, inputs, **told), env, tactic)

    for types in ((I8, I8), (I8, U8), (U8, I8), (U8, U8)):
        add(f"{types[0].value}_{types[1].value}", (40, 48, 96), types, order="mk,nk")
    for order in ("mk,kn", "mk,nk", "km,kn", "km,nk"):
        add(order.replace(",", "_"), (80, 48, 112), order=order)
    add("batched", (24, 40, 48), order="bmk,bkn", batch=3)
    add("odd", (33, 35, 37))
    add("odd_both_transposed", (33, 35, 37), order="km,nk", prologue=True)
    add("prologue", (40, 48, 80), prologue=True)
    add("symbolic", (50, 48, 80), symbolic="m")
    add("symbolic_all", (50, 47, 71), symbolic="mnk")
    add("weight", (72, 64, 320), order="mk,nk", weight=True)
    add("long", (40, 48, 800), (I8, I8), ContractTactic("mma", 32, 32, 64, 16, 16, stages=3))
    add("large_tile", (140, 136, 192), (U8, I8), ContractTactic("mma", 128, 128, 64, 64, 32, stages=4, early=False))
    large = ContractTactic("mma", 128, 128, 64, 64, 32, stages=4)
    add("large_tile_kn", (140, 144, 192), (U8, I8), large, order="km,kn")
    add("split", (40, 48, 800), (U8, I8), ContractTactic("mma", 32, 32, 64, 16, 16, stages=3, split=4), weight=True)
    add("split_odd", (70, 37, 341), (U8, I8), ContractTactic("mma", 64, 32, 128, 32, 16, stages=2, split=2))
    add("ordinary", (40, 48, 80), (U8, I8), ContractTactic("ffma", 32, 32, 16, 4, 2))
    add("ordinary_split_odd", (33, 35, 137), (I8, U8), ContractTactic("ffma", 32, 32, 16, 4, 2, split=2))
    for rows, order in ((1, "mk,nk"), (5, "mk,nk"), (8, "mk,kn"), (3, "km,nk")):
        add(f"few_{rows}_{order[3:]}", (rows, 72, 400), (I8, U8), order=order, weight=True)
    add("few_odd", (3, 37, 101), (I8, I8), order="mk,nk", prologue=True)
    add("few_odd_kn", (2, 37, 101), (U8, U8))
    add("few_open", (5, 40, 264), order="mk,nk", symbolic="m", most=8)
    add("few_split", (1, 20, 520), (I8, I8), GemvTactic(2, 8, 2), order="mk,nk")
    _add_zero_points(add)
    for name, (shape, kw) in SHAPES.items():
        kernel = conv_kernel(shape, (U8, I8), **kw)
        inputs = inputs_of(rng, kernel, {})
        s.add(f"conv_{name}", kernel, inputs, functools.partial(conv, inputs, shape, **kw))
    for name, (shape, kw) in DEPTHWISE.items():
        kernel = conv_kernel(shape, (U8, I8), **kw, depthwise=True)
        inputs = inputs_of(rng, kernel, {})
        s.add(f"conv_{name}", kernel, inputs, functools.partial(conv, inputs, shape, **kw, depthwise=True))
    return s


def _add_zero_points(add: Callable[..., None]) -> None:
    """Products whose right operand has zero points, on all engines and in all orders."""
    for k, order in enumerate(("mk,kn", "mk,nk", "km,kn", "km,nk")):
        types = ((I8, U8), (U8, U8), (U8, I8), (I8, I8))[k]
        add(f"zeros_{order.replace(',', '_')}", (80, 48, 112), types, order=order, zeros="n")
        add(f"zeros_odd_{order.replace(',', '_')}", (33, 35, 37), types, order=order, zeros="n", prologue=True)
    add("zeros_batched", (24, 40, 48), (U8, U8), order="bmk,bkn", batch=3, zeros="bn")
    add("zeros_batched_rows", (24, 40, 48), (U8, U8), order="bmk,bnk", batch=3, zeros="b")
    add("zeros_symbolic", (50, 47, 71), (U8, U8), symbolic="mnk", zeros="n")
    split = ContractTactic("mma", 64, 32, 128, 32, 16, stages=2, split=2)
    add("zeros_split", (70, 37, 341), (U8, U8), split, zeros="n")
    add("zeros_large_tile", (140, 144, 192), (U8, U8), ContractTactic("mma", 128, 128, 64, 64, 32, stages=4), zeros="n")
    add("zeros_ordinary", (33, 35, 137), (I8, U8), ContractTactic("ffma", 32, 32, 16, 4, 2, split=2), zeros="n")
    for rows, order in ((1, "mk,nk"), (5, "mk,nk"), (8, "mk,kn"), (3, "km,nk")):
        add(f"zeros_few_{rows}_{order[3:]}", (rows, 72, 400), (I8, U8), order=order, weight=True, zeros="n")
    add("zeros_few_odd", (3, 37, 101), (U8, U8), order="mk,nk", prologue=True, zeros="n")
    add("zeros_few_open", (5, 40, 264), (U8, U8), order="mk,nk", symbolic="m", most=8, zeros="n")
    add("zeros_few_split", (1, 20, 520), (U8, U8), GemvTactic(2, 8, 2), order="mk,nk", zeros="n")


@functools.cache
def _wgmma_suite() -> Suite:
    s, rng = Suite(), np.random.default_rng(16)

    def add(name: str, size: tuple[int, int, int], types: tuple[DType, DType] = (U8, I8),
            tactic: ContractWgmmaTactic | None = None, symbolic: str = "", **kw: Any) -> None:  # fmt: skip
        m, n, k = (symbol(c.upper(), 1, 4096, 16) if c in symbolic else d for c, d in zip("mnk", size))
        env = {c.upper(): d for c, d in zip("mnk", size) if c in symbolic}
        kernel = matmul_kernel(m, n, k, types, "mk,nk", **kw)
        inputs = inputs_of(rng, kernel, env)
        s.add(name, kernel, inputs, functools.partial(matmul, inputs, "mk,nk", zeros=kw.get("zeros", "")), env, tactic)

    for types in ((I8, I8), (I8, U8), (U8, I8), (U8, U8)):
        add(f"{types[0].value}_{types[1].value}", (72, 136, 400), types)
    add("weight", (80, 96, 640), tactic=ContractWgmmaTactic(64, 32, 3), weight=True)
    add("narrow_late", (64, 48, 128), tactic=ContractWgmmaTactic(64, 48, 2, early=False))
    add("two_groups", (140, 130, 144), tactic=ContractWgmmaTactic(128, 128, 2))
    add("wide", (70, 264, 272), tactic=ContractWgmmaTactic(64, 256, 3))
    several = ContractWgmmaTactic(64, 128, 3, blocks=2)
    add("several_tiles_each", (200, 200, 400), tactic=several, weight=True)
    add("cluster_of_two", (80, 96, 800), tactic=ContractWgmmaTactic(64, 32, 3, split=2), weight=True)
    add("cluster_of_four", (130, 128, 1200), (I8, I8), ContractWgmmaTactic(128, 64, 2, split=4))
    add("one_step", (65, 40, 16), tactic=ContractWgmmaTactic(64, 32, 3), weight=True)
    add("symbolic_all", (72, 80, 272), tactic=ContractWgmmaTactic(64, 64, 3, blocks=2), symbolic="mnk")
    add("zeros", (72, 136, 400), (U8, U8), zeros="n")
    add("zeros_several_tiles_each", (200, 200, 400), (I8, U8), several, weight=True, zeros="n")
    add("zeros_cluster", (130, 128, 1200), (U8, I8), ContractWgmmaTactic(128, 64, 2, split=4), zeros="n")
    return s


WGMMA_SHAPES: dict[str, tuple[Shape, ConvWgmmaTactic | None]] = {
    "zeros": (Shape(2, (7, 7), 144, 40, (3, 3), pad=1), ConvWgmmaTactic(64, 64, 2, patch=(1, 7, 7))),
    "3x3": (Shape(1, (9, 8), 16, 24, (3, 3), pad=1), None),
    "images": (Shape(4, (7, 7), 144, 40, (3, 3), pad=1), None),
    "stride": (Shape(3, (8, 9), 32, 32, (3, 3), stride=2, pad=1), ConvWgmmaTactic(64, 32, 2, patch=(2, 4, 5))),
    "groups": (Shape(1, (6, 6), 256, 64, (3, 3), pad=1, groups=2), ConvWgmmaTactic(64, 32, 4, patch=(1, 6, 6))),
    "cluster": (Shape(1, (7, 7), 144, 40, (3, 3), pad=1), ConvWgmmaTactic(64, 32, 3, patch=(1, 7, 7), split=4)),
    "several": (
        Shape(2, (12, 12), 144, 72, (3, 3), pad=1), ConvWgmmaTactic(64, 96, 3, blocks=2, patch=(1, 5, 12)),
    ),
    "1d": (Shape(2, (20,), 16, 16, (5,), pad=2), None),
}


@functools.cache
def _conv_wgmma_suite() -> Suite:
    s, rng = Suite(), np.random.default_rng(17)
    for name, (shape, tactic) in WGMMA_SHAPES.items():
        zeros = name == "zeros"
        kernel = conv_kernel(shape, (U8, I8), zeros=zeros)
        inputs = inputs_of(rng, kernel, {})
        s.add(f"conv_{name}", kernel, inputs, functools.partial(conv, inputs, shape, zeros=zeros), None, tactic)
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


__all__ = ["cases", "expected", "matmul", "matmul_kernel", "wgmma_cases", "wgmma_expected"]
