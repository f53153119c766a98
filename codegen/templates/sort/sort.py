"""The sort template: the places of a row's elements in order. Equal elements keep their order.

Roles: axes ``row`` (any number) and ``col`` (one); load ``x`` over both; stores over both with the variable ``acc``:
the place of the element that is the col-th. Attribute ``largest``: whether the largest come first. A block sorts a row
by merging: n log^2 n comparisons, one launch, and memory that is linear.
"""

from __future__ import annotations

from dataclasses import dataclass

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.printing.hooks import Hooks
from arcweld.codegen.printing.nest import most, power_of_two_at_least
from arcweld.codegen.printing.render import render
from arcweld.codegen.templates.card import SMS
from arcweld.codegen.templates.rows import argument, flat_rows, too_many
from arcweld.compiler import dims
from arcweld.compiler.dtypes import DType

TILE = 1024  # elements that are sorted in shared memory
USUAL_SYMBOLIC = 1 << 20  # elements that are assumed where no upper bound is known


@dataclass(frozen=True, slots=True)
class SortTactic:
    """``threads`` of a block, and a ``tile`` of elements: powers of two, from 32 and from 2."""

    threads: int = 256
    tile: int = TILE


def tactics(kernel: Kernel, arch: str) -> tuple[SortTactic, ...]:
    """The estimated best first: more threads where there are few rows, and a tile no longer than a row."""
    flat = flat_rows(kernel)
    longest, rows = most(flat.axes["col"][0].extent, USUAL_SYMBOLIC), most(flat.axes["row"][0].extent, 1)
    tile = max(2, min(TILE, power_of_two_at_least(longest)))
    threads = max(32, min(1024 if rows <= SMS else 256, tile))
    return tuple(SortTactic(n, tile) for n in dict.fromkeys((threads, max(32, threads // 2), max(32, threads // 4))))


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why this kernel can't be rendered, or None."""
    return too_many(kernel)


def render_sort(kernel: Kernel, tactic: SortTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, the same for every ``arch``."""
    flat = flat_rows(kernel)
    (row,), (col,) = flat.axes["row"], flat.axes["col"]
    hooks, args, x = Hooks(flat), [argument(row), argument(col)], flat.loads["x"]
    functions = [
        hooks.load("load_x", x, args),
        hooks.store("store_out", flat.stores, args, variables={"acc": ("acc", DType.I64, True)}),
    ]
    key = DType.U64 if x.dtype.size == 8 else DType.U32
    merges = not dims.is_nonneg(tactic.tile - col.extent)
    if merges:
        hooks.params.workspace("keys", key, 2, row.extent, col.extent)
        hooks.params.workspace("places", DType.I32, 2, row.extent, col.extent)
    return render(
        "sort/sort.cu.j2", flat, hooks.params, arch="sm_80", grid=(row.extent, 1, 1), block=(tactic.threads, 1, 1),
        shared_bytes=2 * tactic.tile * (key.size + 4), tiled=((col.extent, tactic.tile),),
        functions=functions, threads=tactic.threads, tile=tactic.tile, key=key.cuda, ctype=x.dtype.cuda, merges=merges,
        largest=kernel.attrs["largest"], col_count=hooks.params.scalar("col_count", col.extent),
    )  # fmt: skip
