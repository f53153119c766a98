"""Products of rows in groups against numpy, on the checked simulator, and through NVRTC."""

from __future__ import annotations

import os

import cases_grouped
import numpy as np
import pytest
from harness import assert_compiles, render_with, run_kernel, tactics
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case, assert_close, random
from mutate import survivors

from arcweld.codegen.kernel import Kernel
from arcweld.codegen.templates.contract.tactic import ContractTactic
from arcweld.codegen.templates.select import implementations
from arcweld.compiler.dtypes import DType
from arcweld.driver.object_code import SPILL_BYTES

ARCHS = ("sm_80", "sm_90a")
CASES = cases_grouped.cases()
TWO_ROW_FRAGMENTS = {
    name: ContractTactic("mma", 32, 32, 16, 32, 16, stages=3, split=split)
    for name, split in (("f16_uneven", 1), ("f16_split", 4))
}
EVERY = "ARCWELD_EVERY" in os.environ  # all tactics take two minutes
SLACK = 20.0  # sums of up to a few hundred products: a few roundings of the largest partial sum


def slack(kernel: Kernel) -> float:
    return SLACK if kernel.buffer("out0").dtype in (DType.F32, DType.F64) else 1.0


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    source = render_with(case.kernel, case.tactic or tactics(case.kernel)[0])
    for seed in (0, 1):
        got = run_kernel(source, case.kernel, case.inputs, case.env, seed=seed)
        assert_close(case.kernel, got, cases_grouped.expected(case), slack(case.kernel))


@pytest.mark.parametrize("i", range(len(CASES)), ids=lambda i: CASES[i].id)
def test_case_compiles(i: int) -> None:
    case = CASES[i]
    assert_compiles(render_with(case.kernel, case.tactic or tactics(case.kernel)[0]), (ARCHS[i % 2],))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [DType.F32, DType.F16], ids=lambda d: d.value)
def test_every_tactic_compiles_without_spills(dtype: DType) -> None:
    kernel = cases_grouped.grouped_kernel(2048, 8, 1024, 512, dtype, order="gnk")
    for implementation in implementations(kernel, "sm_90a"):
        found = implementation.tactics(kernel, "sm_90a")
        for i, tactic in enumerate(found if EVERY else found[:3]):
            source = implementation.render(kernel, tactic, "sm_90a")
            # as of all wgmma tactics: the default has none
            assert_compiles(source, ARCHS, spills=SPILL_BYTES if i and source.arch == "sm_90a" else 0)


@settings(max_examples=12)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=5), none=st.integers(0, 20), n=st.integers(1, 40),
    k=st.integers(1, 40), dtype=st.sampled_from([DType.F32, DType.F16, DType.BF16]),
    order=st.sampled_from(["gkn", "gnk", "ngk"]), seed=st.integers(0, 9),
)  # fmt: skip
def test_any_groups(counts: list[int], none: int, n: int, k: int, dtype: DType, order: str, seed: int) -> None:
    rows = sum(counts) + none
    kernel = cases_grouped.grouped_kernel(rows, len(counts), n, k, dtype, order)
    rng = np.random.default_rng(seed)
    inputs = {b.name: random(rng, b.shape, dtype, 0.5) for b in kernel.buffers[:2]}  # type: ignore[arg-type]
    inputs["in2"] = np.cumsum(counts).astype(np.int32)
    if rows:
        got = run_kernel(render_with(kernel, tactics(kernel)[0]), kernel, inputs, seed=seed)
        assert_close(kernel, got, cases_grouped.grouped(inputs, order), slack(kernel))


@pytest.mark.parametrize("name", ["f32_split", "f16_uneven", "f16_split", "wgmma_several_tiles_each"])
def test_every_barrier_and_wait_is_needed(name: str) -> None:
    case = next(c for c in CASES if c.id == name)
    tactic = TWO_ROW_FRAGMENTS.get(name, case.tactic)
    source = render_with(case.kernel, tactic)

    def passes(text: str) -> bool:
        got = run_kernel(source, case.kernel, case.inputs, case.env, text=text)
        return np.allclose(got["out0"].astype(float), cases_grouped.expected(case)["out0"], 1e-2, 1e-2)

    # the fence orders mbar_init before TMA: the simulator has no proxies
    allowed = {"fence_proxy_async();"} if "wgmma" in name else set()
    assert {m.deleted for m in survivors(source.source, passes, "contract.cuh")} <= allowed


def test_nan_stays_in_its_group() -> None:
    case = next(c for c in CASES if c.id == "f16_uneven")
    inputs = {**case.inputs, "in0": case.inputs["in0"].copy(), "in2": np.array([3, 40, 41, 50], np.int32)}
    inputs["in0"][[5, 60]] = np.nan
    got = run_kernel(render_with(case.kernel, case.tactic), case.kernel, inputs)["out0"]
    assert np.isnan(got[5]).all()
    assert not np.isnan(np.delete(got, 5, axis=0)).any()
    assert not got[50:].any()
