"""Comparing at kernels: references in f64, bounded memory, state, ranges of sizes, crashes, and what no kernel does."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_models import save_model
from injection import edited
from onnx import helper
from planted import net

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph
from arcweld.compiler.ops import registry
from arcweld.compiler.reference import all_cases, case_graph, evaluate_node, stream_reference
from arcweld.compiler.text import parse_graph
from arcweld.debug.bisect import bisect
from arcweld.debug.case import prepare
from arcweld.debug.divergence import Comparison, compare_kernels
from arcweld.debug.exact import PATTERNS, WIDENED, evaluate_exactly
from arcweld.debug.subject import Subject
from arcweld.driver.api import build_engine, import_model
from arcweld.driver.isolation import ignore_notes
from arcweld.runtime.engine import Engine, load


def filled(text: str, seed: int = 0) -> Graph:
    """The graph of a text, with random weights."""
    graph = parse_graph("graph 'g'\n" + text)
    rng = np.random.default_rng(seed)
    data = {n: rng.standard_normal(w.data.shape).astype(w.data.dtype) for n, w in graph.weights.items()}
    return graph.replace(weights={n: replace(w, data=data[n]) for n, w in graph.weights.items()})


# -------------------------------------------------------------------------------------------------------- references


def operators() -> list[str]:
    registry.opdef("Relu")
    return sorted(registry._OPS)


@pytest.mark.parametrize("op", operators())
def test_every_operator_computes_in_f64(op: str) -> None:
    """On all its cases, with results that agree with those in f32 as far as these go."""
    for case, dtype in all_cases(registry.opdef(op)):
        graph, feeds = case_graph(registry.opdef(op), case, dtype)
        (node,) = graph.nodes
        arrays = [None if v is None else feeds[v.name] for v in node.inputs]
        narrow, exact = evaluate_node(node, arrays, {}), evaluate_exactly(node, arrays, {})
        stored = any(v.dtype.is_storage and v.dtype.is_float for v in node.operands())
        wide = not stored and op not in PATTERNS and all(o.dtype in WIDENED for o in node.outputs)
        rounding = 2e-2 if any(o.dtype.is_half for o in node.outputs) else 2e-3  # of a Cast of f32 to 16 bits
        for a, b in zip(narrow, exact):
            assert b.dtype == (np.float64 if wide else a.dtype)
            if dtype is DType.F32:
                np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=rounding, atol=1e-4)


def test_a_sum_is_not_rounded() -> None:
    """Of 2^24 and ones f32 keeps no one; the sum in f64 is exact."""
    graph = parse_graph("graph 'g'\ninput %x: f32[1, 65]\n%s = CumSum(%x, axis=1)\noutput %s\n")
    x = np.ones((1, 65), np.float32)
    x[0, 0] = 2.0**24
    values: dict[str, np.ndarray] = {}
    for _, live in stream_reference(graph, {"x": x}, hold={"s": 1}, evaluate=evaluate_exactly):
        values = dict(live)
    np.testing.assert_array_equal(values["s"][0], 2.0**24 + np.arange(65))


def peak_of(layers: int) -> int:
    """The most bytes that a comparison of so many products holds."""
    nodes = "".join(f"%a{k + 1} = MatMul(%a{k}, %w)\n" for k in range(layers))
    graph = filled(f"input %a0: f32[8192, 16]\nweight %w: f32[16, 16] source='w'\n{nodes}output %a{layers}\n")
    weights = {"w": replace(graph.weights["w"], data=graph.weights["w"].data / np.float32(4))}
    work = Comparison(Subject.of_case(prepare(graph.replace(weights=weights), device="sim")), "f64")
    assert len(work.steps) == layers
    tracemalloc.start()
    try:
        assert not work.run(ignore_notes).wrong
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_stays_bounded() -> None:
    """Each result takes 1 MB in f64: sixteen more of them would take 16 MB more if they were held."""
    assert peak_of(20) < peak_of(4) + (5 << 20)


# ----------------------------------------------------------------------------------------------------------- engines


def test_an_engine_file_with_an_open_size(tmp_path: Path) -> None:
    """At sizes of two of its ranges, which have kernels of their own."""
    graph = import_model(str(net(tmp_path / "n.onnx")))
    _, engine = build_engine(graph, device="sim", verify="off", ranges=[{"N": 1}])
    engine.save(tmp_path / "n.engine")
    loaded = load(tmp_path / "n.engine", "sim")
    launches = set()
    for n in (1, 40):
        x = np.random.default_rng(n).standard_normal((n, 16)).astype(np.float32)
        found = compare_kernels(Subject.of_engine(loaded, {"x": x}))
        assert not found.wrong
        assert found.passes == {}
        assert {o for b in found.boundaries for o in b.nodes} == {
            "fc1", "relu", "fc2", "tanh", "softmax", "total", "sub"
        }  # fmt: skip
        launches.add(found.boundaries[0].launch)
    assert launches == {"matmul", "matmul@N=1"}


def test_state_in_place() -> None:
    text = (
        "symbol n(lo=1)\ninput %x: f32[n, 6]\ninput %i: i64[n, 1]\ninput %s: f32[90, 6]\n%t = Tanh(%x) @ 'tanh'\n"
        "%a = ScatterND(%s, %i, %t, reduction='none') @ 'append'\noutput %a 'a' in %s\n"
    )
    case = prepare(filled(text), device="sim", sizes={"n": 3})
    before = {n: a.copy() for n, a in case.feeds.items()}
    found = compare_kernels(Subject.of_case(case))
    assert not found.wrong
    assert [b.nodes for b in found.boundaries][-1][-1] == "append"
    assert all(np.array_equal(a, case.feeds[n]) for n, a in before.items())


def test_an_output_that_takes_the_name_of_another_value() -> None:
    """The program renames the inner value then."""
    graph = filled("input %x: f32[4, 8]\nweight %w: f32[8, 8] source='w'\n%y = MatMul(%x, %w) @ 'one'\n"
                   "%z = MatMul(%y, %w) @ 'two'\noutput %z 'y'\n")  # fmt: skip
    found = compare_kernels(Subject.of_case(prepare(graph, device="sim")))
    assert [(b.value, b.nodes) for b in found.boundaries] == [("y", ("one",)), ("z", ("two",))]
    assert not found.wrong


def test_outputs_that_nothing_computes() -> None:
    """A weight, an input under another name and under its own, and a value twice."""
    graph = filled("input %x: f32[4, 8]\nweight %w: f32[8, 8] source='w'\n%y = MatMul(%x, %w) @ 'one'\n"
                   "output %y 'y'\noutput %w 'c'\noutput %x 'again'\noutput %x 'x'\noutput %y 'twice'\n")  # fmt: skip
    case = prepare(graph, device="sim")
    found = compare_kernels(Subject.of_case(case))
    assert not found.wrong
    assert {*found.outputs} == {"y", "c", "again", "twice"}
    assert case.failure() is None
    assert bisect(case) is None


# ------------------------------------------------------------------------------------------------------------ faults


def small(tmp_path: Path) -> Graph:
    nodes = [
        helper.make_node("Tanh", ["x"], ["t"], name="tanh"),
        helper.make_node("Softmax", ["t"], ["y"], name="soft"),
    ]
    return import_model(str(save_model(tmp_path / "s.onnx", nodes, {"x": [64, 8]}, {"y": [64, 8]})))


@pytest.mark.parametrize(
    ("edit", "detail"),
    [
        (lambda s: s.replace("p.out0 + (", "(f32*)8 + ("), "invalid or misaligned memory access"),
        (lambda s: s.replace("pdl_wait();", "for (volatile int k = 0; k < 1;) {}"), "does not end"),
    ],
    ids=["crash", "hang"],
)
def test_a_kernel_that_ends_its_process(
    edit: Any, detail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arcweld.debug.divergence.KERNEL_SECONDS", 2.0)
    with edited(edit):
        found = compare_kernels(Subject.of_case(prepare(small(tmp_path), device="sim")))
    assert found.first is not None
    assert (found.first.cause, found.first.nodes) == ("crash", ("tanh", "soft"))
    assert detail in found.first.detail
    assert found.wrong


def test_the_engine_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that gives other outputs than its kernels: no kernel is at fault, and it is said."""
    subject = Subject.of_case(prepare(small(tmp_path), device="sim"))
    right = Engine.run_tensors

    def wrong(self: Engine, feeds: Any) -> dict[str, Any]:
        got = right(self, feeds)
        return {n: a + 1 for n, a in got.items()} if self.data is subject.data else got

    monkeypatch.setattr(Engine, "run_tensors", wrong)
    found = compare_kernels(subject)
    assert found.first is None
    assert found.beyond(found.runtime) == ["y"]
    assert found.beyond(found.passes) == []
    assert found.wrong
