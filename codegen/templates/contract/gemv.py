"""Matrix products with at most eight rows (gemv), whose time is that of reading ``b``. The number of rows may be open.

Every element of ``b`` is read once, in pieces of 16 bytes, and caches may drop weights first. Threads share out k.
Their partial sums are added by warp shuffles and then in shared memory. Products and sums are f32, whatever type the
operands are stored in, and i32 of 8-bit integers, four products in an instruction. Where ``b`` has zero points, a
thread subtracts them times the sum of what it read of ``a``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from arcweld.codegen.kernel import KernelSource
from arcweld.codegen.printing.hooks import Hooks
from arcweld.codegen.printing.nest import power_of_two_at_least
from arcweld.codegen.printing.render import render
from arcweld.codegen.templates.card import multiprocessors
from arcweld.codegen.templates.contract.ffma import load_hook, store_hook
from arcweld.codegen.templates.contract.mma import INT8
from arcweld.codegen.templates.contract.problem import (
    COPY_BYTES,
    Operand,
    Problem,
    address_hook,
    likely,
    most,
    zero_hook,
)
from arcweld.compiler import dims
from arcweld.compiler.dtypes import DType
from arcweld.compiler.few_rows import FEW_ROWS

ARCH = "sm_80"
MAX_ROWS = FEW_ROWS
WARPS = 8


@dataclass(frozen=True, slots=True)
class GemvTactic:
    """How the block's warps share the work.

    columns  columns of a warp if ``b`` is contiguous along k; lanes of a warp side by side in n if along n
    split    warps that share out k (the others take other columns)
    batch    loads of each column (or row of k) that a thread has in flight
    waves    how often a block does this, for other columns each time
    early    as in ``ContractTactic``
    """

    columns: int
    split: int
    batch: int = 4
    waves: int = 1
    implementation: str = "gemv"
    early: bool = True


def supports(problem: Problem, arch: str) -> str | None:
    """The reason why this implementation can't compute the problem, or None."""
    rows = most(problem.m.extent)
    if rows is None or rows > MAX_ROWS:
        return f"{problem.m.extent} rows, of at most {MAX_ROWS}"
    if problem.kernel.attrs.get("precision") == INT8 and problem.acc is DType.I32:
        return None
    return None if problem.acc is DType.F32 else f"the accumulator is {problem.acc.value}"


