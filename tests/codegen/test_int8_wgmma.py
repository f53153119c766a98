"""Products of 8-bit integers on wgmma against numpy on the checked simulator, and through NVRTC for sm_90a."""

from __future__ import annotations

import cases_int8
import numpy as np
import pytest
from cases_conv import Shape
from harness import assert_compiles, render_with, run_kernel
from kernel_cases import Case, assert_close
from mutate import survivors

from arcweld.codegen.kernel import KernelSource
from arcweld.codegen.nvrtc.compiler import compile_ptx
from arcweld.codegen.templates.contract import wgmma
from arcweld.codegen.templates.contract.problem import conv_problem, problem_of
from arcweld.codegen.templates.conv import wgmma as conv_wgmma
from arcweld.codegen.templates.select import implementations
from arcweld.compiler.dims import symbol
from arcweld.compiler.dtypes import DType
from arcweld.driver.object_code import SPILL_BYTES

ARCH = "sm_90a"
CASES = cases_int8.wgmma_cases()
U8, I8 = DType.U8, DType.I8


def rendered(case: Case) -> KernelSource:
    name = "conv_wgmma" if case.id.startswith("conv_") else "wgmma"
    (found,) = (i for i in implementations(case.kernel, ARCH) if i.name == name)
    return found.render(case.kernel, case.tactic or found.tactics(case.kernel, ARCH)[0], ARCH)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    for seed in (0, 1):
        got = run_kernel(rendered(case), case.kernel, case.inputs, case.env, seed=seed)
        assert_close(case.kernel, got, cases_int8.wgmma_expected(case))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_compiles(case: Case) -> None:
    assert_compiles(rendered(case))


def test_every_tactic_agrees() -> None:
    case = next(c for c in CASES if c.id == "u8_i8")
    for tactic in wgmma.tactics(problem_of(case.kernel), ARCH):
        got = run_kernel(render_with(case.kernel, tactic, ARCH), case.kernel, case.inputs)
        assert_close(case.kernel, got, cases_int8.wgmma_expected(case))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [128, 4096])
def test_every_tactic_compiles_with_hardly_a_spill(rows: int) -> None:
    kernel = cases_int8.matmul_kernel(rows, 1024, 1024, (U8, I8), "mk,nk", weight=True)
    for i, tactic in enumerate(wgmma.tactics(problem_of(kernel), ARCH)):
        assert tactic.shared_bytes <= 227 * 1024
        assert_compiles(render_with(kernel, tactic, ARCH), spills=SPILL_BYTES if i else 0)


@pytest.mark.parametrize("name", ["several_tiles_each", "cluster_of_two", "conv_several"])
def test_every_wait_is_needed(name: str) -> None:
    case = next(c for c in CASES if c.id == name)
    source, want = rendered(case), cases_int8.wgmma_expected(case)

    def passes(text: str) -> bool:
        got = run_kernel(source, case.kernel, case.inputs, case.env, text=text)
        return all(np.array_equal(got[k], want[k]) for k in want)

    unnoticed = {m.deleted for m in survivors(source.source, passes, "contract.cuh")}
    # the fence orders mbar_init before TMA: the simulator has no proxies; lanes reunite before a cluster barrier
    assert unnoticed <= {"fence_proxy_async();"} | ({"__syncwarp();"} if name == "cluster_of_two" else set())


@pytest.mark.parametrize("name", ["i8_u8", "conv_3x3"])
def test_warpgroups_multiply_integers(name: str) -> None:
    source = rendered(next(c for c in CASES if c.id == name))
    ptx = compile_ptx(source.source, ARCH, name=source.entry).decode()
    assert "k32.s32." + ("s8.u8" if name == "i8_u8" else "u8.s8") in ptx
    assert ".f64" not in ptx


def test_reasons_for_refusal() -> None:
    for kernel, reason in (
        (cases_int8.matmul_kernel(64, 64, 64, (U8, I8)), "b: not contiguous along k"),
        (cases_int8.matmul_kernel(64, 64, 72, (U8, I8), "mk,nk"), "a: rows do not start on 16 bytes"),
        (cases_int8.matmul_kernel(64, 64, symbol("K", 0, 64, 16), (U8, I8), "mk,nk"), "the depth may be 0"),
    ):
        assert reason in (wgmma.supports(problem_of(kernel), ARCH) or "")
    filled = cases_int8.conv_kernel(Shape(1, (9, 8), 32, 24, (3, 3), pad=1), (U8, I8), fill=131)
    assert "not a plain load" in (conv_wgmma.supports(filled, ARCH) or "")
    narrow = cases_int8.conv_kernel(Shape(1, (9, 8), 24, 24, (3, 3), pad=1), (U8, I8))
    assert "24 input channels" in (conv_wgmma.supports(narrow, ARCH) or "")
    assert wgmma.supports(conv_problem(narrow), ARCH) is not None
