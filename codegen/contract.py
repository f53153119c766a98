"""The contract template: every matrix product, with what is fused before and after it, on one of several engines.

Roles: axes batch (0+), m, n, k (1+ each); loads ``a`` over batch, m, k and ``b`` over batch, k, n; stores over
batch, m, n with the variable ``acc``. attrs: ``precision`` (``fp32``: exact; ``tf32``, ``tf32x3``, ``f16``, ``bf16``:
tensor cores with f32 accumulation), ``b_is_weight`` (``b`` does not depend on an earlier kernel of the launch list).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from arcweld.codegen import contract_ffma, contract_mma, contract_wgmma, gemv
from arcweld.codegen.contract_problem import Problem, problem_of
from arcweld.codegen.implementation import Implementation, runs_on
from arcweld.codegen.kernel import Kernel, KernelSource


class Engine(Protocol):
    """A module that computes problems in normal form."""

    ARCH: str

    def supports(self, problem: Problem, arch: str) -> str | None: ...

    def tactics(self, problem: Problem, arch: str) -> tuple[Any, ...]: ...

    def render_problem(self, problem: Problem, tactic: Any, arch: str) -> KernelSource: ...


# best first
ENGINES: dict[str, Engine] = {
    "gemv": gemv,
    "wgmma": contract_wgmma,
    "mma": contract_mma,
    "ffma": contract_ffma,
}


def implementations(normal: Callable[[Kernel], Problem]) -> tuple[Implementation, ...]:
    """Every engine, as implementations of a template whose kernels ``normal`` brings to normal form."""
    return tuple(_implementation(name, engine, normal) for name, engine in ENGINES.items())


def _implementation(name: str, engine: Engine, normal: Callable[[Kernel], Problem]) -> Implementation:
    return Implementation(
        name, engine.ARCH,
        render=lambda kernel, tactic, arch: engine.render_problem(normal(kernel), tactic, arch),
        tactics=lambda kernel, arch: engine.tactics(normal(kernel), arch),
        supports=lambda kernel, arch: engine.supports(normal(kernel), arch),
    )  # fmt: skip


IMPLEMENTATIONS = implementations(problem_of)


def supporting(problem: Problem, arch: str) -> list[str]:
    """The engines that can compute the problem on ``arch``, best first."""
    return [
        name for name, e in ENGINES.items() if runs_on(e.ARCH, arch) and e.supports(problem, arch) is None
    ]


def supports(kernel: Kernel, arch: str) -> str | None:
    """None if some engine can compute the kernel on ``arch``, else the reasons."""
    problem = problem_of(kernel)
    if supporting(problem, arch):
        return None
    return "; ".join(f"{name}: {e.supports(problem, arch)}" for name, e in ENGINES.items())


def tactics(kernel: Kernel, arch: str) -> tuple[Any, ...]:
    """The candidates of the best engine that supports the kernel, the analytical default first."""
    problem = problem_of(kernel)
    return ENGINES[supporting(problem, arch)[0]].tactics(problem, arch)


def render_contract(kernel: Kernel, tactic: Any, arch: str) -> KernelSource:
    """Renders the kernel with the tactic's engine."""
    return ENGINES[tactic.engine].render_problem(problem_of(kernel), tactic, arch)
