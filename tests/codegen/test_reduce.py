"""The reduce template against numpy, on the checked simulator, and through NVRTC."""

from __future__ import annotations

import cases_reduce
import numpy as np
import pytest
from harness import assert_compiles, run_kernel
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import Case, assert_close, matches, random
from mutate import survivors

from arcweld.codegen.templates.reduce.reduce import ReduceTactic, render_reduce, supports, tactics
from arcweld.compiler.dims import symbol
from arcweld.compiler.dtypes import DType

CASES = cases_reduce.cases()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    assert supports(case.kernel, "sm_80") is None
    source = render_reduce(case.kernel, case.tactic or tactics(case.kernel, "sm_80")[0], "sm_80")
    for seed in (0, 1, 2):
        got = run_kernel(source, case.kernel, case.inputs, case.env, seed=seed)
        assert_close(case.kernel, got, cases_reduce.expected(case), slack=4)


@pytest.mark.parametrize("case", CASES[::4], ids=lambda c: c.id)
def test_every_tactic_agrees(case: Case) -> None:
    for tactic in tactics(case.kernel, "sm_80")[1:]:
        got = run_kernel(render_reduce(case.kernel, tactic, "sm_80"), case.kernel, case.inputs, case.env)
        assert_close(case.kernel, got, cases_reduce.expected(case), slack=4)


@pytest.mark.parametrize("case", CASES[::2], ids=lambda c: c.id)
def test_case_compiles(case: Case) -> None:
    assert_compiles(render_reduce(case.kernel, case.tactic or tactics(case.kernel, "sm_80")[0], "sm_80"))


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4), mask=st.integers(0, 15), seed=st.integers(0, 99),
    combine=st.sampled_from(["sum", "max", "argmin"]), dtype=st.sampled_from([DType.F32, DType.F16, DType.I32]),
    direction=st.sampled_from(["row", "column"]), lanes=st.sampled_from([1, 4, 32]),
)  # fmt: skip
def test_any_shape_any_axes(
    shape: list[int], mask: int, combine: str, dtype: DType, direction: str, lanes: int, seed: int
) -> None:
    axes = tuple(n for n in range(len(shape)) if mask >> n & 1)
    if combine == "argmin" and not axes:
        axes = (0,)
    x = random(np.random.default_rng(seed), shape, dtype)
    kernel = cases_reduce.reduce_kernel(shape, axes, combine, dtype)
    source = render_reduce(kernel, ReduceTactic(direction, lanes=lanes, outputs=32), "sm_80")
    got = run_kernel(source, kernel, {"in0": x}, seed=seed)
    assert_close(kernel, got, {"out0": cases_reduce.reduced(x, axes, combine)}, slack=4)


def test_the_direction_follows_the_contiguous_axis() -> None:
    for axes, direction in (((1,), "row"), ((0,), "column")):
        kernel = cases_reduce.reduce_kernel((64, 512), axes, "sum", DType.F16)
        assert tactics(kernel, "sm_80")[0].direction == direction
        assert "load_vec<8>" in render_reduce(kernel, tactics(kernel, "sm_80")[0], "sm_80").source


def test_the_hand_over_needs_its_barrier() -> None:
    kernel = cases_reduce.reduce_kernel((200, 20), (0,), "sum", DType.F32)
    x = random(np.random.default_rng(0), (200, 20), DType.F32)
    source = render_reduce(kernel, ReduceTactic("column", lanes=32, outputs=8), "sm_80")
    want = {"out0": cases_reduce.reduced(x, (0,), "sum")}

    def passes(text: str) -> bool:
        return matches(kernel, run_kernel(source, kernel, {"in0": x}, text=text), want, slack=4)

    assert "slices_reduce<" in source.source
    assert survivors(source.source, passes, "reduce.cuh") == []


def test_what_is_refused() -> None:
    assert "median" in (supports(cases_reduce.reduce_kernel((3, 4), (1,), "median", DType.F32), "sm_80") or "")
    wide = cases_reduce.reduce_kernel((symbol("n", 1 << 31), 4), (1,), "sum", DType.F32)
    assert "2**31" in (supports(wide, "sm_80") or "")
