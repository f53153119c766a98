"""Products of 8-bit integers against numpy, on the checked simulator, and through NVRTC."""

from __future__ import annotations

import cases_int8
import numpy as np
import pytest
from harness import assert_compiles, render_with, run_kernel, tactics
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case, assert_close
from mutate import survivors

from arcweld.codegen.nvrtc.compiler import compile_ptx
from arcweld.codegen.templates.contract.problem import conv_problem
from arcweld.codegen.templates.contract.tactic import ContractTactic
from arcweld.compiler.dtypes import DType

ARCHS = ("sm_80", "sm_90a")  # in turn: they differ in little but the launch primitives
CASES = cases_int8.cases()
TYPES = st.sampled_from([DType.I8, DType.U8])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    source = render_with(case.kernel, case.tactic or tactics(case.kernel)[0])
    for seed in (0, 1):
        got = run_kernel(source, case.kernel, case.inputs, case.env, seed=seed)
        assert_close(case.kernel, got, cases_int8.expected(case))


@pytest.mark.parametrize("case", CASES[::6], ids=lambda c: c.id)
def test_every_tactic_agrees(case: Case) -> None:
    for tactic in tactics(case.kernel)[1:]:
        got = run_kernel(render_with(case.kernel, tactic), case.kernel, case.inputs, case.env)
        assert_close(case.kernel, got, cases_int8.expected(case))


@pytest.mark.parametrize("i", range(len(CASES)), ids=lambda i: CASES[i].id)
def test_case_compiles(i: int) -> None:
    case = CASES[i]
    assert_compiles(render_with(case.kernel, case.tactic or tactics(case.kernel)[0]), (ARCHS[i % 2],))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["mk,nk", "mk,kn"])
def test_every_tactic_compiles_without_spills(order: str) -> None:
    kernel = cases_int8.matmul_kernel(512, 512, 512, (DType.U8, DType.I8), order)
    for tactic in tactics(kernel):
        source = render_with(kernel, tactic)
        assert source.shared_bytes <= 99 * 1024
        assert_compiles(source, ("sm_80",))


@settings(max_examples=12)
@given(
    size=st.tuples(st.integers(9, 70), st.integers(1, 70), st.integers(1, 140)), types=st.tuples(TYPES, TYPES),
    order=st.sampled_from(["mk,kn", "mk,nk", "km,kn", "km,nk"]), seed=st.integers(0, 9),
)  # fmt: skip
def test_any_shape_and_order(
    size: tuple[int, int, int], types: tuple[DType, DType], order: str, seed: int
) -> None:
    kernel = cases_int8.matmul_kernel(*size, types, order)
    inputs = cases_int8.inputs_of(np.random.default_rng(seed), kernel, {})
    source = render_with(kernel, tactics(kernel)[0])
    assert_close(kernel, run_kernel(source, kernel, inputs, seed=seed), cases_int8.matmul(inputs, order))


@pytest.mark.parametrize("name", ["split", "conv_3x3_filled", "odd_both_transposed", "few_split"])
def test_every_barrier_and_wait_is_needed(name: str) -> None:
    case = next(c for c in CASES if c.id == name)
    # warps of two fragments of rows; stages so that the last one lies where the epilogue's scratch does
    split, stages = 4 if name == "split" else 1, 2 if name.startswith("conv") else 3
    two_row_fragments = ContractTactic("mma", 32, 32, 32, 32, 16, stages, split)
    source = render_with(case.kernel, case.tactic if name == "few_split" else two_row_fragments)
    want = cases_int8.expected(case)

    def passes(text: str) -> bool:
        got = run_kernel(source, case.kernel, case.inputs, case.env, text=text)
        return all(np.array_equal(got[k], want[k]) for k in want)

    header = None if name == "few_split" else "contract.cuh"
    assert [(m.line, m.deleted) for m in survivors(source.source, passes, header)] == []


def test_constant_padding_is_copied_by_predicate_too() -> None:
    def operand(name: str) -> bool:
        return conv_problem(next(c for c in CASES if c.id == name).kernel).a.copyable

    assert operand("conv_3x3")
    assert operand("conv_3x3_filled")
    assert not operand("conv_fill_that_is_read")


@pytest.mark.parametrize("name", ["weight", "mk_kn", "conv_3x3_filled", "conv_first_layer"])
def test_tensor_cores_multiply_integers(name: str) -> None:
    case = next(c for c in CASES if c.id == name)
    source = render_with(case.kernel, tactics(case.kernel)[0])
    ptx = compile_ptx(source.source, "sm_80", name=source.entry).decode()
    assert "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32" in ptx
    assert "f64" not in ptx
