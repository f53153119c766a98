"""Every operator of the registry, every case and element type: built, run on the checked simulator, compared with the
reference.
"""

from __future__ import annotations

import numpy as np
import pytest
from graph_runs import built, on_simulator

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ops.registry import Case, OpDef, all_ops, unsupported_reason
from arcweld.compiler.reference import all_cases, case_graph, run_reference

SWEEP = [
    pytest.param(op, case, dtype, id=f"{op.name}-{k}-{dtype.value}", marks=[] if k == 0 else pytest.mark.slow)
    for op in all_ops()
    for k, (case, dtype) in enumerate(all_cases(op))
]
# the control-flow operators are unrolled or refused by the importer: there is nothing to compile
COMPILED = all_ops()
HALF = {DType.F16: 2e-3, DType.BF16: 1.6e-2}  # two units in the last place of a number near 1


@pytest.mark.parametrize(("op", "case", "dtype"), SWEEP)
def test_case(op: OpDef, case: Case, dtype: DType) -> None:
    graph, feeds = case_graph(op, case, dtype)
    assert unsupported_reason(graph.nodes[0]) is None, "a case that can't be compiled belongs in a test of `supports`"
    got = on_simulator(built(graph), feeds)
    want = run_reference(graph, feeds)
    for o in graph.outputs:
        compare(got[o.name], want[o.name], o.dtype, max(op.tolerance, HALF.get(dtype, 0.0), HALF.get(o.dtype, 0.0)))


def compare(got: np.ndarray, want: np.ndarray, dtype: DType, tolerance: float) -> None:
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    if dtype.is_float:
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=tolerance, atol=tolerance)
    else:
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("op", COMPILED, ids=lambda op: op.name)
def test_every_operator_has_cases(op: OpDef) -> None:
    assert list(all_cases(op))
