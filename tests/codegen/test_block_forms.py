"""The simulator's short forms of a block's main loop: as numpy, and products to the bit as the kernel's own loop.

In attention the compiler rounds products of the shown loop on their own, those of the short form with the sum.
"""

from __future__ import annotations

import re
from types import ModuleType

import cases_attention
import cases_contract
import cases_conv
import cases_float8
import cases_grouped
import cases_int8
import numpy as np
import pytest
from harness import render_with, run_kernel
from kernel_cases import assert_close

from arcweld.codegen.templates.select import select
from arcweld.runtime.sim.device import ADVERSE_SEED

SUITES = (cases_contract, cases_conv, cases_grouped, cases_int8, cases_float8, cases_attention)
LEAST = dict(zip(SUITES, (18, 18, 14, 3, 1, 25)))  # cases that have such a loop


def block_forms(text: str) -> int:
    return len(re.findall(r"if \(!?block_\w+<", text))


def multiplies(text: str) -> bool:
    """Whether the epilogue has products, which the compiler may round with a sum in one form and alone in the other."""
    return bool(re.search(r"= \S+ \* \S+;", text.partition("store_out(const Params&")[2].partition("\n}\n")[0]))


@pytest.mark.parametrize("suite", SUITES, ids=lambda s: s.__name__)
def test_both_forms_agree(suite: ModuleType) -> None:
    compared = 0
    for case in suite.cases():
        kernel = case.kernel
        source = render_with(kernel, case.tactic) if case.tactic else select(kernel, "sm_80")
        if not block_forms(source.source):  # products of tensor cores, or of few rows
            continue
        short = run_kernel(source, kernel, case.inputs, case.env, checked=False)
        shown = run_kernel(source, kernel, case.inputs, case.env, checked=False, seed=ADVERSE_SEED)
        assert_close(kernel, short, suite.expected(case), 20)
        assert_close(kernel, shown, suite.expected(case), 20)
        for name, array in shown.items() if suite is not cases_attention and not multiplies(source.source) else ():
            np.testing.assert_array_equal(short[name], array, f"{case.id}: {name}")
        compared += 1
    assert compared >= LEAST[suite]


def test_the_short_form_runs() -> None:
    """An error planted in the shown loop is seen by an adverse schedule and by checked mode, not by the short form."""
    case = next(c for c in cases_contract.cases() if c.id == "fp32_large_tile")
    source = render_with(case.kernel, case.tactic)
    text = source.source.replace("current ^= 1;", "")
    assert text != source.source
    want = cases_contract.expected(case)
    short = run_kernel(source, case.kernel, case.inputs, case.env, checked=False, text=text)
    assert_close(case.kernel, short, want, 20)
    wrong = run_kernel(source, case.kernel, case.inputs, case.env, checked=False, text=text, seed=ADVERSE_SEED)
    with pytest.raises(AssertionError):
        assert_close(case.kernel, wrong, want, 20)
