"""The select template: the places of a row's first elements in order. Of equal elements the first comes first.

Roles: axes ``row`` (any number), ``col`` (one) and ``out`` (one: the elements wanted); load ``x`` over row and col;
stores over row and out with the variables ``acc``, the place of the element that is the out-th, and ``x``, the element.
Attribute ``largest``: whether the largest come first. Blocks read a row once, each a part of it. What is no better than
the worst of those that a block keeps is dropped where it is read, so that after the first tiles few elements are left
to sort: time is that of reading. The last block of a row to finish puts together what all have kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.printing.hooks import Hooks, vector_width
from arcweld.codegen.printing.nest import most, power_of_two_at_least
from arcweld.codegen.printing.render import render
from arcweld.codegen.templates.card import SMS
from arcweld.codegen.templates.rows import argument, flat_rows, too_many
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import walk
from arcweld.compiler.ops.topk import SELECTED

USUAL_SYMBOLIC = 1 << 15  # elements that are assumed where no upper bound is known: a vocabulary
ITEMS = 4  # neighbouring elements of a thread
ELEMENT = "x"


@dataclass(frozen=True, slots=True)
class SelectTactic:
    """``threads`` of a block, a power of two from 32 on, and the ``parts`` of a row, a block each."""

    threads: int = 256
    parts: int = 1


def tactics(kernel: Kernel, arch: str) -> tuple[SelectTactic, ...]:
    """The estimated best first, then fewer threads and fewer parts.

    With n elements in p parts, a block reads n / p of them and the last one p * k more: least at p = sqrt(n / k). There
    are no more parts than tiles, and no more blocks than the GPU has room for at once.
    """
    flat = flat_rows(kernel)
    (row,), (col,), (out,) = (flat.axes[role] for role in ("row", "col", "out"))
    length, rows, wanted = most(col.extent, USUAL_SYMBOLIC), most(row.extent, 1), max(1, most(out.extent, SELECTED))
    few = max(32, power_of_two_at_least(-(-wanted // ITEMS)))  # a tile of them holds all elements that are wanted
    threads = max(few, min(max(256, 2 * few), power_of_two_at_least(-(-length // ITEMS))))
    parts = min(math.isqrt(length // wanted), length // (threads * ITEMS), 4 * SMS // max(1, rows))
    forms = ((threads, parts), (max(few, threads // 2), parts), (threads, parts // 2), (few, parts // 4))
    return tuple(dict.fromkeys(SelectTactic(n, max(1, p)) for n, p in forms))


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why this kernel can't be rendered, or None."""
    bound = dims.bounds(kernel.axes["out"][0].extent)[1]
    if bound is None or bound > SELECTED:
        return f"more than {SELECTED} elements of a row"
    return too_many(kernel)


def render_select(kernel: Kernel, tactic: SelectTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, the same for every ``arch``."""
    flat = flat_rows(kernel)
    (row,), (col,), (out,) = (flat.axes[role] for role in ("row", "col", "out"))
    x, hooks, parts = flat.loads["x"], Hooks(flat), tactic.parts
    values = any(e.op == "var" and e.attr == ELEMENT for e in walk([s.value for s in flat.stores]))
    width = min(ITEMS, vector_width(flat, col.extent, [x], (), col.sym))
    functions = [hooks.load("load_x", x, [argument(row), argument(col)], lane=col.sym, width=width)]
    if values:
        functions.append(hooks.load("load_one", x, [argument(row), argument(col)]))
    variables = {"acc": ("acc", DType.I64, True)} | ({ELEMENT: (ELEMENT, x.dtype, True)} if values else {})
    functions.append(hooks.store("store_out", flat.stores, [argument(row), argument(out)], variables=variables))
    tile = tactic.threads * ITEMS
    # those that stay, a tile that is read, and half a tile that may wait
    kept_items = max(2 * ITEMS, -(-most(out.extent, SELECTED) // tactic.threads) + ITEMS + ITEMS // 2)
    key = DType.U64 if x.dtype.size == 8 else DType.U32
    part_cols = _part(col.extent, parts)
    if parts > 1:
        hooks.params.workspace("keys", key, row.extent, parts, out.extent)
        hooks.params.workspace("places", DType.I32, row.extent, parts, out.extent)
        hooks.params.counters("arrived", row.extent)
    return render(
        "sort/select.cu.j2", flat, hooks.params, arch="sm_80", grid=(row.extent * parts, 1, 1),
        block=(tactic.threads, 1, 1), shared_bytes=_shared(kept_items, key, tactic.threads),
        tiled=((col.extent, tile), (col.extent, tile * parts)), functions=functions, threads=tactic.threads,
        items=ITEMS, width=width, tile=tile, kept_items=kept_items, parts=parts, key=key.cuda, ctype=x.dtype.cuda,
        values=values, largest=kernel.attrs["largest"], keep=hooks.params.scalar("keep", out.extent),
        part_cols=hooks.params.scalar("part_cols", part_cols) if parts > 1 else "",
        col_count=hooks.params.scalar("col_count", col.extent),
    )  # fmt: skip


def _part(cols: Dim, parts: int) -> Dim:
    """The columns of a part: whole vectors."""
    return dims.ceildiv(cols, parts * ITEMS) * ITEMS


def _shared(items: int, key: DType, threads: int) -> int:
    """The bytes of a ``Selection``: keys and places, a number for each warp, a flag."""
    nbytes = items * threads * (key.size + 4) + threads // 32 * 4 + 4
    return -(-nbytes // key.size) * key.size
