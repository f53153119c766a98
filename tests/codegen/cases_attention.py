"""Kernels for the attention template: layouts, masks, causal, grouped heads, odd head sizes, fused
producers and consumers.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from kernel_cases import Arrays, Case, Suite, at, put, random

from arcweld.codegen.kernel import Axis, Buffer, Kernel, axis
from arcweld.codegen.templates.attention.ffma import FfmaTactic
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import binary, cast, const, index, load, unary, variable, where

F32, F16 = DType.F32, DType.F16


@dataclass(frozen=True)
class Shape:
    """An attention problem. ``layout`` is bhsd, bshd or packed (q, k and v in one [b, s, 3, h, d] buffer)."""

    b: Dim = 1
    h: int = 2
    s: Dim = 16
    t: Dim = 16
    d: int = 32
    dv: int = 0
    groups: int = 1
    dtype: DType = F32
    layout: str = "bhsd"
    mask: str = ""
    causal: bool = False
    offset: Dim = 0
    fused: bool = False
    fill: float = -np.inf
    softcap: float = 0.0
    sink: bool = False

    @property
    def width(self) -> int:
        return self.dv or self.d


def attention_kernel(x: Shape) -> Kernel:
    """The kernel of a problem. ``mask``: ``key`` (bool [b, t]), ``bool`` or ``add`` ([b, 1, s, t]).

    With ``fused``, q is scaled per head size element before, and the result passes through a square root of
    its square.
    """
    names = ("b", "h", "s", "t", "d", "dv")
    b, h, s, t, d, dv = (axis(n, e) for n, e in zip(names, (x.b, x.h, x.s, x.t, x.d, x.width)))
    kv_head = dims.floordiv(h.index, x.groups)
    buffers, q, k, v = _operands(x, (b, h, s, t, d, dv), kv_head)
    loads = {"q": q, "k": k, "v": v}
    if x.fused:
        gain = Buffer("in4", F32, (x.d,))
        buffers.append(gain)
        loads["q"] = q * at(gain, (d,))
    if x.mask:
        shape: tuple[Dim, ...] = (x.b, x.t) if x.mask == "key" else (x.b, 1, x.s, x.t)
        mask = Buffer("in3", x.dtype if x.mask == "add" else DType.BOOL, shape)
        buffers.append(mask)
        loads["mask"] = at(mask, (b, t) if x.mask == "key" else (b, 0, s, t))
    if x.sink:
        sinks = Buffer("in5", F32, (x.h,))
        buffers.append(sinks)
        loads["sink"] = at(sinks, (h,)) if q.dtype is F32 else cast(at(sinks, (h,)), q.dtype)
    acc = variable("acc", q.dtype)
    result = unary("sqrt", acc * acc) if x.fused else acc
    shape_out: tuple[Dim, ...] = (x.b, x.h, x.s, x.width) if x.layout == "bhsd" else (x.b, x.s, x.h * x.width)
    out = Buffer("out0", x.dtype, shape_out, True)
    where_to = (b, h, s, dv) if x.layout == "bhsd" else (b, s, h.index * x.width + dv.index)
    precision = {F16: "f16", DType.BF16: "bf16"}.get(x.dtype, "fp32")
    attrs: dict[str, Any] = {"scale": x.d**-0.5, "causal": x.causal, "precision": precision}
    if x.softcap:
        attrs["softcap"] = x.softcap
    if np.isfinite(x.fill):
        attrs["fill"] = x.fill
    if x.offset is not None:
        attrs["causal_offset"] = x.offset
    axes = {n: (a,) for n, a in zip(names, (b, h, s, t, d, dv))}
    return Kernel("attention", "attention", axes, loads, (put(out, where_to, result),), (*buffers, out), attrs)


def _operands(x: Shape, axes: tuple[Axis, ...], kv_head: Dim) -> tuple[list[Buffer], Any, Any, Any]:
    b, h, s, t, d, dv = axes
    if x.layout == "packed":
        qkv = Buffer("in0", x.dtype, (x.b, x.s, 3, x.h, x.d))
        return [qkv], at(qkv, (b, s, 0, h, d)), at(qkv, (b, t, 1, kv_head, d)), at(qkv, (b, t, 2, kv_head, dv))
    heads = x.h // x.groups
    if x.layout == "bshd":
        shapes = [(x.b, x.s, x.h, x.d), (x.b, x.t, heads, x.d), (x.b, x.t, heads, x.width)]
        places = [(b, s, h, d), (b, t, kv_head, d), (b, t, kv_head, dv)]
    else:
        shapes = [(x.b, x.h, x.s, x.d), (x.b, heads, x.t, x.d), (x.b, heads, x.t, x.width)]
        places = [(b, h, s, d), (b, kv_head, t, d), (b, kv_head, t, dv)]
    buffers = [Buffer(f"in{n}", x.dtype, shape) for n, shape in enumerate(shapes)]
    q, k, v = (at(buffer, place) for buffer, place in zip(buffers, places))
    return buffers, q, k, v


def inputs(x: Shape, rng: np.random.Generator, env: dict[str, int]) -> Arrays:
    """Random operands; the bool masks leave about half of the keys, and one query of ``bool`` none at all."""
    kernel = attention_kernel(x)
    data: Arrays = {}
    for buffer in kernel.buffers[:-1]:
        shape = [dims.evaluate(n, env) for n in buffer.shape]
        data[buffer.name] = random(rng, shape, buffer.dtype)
    if x.mask == "bool":
        data["in3"][0, 0, 1] = False
    if x.mask == "key":
        data["in3"][:, 0] = True
    return data


def at_positions(x: Shape, form: str) -> Kernel:
    """``x`` with a mask that compares keys with positions ``in6[s]``; ``form``: how it is written."""
    kernel = attention_kernel(x)
    keys, position = kernel.axes["t"][0], Buffer("in6", DType.I64, (x.s,))
    key, limit = index(keys.index), load("in6", DType.I64, (kernel.axes["s"][0].index,))
    seen = {
        "until": binary("le", key, limit),
        "before": binary("gt", binary("add", limit, const(1, DType.I64)), key),
        "window": binary(
            "and", binary("le", key, limit), binary("lt", binary("sub", limit, key), const(40, DType.I64))
        ),
        "added": binary("le", key, limit),
    }[form]
    low = const(float(np.finfo(np.float32).min), F32)
    mask = where(seen, const(0.0, F32), low) if form == "added" else seen
    buffers = (*kernel.buffers[:-1], position, kernel.buffers[-1])
    return replace(kernel, loads={**kernel.loads, "mask": mask}, buffers=buffers)


def attend(x: Shape, i: Arrays, env: dict[str, int]) -> dict[str, np.ndarray]:
    """The oracle: the whole score matrix, in f64."""
    f = {k: v.astype(np.float64) for k, v in i.items()}
    if x.layout == "packed":
        q, k, v = (f["in0"][:, :, n].transpose(0, 2, 1, 3) for n in range(3))
    else:
        q, k, v = (f[n] if x.layout == "bhsd" else f[n].transpose(0, 2, 1, 3) for n in ("in0", "in1", "in2"))
    k, v = np.repeat(k, x.groups, 1), np.repeat(v, x.groups, 1)
    q = q * f["in4"] if x.fused else q
    score = q @ k.swapaxes(-1, -2) * x.d**-0.5
    if x.softcap:
        score = x.softcap * np.tanh(score / x.softcap)
    if x.mask == "add":
        score = score + f["in3"]
    elif x.mask:
        keep = i["in3"][:, None, None, :] if x.mask == "key" else i["in3"]
        score = np.where(keep, score, x.fill)
    if x.causal:
        rows, cols = np.arange(score.shape[-2])[:, None], np.arange(score.shape[-1])
        score = np.where(cols <= rows + dims.evaluate(x.offset, env), score, -np.inf)
    best = score.max(-1, keepdims=True)
    if x.sink:
        best = np.maximum(best, f["in5"][:, None, None])
    weight = np.exp(score - np.where(np.isinf(best), 0, best))
    total = weight.sum(-1, keepdims=True)
    if x.sink:
        total = total + np.exp(f["in5"][:, None, None] - best)
    y = weight / np.where(total == 0, 1, total) @ v
    y = np.abs(y) if x.fused else y
    return {"out0": y if x.layout == "bhsd" else y.transpose(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], -1)}


PROBLEMS: dict[str, Shape] = {
    "plain": Shape(),
    "tails": Shape(b=2, h=3, s=37, t=53, d=32),
    "odd_sizes": Shape(s=19, t=21, d=17, dv=23),
    "packed": Shape(b=2, h=3, s=40, t=40, d=16, layout="packed"),
    "grouped": Shape(h=4, s=9, t=70, d=24, groups=2, layout="bshd"),
    "causal": Shape(s=33, t=33, d=16, causal=True),
    "causal_offset": Shape(s=6, t=40, d=16, causal=True, offset=34),
    "causal_before": Shape(s=12, t=8, d=16, causal=True, offset=-4),
    "key_mask": Shape(b=2, s=20, t=45, d=32, mask="key"),
    "bool_mask": Shape(s=18, t=30, d=16, mask="bool", layout="bshd"),
    "add_mask": Shape(s=18, t=30, d=16, mask="add"),
    "filled": Shape(s=18, t=30, d=16, mask="bool", fill=-1e4),
    "filled_with_the_lowest": Shape(s=18, t=30, d=16, mask="bool", fill=float(np.finfo(np.float32).min)),
    "wide_head": Shape(h=1, s=9, t=40, d=256),
    "head_128": Shape(h=1, s=40, t=40, d=128),
    "fused": Shape(s=20, t=20, d=32, fused=True, mask="key"),
    "one_query": Shape(s=1, t=75, d=64),
    "f64": Shape(s=10, t=12, d=16, dtype=DType.F64),
    "capped": Shape(s=33, t=40, d=16, softcap=0.7),
    "capped_and_masked": Shape(s=18, t=30, d=16, mask="bool", softcap=0.7),
    "sink": Shape(b=2, h=3, s=20, t=41, d=16, sink=True),
    "sink_and_bool_mask": Shape(s=18, t=30, d=16, mask="bool", sink=True, softcap=2.0),
    "sink_and_add_mask": Shape(h=4, s=18, t=30, d=16, groups=2, mask="add", sink=True, causal=True, offset=5),
    "f64_capped_with_sink": Shape(s=10, t=12, d=16, dtype=DType.F64, softcap=0.7, sink=True),
}
HALF: dict[str, Shape] = {
    **{f"f16_{n}": replace(x, dtype=F16) for n, x in PROBLEMS.items() if not n.startswith("f64")},
    **{f"bf16_{n}": replace(PROBLEMS[n], dtype=DType.BF16) for n in ("tails", "add_mask", "packed")},
    "f16_head_96": Shape(s=40, t=70, d=96, dtype=F16),
    "f16_head_80": Shape(s=20, t=70, d=80, dtype=F16, layout="packed", h=1),
}
DECODE = {
    "decode": Shape(b=2, h=3, s=1, t=150, d=64, dtype=F16),
    "decode_grouped": Shape(b=2, h=8, s=1, t=130, d=32, groups=4, dtype=F16, layout="bshd", mask="key"),
    "decode_few": Shape(h=4, s=3, t=90, d=32, groups=2, dtype=DType.BF16, causal=True, offset=87),
    "decode_capped_with_sink": Shape(h=8, s=1, t=60, d=32, groups=4, dtype=F16, softcap=0.7, sink=True, mask="key"),
    "decode_grouped_causal_before": Shape(h=6, s=4, t=20, d=16, groups=3, dtype=F16, causal=True, offset=-2),
}
HALF["f16_head_80"] = replace(HALF["f16_head_80"], s=50, t=50)


@functools.cache
def suite() -> Suite:
    """All cases; small enough for the simulator."""
    s, rng = Suite(), np.random.default_rng(13)
    for name, x in {**PROBLEMS, **HALF, **DECODE}.items():
        _add(s, rng, name, x, {})
    batch, n, m = symbol("batch", 1), symbol("seq", 1), symbol("past", 0)
    env = {"batch": 2, "seq": 21, "past": 13}
    for dtype in (F32, F16):
        symbolic = Shape(b=batch, s=n, t=n + m, d=16, causal=True, offset=m, dtype=dtype)
        _add(s, rng, f"{dtype.value}_symbolic", symbolic, env)
    _add(s, rng, "tile_16x16", PROBLEMS["tails"], {}, FfmaTactic(16, 1, 1, 256))
    return s


def _add(s: Suite, rng: np.random.Generator, name: str, x: Shape, env: dict[str, int], tactic: Any = None) -> None:
    data = inputs(x, rng, env)
    s.add(name, attention_kernel(x), data, lambda: attend(x, data, env), env, tactic)


def cases() -> list[Case]:
    return suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return suite().expected(case)
