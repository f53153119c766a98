"""The transpose implementation against numpy, on the checked simulator, and through NVRTC."""

from __future__ import annotations

import functools
import operator
import sys
from pathlib import Path

import cases_transpose
import numpy as np
import pytest
from cases_transpose import permute_kernel
from harness import assert_compiles, run_kernel
from hypothesis import assume, given
from hypothesis import strategies as st
from kernel_cases import Case, assert_close, at, matches, put, random

from arcweld.codegen.kernel import Buffer, Kernel, axis
from arcweld.codegen.templates.pointwise.transpose import render_transpose, supports, tactics, tiling
from arcweld.compiler.dtypes import DType

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime" / "sim"))
from mutate import mutations, survivors

CASES = cases_transpose.cases()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_case_matches_numpy(case: Case) -> None:
    assert supports(case.kernel, "sm_80") is None
    source = render_transpose(case.kernel, case.tactic or tactics(case.kernel, "sm_80")[0], "sm_80")
    for seed in (0, 1, 2):
        got = run_kernel(source, case.kernel, case.inputs, case.env, seed=seed)
        assert_close(case.kernel, got, cases_transpose.expected(case))


@pytest.mark.parametrize("case", CASES[::4], ids=lambda c: c.id)
def test_every_tactic_agrees(case: Case) -> None:
    for tactic in tactics(case.kernel, "sm_80")[1:]:
        got = run_kernel(render_transpose(case.kernel, tactic, "sm_80"), case.kernel, case.inputs, case.env)
        assert_close(case.kernel, got, cases_transpose.expected(case))


@pytest.mark.parametrize("case", CASES[::2], ids=lambda c: c.id)
def test_case_compiles(case: Case) -> None:
    assert_compiles(render_transpose(case.kernel, case.tactic or tactics(case.kernel, "sm_80")[0], "sm_80"))


@given(
    shape=st.lists(st.integers(2, 12), min_size=2, max_size=4), order=st.randoms(use_true_random=False),
    dtype=st.sampled_from([DType.F32, DType.F16, DType.U8]), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_permutation(shape: list[int], order: object, dtype: DType, seed: int) -> None:
    perm = list(range(len(shape)))
    order.shuffle(perm)  # type: ignore[attr-defined]
    assume(perm[-1] != len(shape) - 1)
    kernel = permute_kernel(shape, perm, dtype)
    x = random(np.random.default_rng(seed), shape, dtype)
    got = run_kernel(render_transpose(kernel, tactics(kernel, "sm_80")[0], "sm_80"), kernel, {"in0": x}, seed=seed)
    np.testing.assert_array_equal(got["out0"], x.transpose(perm))


def test_both_sides_move_vectors_and_axes_merge() -> None:
    kernel = permute_kernel((8, 56, 56, 64), (0, 3, 1, 2), DType.F16)
    p = tiling(kernel)
    assert not isinstance(p, str)
    assert (p.outer.extent, p.a.extent, p.b.extent) == (8, 56 * 56, 64)
    text = render_transpose(kernel, tactics(kernel, "sm_80")[0], "sm_80").source
    assert "load_vec<8>" in text
    assert "store_vec<8>" in text


def test_a_copy_needs_no_tile() -> None:
    assert "contiguous along the stores' axis" in (
        supports(permute_kernel((4, 5, 6), (1, 0, 2), DType.F32), "sm_80") or ""
    )
    with pytest.raises(ValueError, match="contiguous"):
        render_transpose(permute_kernel((4, 5), (0, 1), DType.F32), None, "sm_80")  # type: ignore[arg-type]


def test_too_many_tiles_are_refused() -> None:
    r, c = axis("r", 40), axis("c", 30)
    sources = tuple(Buffer(f"in{n}", DType.F32, (30, 40)) for n in range(9))
    out = Buffer("out0", DType.F32, (40, 30), True)
    total = functools.reduce(operator.add, (at(b, (c, r)) for b in sources))
    kernel = Kernel("transpose", "sum", {"out": (r, c)}, {}, (put(out, (r, c), total),), (*sources, out), {})
    assert "9 loads" in (supports(kernel, "sm_80") or "")


def test_the_barrier_is_needed() -> None:
    case = CASES[1]
    source = render_transpose(case.kernel, tactics(case.kernel, "sm_80")[0], "sm_80")

    def passes(text: str) -> bool:
        got = run_kernel(source, case.kernel, case.inputs, case.env, text=text)
        return matches(case.kernel, got, cases_transpose.expected(case))

    assert mutations(source.source)
    assert survivors(source.source, passes) == []
