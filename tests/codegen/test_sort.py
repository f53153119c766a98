"""The sort template against Python's stable sort, on the checked simulator, and through NVRTC."""

from __future__ import annotations

import cases_sort
import numpy as np
import pytest
from cases_sort import order, sort_kernel
from harness import assert_compiles, run_kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case
from mutate import survivors

from arcweld.codegen.templates.sort.sort import SortTactic, render_sort, supports, tactics
from arcweld.compiler.dims import symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.options import Options
from arcweld.compiler.text import parse_graph
from arcweld.driver.build import build_graph

CASES = cases_sort.cases()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_python(case: Case) -> None:
    assert supports(case.kernel, "sm_80") is None
    for tactic in [case.tactic] if case.tactic else tactics(case.kernel, "sm_80"):
        source = render_sort(case.kernel, tactic, "sm_80")
        got = run_kernel(source, case.kernel, case.inputs, case.env)
        np.testing.assert_array_equal(got["out0"], cases_sort.expected(case)["out0"])


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.I64])
@pytest.mark.parametrize("rows", [1, 1000])
def test_it_compiles(arch: str, dtype: DType, rows: int) -> None:
    kernel = sort_kernel(rows, symbol("n", 1), dtype)
    tactic = tactics(kernel, arch)[0]
    assert bool(tactic.blocks) is (rows == 1)
    assert_compiles(render_sort(kernel, tactic, arch))


@settings(max_examples=40)
@given(
    rows=st.integers(1, 3), cols=st.integers(1, 700), items=st.sampled_from([2, 4, 8]), blocks=st.integers(0, 3),
    largest=st.booleans(), high=st.sampled_from([1, 5, 1000]), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_rows(rows: int, cols: int, items: int, blocks: int, largest: bool, high: int, seed: int) -> None:
    x = np.random.default_rng(seed).integers(-high, high, (rows, cols)).astype(np.float32)
    kernel = sort_kernel(rows, cols, DType.F32, largest=largest)
    got = run_kernel(render_sort(kernel, SortTactic(32, items, blocks), "sm_80"), kernel, {"in0": x}, seed=seed)
    np.testing.assert_array_equal(got["out0"], order(x, largest))


@pytest.mark.parametrize(
    ("tactic", "header"),
    [
        (SortTactic(64, 2), "sort.cuh"), (SortTactic(64, 2, 3), "sort.cuh"), (SortTactic(64, 2, 3), "grid_barrier.cuh"),
    ],
)  # fmt: skip
def test_rows_need_their_barriers(tactic: SortTactic, header: str) -> None:
    x = np.random.default_rng(1).integers(-50, 50, (2, 700)).astype(np.int32)  # the last tile has a sibling
    kernel = sort_kernel(2, 700, DType.I32)
    source = render_sort(kernel, tactic, "sm_80")

    def passes(text: str) -> bool:
        try:
            return np.array_equal(run_kernel(source, kernel, {"in0": x}, text=text)["out0"], order(x, False))
        except AssertionError:  # counters that are no zeros
            return False

    assert passes(source.source)
    assert survivors(source.source, passes, header=header) == []


@pytest.mark.parametrize("shape", ["1, 100000", "n, m"])
def test_long_rows_are_one_launch(shape: str) -> None:
    """Of blocks together, with memory that is linear, also where the number of elements is open."""
    text = f"graph 'g'\nsymbol n(lo=1)\nsymbol m(lo=1)\ninput %x: f32[{shape}]\n"
    k = shape.split(", ")[1]
    text += f"%y = TopKIndices(%x, k={k}, axis=1, largest=1)\noutput %y\n"
    build = build_graph(parse_graph(text), Options(arch=("sm_80",)), compile_kernels=False)
    (launch,) = build.data.program.launches
    assert launch.template == "sort"
    (variant,) = launch.variants
    assert variant.cooperative
    rows, cols = (s.strip() for s in shape.split(","))
    assert [t.shape for t in variant.workspace] in ([("2", rows, cols)] * 2, [("2", "n", "m")] * 2)
