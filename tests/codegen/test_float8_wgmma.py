"""Products of 8-bit floats on wgmma against numpy on the checked simulator, and through NVRTC for sm_90a."""

from __future__ import annotations

import cases_float8
import numpy as np
import pytest
from cases_float8 import TYPES
from harness import assert_compiles, render_with, run_kernel
from kernel_cases import Case, assert_close, matches
from mutate import survivors

from arcweld.codegen.kernel import KernelSource
from arcweld.codegen.nvrtc.compiler import compile_ptx
from arcweld.codegen.templates.contract import wgmma
from arcweld.codegen.templates.contract.problem import conv_problem, problem_of
from arcweld.codegen.templates.select import implementations
from arcweld.compiler.dims import symbol
from arcweld.driver.object_code import SPILL_BYTES

ARCH = "sm_90a"
CASES = cases_float8.wgmma_cases()
SLACK = 20.0  # as in test_float8


def rendered(case: Case) -> KernelSource:
    name = "conv_wgmma" if case.id.startswith("conv_") else "wgmma"
    (found,) = (i for i in implementations(case.kernel, ARCH) if i.name == name)
    return found.render(case.kernel, case.tactic or found.tactics(case.kernel, ARCH)[0], ARCH)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    for seed in (0, 1):
        got = run_kernel(rendered(case), case.kernel, case.inputs, case.env, seed=seed)
        assert_close(case.kernel, got, cases_float8.wgmma_expected(case), SLACK)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_compiles(case: Case) -> None:
    assert_compiles(rendered(case))


def test_every_tactic_agrees() -> None:
    case = next(c for c in CASES if c.id == "f8e4m3fn_f8e5m2")
    for tactic in wgmma.tactics(problem_of(case.kernel), ARCH):
        got = run_kernel(render_with(case.kernel, tactic, ARCH), case.kernel, case.inputs)
        assert_close(case.kernel, got, cases_float8.wgmma_expected(case), SLACK)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [128, 4096])
@pytest.mark.parametrize("columns", [96, 1024])
def test_every_tactic_compiles_with_hardly_a_spill(rows: int, columns: int) -> None:
    kernel = cases_float8.matmul_kernel(rows, columns, 1024, weight=True)
    for i, tactic in enumerate(wgmma.tactics(problem_of(kernel), ARCH)):
        assert tactic.shared_bytes <= 227 * 1024
        assert_compiles(render_with(kernel, tactic, ARCH), spills=SPILL_BYTES if i else 0)


@pytest.mark.parametrize("name", ["several_tiles_each", "cluster_of_two", "conv_several"])
def test_every_wait_is_needed(name: str) -> None:
    case = next(c for c in CASES if c.id == name)
    source, want = rendered(case), cases_float8.wgmma_expected(case)

    def passes(text: str) -> bool:
        return matches(case.kernel, run_kernel(source, case.kernel, case.inputs, case.env, text=text), want, SLACK)

    unnoticed = {m.deleted for m in survivors(source.source, passes, "contract.cuh")}
    # the fence orders mbar_init before TMA: the simulator has no proxies; lanes reunite before a cluster barrier
    assert unnoticed <= {"fence_proxy_async();"} | ({"__syncwarp();"} if name == "cluster_of_two" else set())


@pytest.mark.parametrize("types", TYPES)
def test_warpgroups_multiply_8_bit_floats(types: tuple[object, object]) -> None:
    case = next(c for c in CASES if c.kernel.attrs["precision"] == cases_float8.precision(types))  # type: ignore[arg-type]
    source = rendered(case)
    names = {"f8e4m3fn": "e4m3", "f8e5m2": "e5m2"}
    ptx = compile_ptx(source.source, ARCH, name=source.entry).decode()
    assert "k32.f32." + ".".join(names[t] for t in case.kernel.attrs["precision"].split(" x ")) in ptx
    assert ".f64" not in ptx


def test_reasons_for_refusal() -> None:
    for kernel, reason in (
        (cases_float8.matmul_kernel(64, 64, 64, order="mk,kn"), "b: not contiguous along k"),
        (cases_float8.matmul_kernel(64, 64, 72), "a: rows do not start on 16 bytes"),
        (cases_float8.matmul_kernel(64, 64, symbol("K", 0, 64, 16)), "the depth may be 0"),
    ):
        assert reason in (wgmma.supports(problem_of(kernel), ARCH) or "")
    odd = next(c for c in cases_float8.cases() if c.id == "conv_odd_channels")
    assert wgmma.supports(conv_problem(odd.kernel), ARCH) is not None


def test_sums_of_a_line_leave_registers_for_the_rest() -> None:
    problem = problem_of(cases_float8.matmul_kernel(4096, 4096, 4096))
    for tactic in wgmma.tactics(problem, ARCH):
        assert np.less_equal(tactic.bn + wgmma.LEAST_REGISTERS, tactic.spare_registers + tactic.bn // 2)
