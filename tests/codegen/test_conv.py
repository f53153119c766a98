"""The conv template against numpy, on the checked simulator, and through NVRTC."""

from __future__ import annotations

import cases_conv
import numpy as np
import pytest
from cases_conv import Shape
from harness import assert_compiles, render_with, run_kernel, tactics
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case, assert_close

from arcweld.codegen.templates.contract.problem import conv_problem
from arcweld.compiler.dtypes import DType

ARCHS = ("sm_80", "sm_90a")  # in turn: they differ in little but the launch primitives
CASES = cases_conv.cases()
SLACK = {DType.F32: 20.0, DType.F16: 1.0, DType.BF16: 1.0}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    source = render_with(case.kernel, case.tactic or tactics(case.kernel)[0])
    slack = SLACK[case.kernel.buffer("out0").dtype]
    for seed in (0, 1, 2):
        got = run_kernel(source, case.kernel, case.inputs, case.env, seed=seed)
        assert_close(case.kernel, got, cases_conv.expected(case), slack)


@pytest.mark.parametrize("i", range(len(CASES)), ids=lambda i: CASES[i].id)
def test_case_compiles(i: int) -> None:
    case = CASES[i]
    assert_compiles(render_with(case.kernel, case.tactic or tactics(case.kernel)[0]), (ARCHS[i % 2],))


@settings(max_examples=10)
@given(
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)), ci=st.integers(1, 17), co=st.integers(1, 17),
    taps=st.sampled_from([(1, 1), (3, 3), (1, 3), (2, 2)]), stride=st.integers(1, 3), pad=st.integers(0, 2),
    dtype=st.sampled_from([DType.F32, DType.F16]), seed=st.integers(0, 9),
)  # fmt: skip
def test_any_shape(
    size: tuple[int, int], ci: int, co: int, taps: tuple[int, int], stride: int, pad: int, dtype: DType, seed: int
) -> None:
    shape = Shape(1, size, ci, co, taps, stride=stride, pad=pad)
    kernel = cases_conv.conv_kernel(shape, dtype)
    inputs = cases_conv.conv_inputs(np.random.default_rng(seed), kernel, {})
    got = run_kernel(render_with(kernel, tactics(kernel)[0]), kernel, inputs, seed=seed)
    assert_close(kernel, got, cases_conv.conv(inputs, shape), SLACK[dtype])


def test_planes_are_read_along_their_rows() -> None:
    stem = conv_problem(cases_conv.conv_kernel(cases_conv.SHAPES["first_layer"], DType.F16, planes=True))
    assert stem.a.by_rows
    patches = conv_problem(cases_conv.conv_kernel(Shape(2, (16, 24), 3, 16, (8, 8), stride=8), DType.F16, planes=True))
    assert (patches.a.along_k, patches.a.width) == (True, 4)


def test_padding_is_copied_by_predicate() -> None:
    problem = conv_problem(cases_conv.conv_kernel(cases_conv.SHAPES["3x3"], DType.F16))
    assert problem.a.copyable
    assert problem.a.masked
    assert problem.b.copyable
