"""Faster transcendental functions for epilogues whose results are rounded to 16 bits anyway.

Errors: exp 2**-21, tanh 2**-11 relative (half a unit of f16), erf 4e-5 beside that. Results stored as f32 stay exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from arcweld.codegen.kernel import Kernel, Store
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import UNARY_FAST, Expr, rebuild, unary

FAST = {name.removeprefix("fast_"): name for name in UNARY_FAST}


def approximate(kernel: Kernel, stores: Sequence[Store]) -> tuple[Store, ...]:
    """The stores with faster functions in those whose buffer holds f16 or bf16."""
    memo: dict[int, Expr] = {}

    def faster(e: Expr) -> Expr:
        if id(e) not in memo:
            args = [faster(a) for a in e.args]
            fast = e.op in FAST and e.dtype is DType.F32
            memo[id(e)] = unary(FAST[e.op], args[0]) if fast else rebuild(e, args)
        return memo[id(e)]

    def half(s: Store) -> bool:
        return kernel.buffer(s.buffer).dtype.is_half

    return tuple(replace(s, value=faster(s.value)) if half(s) else s for s in stores)
