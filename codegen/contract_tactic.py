"""The tuning knobs of a contraction and the arithmetic that ranks them before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass

from arcweld.codegen.contract_problem import Problem, likely

# streaming multiprocessors of the card that each architecture is usually found as
MULTIPROCESSORS = {"sm_80": 108, "sm_86": 84, "sm_89": 128, "sm_90a": 132, "sm_120": 170}


@dataclass(frozen=True, slots=True)
class ContractTactic:
    """How one contraction is cut up.

    engine         ``ffma`` (ordinary arithmetic, any type), ``mma`` (tensor cores, sm_80 on) or ``wgmma`` (sm_90a)
    bm, bn, bk     the tile of one block, and the k of one pipeline stage
    tm, tn         the tile of one worker: a thread (ffma), a warp (mma); ``wgmma`` workers take 64 x bn
    stages         tiles in flight (ffma: always two buffers)
    split          k-groups inside a block, each a full set of workers, summed at the end
    early          let the next kernel start launching at once, rather than when the loads are issued
    """

    engine: str
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


def multiprocessors(arch: str) -> int:
    """How many blocks the ranking takes to run side by side."""
    return MULTIPROCESSORS.get(arch, MULTIPROCESSORS["sm_80"])


def tiles(problem: Problem, tactic: ContractTactic) -> int:
    """Likely number of output tiles."""
    rows = -(-likely(problem.m.extent) // tactic.bm)
    return rows * -(-likely(problem.n.extent) // tactic.bn) * likely(problem.batch.extent)


def waves(problem: Problem, tactic: ContractTactic, arch: str, resident: int = 1) -> int:
    """Rounds in which the multiprocessors get through all tiles, ``resident`` at a time each."""
    return -(-tiles(problem, tactic) // (multiprocessors(arch) * resident))
