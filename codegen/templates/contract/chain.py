"""The chain template: a product of few rows, the norm of its rows before it, and results that read its tile behind it.

Roles: as of ``contract`` without ``batch``, and an axis ``part0``, ``part1``, … for the columns of each store; loads
``a`` and ``b``. With ``stages`` (as of ``rowwise``) also ``x``, the element of a row, and ``row``, what becomes of it:
the array ``left``, from which ``a`` is read. Stores are over ``m`` and the axis of their part, and read the array
``tile``. Attributes: as of ``contract``, ``stages``, ``unit`` and ``starts`` (see ``region.Chain``).

``gemv`` renders it. A block computes whole units; its columns are then one run of neighbours, or runs that are the
unit's stride apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.printing.approximate import approximate
from arcweld.codegen.printing.hooks import Hooks, vector_width
from arcweld.codegen.printing.printer import from_compute
from arcweld.codegen.templates.contract import gemv
from arcweld.codegen.templates.contract.gemv import GemvTactic, block_columns
from arcweld.codegen.templates.contract.problem import Problem, problem_of
from arcweld.codegen.templates.implementation import Implementation
from arcweld.codegen.templates.reduce.statistics import PrintedStage, index_args, print_stages
from arcweld.compiler import dims, expr
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr

TILE = "tile"
ALIGNMENT = 16  # bytes of shared memory, for vectors


def supports(kernel: Kernel, arch: str) -> str | None:
    """The reason why no tactic fits the kernel, or None."""
    if reason := gemv.supports(problem_of(kernel), arch):
        return reason
    members, stride = kernel.attrs["unit"]
    return None if tactics(kernel, arch) else f"no block has whole units of {members} columns {stride} apart"


def tactics(kernel: Kernel, arch: str) -> tuple[GemvTactic, ...]:
    """Those of ``gemv``, and more columns for a block, that divide the columns into whole units; by estimated cost."""
    return _fitting(kernel, arch)[1]


def _fitting(kernel: Kernel, arch: str) -> tuple[Problem, tuple[GemvTactic, ...]]:
    """The normal form with the widest accesses for which there are tactics, and those."""
    problem = problem_of(kernel)
    while True:
        found = dict.fromkeys([*gemv.tactics(problem, arch), *gemv.wider(problem, arch)])
        fitting = tuple(t for t in found if _run(kernel, problem, t))
        if fitting or problem.b.width == 1:
            return problem, fitting
        problem = replace(problem, b=replace(problem.b, width=problem.b.width // 2))


def _run(kernel: Kernel, problem: Problem, t: GemvTactic) -> int:
    """The neighbouring columns of a block: all that it has, or those of one member of its units. 0: it can't be."""
    members, stride = kernel.attrs["unit"]
    columns = block_columns(problem.b, t)
    units = columns // members
    if columns % members or units == 0:
        return 0
    if units % stride == 0:
        return columns
    whole = problem.b.along_k or (stride % units == 0 and units % problem.b.width == 0)  # vectors along the columns
    return units if whole else 0


