"""Few rows by stored weights against numpy, on the checked simulator, and through NVRTC."""

from __future__ import annotations

import cases_stored
import pytest
from harness import run_kernel
from kernel_cases import Case, assert_close

from arcweld.codegen.templates.contract.few_rows import MMA, STREAM, FewRows
from arcweld.codegen.templates.contract.problem import problem_of

CASES = {c.id: c for c in cases_stored.cases()}
ENGINES = {"stream": STREAM, "mma": MMA}


def engines(case: Case) -> list[FewRows]:
    return [e for e in ENGINES.values() if e.supports(problem_of(case.kernel), e.ARCH) is None]


@pytest.mark.parametrize("case", CASES.values(), ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    assert STREAM in engines(case)
    for engine in engines(case):
        problem = problem_of(case.kernel)
        source = engine.render_problem(problem, engine.tactics(problem, engine.ARCH)[0], engine.ARCH)
        got = run_kernel(source, case.kernel, case.inputs, case.env)
        assert_close(case.kernel, got, cases_stored.expected(case))
