"""Matrix products on the ordinary arithmetic units: exact f32, and f64 and integers by the same loop nest."""

from __future__ import annotations

from dataclasses import replace

from arcweld.codegen.kernel import KernelSource
from arcweld.codegen.printing.epilogue import epilogue_hook
from arcweld.codegen.printing.hooks import Hooks
from arcweld.codegen.printing.render import render
from arcweld.codegen.templates.card import SHARED_LIMIT
from arcweld.codegen.templates.contract.problem import Operand, Problem, extent, tile_context, tile_count
from arcweld.codegen.templates.contract.tactic import (
    CANDIDATES,
    MAX_THREADS,
    ContractTactic,
    estimated_time,
    splits,
    tiled,
)
from arcweld.codegen.templates.tiling import product_tiling
from arcweld.compiler.expr import cast

# rows and columns of a block's tile, then of a thread's, and the share of peak it reaches with all multiprocessors busy
TILES = (
    (128, 128, 8, 8, 1.0),
    (128, 64, 8, 4, 0.85),
    (64, 128, 4, 8, 0.85),
    (64, 64, 4, 4, 0.7),
    (32, 64, 4, 4, 0.55),
    (64, 32, 4, 4, 0.55),
    (32, 32, 4, 2, 0.4),
    (16, 64, 2, 4, 0.35),
)
ARCH = "sm_80"
BK = 16
MAX_WIDTH = 4


def supports(problem: Problem, arch: str) -> str | None:
    """None for every product of floats or integers; the reason for bools."""
    return None if problem.acc.is_float or problem.acc.is_int else f"no product of {problem.acc.value} values"


def tactics(problem: Problem, arch: str) -> tuple[ContractTactic, ...]:
    """The tiles that fit into shared memory, by estimated time, each with one or more k-groups."""
    limit = 64 * 64 if problem.acc.size > 4 else 128 * 128
    # a thread of 64 sums has no room for what it knows of its group in the 128 registers that MAX_THREADS leave it
    most = MAX_THREADS if problem.ends is None else MAX_THREADS // 2

    ranked = [
        (estimated_time(problem, t, arch, efficiency, t.workers // 32), t)
        for bm, bn, tm, tn, efficiency in TILES
        for t in splits(problem, ContractTactic("ffma", bm, bn, BK, tm, tn), bm * bn // (tm * tn))
        if bm * bn <= limit and shared_bytes(t, problem.acc.size) <= SHARED_LIMIT
        if tm * tn < 64 or t.workers * t.split <= most
    ]
    return tuple(t for _, t in sorted(ranked, key=lambda r: r[0])[:CANDIDATES])


def shared_bytes(t: ContractTactic, size: int) -> int:
    """Bytes of shared memory: every k-group's two buffers, or the sums that they exchange if that is more.

    ``size``: bytes of an element.
    """
    pad = 2 * (16 // size)
    return max(t.split * 2 * t.bk * (t.bm + t.bn + pad), (t.split - 1) * t.bm * t.bn) * size


def narrowed(operand: Operand) -> Operand:
    """The operand with at most ``MAX_WIDTH`` lanes in an access."""
    return replace(operand, width=min(operand.width, MAX_WIDTH))


def render_problem(problem: Problem, t: ContractTactic, arch: str) -> KernelSource:
    """The kernel's CUDA source, the same for every ``arch``."""
    kernel, hooks = problem.kernel, Hooks(problem.kernel)
    a, b = narrowed(problem.a), narrowed(problem.b)
    if problem.zero is not None:
        b = replace(b, expr=cast(b.expr, problem.acc) - problem.zero)
    width = min(problem.store_width(), t.tn, 16 // problem.acc.size)
    scalar = hooks.params.scalar
    return render(
        "contract/ffma.cu.j2", kernel, hooks.params, arch=ARCH,
        grid=(tile_count(problem, t.bm, t.bn), 1, 1), block=(t.workers * t.split, 1, 1),
        shared_bytes=shared_bytes(t, problem.acc.size), tiled=tiled(problem, t),
        tiling=product_tiling(
            problem, "ffma", (t.bm, t.bn, t.bk), (t.tm, t.tn), 2, tile_count(problem, t.bm, t.bn),
            groups=t.split,
        ),
        t=t, a=a, b=b, width=width, acc=problem.acc.cuda, itype=problem.itype,
        load_a=load_hook(hooks, problem, "load_a", a), load_b=load_hook(hooks, problem, "load_b", b),
        store=store_hook(hooks, problem, width), b_is_weight=bool(kernel.attrs.get("b_is_weight")),
        **tile_context(hooks, problem, t.bm, t.bn),
        m_extent=scalar("rows", problem.m.extent), n_extent=scalar("columns", problem.n.extent),
        k_extent=scalar("depth", problem.k.extent), depth=extent(hooks, "depth", problem.k.extent),
    )  # fmt: skip


def load_hook(hooks: Hooks, problem: Problem, fn: str, operand: Operand, *, once: bool = False) -> str:
    """The text of the load hook ``fn(p, b, row, k, out)`` for an operand, which gives ``operand.width`` lanes.

    ``once`` as in ``Hooks.load``.
    """
    args = [("b", problem.batch.sym), ("row", operand.row.sym), ("k", problem.k.sym)]
    lane = problem.k.sym if operand.along_k else operand.row.sym
    return hooks.load(fn, operand.expr, args, lane=lane, width=operand.width, once=once)


def store_hook(hooks: Hooks, problem: Problem, width: int) -> str:
    """The text of the epilogue ``store_out(p, b, m, n)(acc)`` of ``width`` columns, which must divide their number."""
    args = [("b", problem.batch.sym), ("m", problem.m.sym), ("n", problem.n.sym)]
    return epilogue_hook(hooks, problem.stores, args, problem.n.sym, width, problem.acc)
