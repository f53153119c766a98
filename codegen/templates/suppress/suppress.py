"""The suppress template: which boxes of a row stay, in the order given, where each suppresses later ones it overlaps.

Roles: axes ``row`` (any number) and ``col`` (one); loads ``y0 x0 y1 x1`` (corners) and ``open`` (whether a box counts)
over both, ``overlap`` and ``most`` over ``row``; stores over both with the variable ``acc``: whether the box stays.
At most ``most`` do. A block takes one row, tile by tile. It compares each tile with the boxes that stay so far, which
it keeps in memory: at most one for each column. So memory is linear, and time that of the boxes that stay.
"""

from __future__ import annotations

from dataclasses import dataclass

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.printing.hooks import Hooks
from arcweld.codegen.printing.nest import most, power_of_two_at_least
from arcweld.codegen.printing.render import render
from arcweld.codegen.templates.rows import argument, flat_rows, too_many
from arcweld.compiler.dtypes import DType

USUAL_SYMBOLIC = 1024  # boxes that are assumed where no upper bound is known
CORNERS = ("y0", "x0", "y1", "x1")


@dataclass(frozen=True, slots=True)
class SuppressTactic:
    """``threads`` of a block, a box each: 32 to 512, a power of two."""

    threads: int = 256


def tactics(kernel: Kernel, arch: str) -> tuple[SuppressTactic, ...]:
    """The estimated best first: no more threads than boxes."""
    (col,) = kernel.axes["col"]
    threads = max(32, min(256, power_of_two_at_least(most(col.extent, USUAL_SYMBOLIC))))
    return tuple(SuppressTactic(n) for n in dict.fromkeys((threads, max(32, threads // 2), 32)))


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why this kernel can't be rendered, or None."""
    return too_many(kernel)


def render_suppress(kernel: Kernel, tactic: SuppressTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, the same for every ``arch``."""
    flat, threads = flat_rows(kernel), tactic.threads
    (row,), (col,) = flat.axes["row"], flat.axes["col"]
    hooks = Hooks(flat)
    both = [argument(row), argument(col)]
    functions = [hooks.load(f"load_{name}", flat.loads[name], both) for name in (*CORNERS, "open")]
    functions += [hooks.load(f"load_{name}", flat.loads[name], both[:1]) for name in ("overlap", "most")]
    functions.append(hooks.store("store_out", flat.stores, both, variables={"acc": ("acc", DType.BOOL, True)}))
    hooks.params.workspace("kept", DType.F32, row.extent, col.extent, 4)
    words = threads // 32
    return render(
        "suppress/suppress.cu.j2", flat, hooks.params, arch="sm_80", grid=(row.extent, 1, 1), block=(threads, 1, 1),
        shared_bytes=threads * 16 + 4 * threads * (words + 1) + 8 * words, tiled=((col.extent, threads),),
        functions=functions, threads=threads, col_count=hooks.params.scalar("col_count", col.extent),
    )  # fmt: skip
