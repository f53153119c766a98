"""The tuning knobs of a contraction and the arithmetic that ranks them before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

from arcweld.codegen.templates.card import multiprocessors
from arcweld.codegen.templates.contract.problem import Problem, likely

MAX_THREADS = 512  # of a block that splits k: each may then have 128 registers
CANDIDATES = 12
BUSY_WARPS, RESIDENT = 12, 3  # warps that keep a multiprocessor busy; blocks that usually fit side by side
# in multiply-adds: the first loads and the epilogue of a tile; the exchange of one sum between k-groups
FIXED_COST, MEETING_COST = 16 * 64 * 64, 8


@dataclass(frozen=True, slots=True)
class ContractTactic:
    """How one contraction is cut up.

    implementation ``ffma`` (ordinary arithmetic, any type), ``mma`` (tensor cores, sm_80 on) or ``wgmma`` (sm_90a)
    bm, bn, bk     the tile of one block, and the k of one pipeline stage
    tm, tn         the tile of one worker: a thread (ffma), a warp (mma); ``wgmma`` workers take 64 x bn
    stages         tiles in flight (ffma: always two buffers)
    split          k-groups inside a block, each a full set of workers, summed at the end
    early          let the next kernel start launching at once, rather than when the loads are issued
    """

    implementation: str
    bm: int
    bn: int
    bk: int
    tm: int
    tn: int
    stages: int = 2
    split: int = 1
    early: bool = True

    @property
    def workers(self) -> int:
        """Threads (ffma) or warps (mma) of one k-group."""
        return (self.bm // self.tm) * (self.bn // self.tn)


def tiles(problem: Problem, tactic: ContractTactic) -> int:
    """Likely number of output tiles."""
    rows = -(-likely(problem.m.extent) // tactic.bm)
    return rows * -(-likely(problem.n.extent) // tactic.bn) * likely(problem.batch.extent)


def splits(problem: Problem, tactic: ContractTactic, threads: int) -> tuple[ContractTactic, ...]:
    """``tactic`` with 1, 2, 4, ... k-groups of ``threads`` threads, as long as each has a few tiles of k to itself."""
    steps = -(-likely(problem.k.extent) // tactic.bk)
    return tuple(
        replace(tactic, split=s) for s in (1, 2, 4, 8) if s == 1 or (s * threads <= MAX_THREADS and steps >= 3 * s)
    )


def estimated_time(problem: Problem, t: ContractTactic, arch: str, efficiency: float, warps: int) -> float:
    """Multiply-adds that the busiest multiprocessor does one after another, weighed by how well it is occupied.

    ``efficiency`` is the tile's share of peak on a full card, ``warps`` the size of one k-group.
    """
    rounds = max(1, -(-tiles(problem, t) // multiprocessors(arch)))  # none where a dimension is 0
    occupied = min(1.0, warps * t.split * min(rounds, RESIDENT) / BUSY_WARPS)
    work = t.bm * t.bn * likely(problem.k.extent) / (efficiency * occupied)
    return rounds * (work + FIXED_COST) + t.split * t.bm * t.bn * MEETING_COST
