"""The conv template: convolution as a matrix product whose left operand is gathered, on the engines of ``contract``.

Roles: axes n (1), out (1-3 spatial), g (1), co (1, per group), tap (1-3), ci (1, per group); loads ``a`` (masked where
the window leaves the input) and ``w``; stores over n, out, g, co with the variable ``acc``. Rows are output pixels,
columns are output channels, k runs over taps and then input channels, groups are the batch.
"""

from __future__ import annotations

from arcweld.codegen import contract
from arcweld.codegen.contract_problem import Problem, problem_of
from arcweld.codegen.contract_tactic import ContractTactic
from arcweld.codegen.kernel import Kernel, KernelSource


def conv_problem(kernel: Kernel) -> Problem:
    """The convolution as a contraction: batch = g, m = n and out, n = co, k = tap and ci."""
    axes = kernel.axes
    roles = (axes["g"], (*axes["n"], *axes["out"]), axes["co"], (*axes["tap"], *axes["ci"]))
    return problem_of(kernel, roles, "a", "w")


IMPLEMENTATIONS = contract.implementations(conv_problem)


def supports(kernel: Kernel, arch: str) -> str | None:
    """None if some implementation can compute the kernel on ``arch``, else the reasons."""
    reasons = {i.name: i.supports(kernel, arch) for i in IMPLEMENTATIONS}
    return None if None in reasons.values() else "; ".join(f"{n}: {r}" for n, r in reasons.items())


def tactics(kernel: Kernel, arch: str) -> tuple[ContractTactic, ...]:
    """Candidates of the best engine, the analytical default first."""
    problem = conv_problem(kernel)
    return contract.ENGINES[contract.supporting(problem, arch)[0]].tactics(problem, arch)


def render_conv(kernel: Kernel, tactic: ContractTactic, arch: str) -> KernelSource:
    """Renders the kernel with the tactic's engine."""
    return contract.ENGINES[tactic.engine].render_problem(conv_problem(kernel), tactic, arch)
