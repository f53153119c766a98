"""Kernels for the attention template's implementation that divides the keys of a head among blocks."""

from __future__ import annotations

import functools

import numpy as np
from cases_attention import Shape, attend, attention_kernel, inputs
from kernel_cases import Case, Suite

from arcweld.codegen.templates.attention.split import SplitTactic
from arcweld.compiler.dims import symbol
from arcweld.compiler.dtypes import DType

F32, F16, BF16 = DType.F32, DType.F16, DType.BF16
KEYS = symbol("t", 1, 4096)

SHAPES = {
    "one_head": Shape(b=2, h=2, s=1, t=1000, d=64),
    "group_of_4": Shape(h=8, s=1, t=300, d=128, groups=4, layout="bshd", mask="key"),
    "group_of_8": Shape(h=8, s=2, t=300, d=64, groups=8, causal=True, offset=298),
    "group_of_7": Shape(h=14, s=1, t=200, d=64, groups=7, mask="key"),
    "two_positions": Shape(h=4, s=2, t=31, d=32, groups=2, causal=True, offset=29),
    "four_positions": Shape(h=8, s=4, t=140, d=64, groups=4, mask="bool"),
    "before_the_first_key": Shape(h=6, s=4, t=70, d=16, groups=3, causal=True, offset=-2),
    "wide_head": Shape(h=4, s=2, t=90, d=256, groups=4, mask="key"),
    "odd_head": Shape(h=3, s=5, t=131, d=17, dv=23, groups=3, mask="add"),
    "filled": Shape(h=2, s=4, t=140, d=80, dv=96, mask="bool", fill=-1e4),
    "filled_with_the_lowest": Shape(s=5, t=80, d=16, mask="bool", fill=float(np.finfo(np.float32).min)),
    "fused": Shape(h=4, s=2, t=140, d=24, groups=2, mask="key", fused=True),
    "capped": Shape(h=8, s=2, t=200, d=64, groups=4, softcap=0.7, mask="bool"),
    "sink": Shape(b=2, h=8, s=1, t=200, d=32, groups=4, sink=True),
    "sink_before_the_first_key": Shape(
        h=6, s=4, t=70, d=16, groups=3, causal=True, offset=-2, softcap=2.0, sink=True, mask="add"
    ),
    "packed": Shape(h=3, s=16, t=16, d=16, layout="packed"),
}
TACTICS = [SplitTactic(3, 2, 16), SplitTactic(5, 1, 32), SplitTactic(1, 4, 16)]


@functools.cache
def _suite() -> Suite:
    s, rng = Suite(), np.random.default_rng(15)
    for dtype in (F32, F16, BF16):
        for name, problem in SHAPES.items():
            shape = Shape(**{**vars(problem), "dtype": dtype})
            data = inputs(shape, rng, {})
            oracle = functools.cache(functools.partial(attend, shape, data, {}))
            for i, tactic in enumerate([None, *TACTICS] if dtype is not BF16 else [None]):
                s.add(f"{dtype.value}_{name}_{i}", attention_kernel(shape), data, oracle, {}, tactic)
        open_keys = Shape(h=4, s=2, t=KEYS, d=64, groups=2, dtype=dtype, mask="key")
        for keys in (1, 31, 1000, 4096):
            env = {"t": keys}
            data = inputs(open_keys, rng, env)
            oracle = functools.partial(attend, open_keys, data, env)
            s.add(f"{dtype.value}_{keys}_keys", attention_kernel(open_keys), data, oracle, env)
    return s


def cases() -> list[Case]:
    return _suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return _suite().expected(case)
