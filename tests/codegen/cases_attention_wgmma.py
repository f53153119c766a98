"""Kernels for the attention template's wgmma engine: ways to share out queries, shapes that leave remainders."""

from __future__ import annotations

import functools

import numpy as np
from cases_attention import Shape, attend, attention_kernel, inputs
from kernel_cases import Case, Suite

from arcweld.codegen.templates.attention.wgmma import AttentionWgmmaTactic
from arcweld.compiler.dtypes import DType

F16, BF16 = DType.F16, DType.BF16

TACTICS = [
    AttentionWgmmaTactic(1, 64, 2),
    AttentionWgmmaTactic(1, 48, 1, overlap=True, persistent=True, blocks=2),
    AttentionWgmmaTactic(2, 32, 2, True, True),
    AttentionWgmmaTactic(2, 64, 3, True, True, True),
    AttentionWgmmaTactic(3, 16, 2, True, True, True),
]
SHAPES = {
    "tails": Shape(b=2, h=2, s=150, t=213, d=64, dtype=F16),
    "two_chunks": Shape(h=1, s=70, t=100, d=128, dv=80, dtype=BF16),
    "odd_head": Shape(h=2, s=40, t=70, d=24, dv=40, dtype=F16, layout="bshd"),
    "packed": Shape(b=2, h=2, s=90, t=90, d=32, dtype=F16, layout="packed"),
    "grouped": Shape(h=4, s=30, t=130, d=32, groups=2, dtype=F16, layout="bshd"),
    "causal": Shape(h=3, s=200, t=200, d=16, dtype=F16, causal=True),
    "causal_before": Shape(h=1, s=140, t=60, d=16, dtype=F16, causal=True, offset=-70),
    "key_mask": Shape(b=2, h=1, s=70, t=150, d=32, dtype=F16, mask="key"),
    "bool_mask": Shape(h=1, s=70, t=75, d=16, dtype=F16, mask="bool"),
    "filled": Shape(h=1, s=70, t=75, d=16, dtype=F16, mask="bool", fill=-1e9),
    "capped": Shape(h=2, s=70, t=80, d=64, dtype=F16, softcap=0.7),
    "sink": Shape(b=2, h=2, s=70, t=80, d=64, dtype=BF16, sink=True),
    "capped_with_sink": Shape(h=2, s=70, t=80, d=32, dtype=F16, softcap=0.7, sink=True, mask="bool"),
    "add_mask": Shape(h=2, s=70, t=80, d=16, dtype=BF16, mask="add"),
}


@functools.cache
def _suite() -> Suite:
    s, rng = Suite(), np.random.default_rng(14)
    for name, shape in SHAPES.items():
        data = inputs(shape, rng, {})
        oracle = functools.cache(functools.partial(attend, shape, data, {}))
        for i, tactic in enumerate(TACTICS):
            s.add(f"{name}_{i}", attention_kernel(shape), data, oracle, {}, tactic)
    return s


def cases() -> list[Case]:
    return _suite().cases


def expected(case: Case) -> dict[str, np.ndarray]:
    return _suite().expected(case)
