"""The epilogue of a contraction as a hook in two halves: first reads, then stores.

A template can so issue the reads for several places before it stores any, and their latencies overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

from arcweld.codegen.kernel import Store
from arcweld.codegen.printing.approximate import approximate
from arcweld.codegen.printing.hooks import Hooks
from arcweld.codegen.printing.printer import Block, Line, LineKind, print_stores, texts
from arcweld.codegen.printing.split import dependence
from arcweld.compiler.dims import Sym
from arcweld.compiler.dtypes import DType


def epilogue_hook(
    hooks: Hooks, stores: Sequence[Store], args: Sequence[tuple[str, Sym]], lane: Sym, width: int, acc: DType
) -> str:
    """The text of ``auto store_out(p, indices…)``, which reads what the epilogue needs beside the sums.

    It returns a lambda that takes the sums of ``width`` neighbouring elements along ``lane``, ``const T (&acc)[width]``
    with T = ``acc``, and stores the results. Two halves are needed because the compiler moves no read before an earlier
    store.
    """
    block = Block(hooks.params, {s: n for n, s in args}, lane=lane, width=width, variables={"acc": ("acc", True)})
    lines = print_stores(block, approximate(hooks.kernel, stores))
    half = _ready(lines)
    formal = ", ".join(["const Params& p", *(f"{hooks.itype} {n}" for n, _ in args)])
    return "\n".join([
        f"__device__ __forceinline__ auto store_out({formal}) {{", *texts(lines[:half]),
        f"  return [=, &p](const {acc.cuda} (&acc)[{width}]) {{",
        *texts([line.indented("  ") for line in lines[half:]]), "  };", "}",
    ])  # fmt: skip


def _ready(lines: Sequence[Line]) -> int:
    """The number of leading lines that are definitions and do not depend on the sums."""
    depends = dependence([line.value for line in lines if line.value is not None])
    return next(
        i for i, line in enumerate(lines)
        if line.kind is not LineKind.DEFINITION or (line.value is not None and "acc" in depends[line.value])
    )  # fmt: skip
