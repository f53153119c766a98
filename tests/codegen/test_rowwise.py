"""The rowwise template against numpy, on the checked simulator, and through NVRTC."""

from __future__ import annotations

from dataclasses import replace

import cases_rowwise
import numpy as np
import pytest
from harness import assert_compiles, run_kernel
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import Case, assert_close, random
from mutate import survivors

from arcweld.codegen.templates.reduce.rowwise import RowwiseTactic, render_rowwise, supports, tactics
from arcweld.compiler.dtypes import DType

CASES = cases_rowwise.cases()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    tactic = case.tactic or tactics(case.kernel, "sm_80")[0]
    source = render_rowwise(case.kernel, tactic, "sm_80")
    assert supports(case.kernel, "sm_80") is None
    for seed in (0, 1, 2):
        got = run_kernel(source, case.kernel, case.inputs, case.env, seed=seed)
        assert_close(case.kernel, got, cases_rowwise.expected(case))


@pytest.mark.parametrize("case", CASES[::3], ids=lambda c: c.id)
def test_every_tactic_agrees(case: Case) -> None:
    for tactic in tactics(case.kernel, "sm_80")[1:]:
        source = render_rowwise(case.kernel, tactic, "sm_80")
        got = run_kernel(source, case.kernel, case.inputs, case.env)
        assert_close(case.kernel, got, cases_rowwise.expected(case))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_compiles(case: Case) -> None:
    assert_compiles(render_rowwise(case.kernel, case.tactic or tactics(case.kernel, "sm_80")[0], "sm_80"))


@given(
    rows=st.integers(1, 9), cols=st.integers(1, 300), dtype=st.sampled_from([DType.F32, DType.F16]),
    lanes=st.sampled_from([4, 16, 32, 64]), resident=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_any_shape_any_spread(rows: int, cols: int, dtype: DType, lanes: int, resident: bool, seed: int) -> None:
    x = random(np.random.default_rng(seed), (rows, cols), dtype, 4.0)
    kernel = cases_rowwise.softmax_kernel((rows, cols), dtype)
    source = render_rowwise(kernel, RowwiseTactic(lanes=lanes, resident=resident, rows=8), "sm_80")
    got = run_kernel(source, kernel, {"in0": x}, seed=seed)
    assert_close(kernel, got, {"out0": cases_rowwise.softmax(x)})


def test_nan_and_infinity_stay_in_their_row() -> None:
    x = np.zeros((3, 40), np.float32)
    x[0, 7], x[1, 3] = np.nan, -np.inf
    kernel = cases_rowwise.softmax_kernel((3, 40), DType.F32)
    got = run_kernel(render_rowwise(kernel, tactics(kernel, "sm_80")[0], "sm_80"), kernel, {"in0": x})["out0"]
    assert np.isnan(got[0]).all()
    assert_close(kernel, {"out0": got[1:]}, {"out0": cases_rowwise.softmax(x[1:])})


def test_rows_are_read_in_sixteen_byte_pieces() -> None:
    kernel = cases_rowwise.layernorm_kernel(64, 768, DType.F16)
    source = render_rowwise(kernel, tactics(kernel, "sm_80")[0], "sm_80").source
    assert "load_vec<8>(p.in0" in source
    assert "store_vec<8>(p.out1" in source


def test_a_row_of_several_warps_needs_its_barriers() -> None:
    x = random(np.random.default_rng(0), (3, 300), DType.F32, 4.0)
    kernel = cases_rowwise.softmax_kernel((3, 300), DType.F32)
    source = render_rowwise(kernel, RowwiseTactic(lanes=128), "sm_80")

    def passes(text: str) -> bool:
        got = run_kernel(source, kernel, {"in0": x}, text=text)
        return np.allclose(got["out0"], cases_rowwise.softmax(x), 1e-4, 1e-6)

    assert "block_reduce<" in source.source
    assert survivors(source.source, passes, "reduce.cuh") == []


def test_unknown_combiner_is_refused() -> None:
    kernel = cases_rowwise.softmax_kernel((3, 40), DType.F32)
    kernel = replace(kernel, attrs={"stages": (replace(kernel.attrs["stages"][0], combine="median"),)})
    assert "median" in (supports(kernel, "sm_80") or "")
