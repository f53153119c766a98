"""Attention of few queries, whose keys blocks divide among themselves: against numpy, on the checked simulator."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import cases_attention_split
import numpy as np
import pytest
from cases_attention import Shape, at_positions, attend, attention_kernel, inputs
from harness import assert_compiles, render_with, run_kernel
from kernel_cases import Case, assert_close, matches
from mutate import mutations, survivors

from arcweld.codegen.templates.attention import split
from arcweld.codegen.templates.attention.split import SplitTactic
from arcweld.codegen.templates.select import implementations, select
from arcweld.compiler.dims import evaluate, symbol
from arcweld.compiler.dtypes import DType

F32, F16, BF16 = DType.F32, DType.F16, DType.BF16
CASES = cases_attention_split.cases()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    """Also that the counters are zeros again, in an adverse order of warps too, and to the same bits."""
    tactic = case.tactic or split.tactics(case.kernel, "sm_80")[0]
    source = render_with(case.kernel, tactic)
    first, second = (run_kernel(source, case.kernel, case.inputs, case.env, seed=seed) for seed in (0, 1))
    assert_close(case.kernel, first, cases_attention_split.expected(case), slack=2)
    for name, array in first.items():
        np.testing.assert_array_equal(array.view(np.uint8), second[name].view(np.uint8))


@pytest.mark.parametrize("case", CASES if os.environ.get("ARCWELD_EVERY") else CASES[::9], ids=lambda c: c.id)
def test_a_block_in_one_go_matches_numpy(case: Case) -> None:
    """As models run on the simulator: the first thread of a block does the work of all."""
    tactic = case.tactic or split.tactics(case.kernel, "sm_80")[0]
    source = render_with(case.kernel, tactic)
    got = run_kernel(source, case.kernel, case.inputs, case.env, checked=False)
    assert_close(case.kernel, got, cases_attention_split.expected(case), slack=2)


@pytest.mark.parametrize("dtype", [F16, F32])
def test_blocks_in_one_go_share_many_keys_out(dtype: DType) -> None:
    """From no full step of the simulator's loop to blocks that take more keys than an even share, and to all blocks."""
    x = Shape(h=4, s=2, t=symbol("t", 1, 4096), d=32, groups=2, dtype=dtype, mask="add")
    kernel = attention_kernel(x)
    source = render_with(kernel, SplitTactic(5, 2, 16))
    for keys in (1, 127, 129, 512, 513, 1500, 2560, 4096):
        data = inputs(x, np.random.default_rng(keys), {"t": keys})
        got = run_kernel(source, kernel, data, {"t": keys}, checked=False)
        assert_close(kernel, got, attend(x, data, {"t": keys}), slack=2)


def test_a_block_in_one_go_does_not_run_the_loop_of_its_threads() -> None:
    x = Shape(h=2, s=1, t=150, d=16, groups=2)
    kernel, data = attention_kernel(x), inputs(x, np.random.default_rng(0), {})
    source, want = render_with(kernel, SplitTactic(3, 2, 16)), attend(x, data, {})
    text = source.source.replace("best = fmaxf(best, dot);", "best = 1e4f;")
    assert text != source.source
    assert_close(kernel, run_kernel(source, kernel, data, text=text, checked=False), want, slack=2)
    assert not matches(kernel, run_kernel(source, kernel, data, text=text), want, slack=2)


@pytest.mark.parametrize("dtype", [F16, BF16, F32])
@pytest.mark.parametrize("group", [1, 4, 8])
@pytest.mark.parametrize("size", [64, 128])
def test_a_decode_step_compiles_without_spills(dtype: DType, group: int, size: int) -> None:
    kernel = attention_kernel(Shape(h=8 * group, s=1, t=32768, d=size, groups=group, dtype=dtype, mask="key"))
    source = select(kernel, "sm_90a")
    assert implementations(kernel, "sm_90a")[0].name == "split"
    assert source.arch == "sm_80"
    assert source.grid[0] == 136  # 17 splits of the keys of each of the 8 heads
    assert_compiles(source)


@pytest.mark.parametrize("dtype", [F16, F32])
@pytest.mark.parametrize(
    ("group", "positions", "size"), [(4, 2, 64), (4, 4, 64), (8, 2, 128), (4, 4, 128), (8, 1, 256)]
)
def test_several_positions_compile_without_spills(dtype: DType, group: int, positions: int, size: int) -> None:
    kernel = attention_kernel(
        Shape(h=2 * group, s=positions, t=4096, d=size, groups=group, dtype=dtype, mask="bool")
    )  # fmt: skip
    assert split.supports(kernel, "sm_80") is None
    assert_compiles(select(kernel, "sm_80"))


def test_splits_give_a_block_to_each_multiprocessor_as_far_as_keys_last() -> None:
    def splits(t: Any, **parts: Any) -> int:
        return split.tactics(attention_kernel(Shape(s=1, t=t, dtype=F16, **parts)), "sm_80")[0].splits

    assert [splits(t, h=8) for t in (16, 127, 128, 512, 1024, 1088, 32768)] == [1, 1, 2, 8, 16, 17, 17]
    assert splits(symbol("t", 1), h=8) == 17  # by the upper bound, here none
    assert splits(symbol("t", 1, 200), h=8) == 3
    assert splits(32768, h=32, groups=32) == 132  # one head of keys and values for all queries
    assert splits(32768, b=64, h=8) == 1
    # 128 blocks for 132 multiprocessors: parts of results of few keys cost more than four idle ones
    assert [splits(t, b=b, h=32, groups=4) for b, t in ((15, 512), (16, 512), (16, 32768))] == [2, 1, 2]


