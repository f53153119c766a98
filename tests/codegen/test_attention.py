"""The attention template against numpy, on the checked simulator, and through NVRTC."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import cases_attention
import numpy as np
import pytest
from cases_attention import PROBLEMS, Shape, at_positions, attend, attention_kernel, inputs
from cases_attention_wgmma import SHAPES, TACTICS
from harness import assert_compiles, render_with, run_kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case, assert_close, matches
from mutate import mutations, survivors

from arcweld.codegen.kernel import Buffer, Kernel, KernelSource, axis
from arcweld.codegen.nvrtc.compiler import compile_cubin
from arcweld.codegen.templates.attention import wgmma as attention_wgmma
from arcweld.codegen.templates.attention.ffma import FfmaTactic
from arcweld.codegen.templates.attention.mma import MmaTactic
from arcweld.codegen.templates.attention.wgmma import AttentionWgmmaTactic
from arcweld.codegen.templates.select import implementations, select
from arcweld.compiler.dims import symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import UnsupportedError
from arcweld.compiler.expr import binary, cast, const, index, load

CASES = cases_attention.cases()
SPREADS = [
    FfmaTactic(8, 4, 4, 64),
    FfmaTactic(32, 2, 1, 128),
    FfmaTactic(16, 1, 2, 32),
    MmaTactic(4, 1, 32, 2),
    MmaTactic(1, 4, 16, 3),
    MmaTactic(2, 2, 16, 1),
    MmaTactic(1, 1, 64, 1),
]


def rendered(kernel: Kernel, tactic: Any = None, arch: str = "sm_80") -> KernelSource:
    """With ``tactic``; without one as an untuned build for ``arch`` chooses."""
    return select(kernel, arch) if tactic is None else render_with(kernel, tactic, arch)


def check(x: Shape, tactic: Any, seed: int = 0, env: dict[str, int] | None = None) -> None:
    """Renders ``x`` with ``tactic``, runs it on random operands and compares with numpy."""
    kernel = attention_kernel(x)
    data = inputs(x, np.random.default_rng(seed), env or {})
    source = rendered(kernel, tactic, "sm_90a" if isinstance(tactic, AttentionWgmmaTactic) else "sm_80")
    assert_close(kernel, run_kernel(source, kernel, data, env, seed=seed), attend(x, data, env or {}), slack=2)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    source = rendered(case.kernel, case.tactic)
    for seed in (0, 1):
        got = run_kernel(source, case.kernel, case.inputs, case.env, seed=seed)
        assert_close(case.kernel, got, cases_attention.expected(case), slack=2)


@pytest.mark.parametrize("case", CASES[::4], ids=lambda c: c.id)
def test_case_compiles(case: Case) -> None:
    assert_compiles(rendered(case.kernel, case.tactic))


@pytest.mark.parametrize("tactic", SPREADS, ids=str)
@pytest.mark.parametrize("name", ["tails", "causal", "bool_mask", "packed", "capped_and_masked", "sink_and_add_mask"])
def test_every_spread_agrees(name: str, tactic: Any) -> None:
    dtype = DType.F16 if isinstance(tactic, MmaTactic) else DType.F32
    check(Shape(**{**vars(PROBLEMS[name]), "dtype": dtype}), tactic, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("dtype", [DType.F32, DType.F16])
def test_tactics_for_real_shapes_compile_without_spills(size: int, dtype: DType) -> None:
    for x in (
        Shape(h=12, s=128, t=128, d=size, dtype=dtype, mask="key"),
        Shape(b=16, h=16, s=512, t=512, d=size, dtype=dtype),
    ):
        kernel = attention_kernel(x)
        known = [t for i in implementations(kernel, "sm_90a") for t in i.tactics(kernel, "sm_90a")[:2]]
        for tactic in known:
            source = rendered(kernel, tactic, "sm_90a")
            assert source.shared_bytes <= (227 if source.arch == "sm_90a" else 99) * 1024
            compile_cubin(source.source, "sm_90a", name=source.entry, strict=True)


@pytest.mark.parametrize("tactic", TACTICS, ids=lambda t: f"{t.groups}x64x{t.keys}s{t.stages}{'p' * t.persistent}")
@pytest.mark.parametrize("name", SHAPES)
def test_wgmma_matches_numpy(name: str, tactic: AttentionWgmmaTactic) -> None:
    assert attention_wgmma.supports(attention_kernel(SHAPES[name]), "sm_90a") is None
    check(SHAPES[name], tactic, seed=1)


def test_attention_without_keys_is_left_to_another_implementation() -> None:
    x = Shape(h=2, s=70, t=symbol("t", 0, 90), d=16, dtype=DType.F16)
    kernel = attention_kernel(x)
    assert "no keys" in (attention_wgmma.supports(kernel, "sm_90a") or "")
    source = rendered(kernel, arch="sm_90a")
    for keys in (0, 33):
        data = inputs(x, np.random.default_rng(0), {"t": keys})
        want = attend(x, data, {"t": keys}) if keys else {"out0": np.zeros((1, 2, 70, 16))}
        assert_close(kernel, run_kernel(source, kernel, data, {"t": keys}), want, slack=2)


@pytest.mark.parametrize(
    "tactic",
    [AttentionWgmmaTactic(2, 16, 2, True, True, True), AttentionWgmmaTactic(1, 16, 1, persistent=True)],
    ids=str,
)
def test_a_persistent_block_takes_several_tiles_and_needs_its_waits(tactic: AttentionWgmmaTactic) -> None:
    """150 tiles on 132 blocks. Taking turns is a matter of speed alone, and one ring's wait may imply that
    for the queries.
    """
    x = Shape(b=3, h=50, s=20, t=70, d=16, dtype=DType.F16)
    kernel = attention_kernel(x)
    data = inputs(x, np.random.default_rng(0), {})
    source, want = rendered(kernel, tactic, "sm_90a"), attend(x, data, {})

    def passes(text: str) -> bool:
        return matches(kernel, run_kernel(source, kernel, data, text=text), want, slack=2)

    assert source.grid[0] == 132
    assert passes(source.source)
    left = [m.deleted for m in survivors(source.source, passes, "attention.cuh")]
    assert not [m for m in left if not re.match(r"named_bar_sync|fence_proxy_async|mbar_wait\(bar.q_empty", m)]


@given(
    h=st.sampled_from([(2, 1), (4, 2)]), s=st.integers(1, 40), t=st.integers(1, 70), d=st.integers(1, 40),
    dv=st.integers(1, 40), mask=st.sampled_from(["", "key", "bool", "add"]), causal=st.booleans(),
    offset=st.integers(-3, 30), dtype=st.sampled_from([DType.F32, DType.F16]),
    layout=st.sampled_from(["bhsd", "bshd"]), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=15)
def test_any_problem(
    h: tuple[int, int], s: int, t: int, d: int, dv: int, mask: str, causal: bool, offset: int, dtype: DType,
    layout: str, seed: int,
) -> None:  # fmt: skip
    heads, groups = h
    if mask == "bool":
        s = max(s, 2)
    check(Shape(1, heads, s, t, d, dv, groups, dtype, layout, mask, causal, offset), None, seed)


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16])
def test_a_mask_of_lowest_values_averages(dtype: DType) -> None:
    """Exporters mask with the lowest finite value: a row of nothing else is uniform, one with -inf
    elsewhere ignores those.
    """
    x = Shape(h=1, s=2, t=6, d=8, mask="add", dtype=dtype)
    kernel = attention_kernel(x)
    data = inputs(x, np.random.default_rng(0), {})
    data["in3"][0, 0, 0] = np.finfo(dtype.numpy).min
    data["in3"][0, 0, 1] = [-np.inf, 0, -np.inf, 0, np.finfo(dtype.numpy).min, -np.inf]
    source = rendered(kernel)
    got = run_kernel(source, kernel, data)["out0"][0, 0].astype(np.float64)
    # adding a score to f32's lowest value leaves it unchanged; f16's lowest value is small enough for scores
    # to count
    if dtype is DType.F32:
        np.testing.assert_allclose(got[0], data["in2"][0, 0].mean(0), rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_allclose(got[0], attend(x, data, {})["out0"][0, 0, 0], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(got[1], attend(x, data, {})["out0"][0, 0, 1], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16])
def test_nan_spreads_to_its_query_only(dtype: DType) -> None:
    x = Shape(h=1, s=5, t=20, d=16, dtype=dtype)
    kernel = attention_kernel(x)
    data = inputs(x, np.random.default_rng(0), {})
    data["in0"][0, 0, 3, 2] = np.nan
    got = run_kernel(rendered(kernel), kernel, data)["out0"][0, 0]
    assert np.isnan(got).any(-1).tolist() == [False, False, False, True, False]
    assert np.isnan(got[3]).all()


@pytest.mark.parametrize("tactic", [FfmaTactic(8, 1, 2, 64), MmaTactic(2, 1, 16, 2), MmaTactic(1, 2, 16, 1)], ids=str)
def test_every_barrier_is_needed(tactic: Any) -> None:
    x = Shape(h=1, s=32, t=90, d=16, dtype=DType.F16 if isinstance(tactic, MmaTactic) else DType.F32)
    kernel = attention_kernel(x)
    data = inputs(x, np.random.default_rng(0), {})
    source, want = rendered(kernel, tactic), attend(x, data, {})

    def passes(text: str) -> bool:
        return matches(kernel, run_kernel(source, kernel, data, text=text), want, slack=2)

    assert len(mutations(source.source)) >= 3
    assert [m.deleted for m in survivors(source.source, passes)] == []


LIMITED = [FfmaTactic(8, 2, 2, 64), MmaTactic(2, 1, 16, 2), MmaTactic(1, 2, 16, 1)]


@pytest.mark.parametrize("tactic", LIMITED, ids=str)
@pytest.mark.parametrize("form", ["until", "before", "window", "added"])
@pytest.mark.parametrize("last", [0, 60, 299])
def test_tiles_of_keys_after_all_positions_are_not_read(form: str, last: int, tactic: Any) -> None:
    """They are NaN, from the last position's tile on. Queries are in two blocks or three, with limits of their own."""
    x = Shape(h=2, s=36, t=300, d=16, dtype=DType.F16 if isinstance(tactic, MmaTactic) else DType.F32)
    kernel, data = at_positions(x, form), inputs(x, np.random.default_rng(0), {})
    position = np.maximum(last - np.arange(36), 0)  # the first block's queries see the most keys
    seen = np.arange(300) <= position[:, None]
    if form == "window":
        seen &= position[:, None] - np.arange(300) < 40
    want = attend(replace(x, mask="add"), {**data, "in3": np.where(seen, 0.0, -np.inf)[None, None]}, {})
    for name in ("in1", "in2"):
        data[name][:, :, last // 32 * 32 + 32 :] = np.nan
    source = rendered(kernel, tactic)
    assert_close(kernel, run_kernel(source, kernel, {**data, "in6": position}), want, slack=2)


@pytest.mark.parametrize("tactic", LIMITED, ids=str)
def test_a_query_without_keys_averages_all_where_a_number_is_added(tactic: Any) -> None:
    x = Shape(h=1, s=36, t=100, d=16, dtype=DType.F16 if isinstance(tactic, MmaTactic) else DType.F32)
    kernel, data = at_positions(x, "added"), inputs(x, np.random.default_rng(0), {})
    position = np.where(np.arange(36) == 7, -1, 50)
    got = run_kernel(rendered(kernel, tactic), kernel, {**data, "in6": position})["out0"]
    mean = data["in2"].astype(np.float64).mean(2)
    np.testing.assert_allclose(got[:, :, 7].astype(np.float64), mean, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("tactic", LIMITED, ids=str)
def test_a_limit_that_all_queries_share_and_none_at_all(tactic: Any) -> None:
    """Positions may admit no key: the results are zeros."""
    x = Shape(h=2, s=20, t=200, d=16, dtype=DType.F16 if isinstance(tactic, MmaTactic) else DType.F32)
    kernel, data = attention_kernel(x), inputs(x, np.random.default_rng(0), {})
    count = Buffer("in6", DType.I32, (1,))
    mask = binary("lt", index(kernel.axes["t"][0].index), cast(load("in6", DType.I32, (0,)), DType.I64))
    buffers = (*kernel.buffers[:-1], count, kernel.buffers[-1])
    kernel = replace(kernel, loads={**kernel.loads, "mask": mask}, buffers=buffers)
    source = rendered(kernel, tactic)
    for visible in (-3, 0, 1, 50, 200, 1 << 30):
        fed = {**data, "in6": np.array([visible], np.int32)}
        got = run_kernel(source, kernel, fed)
        some = {**data, **{n: data[n][:, :, : max(visible, 0)] for n in ("in1", "in2")}}
        want = attend(x, some, {}) if visible > 0 else {"out0": np.zeros((1, 2, 20, 16))}
        assert_close(kernel, got, want, slack=2)


def test_what_is_refused() -> None:
    plain = attention_kernel(Shape())
    open_axes = {**plain.axes, "d": (axis("d", symbol("size", 1)),)}
    integer_mask = {**plain.loads, "mask": const(1, DType.I32)}
    refused = {
        "head size 300": attention_kernel(Shape(d=300)),
        "head size size": replace(plain, axes=open_axes),
        "the mask is i32": replace(plain, loads=integer_mask),
    }
    for reason, kernel in refused.items():
        with pytest.raises(UnsupportedError, match=reason):
            select(kernel, "sm_80")
