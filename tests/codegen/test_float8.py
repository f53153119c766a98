"""Products of 8-bit floats against numpy, on the checked simulator, and through NVRTC."""

from __future__ import annotations

from dataclasses import replace

import cases_float8
import numpy as np
import pytest
from cases_float8 import E4M3, E5M2, TYPES
from harness import assert_compiles, in_turn, render_with, run_kernel, tactics
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case, assert_close, matches
from mutate import survivors

from arcweld.codegen.nvrtc.compiler import compile_ptx
from arcweld.codegen.templates.contract import few_rows
from arcweld.codegen.templates.contract.problem import problem_of
from arcweld.codegen.templates.contract.tactic import ContractTactic
from arcweld.codegen.templates.select import implementations
from arcweld.compiler.dtypes import DType

ARCHS = ("sm_80", "sm_89", "sm_90a")  # in turn
CASES = cases_float8.cases()
SLACK = 20.0  # sums of up to a few hundred products: a few roundings of the largest partial sum


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    source = render_with(case.kernel, case.tactic or tactics(case.kernel)[0])
    for seed in (0, 1):
        got = run_kernel(source, case.kernel, case.inputs, case.env, seed=seed)
        assert_close(case.kernel, got, cases_float8.expected(case), SLACK)


@pytest.mark.parametrize("case", CASES[::6], ids=lambda c: c.id)
def test_every_tactic_agrees(case: Case) -> None:
    for tactic in tactics(case.kernel)[1:]:
        got = run_kernel(render_with(case.kernel, tactic), case.kernel, case.inputs, case.env)
        assert_close(case.kernel, got, cases_float8.expected(case), SLACK)


@pytest.mark.parametrize("i", range(len(CASES)), ids=lambda i: CASES[i].id)
def test_case_compiles(i: int) -> None:
    case = CASES[i]
    assert_compiles(render_with(case.kernel, case.tactic or tactics(case.kernel)[0]), (ARCHS[i % 3],))


FEW = {"few_1_nk": 3, "few_5_nk": 3, "few_12_nk": 3, "few_open": 3, "few_prologue": 2, "few_batched": 3}


@pytest.mark.parametrize("name", FEW)
def test_products_of_few_rows_on_tensor_cores(name: str) -> None:
    """On Hopper weights come by bulk copies; wgmma is a further implementation for plain operands."""
    case = next(c for c in CASES if c.id == name)
    found = [i for i in implementations(case.kernel, "sm_90a") if i.name in ("gemv_stream", "gemv_mma", "wgmma")]
    assert [i.name for i in found] == ["gemv_stream", "gemv_mma", "wgmma"][: FEW[name]]
    for i in found:
        for n, tactic in enumerate(i.tactics(case.kernel, "sm_90a")[:4]):
            source = i.render(case.kernel, tactic, "sm_90a")
            got = run_kernel(source, case.kernel, case.inputs, case.env, seed=n)
            assert_close(case.kernel, got, cases_float8.expected(case), SLACK)
            if n == 0:
                assert_compiles(source, ("sm_90a",))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("order", ["mk,nk", "mk,kn"])
def test_every_tactic_compiles_without_spills(order: str, arch: str) -> None:
    """Each tactic for each architecture and with each order, not for all pairs of these."""
    kernel = cases_float8.matmul_kernel(512, 512, 512, order=order)
    for tactic in in_turn(tactics(kernel), ARCHS.index(arch) + (order == "mk,kn"), 2):
        source = render_with(kernel, tactic)
        assert source.shared_bytes <= 99 * 1024
        assert_compiles(source, (arch,))


