"""The tactic of the ffma and mma implementations, and the estimate that ranks tactics without measuring."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from arcweld.codegen.templates.card import multiprocessors
from arcweld.codegen.templates.contract.problem import Problem, likely
from arcweld.compiler.dims import Dim

MAX_THREADS = 512  # of a block that splits k: each thread may then have 128 registers
CANDIDATES = 12  # tactics that are returned
TILE_ROWS = 8  # rows of tiles that blocks walk down before the next column: GROUP in contract.cuh
BUSY_WARPS, RESIDENT = 12, 3  # warps that keep a multiprocessor busy; blocks that usually fit side by side
# in multiply-adds: the first loads and the epilogue of a tile; the exchange of one sum between k-groups
FIXED_COST, EXCHANGE_COST = 16 * 64 * 64, 8


@dataclass(frozen=True, slots=True)
class ContractTactic:
    """How one matrix product is divided among blocks and threads.

    implementation ``ffma`` (ordinary arithmetic, any type) or ``mma`` (tensor cores)
    bm, bn, bk     rows and columns of a block's tile, and the k of one pipeline stage
    tm, tn         rows and columns of a worker's tile; a worker is a thread (ffma) or a warp (mma)
    stages         pipeline stages (ffma: always two buffers)
    split          k-groups of a block: each is a full set of workers that takes its share of k; their sums are added
    early          let the next kernel of the stream be launched when this one begins, rather than when its loads are
                   issued (programmatic dependent launch)
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


class Tile(Protocol):
    """A tactic's rows and columns of a tile."""

    @property
    def bm(self) -> int:
        """Rows."""

    @property
    def bn(self) -> int:
        """Columns."""


def tiles(problem: Problem, tactic: Tile) -> int:
    """Estimated number of output tiles. Of rows in groups, each group has one that is not full."""
    rows, across = likely(problem.m.extent), -(-likely(problem.n.extent) // tactic.bn)
    if problem.ends is not None:
        return min(rows, rows // tactic.bm + likely(problem.batch.extent)) * across
    return -(-rows // tactic.bm) * across * likely(problem.batch.extent)


def tiled(problem: Problem, t: ContractTactic) -> tuple[tuple[Dim, int], ...]:
    """Rows of a tile and of a group of tiles, columns of a tile, and the k that fills the pipeline."""
    m, n, k = problem.m.extent, problem.n.extent, problem.k.extent
    return (m, t.bm), (m, TILE_ROWS * t.bm), (n, t.bn), (k, t.split * t.stages * t.bk)


def splits(problem: Problem, tactic: ContractTactic, threads: int) -> tuple[ContractTactic, ...]:
    """``tactic`` with 1, 2, 4, 8 k-groups of ``threads`` threads, as long as each takes three stages of k or more."""
    steps = -(-likely(problem.k.extent) // tactic.bk)
    return tuple(
        replace(tactic, split=s) for s in (1, 2, 4, 8) if s == 1 or (s * threads <= MAX_THREADS and steps >= 3 * s)
    )


def estimated_time(problem: Problem, t: ContractTactic, arch: str, efficiency: float, warps: int) -> float:
    """Estimated time of a tactic, in multiply-adds that the busiest multiprocessor does one after another.

    ``efficiency``: the share of peak that the tile reaches with all multiprocessors busy. ``warps``: of one k-group.
    """
    rounds = max(1, -(-tiles(problem, t) // multiprocessors(arch)))  # none where a dimension is 0
    occupied = min(1.0, warps * t.split * min(rounds, RESIDENT) / BUSY_WARPS)
    work = t.bm * t.bn * likely(problem.k.extent) / (efficiency * occupied)
    return rounds * (work + FIXED_COST) + t.split * t.bm * t.bn * EXCHANGE_COST
