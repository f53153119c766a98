"""The select template against Python's stable sort, on the checked simulator, and through NVRTC."""

from __future__ import annotations

import cases_select
import numpy as np
import pytest
from cases_select import first, select_kernel
from harness import assert_compiles, run_kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case
from mutate import survivors

from arcweld.codegen.templates.sort.select import SelectTactic, render_select, supports, tactics
from arcweld.compiler.dims import symbol
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ops.topk import SELECTED
from arcweld.compiler.options import Options
from arcweld.compiler.text import parse_graph
from arcweld.driver.build import build_graph

CASES = cases_select.cases()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_python(case: Case) -> None:
    assert supports(case.kernel, "sm_80") is None
    for tactic in [case.tactic] if case.tactic else tactics(case.kernel, "sm_80"):
        source = render_select(case.kernel, tactic, "sm_80")
        got = run_kernel(source, case.kernel, case.inputs, case.env)
        want = cases_select.expected(case)
        assert got.keys() == want.keys()
        np.testing.assert_array_equal(got["out0"], want["out0"])
        if "out1" in want:
            # numpy does not know that NaNs of bf16 are any
            wide = np.float64 if case.kernel.loads["x"].dtype.is_float else want["out1"].dtype
            np.testing.assert_array_equal(got["out1"].astype(wide), want["out1"].astype(wide))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(("dtype", "k"), [(DType.F32, 50), (DType.F16, 1024), (DType.I64, 1024), (DType.U8, 10)])
def test_it_compiles(arch: str, dtype: DType, k: int) -> None:
    kernel = select_kernel(symbol("b", 1), 128_000, k, dtype)
    assert_compiles(render_select(kernel, tactics(kernel, arch)[0], arch))


@settings(max_examples=40)
@given(
    rows=st.integers(1, 3), cols=st.integers(1, 700), parts=st.integers(1, 6), largest=st.booleans(),
    high=st.sampled_from([1, 5, 1000]), seed=st.integers(0, 99), share=st.floats(0, 1),
)  # fmt: skip
def test_any_rows(rows: int, cols: int, parts: int, largest: bool, high: int, seed: int, share: float) -> None:
    x = np.random.default_rng(seed).integers(-high, high, (rows, cols)).astype(np.float32)
    k = max(1, int(cols * share))
    kernel = select_kernel(rows, cols, k, DType.F32, largest=largest)
    got = run_kernel(render_select(kernel, SelectTactic(32, parts), "sm_80"), kernel, {"in0": x}, seed=seed)
    for name, array in first(x, k, largest).items():
        np.testing.assert_array_equal(got[name], array)


@pytest.mark.parametrize("header", ["scan.cuh", "select.cuh", "last_block.cuh"])
def test_rows_need_their_barriers(header: str) -> None:
    x = np.random.default_rng(1).integers(-5000, 5000, (2, 1500)).astype(np.int32)
    x[1] = -np.arange(1500)  # every tile has better elements than all before it
    kernel = select_kernel(2, 1500, 70, DType.I32)  # more than a tile of candidates
    source = render_select(kernel, SelectTactic(64, 2), "sm_80")
    want = first(x, 70, False)

    def passes(text: str) -> bool:
        got = run_kernel(source, kernel, {"in0": x}, text=text)
        return all(np.array_equal(got[name], array) for name, array in want.items())

    assert passes(source.source)
    assert survivors(source.source, passes, header=header) == []


@pytest.mark.parametrize(
    ("shape", "k"), [("1, 100000", "10"), ("64, 32000", "50"), ("n, m", "5"), ("5000, 64", "8"), ("n, 32000", "q")]
)
def test_it_is_one_launch(shape: str, k: str) -> None:
    """Values and places of any rows, with memory for the best of each part."""
    text = f"graph 'g'\nsymbol n(lo=1)\nsymbol m(lo=5)\nsymbol q(lo=1, hi=64)\ninput %x: f32[{shape}]\n"
    text += f"%v, %y = TopK(%x, k={k}, axis=1, largest=1)\noutput %y\noutput %v\n"
    build = build_graph(parse_graph(text), Options(arch=("sm_80",)), compile_kernels=False)
    (launch,) = build.data.program.launches
    assert launch.template == "select"
    (variant,) = launch.variants
    assert all(len(t.shape) == 3 and t.shape[2] == k for t in variant.workspace)
    assert len(variant.workspace) == (0 if shape == "5000, 64" else 2)


def test_more_than_a_block_holds_is_refused() -> None:
    kernel = select_kernel(1, 5000, SELECTED + 1, DType.F32)
    assert supports(kernel, "sm_80") == f"more than {SELECTED} elements of a row"
    assert "more than" in str(supports(select_kernel(1, 5000, symbol("k", 1), DType.F32), "sm_80"))
