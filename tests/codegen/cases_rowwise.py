"""Kernels for the rowwise template: softmax and the norms, with prologues, masks, broadcasts and odd shapes."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from kernel_cases import Arrays, Case, Suite, at, put, random

from arcweld.codegen.kernel import Buffer, Kernel, Stage, axis
from arcweld.codegen.templates.reduce.rowwise import RowwiseTactic
from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import cast, const, index, unary, variable, where

F32 = DType.F32
X = variable("x", F32)
SOFTMAX = (
    Stage("max", "max", X),
    Stage("sum", "sum", unary("exp", X - variable("max", F32)), unary("recip", variable("sum", F32))),
)
PROBABILITY = unary("exp", X - variable("max", F32)) * variable("sum", F32)


def softmax_kernel(shape: Sequence[Dim], dtype: DType) -> Kernel:
    """Softmax over the last axis."""
    axes = tuple(axis(f"i{n}", d) for n, d in enumerate(shape))
    src, dst = Buffer("in0", dtype, tuple(shape)), Buffer("out0", dtype, tuple(shape), written=True)
    return Kernel(
        "rowwise", "softmax", {"row": axes[:-1], "col": axes[-1:]}, {"x": at(src, axes)},
        (put(dst, axes, PROBABILITY),), (src, dst), {"stages": SOFTMAX},
    )  # fmt: skip


def softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def norm_stages(cols: Dim, eps: float, centred: bool) -> tuple[Stage, ...]:
    """Mean and reciprocal deviation (LayerNorm), or the reciprocal root mean square alone."""
    count = cast(index(cols), F32)
    mean = variable("mean", F32)
    centre = X - mean if centred else X
    rstd = Stage("rstd", "sum", centre * centre, unary("rsqrt", variable("rstd", F32) / count + eps))
    return (Stage("mean", "sum", X, mean / count), rstd) if centred else (rstd,)


def layernorm_kernel(rows: Dim, cols: Dim, dtype: DType, param: DType = F32, eps: float = 1e-5) -> Kernel:
    """LayerNorm with scale and bias of x plus a residual, whose sum is stored as well."""
    r, c = axis("r", rows), axis("c", cols)
    x, res = Buffer("in0", dtype, (rows, cols)), Buffer("in1", dtype, (rows, cols))
    gamma, beta = Buffer("in2", param, (cols,)), Buffer("in3", param, (cols,))
    total, y = Buffer("out0", dtype, (rows, cols), True), Buffer("out1", dtype, (rows, cols), True)
    normal = (X - variable("mean", F32)) * variable("rstd", F32)
    return Kernel(
        "rowwise", "add_layernorm", {"row": (r,), "col": (c,)}, {"x": at(x, (r, c)) + at(res, (r, c))},
        (put(total, (r, c), X), put(y, (r, c), normal * at(gamma, (c,)) + at(beta, (c,)))),
        (x, res, gamma, beta, total, y), {"stages": norm_stages(cols, eps, True)},
    )  # fmt: skip


def layernorm(i: Arrays, eps: float = 1e-5) -> dict[str, np.ndarray]:
    f = {k: v.astype(np.float64) for k, v in i.items()}
    x = f["in0"] + f["in1"]
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return {"out0": x, "out1": y * f["in2"] + f["in3"]}


def groupnorm_kernel(n: Dim, groups: int, per: int, pixels: int, dtype: DType) -> Kernel:
    """GroupNorm over (channels of a group, pixels) of an NCHW tensor: two row axes, two column axes, SiLU
    after it.
    """
    b, g, k, hw = axis("b", n), axis("g", groups), axis("k", per), axis("hw", pixels)
    channel = g.index * per + k.index
    x, y = Buffer("in0", dtype, (n, groups * per, pixels)), Buffer("out0", dtype, (n, groups * per, pixels), True)
    gamma = Buffer("in1", F32, (groups * per,))
    v = (X - variable("mean", F32)) * variable("rstd", F32) * at(gamma, (channel,))
    silu = v / (unary("exp", -v) + 1.0)
    return Kernel(
        "rowwise", "groupnorm_silu", {"row": (b, g), "col": (k, hw)}, {"x": at(x, (b, channel, hw))},
        (put(y, (b, channel, hw), silu),), (x, gamma, y), {"stages": norm_stages(per * pixels, 1e-5, True)},
    )  # fmt: skip


def groupnorm(i: Arrays, groups: int) -> dict[str, np.ndarray]:
    x = i["in0"].astype(np.float64)
    rows = x.reshape(x.shape[0], groups, -1)
    y = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-5)
    y = y.reshape(x.shape) * i["in1"].astype(np.float64)[:, None]
    return {"out0": y / (1 + np.exp(-y))}


def masked_softmax_kernel(rows: Dim, cols: Dim) -> Kernel:
    """Softmax of scaled scores where a bool mask (one row for all) removes keys; log-probabilities in a
    second output.
    """
    r, c = axis("r", rows), axis("c", cols)
    x, mask = Buffer("in0", F32, (rows, cols)), Buffer("in1", DType.BOOL, (cols,))
    p, logp = Buffer("out0", DType.F16, (rows, cols), True), Buffer("out1", F32, (rows, cols), True)
    score = where(at(mask, (c,)), at(x, (r, c)) * 0.125, const(-1e30, F32))
    log = X - variable("max", F32) + unary("log", variable("sum", F32))
    return Kernel(
        "rowwise", "mask_softmax", {"row": (r,), "col": (c,)}, {"x": score},
        (put(p, (r, c), PROBABILITY), put(logp, (r, c), log)), (x, mask, p, logp), {"stages": SOFTMAX},
    )  # fmt: skip


def masked_softmax(i: Arrays) -> dict[str, np.ndarray]:
    s = np.where(i["in1"], i["in0"].astype(np.float64) * 0.125, -1e30)
    s = s - s.max(-1, keepdims=True)
    total = np.exp(s).sum(-1, keepdims=True)
    return {"out0": np.exp(s) / total, "out1": s - np.log(total)}


def rmsnorm_kernel(rows: Dim, cols: Dim, dtype: DType) -> Kernel:
    r, c = axis("r", rows), axis("c", cols)
    x, gamma, y = (
        Buffer("in0", dtype, (rows, cols)),
        Buffer("in1", dtype, (cols,)),
        Buffer("out0", dtype, (rows, cols), True),
    )
    return Kernel(
        "rowwise", "rmsnorm", {"row": (r,), "col": (c,)}, {"x": at(x, (r, c))},
        (put(y, (r, c), X * variable("rstd", F32) * at(gamma, (c,))),), (x, gamma, y),
        {"stages": norm_stages(cols, 1e-6, False)},
    )  # fmt: skip


def rmsnorm(i: Arrays) -> dict[str, np.ndarray]:
    x = i["in0"].astype(np.float64)
    return {"out0": x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * i["in1"].astype(np.float64)}


def column_softmax_kernel(n: int, m: int) -> Kernel:
    """Softmax over the first axis in f64: the row is strided in memory."""
    r, c = axis("r", m), axis("c", n)
    x, y = Buffer("in0", DType.F64, (n, m)), Buffer("out0", DType.F64, (n, m), True)
    v, top = variable("x", DType.F64), variable("max", DType.F64)
    stages = (Stage("max", "max", v), Stage("sum", "sum", unary("exp", v - top)))
    value = unary("exp", v - top) / variable("sum", DType.F64)
    return Kernel(
        "rowwise", "softmax_axis0", {"row": (r,), "col": (c,)}, {"x": at(x, (c, r))}, (put(y, (c, r), value),), (x, y),
        {"stages": stages},
    )  # fmt: skip


def range_kernel(rows: Dim, cols: Dim) -> Kernel:
    """Each row less its least element, and the least and the largest element of each row."""
    r, c = axis("r", rows), axis("c", cols)
    x, y = Buffer("in0", F32, (rows, cols)), Buffer("out0", DType.F16, (rows, cols), True)
    low, top = Buffer("out1", F32, (rows,), True), Buffer("out2", F32, (rows,), True)
    least, most = variable("low", F32), variable("top", F32)
    stores = (put(y, (r, c), X - least), put(low, (r,), least), put(top, (r,), most))
    stages = (Stage("low", "min", X), Stage("top", "max", X))
    return Kernel(
        "rowwise", "range", {"row": (r,), "col": (c,)}, {"x": at(x, (r, c))}, stores, (x, y, low, top),
        {"stages": stages},
    )  # fmt: skip


def ranges(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"out0": x - x.min(-1, keepdims=True), "out1": x.min(-1), "out2": x.max(-1)}


@functools.cache
def suite() -> Suite:
    """All cases; small enough for the simulator."""
    s, rng = Suite(), np.random.default_rng(7)
    for shape, dtype, tactic in (
        ((3, 5), F32, None),
        ((2, 3, 64), DType.F16, None),
        ((5, 197), DType.BF16, None),
        ((2, 1000), F32, None),
        ((3, 1024), DType.F16, RowwiseTactic(lanes=64)),
        ((2, 777), F32, RowwiseTactic(lanes=128, resident=False)),
        ((7, 96), DType.F16, RowwiseTactic(lanes=8, rows=16)),
        ((4, 1), F32, None),
    ):
        x = random(rng, shape, dtype, 3.0)
        tag = "" if tactic is None else f"_l{tactic.lanes}{'' if tactic.resident else '_reread'}"
        name = f"softmax_{'x'.join(map(str, shape))}_{dtype.value}{tag}"
        s.add(name, softmax_kernel(shape, dtype), {"in0": x}, lambda x=x: {"out0": softmax(x)}, tactic=tactic)
    for rows, cols, lanes in ((5, 64, 8), (1, 64, 32), (3, 1001, 128), (5, 1, 32)):
        x = random(rng, (rows, cols), F32, 3.0)
        kernel, tactic = range_kernel(rows, cols), RowwiseTactic(lanes=lanes, rows=max(1, 32 // lanes))
        s.add(f"range_{rows}x{cols}", kernel, {"in0": x}, lambda x=x: ranges(x), tactic=tactic)
    _add_norms(s, rng)
    _add_symbolic(s, rng)
    return s


def _add_norms(s: Suite, rng: np.random.Generator) -> None:
    for rows, cols, dtype, param in ((5, 768, DType.F16, F32), (3, 50, F32, F32), (2, 2048, DType.BF16, DType.BF16)):
        i = {n: random(rng, (rows, cols), dtype) for n in ("in0", "in1")}
        i |= {n: random(rng, (cols,), param) for n in ("in2", "in3")}
        name = f"layernorm_{rows}x{cols}_{dtype.value}"
        s.add(name, layernorm_kernel(rows, cols, dtype, param), i, lambda i=i: layernorm(i))
    i = {"in0": random(rng, (2, 12, 35), F32), "in1": random(rng, (12,), F32)}
    s.add("groupnorm", groupnorm_kernel(2, 3, 4, 35, F32), i, lambda i=i: groupnorm(i, 3))
    i = {"in0": random(rng, (2, 16, 16), DType.F16), "in1": random(rng, (16,), F32)}
    s.add("groupnorm_f16", groupnorm_kernel(2, 2, 8, 16, DType.F16), i, lambda i=i: groupnorm(i, 2))
    i = {"in0": random(rng, (9, 128), DType.F16), "in1": random(rng, (128,), DType.F16)}
    s.add("rmsnorm", rmsnorm_kernel(9, 128, DType.F16), i, lambda i=i: rmsnorm(i))
    x = random(rng, (40, 6), DType.F64, 3.0)
    s.add("softmax_axis0_f64", column_softmax_kernel(40, 6), {"in0": x}, lambda: {"out0": softmax(x.T).T})
    i = {"in0": random(rng, (6, 70), F32, 8.0), "in1": random(rng, (70,), DType.BOOL)}
    s.add("masked_softmax", masked_softmax_kernel(6, 70), i, lambda i=i: masked_softmax(i))


def _add_symbolic(s: Suite, rng: np.random.Generator) -> None:
    batch, seq, bounded = symbol("batch", 1), symbol("seq", 1), symbol("seq", 1, 512)
    for b, n in ((2, 33), (1, 300), (2, 256), (1, 257)):
        x = random(rng, (b, n), F32, 3.0)
        kernel = softmax_kernel((batch, seq), F32)
        s.add(f"softmax_symbolic_{b}x{n}", kernel, {"in0": x}, lambda x=x: {"out0": softmax(x)}, {"batch": b, "seq": n})
    x = random(rng, (3, 129), DType.F16, 3.0)
    kernel = softmax_kernel((batch, bounded), DType.F16)
    s.add("softmax_bounded", kernel, {"in0": x}, lambda: {"out0": softmax(x)}, {"batch": 3, "seq": 129})
    i = {"in0": random(rng, (7, 64), DType.F16), "in1": random(rng, (64,), DType.F16)}
    s.add("rmsnorm_symbolic", rmsnorm_kernel(batch * 1, 64, DType.F16), i, lambda i=i: rmsnorm(i), {"batch": 7})


def cases() -> list[Case]:
    return suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return suite().expected(case)
