"""The contract template on wgmma against numpy on the checked simulator, and through NVRTC for sm_90a."""

from __future__ import annotations

import cases_contract_wgmma
import numpy as np
import pytest
from cases_contract import attention_scores, matmul_kernel, padded
from harness import assert_compiles, run_kernel
from kernel_cases import Case, assert_close
from mutate import survivors, with_header

from arcweld.codegen.kernel import KernelSource
from arcweld.codegen.templates.contract.problem import problem_of
from arcweld.codegen.templates.contract.wgmma import render_problem, supports, tactics
from arcweld.codegen.templates.select import select
from arcweld.compiler.dims import symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import DeviceError
from arcweld.driver.object_code import SPILL_BYTES

CASES = cases_contract_wgmma.cases()
ARCH = "sm_90a"


def rendered(case: Case) -> KernelSource:
    problem = problem_of(case.kernel)
    return render_problem(problem, case.tactic or tactics(problem, ARCH)[0], ARCH)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    assert supports(problem_of(case.kernel), ARCH) is None
    for seed in (0, 1, 2):
        got = run_kernel(rendered(case), case.kernel, case.inputs, case.env, seed=seed)
        assert_close(case.kernel, got, cases_contract_wgmma.expected(case))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_compiles(case: Case) -> None:
    assert_compiles(rendered(case))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["mk,nk", "mk,kn"])
@pytest.mark.parametrize("rows", [128, 4096])
def test_every_tactic_compiles_with_hardly_a_spill(order: str, rows: int) -> None:
    problem = problem_of(matmul_kernel(rows, 1024, 1024, DType.F16, order, weight=True))
    for i, tactic in enumerate(tactics(problem, ARCH)):
        assert tactic.shared_bytes <= 227 * 1024
        assert_compiles(render_problem(problem, tactic, ARCH), spills=SPILL_BYTES if i else 0)


@pytest.mark.slow
def test_columns_that_are_stored_one_by_one_do_not_spill() -> None:
    """As a language model's vocabulary of odd size."""
    problem = problem_of(matmul_kernel(512, 50257, 768, DType.F16, "mk,nk", weight=True))
    assert problem.store_width() == 1
    for tactic in tactics(problem, ARCH)[:3]:
        assert_compiles(render_problem(problem, tactic, ARCH))


def test_every_tactic_agrees() -> None:
    case = next(c for c in CASES if c.id == "f16_nk")
    for tactic in tactics(problem_of(case.kernel), ARCH):
        got = run_kernel(render_problem(problem_of(case.kernel), tactic, ARCH), case.kernel, case.inputs)
        assert_close(case.kernel, got, cases_contract_wgmma.expected(case))


@pytest.mark.parametrize("name", ["several_tiles_each_kn", "cluster_of_two"])
def test_every_wait_is_needed(name: str) -> None:
    case = next(c for c in CASES if c.id == name)
    source = rendered(case)

    def passes(text: str) -> bool:
        got = run_kernel(source, case.kernel, case.inputs, case.env, text=text)
        return np.allclose(got["out0"].astype(float), cases_contract_wgmma.expected(case)["out0"], 1e-2, 1e-2)

    unnoticed = {m.deleted for m in survivors(source.source, passes, "contract.cuh")}
    # the fence orders mbar_init before TMA: the simulator has no proxies; lanes reunite before a cluster barrier
    assert unnoticed <= {"fence_proxy_async();"} | ({"__syncwarp();"} if name == "cluster_of_two" else set())


def test_every_cluster_barrier_is_needed() -> None:
    case = next(c for c in CASES if c.id == "cluster_of_two")
    source = rendered(case)
    whole, _ = with_header(source.source, "contract.cuh")
    unnoticed = []
    for call in ("cluster_arrive();", "cluster_wait();"):
        pieces = whole.split(call)
        for i in range(1, len(pieces)):
            text = call.join(pieces[:i]) + ";" + call.join(pieces[i:])
            try:
                run_kernel(source, case.kernel, case.inputs, case.env, text=text)
                unnoticed.append(f"{call} {i} of {len(pieces) - 1}")
            except DeviceError:
                pass
    assert unnoticed == ["cluster_wait(); 4 of 4"]  # the loading warp's last one: it only keeps the warp alive


def test_small_batches_spread_over_the_card_and_large_ones_use_large_tiles() -> None:
    small = tactics(problem_of(matmul_kernel(128, 2304, 768, DType.F16, "mk,nk")), ARCH)[0]
    large = tactics(problem_of(matmul_kernel(4096, 4096, 4096, DType.F16, "mk,nk")), ARCH)[0]
    assert small.bm == 64
    assert large.bm * large.bn >= 128 * 192
    assert large.blocks == 132


def test_a_product_of_depth_0_is_left_to_another_implementation() -> None:
    kernel = matmul_kernel(20, 40, symbol("K", 0, 64, 8), DType.F16, "mk,nk")
    source = select(kernel, ARCH)
    bias = np.arange(40, dtype=np.float16)
    for depth in (0, 16):
        inputs = {"in0": np.ones((20, depth), np.float16), "in1": np.ones((40, depth), np.float16), "in2": bias}
        got = run_kernel(source, kernel, inputs, {"K": depth})
        np.testing.assert_array_equal(got["out0"], np.tile(bias + depth, (20, 1)))


def test_reasons_for_refusal() -> None:
    rng = np.random.default_rng(0)
    for kernel, reason in (
        (matmul_kernel(64, 64, 64, DType.F32), "precision fp32"),
        (matmul_kernel(64, 64, symbol("K", 0, 64, 8), DType.F16, "mk,nk"), "the depth may be 0"),
        (matmul_kernel(64, 64, 64, DType.F16, "km,nk"), "a: not contiguous along k"),
        (matmul_kernel(64, 64, 63, DType.F16), "a: rows do not start on 16 bytes"),
        (matmul_kernel(64, 64, 64, DType.F16, prologue=True), "a: not a plain load"),
        (attention_scores(rng, DType.F16)[0], "a: not a plain load"),
        (padded(rng, DType.F16)[0], "a: not a plain load"),
    ):
        assert reason in (supports(problem_of(kernel), ARCH) or "")
