"""The epilogue of a contraction as a hook in two halves, so that several of its reads can be on their way at once."""

from __future__ import annotations

from collections.abc import Sequence

from arcweld.codegen.kernel import Store
from arcweld.codegen.printing.approximate import approximate
from arcweld.codegen.printing.hooks import Hooks
from arcweld.codegen.printing.printer import Block, Kind, Line, print_stores, texts
from arcweld.codegen.printing.split import dependence
from arcweld.compiler.dims import Sym
from arcweld.compiler.dtypes import DType


def epilogue_hook(
    hooks: Hooks, stores: Sequence[Store], args: Sequence[tuple[str, Sym]], lane: Sym, width: int, acc: DType
) -> str:
    """``auto store_out(p, indices...)`` reads what the epilogue needs beside the sums and returns what finishes it.

    The result is called with the sums of ``width`` neighbouring elements, a ``const T (&)[width]``. A store to memory
    keeps the compiler from moving later reads before it: the halves let a template read for several places first.
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
    """How many of the first lines define what does not depend on the sums."""
    depends = dependence([line.value for line in lines if line.value is not None])
    return next(
        i for i, line in enumerate(lines)
        if line.kind is not Kind.DEFINITION or (line.value is not None and "acc" in depends[line.value])
    )  # fmt: skip