def wave_columns(b: Operand, t: GemvTactic) -> int:
    """Columns that one block computes at once."""
    return t.columns * (WARPS // t.split) if b.along_k else t.columns * b.width


def block_columns(b: Operand, t: GemvTactic) -> int:
    """Columns that one block computes."""
    return t.waves * wave_columns(b, t)


def tactics(problem: Problem, arch: str) -> tuple[GemvTactic, ...]:
    """All combinations of columns and k-splits, by estimated cost."""
    if not problem.b.along_k:
        found = [GemvTactic(lanes, WARPS, batch) for batch in (4, 8) for lanes in (4, 8, 2)]
    else:
        wide = 4 if likely(problem.m.extent) > 2 else 2
        found = [GemvTactic(c, s, max(1, 8 // c)) for c in (wide, 1, 4) for s in (1, 2, 4, 8)]
        found = list(dict.fromkeys(found))
    return tuple(sorted(found, key=lambda t: cost(problem, t, arch)))


def cost(problem: Problem, t: GemvTactic, arch: str) -> float:
    """Bytes that the busiest multiprocessor reads, relative to an even share, plus the cost of adding partial sums."""
    n, k = likely(problem.n.extent), likely(problem.k.extent)
    blocks = -(-n // block_columns(problem.b, t)) * likely(problem.batch.extent)
    rounds = -(-blocks // multiprocessors(arch)) / (blocks / multiprocessors(arch))
    lanes = 32 * t.split * problem.b.width if problem.b.along_k else 32 // t.columns * WARPS
    wasted = -(-k // (lanes * t.batch)) * lanes * t.batch / k
    return rounds * (0.7 + 0.3 * wasted) + 0.02 * t.split + (0.1 if t.columns == 1 else 0.0)


def narrowed(operand: Operand, width: int, along_k: bool) -> Operand:
    """``a`` as the loop reads it: along k with at most ``width`` lanes, or one element at a time."""
    if not along_k:
        return replace(operand, along_k=True, width=1)
    return replace(operand, along_k=True, width=min(operand.width, width) if operand.along_k else 1)


def render_problem(problem: Problem, t: GemvTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, the same for every ``arch``."""
    hooks = Hooks(problem.kernel)
    return render_page(problem, t, hooks, store=store_hook(hooks, problem, 1))


def render_page(
    problem: Problem, t: GemvTactic, hooks: Hooks, *, store: str = "", shared_bytes: int = 0, blocks: int = 0,
    **more: Any,
) -> KernelSource:  # fmt: skip
    """The source, with the epilogue ``store`` or, of a chain, what ``more`` has.

    shared_bytes  of a block; 0: those of the partial sums
    blocks        0: one for each tile of columns
    """
    kernel, b = problem.kernel, problem.b
    a = narrowed(problem.a, b.width, b.along_k)
    columns, rows, weights = block_columns(b, t), most_rows(problem), bool(kernel.attrs.get("b_is_weight"))
    tiles = dims.ceildiv(problem.n.extent, columns)
    # a block that computes several tiles or waves begins with others: it asks only the cache for its first weights
    several = t.waves > 1 or (blocks and blocks < dims.evaluate(tiles, {}))
    whole = weights and b.copyable and not b.masked and b.width * b.expr.attr[1].size == COPY_BYTES
    scalar = hooks.params.scalar
    context: dict[str, Any] = {
        "sums": power_of_two_at_least(rows * (t.columns if b.along_k else b.width)),
        "whole": problem.acc is DType.I32, "acc": "i32" if problem.acc is DType.I32 else "float",
        "rows": rows, "open": rows != problem.m.extent, "m_extent": scalar("rows", problem.m.extent),
        "columns": columns, "wave": wave_columns(b, t), "run": columns, "chain": None, "unit": (1, 1),
        "load_a": load_hook(hooks, problem, "load_a", a),
        "load_b": load_hook(hooks, problem, "load_b", b, once=weights),
        "address_b": _address(hooks, problem) if several and whole else "", "store": store,
        "zero_points": zero_hook(hooks, problem),
        "tiles": scalar("tiles", tiles), "n_extent": scalar("columns", problem.n.extent),
        "k_extent": scalar("depth", problem.k.extent),
    }  # fmt: skip
    return render(
        "contract/gemv.cu.j2", kernel, hooks.params, arch=ARCH, grid=(blocks or problem.batch.extent * tiles, 1, 1),
        block=(32 * WARPS, 1, 1), shared_bytes=shared_bytes or partial_bytes(problem, t),
        tiled=((problem.n.extent, columns), (problem.k.extent, 32 * t.split * t.batch * b.width)), t=t, a=a, b=b,
        itype=problem.itype, b_is_weight=weights, **(context | more),
    )  # fmt: skip


def _address(hooks: Hooks, problem: Problem) -> str:
    b = problem.b
    args = [("b", problem.batch.sym), ("row", b.row.sym), ("k", problem.k.sym)]
    return address_hook(hooks, "address_b", b, args, problem.k.sym if b.along_k else b.row.sym)


def partial_bytes(problem: Problem, t: GemvTactic) -> int:
    """Bytes of shared memory for the partial sums."""
    return t.split * most_rows(problem) * wave_columns(problem.b, t) * 4


def most_rows(problem: Problem) -> int:
    """The rows that a kernel has room for, of a supported problem."""
    rows = most(problem.m.extent)
    assert rows is not None
    return rows
