"""The attention template against numpy, on the checked simulator, and through NVRTC."""

from __future__ import annotations

import cases_attention
import pytest
from arcweld.codegen.attention import render_attention, supports, tactics
from harness import assert_compiles, run_kernel
from kernel_cases import Case, assert_close

CASES = cases_attention.cases()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    assert supports(case.kernel, "sm_80") is None
    source = render_attention(case.kernel, case.tactic or tactics(case.kernel, "sm_80")[0], "sm_80")
    for seed in (0, 1):
        got = run_kernel(source, case.kernel, case.inputs, case.env, seed=seed)
        assert_close(case.kernel, got, cases_attention.expected(case), slack=2)


@pytest.mark.parametrize("case", CASES[::3], ids=lambda c: c.id)
def test_case_compiles(case: Case) -> None:
    assert_compiles(render_attention(case.kernel, case.tactic or tactics(case.kernel, "sm_80")[0], "sm_80"))
