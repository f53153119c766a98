"""The scan template: each element of a row combined with all elements before it (a cumulative sum), in linear work.

Roles: axes ``row`` (any number) and ``col`` (one); load ``x`` over both; stores over both with the variable ``acc``,
the combination of the row's elements up to ``col``. Attribute ``combine``: sum, prod, max or min; or linear, with a
load ``a`` too: each result is the one before times ``a``, plus ``x``, and the first one is ``x``. The threads of a row
walk along it tile by tile; inside a tile they combine by shuffles, and by shared memory where they are several warps.
"""

from __future__ import annotations

from dataclasses import dataclass

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.printing.hooks import Hooks, vector_width
from arcweld.codegen.printing.nest import most, power_of_two_at_least
from arcweld.codegen.printing.render import overlapping, render
from arcweld.codegen.templates.card import SMS
from arcweld.codegen.templates.reduce.combiners import COMBINERS, identity
from arcweld.codegen.templates.reduce.reduce import contiguous_bytes
from arcweld.codegen.templates.rows import argument, flat_rows, too_many
from arcweld.compiler import dims

BLOCK = 128  # threads of a block of several rows
LINEAR = "linear"  # the combiner of a recurrence's steps
USUAL_SYMBOLIC = 1024  # elements that are assumed where no upper bound is known


@dataclass(frozen=True, slots=True)
class ScanTactic:
    """``width`` neighbouring elements of a thread (0: as many as the accesses allow); ``lanes`` threads of a row.

    ``lanes`` is a power of two up to 1,024. Beyond 32, each row is a block of its own.
    """

    width: int = 0
    lanes: int = 32


def tactics(kernel: Kernel, arch: str) -> tuple[ScanTactic, ...]:
    """The estimated best first, then other numbers of threads for a row.

    Where neighbours in memory belong to different rows, a thread has a row of its own, and several of its elements in
    flight. A row gets more threads as long as the GPU has room.
    """
    flat = flat_rows(kernel)
    (row,), (col,) = flat.axes["row"], flat.axes["col"]
    rows, length = most(row.extent, USUAL_SYMBOLIC), min(most(col.extent, USUAL_SYMBOLIC), 1 << 20)
    if contiguous_bytes(kernel, "row") > contiguous_bytes(kernel, "col"):
        width, lanes = next(w for w in (8, 4, 2, 1) if dims.is_multiple(col.extent, w)), 1
    else:
        width = natural_width(flat)
        lanes = min(32, power_of_two_at_least(-(-length // (width * 4))))
    while lanes < 1024 and length >= 4 * lanes * width and rows * lanes < SMS * 1024:
        lanes *= 2
    others = (n for n in (lanes * 2, lanes // 2, lanes * 4, 1) if 1 <= n <= 1024)
    return tuple(dict.fromkeys(ScanTactic(width, n) for n in (lanes, *others)))


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why this kernel can't be rendered, or None."""
    reason = too_many(kernel)
    if reason is not None:
        return reason
    combine = kernel.attrs["combine"]
    return None if combine in (*COMBINERS, LINEAR) else f"no combiner of a scan is called {combine}"


def natural_width(flat: Kernel) -> int:
    """The most lanes of a vector along ``col`` that the accesses allow."""
    (col,) = flat.axes["col"]
    exprs = [*flat.loads.values(), *(s.value for s in flat.stores)]
    return vector_width(flat, col.extent, exprs, flat.stores, col.sym)


def render_scan(kernel: Kernel, tactic: ScanTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, the same for every ``arch``."""
    flat = flat_rows(kernel)
    (row,), (col,) = flat.axes["row"], flat.axes["col"]
    width, lanes = tactic.width or natural_width(flat), tactic.lanes
    hooks, dtype, combine = Hooks(flat), flat.loads["x"].dtype, kernel.attrs["combine"]
    args = [argument(row), argument(col)]
    loads = [
        hooks.load(f"load_{name}", flat.loads[name], args, lane=col.sym, width=width) for name in sorted(flat.loads)
    ]
    variables = {"acc": ("acc", dtype, True)}
    store = hooks.store("store_out", flat.stores, args, lane=col.sym, width=width, variables=variables)
    rows = max(1, BLOCK // lanes) if lanes <= 32 else 1
    linear, t = combine == LINEAR, dtype.cuda
    size = dtype.size * (2 if linear else 1)  # of what threads exchange
    return render(
        "reduce/scan.cu.j2", flat, hooks.params, arch="sm_80", grid=(dims.ceildiv(row.extent, rows), 1, 1),
        block=(rows * lanes, 1, 1), shared_bytes=size * lanes // 32 if lanes > 32 else 0,
        tiled=(*overlapping(row.extent, rows), (col.extent, lanes * width)),
        functions=[*loads, store], op="OpLinear" if linear else COMBINERS[combine],
        identity=f"Linear<{t}>{{1, 0}}" if linear else identity(combine, dtype), linear=linear,
        element=t, ctype=f"Linear<{t}>" if linear else t, width=width, lanes=lanes, rows=rows,
        row_count=hooks.params.scalar("row_count", row.extent), col_count=hooks.params.scalar("col_count", col.extent),
    )  # fmt: skip