@settings(max_examples=12)
@given(
    size=st.tuples(st.integers(9, 70), st.integers(1, 70), st.integers(1, 140)), types=st.sampled_from(TYPES),
    order=st.sampled_from(["mk,kn", "mk,nk", "km,kn", "km,nk"]), seed=st.integers(0, 9),
)  # fmt: skip
def test_any_shape_and_order(
    size: tuple[int, int, int], types: tuple[DType, DType], order: str, seed: int
) -> None:
    kernel = cases_float8.matmul_kernel(*size, types, order)
    inputs = cases_float8.inputs_of(np.random.default_rng(seed), kernel, {})
    source = render_with(kernel, tactics(kernel)[0])
    assert_close(kernel, run_kernel(source, kernel, inputs, seed=seed), cases_float8.matmul(inputs, order), SLACK)


@pytest.mark.parametrize("name", ["split", "conv_3x3", "odd_both_transposed"])
def test_every_barrier_and_wait_is_needed(name: str) -> None:
    case = next(c for c in CASES if c.id == name)
    # warps of two fragments of rows; stages so that the last one lies where the epilogue's scratch does
    split, stages = 4 if name == "split" else 1, 2 if name.startswith("conv") else 3
    source = render_with(case.kernel, ContractTactic("mma", 32, 32, 32, 32, 16, stages, split))
    want = cases_float8.expected(case)

    def passes(text: str) -> bool:
        return matches(case.kernel, run_kernel(source, case.kernel, case.inputs, case.env, text=text), want, SLACK)

    assert [(m.line, m.deleted) for m in survivors(source.source, passes, "contract.cuh")] == []


@pytest.mark.parametrize("few", [few_rows.STREAM, few_rows.MMA], ids=lambda f: f.ARCH)
def test_every_wait_of_few_rows_is_needed(few: few_rows.FewRows) -> None:
    case = next(c for c in CASES if c.id == "few_long")
    problem = problem_of(case.kernel)
    # so small that stages are filled again
    small = {"split": 8, "depth": 32 if few.streaming else 128, "stages": 2 if few.streaming else 0}
    source = few.render_problem(problem, replace(few.tactics(problem, few.ARCH)[0], **small), few.ARCH)
    want = cases_float8.expected(case)

    def passes(text: str) -> bool:
        return matches(case.kernel, run_kernel(source, case.kernel, case.inputs, case.env, text=text), want, SLACK)

    assert passes(source.source)
    # the fence orders mbar_init before the copies: the simulator has no proxies
    assert [m.deleted for m in survivors(source.source, passes)] == (["fence_proxy_async();"] if few.streaming else [])


@pytest.mark.parametrize("rows", [40, 5])
def test_the_largest_numbers_and_nan(rows: int) -> None:
    kernel = cases_float8.matmul_kernel(rows, 40, 48, (E4M3, E5M2))
    x = cases_float8.inputs_of(np.random.default_rng(2), kernel, {})
    x["in0"][4], x["in1"][7], x["in0"][3, 6] = 448, -57344, np.nan
    with np.errstate(over="ignore"):
        want = cases_float8.matmul(x)
    got = run_kernel(render_with(kernel, tactics(kernel)[0]), kernel, x)
    assert_close(kernel, got, want, SLACK)
    assert np.isnan(got["out0"][3]).all()
    assert np.isfinite(np.delete(got["out0"], 3, axis=0)).all()


def test_aligned_operands_are_copied_asynchronously() -> None:
    assert problem_of(cases_float8.matmul_kernel(64, 64, 64)).a.copyable
    assert not problem_of(cases_float8.matmul_kernel(64, 64, 72)).a.copyable


@pytest.mark.parametrize("types", TYPES)
def test_tensor_cores_multiply_8_bit_floats_where_they_can(types: tuple[DType, DType]) -> None:
    kernel = cases_float8.matmul_kernel(64, 64, 64, types)
    source = render_with(kernel, tactics(kernel)[0])
    names = ".".join({E4M3: "e4m3", E5M2: "e5m2"}[t] for t in types)
    for arch, wanted in (("sm_80", "m16n8k16.row.col.f32.f16.f16.f32"), ("sm_89", f"m16n8k32.row.col.f32.{names}.f32")):
        ptx = compile_ptx(source.source, arch, name=source.entry).decode()
        assert f"mma.sync.aligned.{wanted}" in ptx
        assert "f64" not in ptx
