"""Faster transcendental functions for epilogues whose results are rounded to 16 bits anyway.

Relative errors: exp 2**-21, tanh 2**-11 (half a unit in the last place of f16). erf is computed through tanh and adds
4e-5. Values that are stored in a wider type keep the exact functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from arcweld.codegen.kernel import Kernel, Store
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import UNARY_FAST, Expr, postorder, rebuild, unary

FAST = {name.removeprefix("fast_"): name for name in UNARY_FAST}


def approximate(kernel: Kernel, stores: Sequence[Store]) -> tuple[Store, ...]:
    """The stores with faster functions in those whose buffer holds f16 or bf16."""
    memo: dict[Expr, Expr] = {}

    def faster(e: Expr) -> Expr:
        for x in postorder([e], lambda x: x.args, memo):
            args = [memo[a] for a in x.args]
            fast = x.op in FAST and x.dtype is DType.F32
            memo[x] = unary(FAST[x.op], args[0]) if fast else rebuild(x, args)
        return memo[e]

    def half(s: Store) -> bool:
        return kernel.buffer(s.buffer).dtype.is_half

    return tuple(replace(s, value=faster(s.value)) if half(s) else s for s in stores)
