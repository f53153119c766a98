"""The suppress template against exact integer arithmetic, on the checked simulator, and through NVRTC."""

from __future__ import annotations

import cases_suppress
import numpy as np
import pytest
from cases_suppress import drawn, stays, suppress_kernel
from harness import assert_compiles, run_kernel
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import Case
from mutate import survivors

from arcweld.codegen.templates.suppress.suppress import SuppressTactic, render_suppress, supports, tactics
from arcweld.compiler.dims import symbol

CASES = cases_suppress.cases()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_exact_arithmetic(case: Case) -> None:
    assert supports(case.kernel, "sm_80") is None
    for tactic in [case.tactic] if case.tactic else tactics(case.kernel, "sm_80"):
        source = render_suppress(case.kernel, tactic, "sm_80")
        got = run_kernel(source, case.kernel, case.inputs, case.env)
        np.testing.assert_array_equal(got["out0"], cases_suppress.expected(case)["out0"])


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("threads", [32, 256])
def test_it_compiles(arch: str, threads: int) -> None:
    kernel = suppress_kernel(symbol("b", 1), symbol("n", 1))
    assert_compiles(render_suppress(kernel, SuppressTactic(threads), arch))


@given(
    rows=st.integers(1, 3), cols=st.integers(1, 150), threads=st.sampled_from([32, 64]),
    limit=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), most=st.integers(0, 60), extent=st.integers(2, 40),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_boxes(rows: int, cols: int, threads: int, limit: float, most: int, extent: int, seed: int) -> None:
    boxes, kernel = drawn(seed, rows, cols, extent), suppress_kernel(rows, cols)
    inputs = boxes | {"in2": np.array([limit], np.float32), "in3": np.array([most], np.int64)}
    got = run_kernel(render_suppress(kernel, SuppressTactic(threads), "sm_80"), kernel, inputs, seed=seed)
    np.testing.assert_array_equal(got["out0"], stays(boxes["in0"], boxes["in1"], limit, most))


def test_numbers_that_are_none_do_no_harm() -> None:
    """A box with a NaN suppresses nothing, as no comparison with it holds."""
    boxes, kernel = drawn(3, 1, 40), suppress_kernel(1, 40)
    boxes["in0"][0, ::7] = np.nan
    inputs = boxes | {"in2": np.array([0.5], np.float32), "in3": np.array([99], np.int64)}
    got = run_kernel(render_suppress(kernel, SuppressTactic(32), "sm_80"), kernel, inputs)["out0"][0]
    there = ~np.isnan(boxes["in0"][0, :, 0])
    np.testing.assert_array_equal(got[there], stays(boxes["in0"][:, there], boxes["in1"][:, there], 0.5, 99)[0])


def test_memory_is_linear() -> None:
    """The boxes that stay are all that a kernel keeps: 16 bytes for each."""
    n = symbol("n", 1)
    source = render_suppress(suppress_kernel(80, n), SuppressTactic(), "sm_80")
    (kept,) = source.workspace
    assert kept.shape == (80, n, 4)
    assert source.grid == (80, 1, 1)


def test_tiles_need_their_barriers() -> None:
    boxes, kernel = drawn(5, 2, 200, 30), suppress_kernel(2, 200)
    inputs = boxes | {"in2": np.array([0.25], np.float32), "in3": np.array([150], np.int64)}
    source = render_suppress(kernel, SuppressTactic(64), "sm_80")
    want = stays(boxes["in0"], boxes["in1"], 0.25, 150)
    assert want.sum() > 128  # a second round of boxes that stay

    def passes(text: str) -> bool:
        return np.array_equal(run_kernel(source, kernel, inputs, text=text)["out0"], want)

    assert passes(source.source)
    assert survivors(source.source, passes) == []