def test_the_keys_of_each_block_are_a_fair_share_of_those_that_exist() -> None:
    """17 splits for 4096 keys at most: of 100 keys, blocks take 16 each at least, and ten of them count only."""
    x = Shape(h=1, s=1, t=symbol("t", 1, 4096), d=64, dtype=F16)
    kernel, data = attention_kernel(x), inputs(x, np.random.default_rng(0), {"t": 100})
    source = render_with(kernel, SplitTactic(17, 1, 16))
    assert source.grid[0] == 17
    assert "- 1) / KEYS * KEYS" in source.source
    assert_close(kernel, run_kernel(source, kernel, data, {"t": 100}), attend(x, data, {"t": 100}), slack=2)


def test_without_keys_the_result_is_zeros() -> None:
    x = Shape(h=2, s=1, t=symbol("t", 0, 900), d=32, dtype=F16)
    kernel = attention_kernel(x)
    source = select(kernel, "sm_80")
    assert evaluate(source.grid[0], {"t": 0}) > 2
    got = run_kernel(source, kernel, inputs(x, np.random.default_rng(0), {"t": 0}), {"t": 0})
    assert not got["out0"].any()


@pytest.mark.parametrize("dtype", [F16, F32])
@pytest.mark.parametrize("form", ["until", "before", "window", "added"])
@pytest.mark.parametrize("last", [0, 30, 149, 299])
def test_keys_after_the_position_are_not_read(form: str, last: int, dtype: DType) -> None:
    """They are NaN, which would spread through any product."""
    x = Shape(h=4, s=2, t=300, d=32, groups=2, dtype=dtype)
    kernel, data = at_positions(x, form), inputs(x, np.random.default_rng(0), {})
    position = np.array([max(last - 1, 0), last])
    seen = np.arange(300) <= position[:, None]
    if form == "window":
        seen &= position[:, None] - np.arange(300) < 40
    masked = replace(x, mask="add")
    added = np.where(seen, 0.0, -np.inf)[None, None]
    want = attend(masked, {**data, "in3": added}, {})
    for name in ("in1", "in2"):
        data[name][:, :, last + 1 :] = np.nan
    source = select(kernel, "sm_80")
    assert_close(kernel, run_kernel(source, kernel, {**data, "in6": position}), want, slack=2)


def test_a_query_without_keys_averages_all_where_a_number_is_added() -> None:
    x = Shape(h=2, s=2, t=100, d=16)
    kernel, data = at_positions(x, "added"), inputs(x, np.random.default_rng(0), {})
    got = run_kernel(select(kernel, "sm_80"), kernel, {**data, "in6": np.array([-1, 50])})["out0"]
    np.testing.assert_allclose(got[:, :, 0], data["in2"].mean(2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [F16, F32])
def test_nan_spreads_to_its_query_only(dtype: DType) -> None:
    x = Shape(h=4, s=2, t=200, d=32, groups=4, dtype=dtype)
    kernel, data = attention_kernel(x), inputs(x, np.random.default_rng(0), {})
    data["in0"][0, 2, 1, 5] = np.nan
    got = np.isnan(run_kernel(select(kernel, "sm_80"), kernel, data)["out0"])
    assert got[0, 2, 1].all()
    got[0, 2, 1] = False
    assert not got.any()


@pytest.mark.parametrize("dtype", [F16, F32])
@pytest.mark.parametrize("tactic", [SplitTactic(3, 2, 16), SplitTactic(1, 4, 16)], ids=str)
def test_every_barrier_fence_and_count_is_needed(dtype: DType, tactic: SplitTactic) -> None:
    x = Shape(h=2, s=3, t=150, d=16, groups=2, dtype=dtype)
    kernel, data = attention_kernel(x), inputs(x, np.random.default_rng(0), {})
    source, want = render_with(kernel, tactic), attend(x, data, {})

    def passes(text: str) -> bool:
        try:
            return matches(kernel, run_kernel(source, kernel, data, text=text), want, slack=2)
        except AssertionError:  # counters that are not zeros
            return False

    header = "last_block.cuh" if tactic.splits > 1 else None
    found = survivors(source.source, passes, header)
    assert passes(source.source)
    assert len(mutations(source.source)) >= 2
    assert [m.deleted for m in found] == []


def test_what_is_left_to_other_implementations() -> None:
    reasons = {
        "more than 16 queries": Shape(h=8, s=4, t=100, groups=8, dtype=F16),
        "9 queries of 256": Shape(s=9, t=100, d=256, dtype=F16),
        "16 queries of 256": Shape(s=16, t=100, d=256),
        "operands are f64": Shape(s=1, t=100, dtype=DType.F64),
    }
    for reason, x in reasons.items():
        assert reason in (split.supports(attention_kernel(x), "sm_80") or "")
    few_keys = attention_kernel(Shape(s=1, t=64, dtype=F16))
    assert implementations(few_keys, "sm_80")[-1].name == "split"
    symbolic = attention_kernel(replace(Shape(t=100, dtype=F16), s=symbol("s", 1, 8)))
    assert "more than 16" in (split.supports(symbolic, "sm_80") or "")
