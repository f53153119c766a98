"""The ONNX standard's own node tests: what imports gives the right numbers, the rest is refused with a reason.

The imported graphs are evaluated by the registry's references; the kernels that they become, by the checked simulator.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from graph_runs import built, on_simulator

from arcweld.compiler.errors import ArcweldError, UnsupportedError
from arcweld.compiler.ir import Graph
from arcweld.compiler.onnx.importer import import_onnx
from arcweld.compiler.reference import run_reference
from arcweld.compiler.text import sanitize

# Tests whose expected numbers we do not follow: with scales that do not give whole sizes, we align the corners of the
# rounded size, as ONNX Runtime does.
DIFFERENT = {
    "test_resize_downsample_scales_linear_align_corners",
    "test_resize_downsample_scales_cubic_align_corners",
}
LEAST_PASSING = 1500
PARTS = 10


@functools.cache
def _suite() -> list[Any]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [t for t in load_model_tests(kind="node") if t.model is not None]


def _constants(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs that say shapes, axes, modes: small tensors, which exporters write as constants."""
    return {k: v for k, v in feeds.items() if v.dtype.kind in "iubf" and v.ndim <= 1 and v.size <= 64}


@dataclass(frozen=True)
class Case:
    """One imported test: its graph, the inputs that the graph still has, and the outputs that the standard expects."""

    graph: Graph
    feeds: dict[str, np.ndarray]
    expected: list[np.ndarray]


def _imported(test: Any) -> Case:
    """Raises UnsupportedError where the import is refused."""
    initializers = {t.name for t in test.model.graph.initializer}
    inputs, expected = test.data_sets[0]
    names = [i.name for i in test.model.graph.input if i.name not in initializers]
    if not all(isinstance(a, np.ndarray | np.generic) for a in (*inputs, *expected)):
        raise UnsupportedError("sequences and optional values")
    feeds = {n: np.asarray(a) for n, a in zip(names, inputs)}
    try:
        graph, values = import_onnx(test.model), {}
    except UnsupportedError:
        values = _constants(feeds)
        graph = import_onnx(test.model, values=values)
    left = {sanitize(k): v for k, v in feeds.items() if k not in values}
    return Case(graph, left, [np.asarray(a) for a in expected])


def _difference(got: np.ndarray, want: np.ndarray) -> str:
    """ "" if the numbers agree, else what is wrong."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype}{got.shape} instead of {want.dtype}{want.shape}"
    if got.dtype.kind not in "fV":
        return "" if np.array_equal(got, want) else "other integers"
    rtol, atol = (2e-2, 1e-3) if got.dtype.itemsize == 2 else (1e-3, 1e-5)
    same = np.allclose(got.astype(np.float64), want.astype(np.float64), rtol=rtol, atol=atol, equal_nan=True)
    return "" if same else "other numbers"


def _by_reference(case: Case) -> str:
    found = run_reference(case.graph, case.feeds)
    differences = (_difference(np.asarray(found[o.name]), w) for o, w in zip(case.graph.outputs, case.expected))
    return next((d for d in differences if d), "")


def _by_kernels(case: Case) -> str:
    found = on_simulator(built(case.graph), case.feeds)
    differences = (_difference(found[label], w) for label, w in zip(case.graph.labels(), case.expected))
    return next((d for d in differences if d), "")


@pytest.mark.filterwarnings("ignore")
def test_the_standard_node_tests() -> None:
    passed, wrong, refused = 0, {}, {}
    for test in _suite():
        try:
            outcome = _by_reference(_imported(test))
        except ArcweldError as error:
            refused[test.name] = error
            continue
        if outcome and test.name not in DIFFERENT:
            wrong[test.name] = outcome
        passed += not outcome
    assert not wrong
    assert passed >= LEAST_PASSING, f"{passed} pass"
    assert all(str(e) for e in refused.values())
    assert not [n for n in refused if n in DIFFERENT]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(PARTS))
def test_the_kernels_of_the_standard_node_tests(part: int) -> None:
    passed, wrong = 0, {}
    for test in _suite()[part::PARTS]:
        try:
            case = _imported(test)
        except ArcweldError:
            continue
        outcome = _by_kernels(case)
        if outcome and test.name not in DIFFERENT:
            wrong[test.name] = outcome
        passed += not outcome
    assert not wrong
    assert passed >= LEAST_PASSING // PARTS * 0.9, f"{passed} pass"
