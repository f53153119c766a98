"""Many rows by stored weights on wgmma: against numpy on the checked simulator, and through NVRTC for sm_90a."""

from __future__ import annotations

import re

import pytest
from cases_contract import matmul_kernel
from cases_stored import EVERY, Weights, name_of, stored_kernel
from cases_wgmma_stored import cases, expected
from harness import assert_compiles, in_turn, run_kernel
from kernel_cases import Case, assert_close, matches
from mutate import survivors

from arcweld.codegen.kernel import KernelSource
from arcweld.codegen.nvrtc.compiler import compile_ptx
from arcweld.codegen.templates.card import SM90_SHARED_LIMIT
from arcweld.codegen.templates.contract.problem import problem_of
from arcweld.codegen.templates.contract.wgmma_stored import (
    ARCH,
    WgmmaStoredTactic,
    render_problem,
    supports,
    tactics,
)  # fmt: skip
from arcweld.codegen.templates.select import implementations
from arcweld.compiler.dims import Dim, symbol
from arcweld.compiler.dtypes import PLANES, DType

F16, BF16, F32 = DType.F16, DType.BF16, DType.F32
CASES = {c.id: c for c in cases()}


def rendered(case: Case) -> KernelSource:
    problem = problem_of(case.kernel)
    return render_problem(problem, case.tactic or tactics(problem, ARCH)[0], ARCH)


@pytest.mark.parametrize("case", CASES.values(), ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    assert supports(problem_of(case.kernel), ARCH) is None
    for seed in (0, 1):
        got = run_kernel(rendered(case), case.kernel, case.inputs, case.env, seed=seed)
        assert_close(case.kernel, got, expected(case))


@pytest.mark.parametrize("name", [
    "ragged_1184", "u8_32", "open_200", "i4_0", *(("u1_above_open", "u2_above_32") if EVERY else ()),
])  # fmt: skip
def test_every_tactic_agrees(name: str) -> None:
    case = CASES[name]
    for tactic in tactics(problem_of(case.kernel), ARCH):
        source = render_problem(problem_of(case.kernel), tactic, ARCH)
        got = run_kernel(source, case.kernel, case.inputs, case.env, seed=2)
        assert matches(case.kernel, got, expected(case)), tactic


@pytest.mark.parametrize("name", ["long", "two_warpgroups"])
def test_every_wait_is_needed(name: str) -> None:
    case = CASES[name]
    source = rendered(case)

    def passes(text: str) -> bool:
        return matches(case.kernel, run_kernel(source, case.kernel, case.inputs, case.env, text=text), expected(case))

    assert passes(source.source)
    unnoticed = [m.deleted for m in survivors(source.source, passes, "ring.cuh")]
    assert unnoticed == ["fence_proxy_async();"]  # it orders mbar_init before TMA: the simulator has no proxies


@pytest.mark.parametrize("case", [*CASES.values()][::3], ids=lambda c: c.id)
def test_case_compiles(case: Case) -> None:
    assert_compiles(rendered(case))


WEIGHTS = (
    Weights(DType.U4, 32, "read", F16), Weights(DType.I4, 128), Weights(DType.U8, 64, "read", F16), Weights(DType.I8),
    Weights(DType.U2, 32, "read"), Weights(DType.F8E4M3FN), Weights(DType.F4E2M1, 32),
    Weights(DType.U4, 16, "literal", DType.I8, DType.U2, 256),
    *((Weights(DType.U4, 32, "literal", F16, high) for high in PLANES) if EVERY else ()),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("weights", WEIGHTS, ids=name_of)
@pytest.mark.parametrize("dtype", [F16, BF16], ids=lambda d: d.value)
def test_every_tactic_compiles_without_spills(weights: Weights, dtype: DType) -> None:
    """Each tactic with each of the weights, in one of the types."""
    problem = problem_of(stored_kernel(512, 4096, 4096, dtype, weights))
    for tactic in in_turn(tactics(problem, ARCH), WEIGHTS.index(weights) + (dtype is BF16), 2):
        assert tactic.shared_bytes * tactic.resident <= SM90_SHARED_LIMIT
        assert_compiles(render_problem(problem, tactic, ARCH))


@pytest.mark.parametrize("dtype", [F16, BF16], ids=lambda d: d.value)
def test_nibbles_are_unpacked_by_permutations_and_logic(dtype: DType) -> None:
    """Two numbers take a permutation, one logic operation and one multiply-add; no integer is converted."""
    problem = problem_of(stored_kernel(512, 4096, 4096, dtype, Weights(DType.U4, 32, "none", F16)))
    source = render_problem(problem, tactics(problem, ARCH)[0], ARCH)
    text = compile_ptx(source.source, ARCH, name=source.entry).decode()
    pairs = 2 * 16  # of a lane in 64 of k: before the loop and in it
    assert len(re.findall(r"\blop3\.b32", text)) == len(re.findall(rf"\bfma\.rn\.{dtype.value}x2", text)) == pairs
    assert "wgmma.mma_async.sync.aligned.m64n128k16" in text
    assert not re.search(r"cvt\.rn\.f\d+\.[su]\d+", text)


def test_which_implementation_serves_what() -> None:
    def best(arch: str, rows: Dim, weights: Weights = WEIGHTS[0], k: int = 256) -> str:
        return implementations(stored_kernel(rows, 64, k, F16, weights), arch)[0].name

    assert [best("sm_90a", m) for m in (1, 16, 17, 64, 4096)] == ["gemv_stream"] * 2 + ["wgmma_stored"] * 3
    assert best("sm_90a", symbol("M", 0, 4096)) == "wgmma_stored"
    assert best("sm_80", 64) == best("sm_90", 64) == "mma"
    assert best("sm_90a", 64, Weights(DType.U4, 8)) == "mma"


def test_large_products_use_large_tiles_and_small_ones_spread_over_the_card() -> None:
    def best(rows: int, columns: int, weights: Weights) -> WgmmaStoredTactic:
        return tactics(problem_of(stored_kernel(rows, columns, 4096, F16, weights)), ARCH)[0]

    assert (best(4096, 4096, WEIGHTS[0]).bm, best(4096, 4096, WEIGHTS[0]).bn) == (128, 128)
    assert best(4096, 8192, Weights(DType.I8)).bm == 256  # a column has one scale: there are no sums of groups
    assert best(17, 8192, WEIGHTS[0]).bm == 32
    small = best(64, 4096, WEIGHTS[0])
    assert 64 // small.bm * 4096 // small.bn >= 128


def test_reasons_for_refusal() -> None:
    for kernel, reason in (
        (matmul_kernel(64, 64, 64, F32, "mk,nk"), "precision fp32"),
        (matmul_kernel(64, 64, 64, F16, "mk,nk"), "b: not weights of few bits"),
        (stored_kernel(64, 64, symbol("K", 0, 256, 128), F16, WEIGHTS[0]), "the depth may be 0"),
        (stored_kernel(64, 64, 128, F16, WEIGHTS[0], prologue=True), "a: not a plain load"),
        (stored_kernel(64, 64, 132, F16, WEIGHTS[0]), "b: not weights of few bits"),
    ):
        assert reason in (supports(problem_of(kernel), ARCH) or "")
