"""Single steps: recurrences of one step become products, with the same results."""

from __future__ import annotations

import numpy as np
import pytest

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ops.registry import Case, opdef
from arcweld.compiler.options import Options
from arcweld.compiler.reference import all_cases, case_graph, run_reference
from arcweld.compiler.verifier import verify
from arcweld.passes.single_steps import single_steps

OP = opdef("Recurrence")
CASES = [(case, dtype) for case, dtype in all_cases(OP) if dtype.value in ("f32", "f16")]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_one_step_is_written_out(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arcweld.passes.single_steps.ONE_BLOCK", 0)
    case, dtype = CASES[number]
    first = ((1, *case.shapes[0][1:]), *case.shapes[1:])
    graph, feeds = case_graph(OP, type(case)(first, case.attrs, case.dtypes, case.low, case.high), dtype)
    found = single_steps(graph, Options())
    kept = case.attrs.get("rounded") or (len(case.shapes) > 2 and case.shapes[2] is not None)
    assert any(n.op == "Recurrence" for n in found.nodes) == bool(kept)
    verify(found)
    ours, want = run_reference(found, feeds), run_reference(graph, feeds)
    tolerance = 1e-6 if dtype.value == "f32" else 4e-3
    for mine, theirs in zip(found.outputs, graph.outputs):
        a, b = (v.astype(np.float64) for v in (ours[mine.name], want[theirs.name]))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("steps", "hidden", "stays"), [(1, 78, True), (1, 79, False), (2, 79, True)])
def test_only_one_step_of_many_weights_is_written_out(steps: int, hidden: int, stays: bool) -> None:
    names = ("Sigmoid", "Tanh", "Tanh")
    case = Case(((steps, 1, 4 * hidden), (1, 4 * hidden, hidden)), {"cell": "lstm", "activations": names})
    graph, _ = case_graph(OP, case, DType.F32)
    assert (single_steps(graph, Options()) is graph) == stays
