"""The few_rows implementations against numpy, on the checked simulator, and through NVRTC."""

from __future__ import annotations

from dataclasses import replace

import cases_few_rows
import numpy as np
import pytest
from cases_contract import matmul, matmul_kernel
from cases_few_rows import MOST, wide_rows, wide_rows_kernel
from harness import assert_compiles, run_kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case, assert_close, matches, random
from mutate import survivors

from arcweld.codegen.kernel import Kernel
from arcweld.codegen.templates.contract.few_rows import MMA, STREAM, FewRows
from arcweld.codegen.templates.contract.problem import problem_of
from arcweld.codegen.templates.select import implementations, select
from arcweld.compiler.dims import symbol
from arcweld.compiler.dtypes import DType

F16, BF16, F32 = DType.F16, DType.BF16, DType.F32
CASES = {c.id: c for c in cases_few_rows.cases()}
ENGINES = {"stream": STREAM, "mma": MMA}


def engines(case: Case) -> list[FewRows]:
    return [e for e in ENGINES.values() if e.supports(problem_of(case.kernel), e.ARCH) is None]


def slack(case: Case) -> float:
    """Multiples of the output type's tolerance: the order of f32 sums differs."""
    return 10.0 if case.kernel.buffer("out0").dtype is F32 else 1.0


