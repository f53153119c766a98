"""The scan template against numpy.cumsum, on the checked simulator, and through NVRTC."""

from __future__ import annotations

import cases_scan
import numpy as np
import pytest
from cases_scan import scan_kernel, scanned
from harness import assert_compiles, run_kernel
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import Case, assert_close, random
from mutate import survivors

from arcweld.codegen.templates.reduce.scan import ScanTactic, render_scan, supports, tactics
from arcweld.compiler.dtypes import DType

CASES = cases_scan.cases()
SLACK = 8  # partial sums pass through values larger than the results


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    assert supports(case.kernel, "sm_80") is None
    for tactic in [case.tactic] if case.tactic else tactics(case.kernel, "sm_80"):
        source = render_scan(case.kernel, tactic, "sm_80")
        got = run_kernel(source, case.kernel, case.inputs, case.env)
        assert_close(case.kernel, got, cases_scan.expected(case), SLACK)


@pytest.mark.parametrize("case", CASES[::3], ids=lambda c: c.id)
def test_case_compiles(case: Case) -> None:
    assert_compiles(render_scan(case.kernel, case.tactic or tactics(case.kernel, "sm_80")[0], "sm_80"))


@given(
    rows=st.integers(1, 40), cols=st.integers(1, 200), lanes=st.sampled_from([1, 2, 8, 32, 64, 128]),
    across=st.booleans(), reverse=st.booleans(), exclusive=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_scan(
    rows: int, cols: int, lanes: int, across: bool, reverse: bool, exclusive: bool, seed: int
) -> None:
    x = random(np.random.default_rng(seed), (cols, rows) if across else (rows, cols), DType.I32)
    kernel = scan_kernel(rows, cols, DType.I32, across=across, reverse=reverse, exclusive=exclusive)
    source = render_scan(kernel, ScanTactic(0, lanes), "sm_80")
    got = run_kernel(source, kernel, {"in0": x}, seed=seed)
    assert_close(kernel, got, {"out0": scanned(x, across, reverse, exclusive)})


def test_nan_and_infinity_spread_to_what_follows_only() -> None:
    x = np.ones((2, 300), np.float32)
    x[0, 70], x[1, 200] = np.nan, np.inf
    kernel = scan_kernel(2, 300, DType.F32)
    for tactic in tactics(kernel, "sm_80"):
        got = run_kernel(render_scan(kernel, tactic, "sm_80"), kernel, {"in0": x})["out0"]
        np.testing.assert_array_equal(got, np.cumsum(x, 1))


def test_rows_are_read_in_sixteen_byte_pieces() -> None:
    kernel = scan_kernel(64, 768, DType.F16)
    source = render_scan(kernel, tactics(kernel, "sm_80")[0], "sm_80").source
    assert "load_vec<8>(p.in0" in source
    assert "store_vec<8>(p.out0" in source


def test_work_is_linear() -> None:
    """Every element is loaded once: the grid covers the rows, and each turn of the loop covers new columns."""
    kernel = scan_kernel(1, 1 << 16, DType.F32)
    tactic = tactics(kernel, "sm_80")[0]
    source = render_scan(kernel, tactic, "sm_80")
    assert source.grid == (1, 1, 1)
    assert f"tile += {tactic.lanes * tactic.width})" in source.source
    assert source.source.count("load_x(p, row, col, acc)") == 1


def test_a_row_of_several_warps_needs_its_barriers() -> None:
    x = random(np.random.default_rng(0), (2, 1000), DType.I32)
    kernel = scan_kernel(2, 1000, DType.I32)
    source = render_scan(kernel, ScanTactic(2, 128), "sm_80")

    def passes(text: str) -> bool:
        return np.array_equal(run_kernel(source, kernel, {"in0": x}, text=text)["out0"], np.cumsum(x, 1))

    assert passes(source.source)
    assert survivors(source.source, passes, "scan.cuh") == []


def test_steps_of_several_warps_need_their_barriers() -> None:
    case = next(c for c in CASES if c.id == "linear_warps")
    source = render_scan(case.kernel, case.tactic, "sm_80")

    def passes(text: str) -> bool:
        got = run_kernel(source, case.kernel, case.inputs, text=text)["out0"]
        return np.allclose(got, cases_scan.expected(case)["out0"], 1e-4, 1e-4)

    assert passes(source.source)
    assert survivors(source.source, passes, "scan.cuh") == []


def test_unknown_combiner_is_refused() -> None:
    assert "median" in (supports(scan_kernel(3, 4, DType.F32, combine="median"), "sm_80") or "")
