"""The contract template: matrix products ``acc[b, m, n] = sum over k of a[b, m, k] * b[b, k, n]``, fused on both sides.

Roles: axes ``batch`` (any number), ``m``, ``n``, ``k`` (one or more each); loads ``a`` over batch, m, k and ``b`` over
batch, k, n; of integers perhaps a load ``zero`` over batch, n, which is subtracted from ``b``; stores over batch, m, n
with the variable ``acc``. Attributes: ``precision`` (``fp32``: exact products; ``tf32``, ``tf32x3``, ``f16``, ``bf16``:
tensor cores with f32 accumulation; ``int8``: 8-bit integers of any signs with i32 accumulation), ``b_is_weight`` (``b``
depends on no earlier kernel, so it may be read before the predecessor ends).

With a load ``ends`` over batch, rows are in groups, which follow each other: group b has the rows in front of
``ends[b]`` that no group before it has. ``a`` and the stores are over m alone then; ``acc`` is 0 in rows that belong to
no group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.templates.contract import few_rows, gemv, wgmma_stored
from arcweld.codegen.templates.contract import ffma as contract_ffma
from arcweld.codegen.templates.contract import mma as contract_mma
from arcweld.codegen.templates.contract import wgmma as contract_wgmma
from arcweld.codegen.templates.contract.problem import Problem, problem_of
from arcweld.codegen.templates.implementation import Implementation


class Algorithm(Protocol):
    """Computes products in normal form: a module, or an object. As an ``Implementation``, but of problems."""

    @property
    def ARCH(self) -> str:
        """The architecture that it is for."""

    def supports(self, problem: Problem, arch: str) -> str | None:
        """The reason why it can't compute the problem, or None."""

    def tactics(self, problem: Problem, arch: str) -> tuple[Any, ...]:
        """The tactics for a supported problem, the default first."""

    def render_problem(self, problem: Problem, tactic: Any, arch: str) -> KernelSource:
        """The CUDA source for a supported problem."""


# best first
ALGORITHMS: dict[str, Algorithm] = {
    "gemv_stream": few_rows.STREAM,
    "gemv_mma": few_rows.MMA,
    "gemv": gemv,
    "wgmma": contract_wgmma,
    "wgmma_stored": wgmma_stored,
    "mma": contract_mma,
    "ffma": contract_ffma,
}
# those that compute rows in groups
GROUPED = ("wgmma", "mma", "ffma")


def implementations(normal: Callable[[Kernel], Problem]) -> tuple[Implementation, ...]:
    """One implementation for each algorithm, of a template whose kernels ``normal`` brings to normal form."""
    return tuple(_implementation(name, algorithm, normal) for name, algorithm in ALGORITHMS.items())


def _implementation(name: str, algorithm: Algorithm, normal: Callable[[Kernel], Problem]) -> Implementation:
    return Implementation(
        name, algorithm.ARCH,
        render=lambda kernel, tactic, arch: algorithm.render_problem(normal(kernel), tactic, arch),
        tactics=lambda kernel, arch: algorithm.tactics(normal(kernel), arch),
        supports=lambda kernel, arch: _refusal(name, algorithm, normal(kernel), arch),
    )  # fmt: skip


def _refusal(name: str, algorithm: Algorithm, problem: Problem, arch: str) -> str | None:
    if problem.ends is not None and name not in GROUPED:
        return "its rows are in groups"
    return algorithm.supports(problem, arch)


IMPLEMENTATIONS = implementations(problem_of)
