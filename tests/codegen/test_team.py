"""Kernels of few rows whose blocks are one thread on the simulator: as numpy, and as all threads of the block.

Where columns lie side by side results are the same to the bit. Of columns along k, and of tensor cores, the thread adds
products in an order of its own.
"""

from __future__ import annotations

from types import ModuleType

import cases_few_rows
import cases_gemv
import cases_int8
import cases_stored
import numpy as np
import pytest
from harness import render_with, run_kernel
from kernel_cases import assert_close
from test_chain_kernels import CASES, is_close, planned

from arcweld.codegen.templates.select import implementations, select
from arcweld.runtime.sim.device import ADVERSE_SEED

SUITES = (cases_gemv, cases_int8, cases_few_rows, cases_stored)
ARCHS = ("sm_80", "sm_90a")  # loads to registers, and bulk copies
LEAST = dict(zip(SUITES, (20, 2, 12, 15)))  # cases that have such a product


@pytest.mark.parametrize("suite", SUITES, ids=lambda s: s.__name__)
def test_one_thread_gives_what_a_block_gives(suite: ModuleType) -> None:
    compared = 0
    for i, case in enumerate(suite.cases()[:: 5 if suite is cases_stored else 1]):
        kernel = case.kernel
        source = render_with(kernel, case.tactic) if case.tactic else select(kernel, ARCHS[i % 2])
        if "!team_product<" not in source.source:
            continue
        alone = run_kernel(source, kernel, case.inputs, case.env, checked=False)
        block = run_kernel(source, kernel, case.inputs, case.env, checked=False, seed=ADVERSE_SEED)
        assert_close(kernel, alone, suite.expected(case), 20)
        assert_close(kernel, block, suite.expected(case), 20)
        side_by_side = "LANES_N" in source.source and "WIDTH = 1;" not in source.source
        for name, array in block.items() if side_by_side else ():
            np.testing.assert_array_equal(alone[name], array, f"{case.id}: {name}")
        compared += 1
    assert compared >= LEAST[suite]


@pytest.mark.parametrize("name", ["one row", "norms of heads", "gate and up, twelve rows", "more tiles than blocks"])
def test_one_thread_computes_chains(name: str) -> None:
    """With the norm before the product, in the order of summation that a block has, and norms of heads behind it."""
    launch, reads, want = planned(CASES[name], seed=4)
    kernel = launch.bound.kernel
    tried = [i.tactics(kernel, "sm_90a")[0] for i in implementations(kernel, "sm_90a")]
    assert tried
    for tactic in tried:
        source = render_with(kernel, tactic)
        assert "row_reduce<" in source.source
        assert "!team_product<" in source.source
        assert is_close(kernel, run_kernel(source, kernel, reads, checked=False), want), tactic


def test_one_thread_runs() -> None:
    """An error planted in the block's loop is seen by an adverse schedule, not by the one thread."""
    case = next(c for c in cases_gemv.cases() if c.id == "f32_kn")
    source = select(case.kernel, "sm_80")
    text = source.source.replace("multiply(k);", "")
    assert text != source.source
    want = cases_gemv.expected(case)
    alone = run_kernel(source, case.kernel, case.inputs, case.env, checked=False, text=text)
    assert_close(case.kernel, alone, want, 20)
    wrong = run_kernel(source, case.kernel, case.inputs, case.env, checked=False, text=text, seed=ADVERSE_SEED)
    with pytest.raises(AssertionError):
        assert_close(case.kernel, wrong, want, 20)
