"""The window template against numpy loops, on the checked simulator, and through NVRTC."""

from __future__ import annotations

import cases_window
import numpy as np
import pytest
from cases_window import Pool, pool_kernel, pooled
from harness import assert_compiles, run_kernel
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import Case, assert_close, random

from arcweld.codegen.templates.reduce.window import render_window, supports, tactics
from arcweld.compiler.dtypes import DType

CASES = cases_window.cases()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    assert supports(case.kernel, "sm_80") is None
    for tactic in tactics(case.kernel, "sm_80"):
        source = render_window(case.kernel, tactic, "sm_80")
        got = run_kernel(source, case.kernel, case.inputs, case.env)
        assert_close(case.kernel, got, cases_window.expected(case), slack=2)


@pytest.mark.parametrize("case", CASES[::2], ids=lambda c: c.id)
def test_case_compiles(case: Case) -> None:
    assert_compiles(render_window(case.kernel, tactics(case.kernel, "sm_80")[0], "sm_80"))


@given(
    h=st.integers(3, 8), w=st.integers(3, 8), c=st.sampled_from([1, 3, 8]), size=st.integers(1, 3),
    stride=st.integers(1, 3), pad=st.integers(0, 1), combine=st.sampled_from(["max", "sum"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_pool(h: int, w: int, c: int, size: int, stride: int, pad: int, combine: str, seed: int) -> None:
    pool = Pool(size, stride, min(pad, size - 1))
    image = random(np.random.default_rng(seed), (2, h, w, c), DType.F16)
    kernel = pool_kernel((2, h, w, c), pool, combine, DType.F16)
    source = render_window(kernel, tactics(kernel, "sm_80")[0], "sm_80")
    got = run_kernel(source, kernel, {"in0": image}, seed=seed)
    assert_close(kernel, got, {"out0": pooled(image, pool, combine)}, slack=2)


def test_channels_are_read_as_vectors() -> None:
    kernel = pool_kernel((8, 56, 56, 64), Pool(3, 2, 1), "max", DType.F16)
    assert "load_vec<8>(p.in0" in render_window(kernel, tactics(kernel, "sm_80")[0], "sm_80").source


def test_a_huge_window_is_refused() -> None:
    assert "taps" in (supports(pool_kernel((1, 40, 40, 1), Pool(40, 1), "sum", DType.F32), "sm_80") or "")
