"""The contract template: every matrix product, with what is fused before and after it, by one of several algorithms.

Roles: axes batch (0+), m, n, k (1+ each); loads ``a`` over batch, m, k and ``b`` over batch, k, n; stores over
batch, m, n with the variable ``acc``. attrs: ``precision`` (``fp32``: exact; ``tf32``, ``tf32x3``, ``f16``, ``bf16``:
tensor cores with f32 accumulation), ``b_is_weight`` (``b`` does not depend on an earlier kernel of the launch list).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.templates.contract import ffma as contract_ffma
from arcweld.codegen.templates.contract import gemv
from arcweld.codegen.templates.contract import mma as contract_mma
from arcweld.codegen.templates.contract import wgmma as contract_wgmma
from arcweld.codegen.templates.contract.problem import Problem, problem_of
from arcweld.codegen.templates.implementation import Implementation


class Algorithm(Protocol):
    """A module that computes problems in normal form."""

    ARCH: str

    def supports(self, problem: Problem, arch: str) -> str | None: ...

    def tactics(self, problem: Problem, arch: str) -> tuple[Any, ...]: ...

    def render_problem(self, problem: Problem, tactic: Any, arch: str) -> KernelSource: ...


# best first
ALGORITHMS: dict[str, Algorithm] = {
    "gemv": gemv,
    "wgmma": contract_wgmma,
    "mma": contract_mma,
    "ffma": contract_ffma,
}


def implementations(normal: Callable[[Kernel], Problem]) -> tuple[Implementation, ...]:
    """Every algorithm, as implementations of a template whose kernels ``normal`` brings to normal form."""
    return tuple(_implementation(name, algorithm, normal) for name, algorithm in ALGORITHMS.items())


def _implementation(name: str, algorithm: Algorithm, normal: Callable[[Kernel], Problem]) -> Implementation:
    return Implementation(
        name, algorithm.ARCH,
        render=lambda kernel, tactic, arch: algorithm.render_problem(normal(kernel), tactic, arch),
        tactics=lambda kernel, arch: algorithm.tactics(normal(kernel), arch),
        supports=lambda kernel, arch: algorithm.supports(normal(kernel), arch),
    )  # fmt: skip


IMPLEMENTATIONS = implementations(problem_of)