@pytest.mark.parametrize("case", CASES.values(), ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    assert STREAM in engines(case)
    for engine in engines(case):
        problem = problem_of(case.kernel)
        tactic = engine.tactics(problem, engine.ARCH)[0]
        source = engine.render_problem(problem, tactic, engine.ARCH)
        for seed in (0, 1):
            got = run_kernel(source, case.kernel, case.inputs, case.env, seed=seed)
            assert_close(case.kernel, got, cases_few_rows.expected(case), slack(case))


@pytest.mark.parametrize("name", ["rows_5", "prologue", "open_7", "prologue_of_many", "several_tiles_each", "batched"])
def test_every_tactic_agrees(name: str) -> None:
    case = CASES[name]
    problem = problem_of(case.kernel)
    for engine in engines(case):
        for tactic in engine.tactics(problem, engine.ARCH):
            for t in (tactic, replace(tactic, resident=False, depth=32)):
                got = run_kernel(engine.render_problem(problem, t, engine.ARCH), case.kernel, case.inputs, case.env)
                assert matches(case.kernel, got, cases_few_rows.expected(case), slack(case)), t


@pytest.mark.parametrize("case", [*CASES.values()][::2], ids=lambda c: c.id)
def test_case_compiles(case: Case) -> None:
    problem = problem_of(case.kernel)
    for engine in engines(case):
        assert_compiles(engine.render_problem(problem, engine.tactics(problem, engine.ARCH)[0], engine.ARCH))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rows", [2, 8, 16])
@pytest.mark.parametrize("prologue", [False, True])
def test_every_tactic_compiles_without_spills(engine: str, rows: int, prologue: bool) -> None:
    kernel = matmul_kernel(rows, 4096, 14336, BF16, "mk,nk", weight=True, prologue=prologue)
    problem, few = problem_of(kernel), ENGINES[engine]
    for tactic in few.tactics(problem, few.ARCH):
        assert_compiles(few.render_problem(problem, tactic, few.ARCH))


@settings(max_examples=12)
@given(
    size=st.tuples(st.integers(2, 16), st.integers(1, 70), st.integers(1, 40)), dtype=st.sampled_from([F16, BF16]),
    engine=st.sampled_from(["stream", "mma"]), seed=st.integers(0, 9),
)  # fmt: skip
def test_any_shape(size: tuple[int, int, int], dtype: DType, engine: str, seed: int) -> None:
    m, n, k = size
    kernel = matmul_kernel(m, n, 8 * k, dtype, "mk,nk", weight=True)
    rng, few, problem = np.random.default_rng(seed), ENGINES[engine], problem_of(kernel)
    inputs = {b.name: random(rng, b.shape, dtype) for b in kernel.buffers[:3]}  # type: ignore[arg-type]
    source = few.render_problem(problem, few.tactics(problem, few.ARCH)[0], few.ARCH)
    assert_close(kernel, run_kernel(source, kernel, inputs, seed=seed), matmul(inputs, "mk,nk"))


def error(kernel: Kernel, inputs: dict[str, np.ndarray], few: FewRows, halves: int) -> float:
    """The relative error of the best tactic with that number of halves, against products in f64."""
    problem = problem_of(kernel)
    tactic = next(t for t in few.tactics(problem, few.ARCH) if t.halves == halves)
    got = run_kernel(few.render_problem(problem, tactic, few.ARCH), kernel, inputs)["out0"]
    want = wide_rows(inputs)["out0"]
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rows", [4, 8, 16])
def test_two_halves_keep_what_rounding_rows_loses(engine: str, rows: int) -> None:
    """bf16 has 8 bits: one number is off by about 2**-9.5 (rms), the sum of two by the square of that."""
    kernel = wide_rows_kernel(rows, 48, 512, BF16)
    rng = np.random.default_rng(3)
    inputs = {"in0": random(rng, (rows, 512), F32), "in1": random(rng, (48, 512), BF16)}
    one, two = (error(kernel, inputs, ENGINES[engine], h) for h in (1, 2))
    assert 1e-3 < one < 3e-3
    assert two < 1e-5


@pytest.mark.parametrize("engine", ENGINES)
def test_infinities_of_rows_stay_infinite_in_two_halves(engine: str) -> None:
    kernel, few = wide_rows_kernel(3, 8, 64, F16), ENGINES[engine]
    rows, columns = np.ones((3, 64), np.float32), np.ones((8, 64), np.float16)
    rows[0, 5], rows[1, 7], rows[2, 9] = np.inf, -np.inf, np.nan
    problem = problem_of(kernel)
    tactic = few.tactics(problem, few.ARCH)[0]
    assert tactic.halves == 2
    got = run_kernel(few.render_problem(problem, tactic, few.ARCH), kernel, {"in0": rows, "in1": columns})["out0"]
    np.testing.assert_array_equal(got, np.broadcast_to([[np.inf], [-np.inf], [np.nan]], (3, 8)))


@pytest.mark.parametrize(("engine", "name"), [
    ("stream", "long"), ("stream", "several_tiles_each"), ("mma", "long"), ("mma", "several_tiles_each"),
])  # fmt: skip
def test_every_wait_is_needed(engine: str, name: str) -> None:
    case, few = CASES[name], ENGINES[engine]
    problem = problem_of(case.kernel)
    tactic = few.tactics(problem, few.ARCH)[0]
    # so small that stages are filled again, and blocks take several tiles
    tactic = replace(tactic, split=8, depth=32, stages=2 if few.streaming else 0)
    source = few.render_problem(problem, tactic, few.ARCH)

    def passes(text: str) -> bool:
        got = run_kernel(source, case.kernel, case.inputs, case.env, text=text)
        return matches(case.kernel, got, cases_few_rows.expected(case))

    assert passes(source.source)
    unnoticed = [m.deleted for m in survivors(source.source, passes)]
    # the fence orders mbar_init before the copies: the simulator has no proxies
    assert unnoticed == (["fence_proxy_async();"] if few.streaming else [])


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_are_requested_before_the_kernel_waits_for_its_predecessor(engine: str) -> None:
    few = ENGINES[engine]
    for weight in (False, True):
        problem = problem_of(matmul_kernel(3, 5000, 64, F16, "mk,nk", weight=weight))
        text = few.render_problem(problem, few.tactics(problem, few.ARCH)[0], few.ARCH).source
        requests = text.index("request(i);" if few.streaming else "request();")
        assert (requests < text.index("pdl_wait();")) == weight


def test_which_implementation_serves_what() -> None:
    def best(arch: str, *size: int, dtype: DType = F16, order: str = "mk,nk") -> str:
        return implementations(matmul_kernel(*size, dtype, order, weight=True), arch)[0].name

    assert best("sm_90a", 1, 64, 64) == best("sm_90a", 16, 64, 64) == "gemv_stream"
    assert best("sm_80", 2, 64, 64) == best("sm_80", 16, 64, 64) == "gemv_mma"
    assert best("sm_80", 1, 64, 64) == "gemv"
    assert best("sm_90a", 17, 64, 64) == "wgmma"
    assert best("sm_80", 17, 64, 64) == "mma"
    for other in ({"dtype": F32}, {"order": "mk,kn"}):
        assert best("sm_90a", 4, 64, 64, **other) == "gemv"  # type: ignore[arg-type]
    assert best("sm_90a", 4, 64, 60) == "gemv"
    few = symbol("M", 0, MOST["m"])
    assert select(matmul_kernel(few, 64, 64, F16, "mk,nk"), "sm_90a").arch == "sm_90a"


def test_reasons_for_refusal() -> None:
    for kernel, reason in (
        (matmul_kernel(17, 8, 8, F16, "mk,nk"), "17 rows"),
        (matmul_kernel(symbol("M"), 8, 8, F16, "mk,nk"), "M rows"),
        (matmul_kernel(4, 8, 8, F32, "mk,nk"), "not a product of 16-bit numbers"),
        (matmul_kernel(4, 8, 12, F16, "mk,nk"), "not f16 in aligned pieces"),
        (matmul_kernel(4, 8, 8, F16), "not f16 in aligned pieces"),
        (matmul_kernel(4, 8, symbol("K", 0, 64, 8), F16, "mk,nk"), "the depth may be 0"),
    ):
        assert reason in (STREAM.supports(problem_of(kernel), "sm_90a") or "")
