"""The rowwise template: statistics of each row, and results of its elements (softmax, norms).

Roles: axes ``row`` and ``col`` (any number of each); load ``x`` over both; stores over both, with the variable ``x``
and one for each statistic, or over ``row`` alone, of statistics. Attribute ``stages``: a tuple of ``kernel.Stage``, in
order. A row that fits stays in registers; the rest of a longer one is read again for each stage.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from arcweld.codegen.kernel import Axis, Kernel, KernelSource, Store
from arcweld.codegen.printing.hooks import Hooks, vector_width
from arcweld.codegen.printing.nest import flatten_roles, most, power_of_two_at_least
from arcweld.codegen.printing.render import overlapping, render
from arcweld.codegen.templates.card import SMS
from arcweld.codegen.templates.reduce.combiners import COMBINERS
from arcweld.codegen.templates.reduce.statistics import index_args, print_stages
from arcweld.compiler import dims
from arcweld.compiler.dtypes import DType

BLOCK = 128  # threads of a block of several rows
REGISTER_ELEMENTS = 32  # elements of a row that a thread keeps
REGISTER_VECTORS = 8  # vectors of a row that a thread keeps, where the whole row does not fit
SMALL_GRID = SMS * 8  # warps of rows below which a row gets more threads
USUAL_SYMBOLIC = 1024  # the row length that is assumed for a symbolic one
UNBOUNDED = 1 << 30  # stands for an extent without an upper bound


@dataclass(frozen=True, slots=True)
class RowwiseTactic:
    """How rows are divided among threads.

    width     neighbouring elements of a thread; 0: as many as the accesses allow
    lanes     threads of a row: a power of two up to 32, or a multiple of 32 up to 1024 (a block for each row)
    resident  keep the row in registers; otherwise it is read again for each statistic
    rows      rows of a block, where ``lanes`` is at most 32
    """

    width: int = 0
    lanes: int = 32
    resident: bool = True
    rows: int = 4
    implementation: str = "rowwise"


def tactics(kernel: Kernel, arch: str) -> tuple[RowwiseTactic, ...]:
    """The estimated best first, then other numbers of threads for a row."""
    flat = flatten_roles(kernel, {"row": "row", "col": "col"})
    (row,), (col,) = flat.axes["row"], flat.axes["col"]
    width = natural_width(flat)
    longest, rows = most(col.extent, UNBOUNDED), most(row.extent, UNBOUNDED)
    usual = longest if isinstance(col.extent, int) else min(longest, USUAL_SYMBOLIC)
    first = default_lanes(usual, width, rows)
    lanes = [n for n in (first, first // 2, first * 2, first * 4) if 4 <= n <= 1024]
    choices = [spread(n, width, rows) for n in lanes]
    choices += [replace(t, rows=8) for t in choices if t.lanes == 32]
    return tuple(dict.fromkeys(choices))


def default_lanes(longest: int, width: int, rows: int) -> int:
    """Threads for a row of at most ``longest`` elements: one for about 32 elements, more if there are few rows."""
    if longest <= 32 * width:
        return min(32, max(4, power_of_two_at_least(-(-longest // width))))
    lanes = 32
    while lanes < 1024 and longest > lanes * REGISTER_ELEMENTS:
        lanes *= 2
    while rows * lanes < SMALL_GRID * 32 and lanes < 1024 and longest >= 2 * lanes * width * 2:
        lanes *= 2
    return lanes


def spread(lanes: int, width: int, rows: int) -> RowwiseTactic:
    """The tactic for ``lanes`` threads to a row: short rows share a block if enough blocks remain for the GPU."""
    share = max(1, min(BLOCK // lanes, rows // SMS)) if lanes <= 32 else 1
    return RowwiseTactic(width, lanes, True, max(32 // lanes, share))


def resident_vectors(longest: int, step: int, width: int) -> int:
    """The vectors of its row that a thread keeps in registers: all of them if they are not too many.

    ``step``: elements of a row that its threads handle at once.
    """
    needed = -(-longest // step)
    return needed if needed * width <= 2 * REGISTER_ELEMENTS else REGISTER_VECTORS


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why this kernel can't be rendered (an unknown combiner), or None."""
    unknown = [s.combine for s in kernel.attrs["stages"] if s.combine not in COMBINERS]
    return f"combiner {unknown[0]} is not a row statistic" if unknown else None


def natural_width(kernel: Kernel) -> int:
    """The most lanes of a vector along ``col`` that the accesses allow."""
    (col,) = kernel.axes["col"]
    stores, _ = split_stores(kernel, col)
    exprs = [kernel.loads["x"], *(s.value for s in kernel.attrs["stages"]), *(s.value for s in stores)]
    return vector_width(kernel, col.extent, exprs, stores, col.sym)


def split_stores(kernel: Kernel, col: Axis) -> tuple[tuple[Store, ...], tuple[Store, ...]]:
    """The stores of elements, and those of one element for each row."""
    rows = tuple(s for s in kernel.stores if col.extent != 1 and not any(dims.mentions(c, col.sym) for c in s.coords))
    return tuple(s for s in kernel.stores if s not in rows), rows


def render_rowwise(kernel: Kernel, tactic: RowwiseTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, the same for every ``arch``. The row length may be symbolic."""
    kernel = flatten_roles(kernel, {"row": "row", "col": "col"})
    (row,), (col,) = kernel.axes["row"], kernel.axes["col"]
    width = tactic.width or natural_width(kernel)
    longest = most(col.extent, UNBOUNDED)
    vectors = resident_vectors(longest, tactic.lanes * width, width) if tactic.resident else 0
    hooks = Hooks(kernel)
    functions, stages, variables = print_stages(
        hooks, kernel.attrs["stages"], index_args(row, col), index_args(row),
        {"x": ("x", kernel.loads["x"].dtype, True)}, lane=col.sym, width=width,
    )  # fmt: skip
    x = hooks.load("load_x", kernel.loads["x"], index_args(row, col), lane=col.sym, width=width)
    stores, of_rows = split_stores(kernel, col)
    functions.append(
        hooks.store("store_row", stores, index_args(row, col), lane=col.sym, width=width, variables=variables)
    )
    if of_rows:
        known = {k: v for k, v in variables.items() if k != "x"}
        functions.append(hooks.store("store_statistics", of_rows, index_args(row), variables=known))
    rows = tactic.rows if tactic.lanes <= 32 else 1
    threads = max(32, tactic.lanes * rows)
    rows = threads // tactic.lanes
    scratch = max((DType(s.ctype).size for s in stages), default=4) * max(1, tactic.lanes // 32)
    return render(
        "reduce/rowwise.cu.j2", kernel, hooks.params, arch="sm_80", grid=(dims.ceildiv(row.extent, rows), 1, 1),
        block=(threads, 1, 1), shared_bytes=scratch if tactic.lanes > 32 else 0,
        tiled=(*overlapping(row.extent, rows), (col.extent, tactic.lanes * width * max(vectors, 1))),
        functions=[x, *functions], stages=stages, of_rows=bool(of_rows), width=width, lanes=tactic.lanes, rows=rows,
        again=vectors * tactic.lanes * width < longest,
        scratch="f64" if any("64" in s.ctype for s in stages) else "f32",
        vectors=vectors, ctype=kernel.loads["x"].dtype.cuda,
        row_count=hooks.params.scalar("row_count", row.extent), col_count=hooks.params.scalar("col_count", col.extent),
    )  # fmt: skip
