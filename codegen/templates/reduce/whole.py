"""Statistics of one row alone, such as the range of a whole tensor: many blocks share the row out.

Each block combines its part for all statistics at once and leaves the results in memory. The last block to arrive
combines those. A statistic must not need another one of the row, though finishing it may.
"""

from __future__ import annotations

from dataclasses import dataclass

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.printing.hooks import Hooks
from arcweld.codegen.printing.nest import flatten_roles, most
from arcweld.codegen.printing.render import render
from arcweld.codegen.templates.card import SMS
from arcweld.codegen.templates.reduce.rowwise import UNBOUNDED, natural_width, split_stores
from arcweld.codegen.templates.reduce.statistics import index_args, print_stages
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, walk

ONE_BLOCK = 8192  # elements of a row that one block reads as fast as many


@dataclass(frozen=True, slots=True)
class WholeTactic:
    """``blocks``, at most as many as the ``threads`` of each, read ``width`` neighbouring elements at a time."""

    blocks: int
    threads: int = 256
    width: int = 0
    implementation: str = "whole"


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why this kernel can't be rendered, or None."""
    flat = _flat(kernel)
    (row,), (col,) = flat.axes["row"], flat.axes["col"]
    if row.extent != 1:
        return "several rows"
    if most(col.extent, UNBOUNDED) <= ONE_BLOCK:
        return "one block reads the row as fast"
    stores, of_rows = split_stores(flat, col)
    needed = _statistics([*(s.value for s in flat.attrs["stages"]), *(s.value for s in stores)])
    if needed or not of_rows:
        return "elements need statistics of the whole row"
    return None


def _statistics(exprs: list[Expr]) -> set[str]:
    """The statistics that expressions need, beside the row's element."""
    return {str(e.attr) for e in walk(exprs) if e.op == "var"} - {"x"}


def tactics(kernel: Kernel, arch: str) -> tuple[WholeTactic, ...]:
    """The estimated best first: about eight vectors for each thread, and no more blocks than multiprocessors."""
    flat = _flat(kernel)
    width, longest = natural_width(flat), most(flat.axes["col"][0].extent, UNBOUNDED)
    wanted = max(2, min(SMS, -(-longest // (256 * width * 8))))
    found = (WholeTactic(wanted, 256, width), WholeTactic(max(2, wanted // 2), 512, width), WholeTactic(2, 64, width))
    return tuple(dict.fromkeys(found))


def render_whole(kernel: Kernel, tactic: WholeTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, the same for every ``arch``. The row length may be symbolic."""
    flat = _flat(kernel)
    (row,), (col,) = flat.axes["row"], flat.axes["col"]
    width, hooks = tactic.width or natural_width(flat), Hooks(flat)
    functions, stages, variables = print_stages(
        hooks, flat.attrs["stages"], index_args(row, col), index_args(row), {"x": ("x", flat.loads["x"].dtype, True)},
        lane=col.sym, width=width,
    )  # fmt: skip
    stores, of_rows = split_stores(flat, col)
    statistics = {k: v for k, v in variables.items() if k != "x"}
    functions = [
        hooks.load("load_x", flat.loads["x"], index_args(row, col), lane=col.sym, width=width), *functions,
        hooks.store("store_statistics", of_rows, index_args(row), variables=statistics),
    ]  # fmt: skip
    if stores:
        element = {"x": variables["x"]}
        functions.append(
            hooks.store("store_row", stores, index_args(row, col), lane=col.sym, width=width, variables=element)
        )
    for s in stages:
        hooks.params.workspace(f"partial_{s.name}", DType(s.ctype), tactic.blocks)
    hooks.params.counters("arrived", 1)
    largest = max(DType(s.ctype).size for s in stages)
    return render(
        "reduce/whole.cu.j2", kernel, hooks.params, arch="sm_80", grid=(tactic.blocks, 1, 1),
        block=(tactic.threads, 1, 1), shared_bytes=largest * (tactic.threads // 32) + 8,
        tiled=((col.extent, tactic.blocks * tactic.threads * width),), functions=functions, stages=stages, width=width,
        t=tactic, ctype=flat.loads["x"].dtype.cuda, col_count=hooks.params.scalar("col_count", col.extent),
        scratch="f64" if largest > 4 else "f32", stored=bool(stores),
    )  # fmt: skip


def _flat(kernel: Kernel) -> Kernel:
    return flatten_roles(kernel, {"row": "row", "col": "col"})