def render_chain(kernel: Kernel, t: GemvTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, the same for every ``arch``."""
    problem, _ = _fitting(kernel, arch)
    run, columns = _run(kernel, problem, t), block_columns(problem.b, t)
    rows, depth = problem.m.extent, problem.k.extent
    assert isinstance(rows, int)
    scratch = tuple(replace(b, shape=(rows, columns)) if b.name == TILE else b for b in kernel.scratch)
    kernel = replace(kernel, loads=_over(problem, kernel), scratch=scratch)
    problem = replace(problem, kernel=kernel)
    hooks = Hooks(kernel)
    parts = _parts(hooks, problem, run, columns)
    before = _before(hooks, problem) if kernel.attrs["stages"] else None
    left = -(-max(gemv.partial_bytes(problem, t), 4 * gemv.WARPS) // ALIGNMENT) * ALIGNMENT
    size = 0 if before is None else problem.a.expr.attr[1].size * rows * depth
    assert isinstance(size, int)
    return gemv.render_page(
        problem, t, hooks, run=run, shared_bytes=left + size, unit=kernel.attrs["unit"], parts=parts, before=before,
        left_at=left, stages=before.stages if before else (), width=before.width if before else 1,
    )  # fmt: skip


def _over(problem: Problem, kernel: Kernel) -> dict[str, Expr]:
    """The loads, all in terms of the normal form's axes."""
    (m,), (k,) = kernel.axes["m"], kernel.axes["k"]
    table = {m.sym: problem.m.index, k.sym: problem.k.index}
    others = {role: expr.substitute_index(kernel.loads[role], table) for role in ("x", "row") if role in kernel.loads}
    return {"a": problem.a.expr, "b": problem.b.expr, **others}


# ------------------------------------------------------------------------------------------------ behind the product


@dataclass(frozen=True, slots=True)
class PrintedPart:
    """The hook ``name(p, m, n, tile)`` of a part, whose columns are those from ``start`` up to ``end``."""

    name: str
    text: str
    start: int
    end: Dim

    @property
    def condition(self) -> str:
        """C text of the test that column ``n`` of the product is one of the part's."""
        return f"{self.start} <= n && n < {self.end}" if self.start else f"n < {self.end}"

    @property
    def column(self) -> str:
        """C text of column ``n`` of the product as one of the part's."""
        return f"n - {self.start}" if self.start else "n"


def _parts(hooks: Hooks, problem: Problem, run: int, columns: int) -> list[PrintedPart]:
    kernel, found = hooks.kernel, []
    for i, (store, start) in enumerate(zip(problem.stores, kernel.attrs["starts"], strict=True)):
        (own,) = kernel.axes[f"part{i}"]
        at_places = _read_at(kernel.attrs["unit"], run, columns)
        placed = approximate(kernel, [replace(store, value=expr.substitute(store.value, at_places))])
        args = [("m", problem.m.sym), ("n", own.sym)]
        name = f"store_part{i}"
        found.append(PrintedPart(name, hooks.store(name, placed, args), start, start + own.extent))
    return found


def _read_at(unit: tuple[int, int], run: int, columns: int) -> Callable[[Expr], Expr | None]:
    """Replaces a column at which the tile is read by its place in the block's tile."""
    members, stride = unit

    def place(column: Dim) -> Dim:
        if run == columns:
            return dims.mod(column, columns)
        unit = dims.floordiv(column, members * stride) * stride + dims.mod(column, stride)
        return dims.mod(dims.floordiv(column, stride), members) * run + dims.mod(unit, run)

    def change(e: Expr) -> Expr | None:
        if e.op != "load" or e.attr[0] != TILE:
            return None
        _, dtype, (row, column) = e.attr
        return expr.load(TILE, dtype, (row, place(column)), e.args[0] if e.args else None)

    return change


# ------------------------------------------------------------------------------------------------ before the product


@dataclass(frozen=True, slots=True)
class PrintedRows:
    """The rows before a product: hooks, statistics, ``width`` neighbouring elements of a thread, ``lanes`` of a row."""

    functions: list[str]
    stages: list[PrintedStage]
    width: int
    lanes: int
    ctype: str
    storage: DType

    @property
    def rounded(self) -> str:
        """C text of an element ``filled[e]`` as it is stored."""
        return from_compute(self.storage, "filled[e]")


def _before(hooks: Hooks, problem: Problem) -> PrintedRows:
    kernel, m, k = hooks.kernel, problem.m, problem.k
    x, row = kernel.loads["x"], kernel.loads["row"]
    width = vector_width(kernel, k.extent, [x, row, *(s.value for s in kernel.attrs["stages"])], (), k.sym)
    functions, stages, known = print_stages(hooks, m, k, width)
    functions.insert(0, hooks.load("load_x", x, index_args(m, k), lane=k.sym, width=width))
    functions.append(hooks.load("fill_row", row, index_args(m, k), lane=k.sym, width=width, variables=known))
    lanes = 32 * gemv.WARPS if m.extent == 1 else 32
    return PrintedRows(functions, stages, width, lanes, x.dtype.cuda, problem.a.expr.attr[1])


IMPLEMENTATIONS = (Implementation("gemv", gemv.ARCH, render_chain, tactics, supports),)
