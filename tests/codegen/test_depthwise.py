"""The depthwise implementation against numpy, on the checked simulator, and through NVRTC."""

from __future__ import annotations

import cases_depthwise
import numpy as np
import pytest
from cases_conv import SHAPES, Shape, conv_inputs, conv_kernel
from harness import assert_compiles, run_kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case, assert_close

from arcweld.codegen.templates.conv.depthwise import DepthwiseTactic, render_depthwise, shared_loads, supports, tactics
from arcweld.compiler.dtypes import DType

ARCHS = ("sm_80", "sm_90a")  # in turn: they differ in little but the launch primitives
CASES = cases_depthwise.cases()
SLACK = {DType.F32: 10.0, DType.F16: 1.0, DType.BF16: 1.0}


def tactic_of(case: Case) -> DepthwiseTactic:
    return case.tactic or tactics(case.kernel, "sm_80")[0]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    assert supports(case.kernel, "sm_80") is None
    source = render_depthwise(case.kernel, tactic_of(case), "sm_80")
    for seed in (0, 1, 2):
        got = run_kernel(source, case.kernel, case.inputs, case.env, seed=seed)
        assert_close(case.kernel, got, cases_depthwise.expected(case), SLACK[case.kernel.buffer("out0").dtype])


@pytest.mark.parametrize("case", CASES[::6], ids=lambda c: c.id)
def test_every_tactic_agrees(case: Case) -> None:
    for tactic in tactics(case.kernel, "sm_80"):
        got = run_kernel(render_depthwise(case.kernel, tactic, "sm_80"), case.kernel, case.inputs, case.env)
        assert_close(case.kernel, got, cases_depthwise.expected(case), SLACK[case.kernel.buffer("out0").dtype])


@pytest.mark.parametrize("i", range(len(CASES)), ids=lambda i: CASES[i].id)
def test_case_compiles(i: int) -> None:
    case = CASES[i]
    assert_compiles(render_depthwise(case.kernel, tactic_of(case), "sm_80"), (ARCHS[i % 2],))


@settings(max_examples=10)
@given(
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)), channels=st.integers(1, 17), stride=st.integers(1, 3),
    pad=st.integers(0, 2), pixels=st.sampled_from([1, 2, 3, 4]), dtype=st.sampled_from([DType.F32, DType.F16]),
)  # fmt: skip
def test_any_shape(
    size: tuple[int, int], channels: int, stride: int, pad: int, pixels: int, dtype: DType
) -> None:
    shape = Shape(1, size, channels, channels, (3, 3), stride=stride, pad=pad, groups=channels)
    kernel = cases_depthwise.depthwise_kernel(shape, dtype)
    inputs = conv_inputs(np.random.default_rng(0), kernel, {})
    got = run_kernel(render_depthwise(kernel, DepthwiseTactic(pixels, 32), "sm_80"), kernel, inputs)
    assert_close(kernel, got, cases_depthwise.depthwise(inputs, shape), SLACK[dtype])


def test_pixels_share_loads_unless_the_filter_is_dilated() -> None:
    for name, shares in (("3x3_stride", True), ("no_padding", True), ("dilated", False), ("transposed", False)):
        shape = cases_depthwise.SHAPES[name][0]
        kernel = cases_depthwise.depthwise_kernel(shape, DType.F16)
        found = shared_loads(kernel.loads["a"], kernel.axes["out"][-1], kernel.axes["tap"][-1], shape.stride)
        assert (found is not None) == shares, name


def test_grouped_convolution_is_refused() -> None:
    assert "more than one" in (supports(conv_kernel(SHAPES["groups"], DType.F32), "sm_80") or "")


def test_channels_are_read_in_sixteen_byte_pieces() -> None:
    kernel = cases_depthwise.depthwise_kernel(cases_depthwise.SHAPES["3x3"][0], DType.F16)
    source = render_depthwise(kernel, DepthwiseTactic(), "sm_80").source
    assert source.count("load_vec<8>") == 4  # input, weight, bias, residual
