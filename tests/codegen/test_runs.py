"""The runs template against Python's lists and dictionaries, on the checked simulator, and through NVRTC."""

from __future__ import annotations

import cases_runs
import numpy as np
import pytest
from cases_runs import feeds, runs_kernel, told
from harness import assert_compiles, run_kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case
from mutate import survivors

from arcweld.codegen.templates.sort.runs import RunsTactic, render_runs, supports, tactics
from arcweld.compiler.dims import symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.options import Options
from arcweld.compiler.text import parse_graph
from arcweld.driver.build import build_graph

CASES = cases_runs.cases()


def same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> bool:
    return got.keys() == want.keys() and all(
        np.array_equal(got[k], want[k], equal_nan=want[k].dtype.kind == "f") for k in want
    )


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_python(case: Case) -> None:
    assert supports(case.kernel, "sm_80") is None
    for tactic in [case.tactic] if case.tactic else tactics(case.kernel, "sm_80"):
        source = render_runs(case.kernel, tactic, "sm_80")
        assert same(run_kernel(source, case.kernel, case.inputs, case.env), cases_runs.expected(case))


@pytest.mark.parametrize("dtype", [DType.F32, DType.I64])
@pytest.mark.parametrize("by_place", [False, True])
def test_it_compiles(dtype: DType, by_place: bool) -> None:
    kernel = runs_kernel(symbol("n"), dtype, by_place=by_place)
    assert_compiles(render_runs(kernel, tactics(kernel, "sm_80")[0], "sm_80"))


@settings(max_examples=40)
@given(
    n=st.integers(1, 500), blocks=st.integers(1, 5), by_place=st.booleans(), high=st.sampled_from([1, 20, 1000]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_vector(n: int, blocks: int, by_place: bool, high: int, seed: int) -> None:
    x = np.random.default_rng(seed).integers(-high, high, n).astype(np.float32)
    kernel = runs_kernel(n, DType.F32, by_place=by_place)
    got = run_kernel(render_runs(kernel, RunsTactic(32, blocks), "sm_80"), kernel, feeds(x), seed=seed)
    assert same(got, told(x, by_place))


@pytest.mark.parametrize("header", ["reduce.cuh", "scan.cuh", "grid_barrier.cuh"])
@pytest.mark.parametrize("by_place", [False, True])
def test_every_barrier_is_needed(by_place: bool, header: str) -> None:
    x = np.random.default_rng(1).integers(-300, 300, 700).astype(np.int32)  # so many runs that other blocks count them
    kernel = runs_kernel(700, DType.I32, by_place=by_place)
    source = render_runs(kernel, RunsTactic(64, 3), "sm_80")
    want = told(x, by_place)

    def passes(text: str) -> bool:
        try:
            return same(run_kernel(source, kernel, feeds(x), text=text), want)
        except AssertionError:  # counters that are no zeros
            return False

    assert passes(source.source)
    assert survivors(source.source, passes, header=header) == []


def test_another_result_of_the_runs_is_not_read_in_their_kernel() -> None:
    """Which of them an element is belongs to that element, not to the run of the same number."""
    text = "graph 'g'\ninput %x: i64[60]\ninput %o: i64[60]\n%y, %f, %k, %c, %n = EqualRuns(%x, %o)\n"
    graph = parse_graph(text + "%s = Add(%y, %k)\n%t = Neg(%y)\noutput %s\noutput %t\n")
    launches = build_graph(graph, Options(arch=("sm_80",)), compile_kernels=False).data.program.launches
    assert [x.template for x in launches] == ["runs", "pointwise"]
