"""The gemv implementation against numpy, on the checked simulator, and through NVRTC."""

from __future__ import annotations

import cases_gemv
import numpy as np
import pytest
from cases_contract import matmul, matmul_kernel
from harness import assert_compiles, render_with, run_kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case, assert_close, random
from mutate import survivors

from arcweld.codegen.templates.contract.gemv import GemvTactic, supports, tactics
from arcweld.codegen.templates.contract.problem import problem_of
from arcweld.compiler.dtypes import DType

ARCHS = ("sm_80", "sm_90a")  # in turn: they differ in little but the launch primitives
CASES = cases_gemv.cases()
SLACK = {DType.F32: 30.0, DType.F16: 1.0, DType.BF16: 1.0}


def tactic_of(case: Case) -> GemvTactic:
    return case.tactic or tactics(problem_of(case.kernel), "sm_80")[0]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    assert supports(problem_of(case.kernel), "sm_80") is None
    source = render_with(case.kernel, tactic_of(case))
    for seed in (0, 1, 2):
        got = run_kernel(source, case.kernel, case.inputs, case.env, seed=seed)
        assert_close(case.kernel, got, cases_gemv.expected(case), SLACK[case.kernel.buffer("out0").dtype])


@pytest.mark.parametrize("case", CASES[::6], ids=lambda c: c.id)
def test_every_tactic_agrees(case: Case) -> None:
    for tactic in tactics(problem_of(case.kernel), "sm_80"):
        got = run_kernel(render_with(case.kernel, tactic), case.kernel, case.inputs, case.env)
        assert_close(case.kernel, got, cases_gemv.expected(case), SLACK[case.kernel.buffer("out0").dtype])


@pytest.mark.parametrize("i", range(len(CASES)), ids=lambda i: CASES[i].id)
def test_case_compiles(i: int) -> None:
    case = CASES[i]
    assert_compiles(render_with(case.kernel, tactic_of(case)), (ARCHS[i % 2],))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("order", ["mk,nk", "mk,kn"])
def test_every_tactic_compiles_without_spills(rows: int, order: str) -> None:
    kernel = matmul_kernel(rows, 4096, 4096, DType.F16, order)
    for tactic in tactics(problem_of(kernel), "sm_80"):
        assert_compiles(render_with(kernel, tactic), ("sm_80",))


@settings(max_examples=12)
@given(
    size=st.tuples(st.integers(1, 8), st.integers(1, 70), st.integers(1, 300)),
    order=st.sampled_from(["mk,kn", "mk,nk"]), dtype=st.sampled_from([DType.F32, DType.F16]),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_any_shape(size: tuple[int, int, int], order: str, dtype: DType, seed: int) -> None:
    kernel = matmul_kernel(*size, dtype, order)
    rng = np.random.default_rng(seed)
    inputs = {b.name: random(rng, b.shape, dtype) for b in kernel.buffers[:3]}  # type: ignore[arg-type]
    source = render_with(kernel, tactics(problem_of(kernel), "sm_80")[0])
    assert_close(kernel, run_kernel(source, kernel, inputs, seed=seed), matmul(inputs, order), SLACK[dtype])


def test_the_barrier_is_needed() -> None:
    case = next(c for c in CASES if c.id == "f32_split")
    source = render_with(case.kernel, case.tactic)

    def passes(text: str) -> bool:
        got = run_kernel(source, case.kernel, case.inputs, case.env, text=text)
        return np.allclose(got["out0"], cases_gemv.expected(case)["out0"], 1e-3, 1e-3)

    assert survivors(source.source, passes) == []


def test_nine_rows_are_refused() -> None:
    assert "9 rows" in (supports(problem_of(matmul_kernel(9, 8, 8, DType.F32)), "sm_80") or "")
