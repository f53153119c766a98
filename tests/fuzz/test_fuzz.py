"""Fuzzing: a fixed list of seeds passes, and a planted fault is found, shrunk to its operator and reproduced."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from case import Case, Failure, check, draw, read, write
from find import Finding, find
from shrink import shrink

from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, const
from arcweld.compiler.ir import Graph, Node, Rewriter
from arcweld.compiler.ops import registry
from arcweld.compiler.options import Options
from arcweld.compiler.text import parse_graph
from arcweld.passes import pipeline

FEW, BLOCKS, BLOCK = 12, 8, 55


def failures(seeds: range) -> list[str]:
    found = [(k, check(draw(f"fixed.{k}"))) for k in seeds]
    return [f"fixed.{k} {f.stage}: {f.kind}\n{f.detail}" for k, f in found if f is not None]


def test_a_few_seeds() -> None:
    assert failures(range(FEW)) == []


@pytest.mark.slow
@pytest.mark.parametrize("block", range(BLOCKS))
def test_seeds(block: int) -> None:
    """About a minute in all on one core. A failing case again: python tests/fuzz --seed fixed.NUMBER"""
    assert failures(range(FEW + block * BLOCK, FEW + (block + 1) * BLOCK)) == []


def test_a_seed_draws_one_case() -> None:
    for k in range(30):
        first, again = text_of(draw(f"same.{k}")), text_of(draw(f"same.{k}"))
        assert first == again
        assert text_of(read(first)) == first


def text_of(case: Case) -> str:
    return write(case, Failure("", "", ""))


# --------------------------------------------------------------------------------------------------- planted faults


def first_finding(out: Path, wanted: Callable[[Graph], bool]) -> Finding:
    """What the first case finds whose graph is ``wanted``, so that few are run."""
    cases = (draw(f"planted.{k}") for k in itertools.count())
    chosen = (c for c in cases if wanted(c.graph) and c.precision == "fp32" and not c.simulate)
    return next(f for f in (find(c, out) for c in itertools.islice(chosen, 20)) if f is not None)


def has(op: str) -> Callable[[Graph], bool]:
    return lambda graph: any(n.op == op for n in graph.nodes)


def change(monkeypatch: pytest.MonkeyPatch, op: str, **changes: Any) -> None:
    registry.opdef(op)  # loads the table
    monkeypatch.setitem(registry._OPS, op, replace(registry._OPS[op], **changes))


def assert_reproduces(found: Finding, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file fails in the same way, and no longer once the fault is gone."""
    case = read(found.file.read_text(encoding="utf-8"))
    assert found.failure.same(check(case))
    monkeypatch.undo()
    assert check(case) is None


def test_a_wrong_lowering_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = registry.opdef("Tile").lower
    assert right is not None

    def wrong(reader: registry.Reader, node: Node, coords: tuple[Any, ...]) -> Expr:
        value = right(reader, node, coords)
        return value + const(1, value.dtype) if value.dtype is not DType.BOOL else value

    change(monkeypatch, "Tile", lower=wrong)
    found = first_finding(tmp_path, has("Tile"))
    assert (found.failure.stage, found.failure.kind) == ("kernels", "differs")
    assert "Tile" in [n.op for n in found.case.graph.nodes]
    assert len(found.case.graph.nodes) <= 2
    assert_reproduces(found, monkeypatch)


def test_a_wrong_reference_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(arrays: list[np.ndarray], attrs: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
        return (np.maximum(arrays[0], 0) + arrays[0].dtype.type(1),)

    change(monkeypatch, "Relu", reference=wrong)
    found = first_finding(tmp_path, has("Relu"))
    assert found.failure.stage == "references"
    assert [n.op for n in found.case.graph.nodes] == ["Relu"]
    assert_reproduces(found, monkeypatch)


def test_a_wrong_pass_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: Graph, options: Options) -> Graph:
        """Takes a - b for b - a."""
        rw = Rewriter(graph)
        for n in graph.nodes:
            rw.keep(replace(n, inputs=n.inputs[::-1]) if n.op == "Sub" else n)
        return rw.finish()

    saboteur = pipeline.Pass("saboteur", wrong, "swaps operands")
    monkeypatch.setattr(pipeline, "PASSES", (saboteur, *pipeline.PASSES))
    found = first_finding(tmp_path, has("Sub"))
    assert found.failure.stage == "kernels"
    assert [n.op for n in found.case.graph.nodes] == ["Sub"]
    assert_reproduces(found, monkeypatch)


def test_a_crash_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(reader: registry.Reader, node: Node, coords: tuple[Any, ...]) -> Expr:
        raise KeyError("planted")

    change(monkeypatch, "Concat", lower=wrong)
    found = first_finding(tmp_path, has("Concat"))
    assert found.failure.kind == "KeyError in test_fuzz.py:wrong"
    assert [n.op for n in found.case.graph.nodes] == ["Concat"]
    assert_reproduces(found, monkeypatch)


def test_sizes_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a symbolic chain with a fault in its middle one operator on one element is left."""
    change(monkeypatch, "Tanh", lower=lambda reader, node, coords: const(0.0, node.output.dtype))
    graph = parse_graph("""graph 'g'
symbol N(lo=0)
input %x: f32[N, 6]
weight %w: f32[6, 8] data=0.5
%a: f32[N, 8] = MatMul(%x, %w) @ 'a'
%b: f32[N, 8] = Tanh(%a) @ 'b'
%c: f32[8, N] = Transpose(%b, perm=(1, 0)) @ 'c'
%d: f32[8, N] = Neg(%c) @ 'd'
output %d
output %a
""")
    case = Case(graph, ({"N": 3}, {"N": 0}), precision="fp16", disable="layout")
    failure = check(case, "kernels")
    assert failure is not None
    small = shrink(case, failure, 60)
    assert [n.op for n in small.graph.nodes] == ["Tanh"]
    assert [v.shape for v in small.graph.inputs] == [(1, 1)]
    assert (small.precision, small.disable, small.sizes) == ("fp32", "", ({},))
