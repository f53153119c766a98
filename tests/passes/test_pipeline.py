"""The pass list: switching passes off, dumps, observers, verification, and whole graphs through all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pass_tools import build, ops, same_results

from arcweld.compiler.errors import UsageError, VerifyError
from arcweld.compiler.ir import Graph, Node
from arcweld.compiler.options import Options
from arcweld.compiler.text import parse_graph, print_graph
from arcweld.passes import pipeline
from arcweld.passes.pipeline import PASSES, Pass, pass_names, run_passes

CONV = "strides=(1, 1), dilations=(1, 1), pads=(1, 1, 1, 1), group=1"
NET = f"""
    symbol n(lo=1, hi=8)
    input %x: f32[n, 3, 8, 8]
    weight %w1: f32[4, 3, 3, 3]
    weight %w2: f32[4, 4, 3, 3]
    weight %g: f32[4]
    weight %v: f32[4] data=(0.5, 1.0, 2.0, 0.25)
    weight %three: f32[] data=3.0
    weight %six: f32[] data=6.0
    weight %h: f32[4, 5]
    weight %hb: f32[5]
    %c = Conv(%x, %w1, {CONV}) @ 'conv1'
    %b = BatchNormalization(%c, %g, %g, %g, %v) @ 'bn1'
    %a1 = Add(%b, %three)
    %a2 = Clip(%a1, min=0.0, max=6.0)
    %a3 = Mul(%b, %a2)
    %a = Div(%a3, %six) @ 'act'
    %d = Conv(%a, %w2, {CONV}) @ 'conv2'
    %r = Add(%d, %a)
    %p = ReduceMean(%r, axes=(2, 3), keepdims=1) @ 'pool'
    %f = Reshape(%p, shape=(n, 4))
    %y = Gemm(%f, %h, %hb) @ 'head'
    output %y 'logits'
"""


def test_a_small_network_goes_through() -> None:
    before = build(NET)
    after = run_passes(before, Options(), verify_each=True)
    same_results(before, after, dims={"n": 3}, rtol=1e-4, atol=1e-4)
    assert [op for op in ops(after) if op != "Transpose"] == [
        "Conv", "HardSwish", "Conv", "Add", "ReduceSum", "Mul", "Reshape", "MatMul", "Add",
    ]  # fmt: skip
    assert after.labels() == ("logits",)


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_a_small_network_in_half(name: str) -> None:
    before = build(NET)
    after = run_passes(before, Options(precision=name), verify_each=True)
    tolerance = 2e-2 if name == "fp16" else 1.5e-1
    same_results(before, after, dims={"n": 2}, rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize("name", pass_names())
def test_every_pass_can_be_switched_off(name: str) -> None:
    before = build(NET)
    after = run_passes(before, Options(), disable=frozenset({name}), verify_each=True)
    same_results(before, after, dims={"n": 2}, rtol=1e-4, atol=1e-4)


def test_options_disable_as_well_and_unknown_names_are_refused() -> None:
    seen: list[str] = []
    run_passes(
        build(NET), Options(disable=frozenset({"layout"})), disable=frozenset({"cse"}),
        observer=lambda step, before, after: seen.append(step.name),
    )  # fmt: skip
    assert seen == [p.name for p in PASSES if p.name not in ("layout", "cse")]
    with pytest.raises(UsageError, match="no pass is called fusion-of-everything") as error:
        run_passes(build(NET), Options(), disable=frozenset({"fusion-of-everything"}))
    assert error.value.hint is not None
    assert "layout" in error.value.hint


def test_dumps_are_numbered_graphs(tmp_path: Path) -> None:
    graph = run_passes(build(NET), Options(), dump=tmp_path / "dump")
    files = sorted((tmp_path / "dump").iterdir())
    assert [f.name for f in files] == ["00-import.txt"] + [f"{i:02}-{p.name}.txt" for i, p in enumerate(PASSES, 1)]
    last = parse_graph(files[-1].read_text())
    assert print_graph(last) == print_graph(graph)


def test_passes_are_deterministic() -> None:
    first = print_graph(run_passes(build(NET), Options(precision="fp16")))
    assert first == print_graph(run_passes(build(NET), Options(precision="fp16")))


def test_verification_names_the_pass_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: Graph, options: Options) -> Graph:
        node = graph.nodes[0]
        broken = Node("Relu", (node.outputs[0],), node.outputs)
        return graph.replace(nodes=(broken, *graph.nodes[1:]))

    monkeypatch.setattr(pipeline, "PASSES", (Pass("saboteur", wrong, "breaks the graph"),))
    with pytest.raises(VerifyError, match="after saboteur: %c is read before it is written"):
        run_passes(build(NET), Options(), verify_each=True)


def test_every_pass_has_a_doc_and_a_docstring() -> None:
    for p in PASSES:
        assert p.doc
        assert p.run.__doc__
