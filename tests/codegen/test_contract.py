"""The contract template against numpy, on the checked simulator, and through NVRTC."""

from __future__ import annotations

import cases_contract
import numpy as np
import pytest
from harness import assert_compiles, render_with, run_kernel, tactics
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case, assert_close, random
from mutate import survivors

from arcweld.codegen.templates.contract.problem import problem_of
from arcweld.codegen.templates.contract.tactic import ContractTactic
from arcweld.compiler.dtypes import DType
from arcweld.compiler.text import parse_graph
from arcweld.driver.api import compile_graph

ARCHS = ("sm_80", "sm_90a")  # in turn: they differ in little but the launch primitives
CASES = cases_contract.cases()
TWO_ROW_FRAGMENTS = ContractTactic("mma", 32, 32, 16, 32, 16, stages=3)
SLACK = 20.0  # sums of up to a few hundred products: a few roundings of the largest partial sum


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    tactic = case.tactic or tactics(case.kernel)[0]
    source = render_with(case.kernel, tactic)
    for seed in (0, 1, 2):
        got = run_kernel(source, case.kernel, case.inputs, case.env, seed=seed)
        assert_close(case.kernel, got, cases_contract.expected(case), SLACK if is_single(case) else 1.0)


def is_single(case: Case) -> bool:
    return case.kernel.buffer("out0").dtype in (DType.F32, DType.F64)


@pytest.mark.parametrize("case", CASES[::5], ids=lambda c: c.id)
def test_every_tactic_agrees(case: Case) -> None:
    for tactic in tactics(case.kernel)[1:]:
        got = run_kernel(render_with(case.kernel, tactic), case.kernel, case.inputs, case.env)
        assert_close(case.kernel, got, cases_contract.expected(case), SLACK if is_single(case) else 1.0)


@pytest.mark.parametrize("i", range(len(CASES)), ids=lambda i: CASES[i].id)
def test_case_compiles(i: int) -> None:
    case = CASES[i]
    tactic = case.tactic or tactics(case.kernel)[0]
    assert_compiles(render_with(case.kernel, tactic), (ARCHS[i % 2],))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [DType.F32, DType.F16], ids=lambda d: d.value)
def test_every_tactic_compiles_without_spills(dtype: DType) -> None:
    kernel = cases_contract.matmul_kernel(512, 512, 512, dtype)
    for tactic in tactics(kernel):
        source = render_with(kernel, tactic)
        assert source.shared_bytes <= 99 * 1024
        assert_compiles(source, ("sm_80",))


@settings(max_examples=12)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70), st.integers(1, 70)),
    dtype=st.sampled_from([DType.F32, DType.F16, DType.BF16]),
    order=st.sampled_from(["mk,kn", "mk,nk", "km,kn", "km,nk"]), seed=st.integers(0, 9),
)  # fmt: skip
def test_any_shape_and_order(size: tuple[int, int, int], dtype: DType, order: str, seed: int) -> None:
    kernel = cases_contract.matmul_kernel(*size, dtype, order)
    rng = np.random.default_rng(seed)
    inputs = {b.name: random(rng, b.shape, dtype) for b in kernel.buffers[:3]}  # type: ignore[arg-type]
    got = run_kernel(render_with(kernel, tactics(kernel)[0]), kernel, inputs, seed=seed)
    assert_close(kernel, got, cases_contract.matmul(inputs, order), SLACK if dtype is DType.F32 else 1.0)


@pytest.mark.parametrize(
    "name", ["fp32_transposed", "fp32_split", "f16_long", "f16_symbolic_all", "f16_split_odd", "tf32_mk_kn"]
)
def test_every_barrier_and_wait_is_needed(name: str) -> None:
    case = next(c for c in CASES if c.id == name)
    exact = ContractTactic("ffma", 32, 32, 16, 4, 2)
    tactic = case.tactic if "split" in name else (exact if name.startswith("fp32") else TWO_ROW_FRAGMENTS)
    source = render_with(case.kernel, tactic)

    def passes(text: str) -> bool:
        got = run_kernel(source, case.kernel, case.inputs, case.env, text=text)
        return np.allclose(got["out0"].astype(float), cases_contract.expected(case)["out0"], 1e-2, 1e-2)

    assert [(m.line, m.deleted) for m in survivors(source.source, passes, "contract.cuh")] == []


def test_fp32_keeps_what_tf32_would_round_away() -> None:
    kernel = cases_contract.matmul_kernel(16, 16, 16, DType.F32)
    x = {"in0": np.full((16, 16), 1 + 2.0**-20, np.float32), "in1": np.eye(16, dtype=np.float32), "in2": np.zeros(16)}
    got = run_kernel(render_with(kernel, tactics(kernel)[0]), kernel, x)["out0"]
    np.testing.assert_array_equal(got, x["in0"])


def test_three_tf32_products_are_nearly_exact() -> None:
    rng = np.random.default_rng(1)
    kernel = cases_contract.matmul_kernel(64, 64, 512, DType.F32, precision="tf32x3")
    x = {b.name: random(rng, b.shape, DType.F32) for b in kernel.buffers[:3]}  # type: ignore[arg-type]
    got = run_kernel(render_with(kernel, tactics(kernel)[0]), kernel, x)["out0"]
    scale = np.abs(x["in0"]).astype(float) @ np.abs(x["in1"]).astype(float)
    assert (np.abs(got - cases_contract.matmul(x)["out0"]) / scale).max() < 2.0**-20


def test_nan_reaches_only_its_row_and_column() -> None:
    kernel = cases_contract.matmul_kernel(40, 40, 40, DType.F16)
    x = {b.name: np.ones(b.shape, np.float16) for b in kernel.buffers[:3]}  # type: ignore[arg-type]
    x["in0"][3, 5] = np.nan
    got = run_kernel(render_with(kernel, tactics(kernel)[0]), kernel, x)["out0"]
    assert np.isnan(got[3]).all()
    assert not np.isnan(np.delete(got, 3, axis=0)).any()


def test_aligned_operands_are_copied_asynchronously() -> None:
    problem = problem_of(cases_contract.matmul_kernel(64, 64, 64, DType.F16))
    assert problem.a.copyable
    assert problem.b.copyable
    assert not problem_of(cases_contract.matmul_kernel(64, 63, 65, DType.F16)).a.copyable


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("rows", [1, 4, 64])
@pytest.mark.parametrize("empty", ["n", "k", "batch"])
def test_an_open_size_that_is_always_zero(empty: str, rows: int, dtype: str) -> None:
    """As of a loop that never turns."""
    b, k, n = ("z" if empty == name else size for name, size in (("batch", "3"), ("k", "8"), ("n", "16")))
    text = f"graph 'g'\nsymbol z(lo=0, hi=0)\ninput %x: {dtype}[{b}, {rows}, {k}]\ninput %w: {dtype}[{b}, {k}, {n}]\n"
    engine = compile_graph(parse_graph(text + "%y = MatMul(%x, %w)\noutput %y\n"), device="sim")
    sizes = {"z": 0, "3": 3, "8": 8, "16": 16}
    x, w = (np.ones(shape, dtype.replace("f", "float")) for shape in (
        (sizes[b], rows, sizes[k]), (sizes[b], sizes[k], sizes[n])
    ))  # fmt: skip
    np.testing.assert_array_equal(engine.run({"x": x, "w": w})["y"], x @ w, strict=True)
