"""The sort template: the places of a row's elements in order. Equal elements keep their order.

Roles: axes ``row`` (any number) and ``col`` (one); load ``x`` over both; stores over both with the variable ``acc``:
the place of the element that is the col-th. Attribute ``largest``: whether the largest come first. Tiles are sorted in
shared memory, then merged: n log n steps, one launch, and memory that is linear. Where there are many rows, a block
takes a row. Few long rows are sorted by blocks together, which wait for each other after each round of merging.
"""

from __future__ import annotations

from dataclasses import dataclass

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.printing.hooks import Hooks
from arcweld.codegen.printing.nest import most, power_of_two_at_least
from arcweld.codegen.printing.render import render
from arcweld.codegen.templates.card import RESIDENT_BLOCKS
from arcweld.codegen.templates.rows import argument, flat_rows, too_many
from arcweld.compiler import dims
from arcweld.compiler.dtypes import DType

MOST_THREADS = 1024
ITEMS = 4  # elements of a thread
MOST_ITEMS = 8  # of a thread, where a row needs more
USUAL_SYMBOLIC = 1 << 20  # elements that are assumed where no upper bound is known


@dataclass(frozen=True, slots=True)
class SortTactic:
    """``threads`` of a block and ``items`` of a thread: powers of two, from 32 and from 2.

    ``blocks`` sort all rows together; 0: each block sorts a row.
    """

    threads: int = 256
    items: int = ITEMS
    blocks: int = 0


def tactics(kernel: Kernel, arch: str) -> tuple[SortTactic, ...]:
    """The estimated best first: a tile for each row where it fits, and blocks together where there are fewer rows."""
    flat = flat_rows(kernel)
    longest, rows = most(flat.axes["col"][0].extent, USUAL_SYMBOLIC), most(flat.axes["row"][0].extent, 1)
    wide = flat.loads["x"].dtype.size == 8  # more of these keys than ITEMS would spill registers
    items = ITEMS if wide or longest <= MOST_THREADS * ITEMS else MOST_ITEMS
    threads = max(32, min(MOST_THREADS, power_of_two_at_least(-(-longest // items))))
    forms = ((threads, items), (max(32, threads // 2), items), (max(32, threads // 4), items), (threads, items // 2))
    found = []
    for n, each in dict.fromkeys(forms):
        blocks = min(RESIDENT_BLOCKS, rows * -(-longest // (n * each)))
        together = longest > n * each and 2 * rows <= RESIDENT_BLOCKS
        found.append(SortTactic(n, each, blocks if together else 0))
    return tuple(found)


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
    key, tile = DType.U64 if x.dtype.size == 8 else DType.U32, tactic.threads * tactic.items
    merges, alone = not dims.is_nonneg(tile - col.extent), not tactic.blocks
    if merges:
        hooks.params.workspace("keys", key, 2, row.extent, col.extent)
        hooks.params.workspace("places", DType.I32, 2, row.extent, col.extent)
    if not alone:
        hooks.params.counters("arrivals", 2)
    return render(
        "sort/sort.cu.j2", flat, hooks.params, arch="sm_80", grid=(row.extent if alone else tactic.blocks, 1, 1),
        block=(tactic.threads, 1, 1), shared_bytes=tile * (key.size + 4), pdl=alone, cooperative=not alone,
        tiled=((col.extent, tile), (col.extent, 2 * tile)), functions=functions, threads=tactic.threads,
        items=tactic.items, tile=tile, blocks=tactic.blocks, key=key.cuda, ctype=x.dtype.cuda, merges=merges,
        alone=alone, largest=kernel.attrs["largest"], col_count=hooks.params.scalar("col_count", col.extent),
        row_count="" if alone else hooks.params.scalar("row_count", row.extent),
    )  # fmt: skip
