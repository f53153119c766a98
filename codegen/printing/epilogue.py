"""The epilogue of a contraction as a hook in two halves, so that several of its reads can be on their way at once."""

from __future__ import annotations

import re
from collections.abc import Sequence

from arcweld.codegen.kernel import Store
from arcweld.codegen.printing.approximate import approximate
from arcweld.codegen.printing.hooks import Hooks
from arcweld.codegen.printing.printer import Block, print_stores
from arcweld.compiler.dims import Sym
from arcweld.compiler.dtypes import DType

# the first line that needs the sums, or declares what they are collected in
_SECOND_HALF = re.compile(r"\bacc\b|_lanes;|#pragma unroll")


def epilogue_hook(
    hooks: Hooks, stores: Sequence[Store], args: Sequence[tuple[str, Sym]], lane: Sym, width: int, acc: DType
) -> str:
    """``auto store_out(p, indices...)`` reads what the epilogue needs beside the sums and returns what finishes it.

    The result is called with the sums of ``width`` neighbouring elements, a ``const T (&)[width]``. A store to memory
    keeps the compiler from moving later reads before it: the halves let a template read for several places first.
    """
    block = Block(
        hooks.params, {s: n for n, s in args}, lane=lane, width=width, variables={"acc": ("acc", True)}, indent="  "
    )
    lines = print_stores(block, approximate(hooks.kernel, stores))
    half = next((i for i, line in enumerate(lines) if _SECOND_HALF.search(line)), 0)
    inner = [line if line.startswith("#") else f"  {line}" for line in lines[half:]]
    formal = ", ".join(["const Params& p", *(f"{hooks.itype} {n}" for n, _ in args)])
    return "\n".join([
        f"__device__ __forceinline__ auto store_out({formal}) {{", *lines[:half],
        f"  return [=, &p](const {acc.cuda} (&acc)[{width}]) {{", *inner, "  };", "}",
    ])  # fmt: skip
