"""What stands in for a source whose tactic turns out bad, and in which order implementations are tried."""

from __future__ import annotations

import functools

import pytest
from cases_attention import Shape, attention_kernel
from test_golden import CASES, SYMBOLS

from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.templates.select import IMPLEMENTATIONS, alternatives, implementations, select
from arcweld.compiler.dtypes import DType
from arcweld.compiler.options import Options
from arcweld.compiler.text import parse_graph
from arcweld.driver.build import build_graph

ARCHS = ("sm_80", "sm_90a")
F16 = DType.F16


@functools.cache
def usual() -> tuple[tuple[Kernel, KernelSource], ...]:
    """The kernels of the golden graphs, each with the sources that an untuned build takes."""
    options = Options(arch=ARCHS)
    graphs = [parse_graph(f"graph 'usual'\n{SYMBOLS}{text}") for _, text in CASES.values()]
    planned = [p for g in graphs for p in build_graph(g, options, compile_kernels=False).planned]
    return tuple((x.bound.kernel, s) for p in planned for x in (*p.before, p) for s in x.sources)


def test_every_template_has_alternatives_for_every_architecture() -> None:
    assert {kernel.template for kernel, _ in usual()} == set(IMPLEMENTATIONS)
    exact = {kernel.template for kernel, source in usual() if source.arch == "sm_90a"}
    assert exact == {"contract", "chain", "attention"}
    assert [source.entry for kernel, source in usual() if not any(alternatives(kernel, source))] == []


def test_alternatives_are_distinct_and_serve_the_same_architecture() -> None:
    for kernel, source in usual():
        found = [s for group in alternatives(kernel, source) for s in group]
        assert {s.arch for s in found} == {source.arch}
        assert len({s.source for s in found} | {source.source}) == len(found) + 1


@pytest.mark.parametrize("mask", ["", "key"])
def test_portable_code_stands_in_for_wgmma(mask: str) -> None:
    kernel = attention_kernel(Shape(b=8, h=16, s=512, t=512, d=64, dtype=F16, mask=mask))
    source, portable = select(kernel, "sm_90a"), select(kernel, "sm_80")
    assert "wgmma" in source.source
    own, others = alternatives(kernel, source)
    assert own
    assert all("wgmma" in s.source for s in own)
    assert others[0].source == portable.source
    assert not any("wgmma" in s.source for s in others)
    own, others = alternatives(kernel, portable)
    assert own
    assert not others


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        (Shape(b=8, h=16, s=512, t=512, d=64, dtype=F16), ["wgmma", "mma"]),
        (Shape(b=1, h=12, s=128, t=128, d=64, dtype=F16), ["mma", "wgmma"]),  # too few queries for the card
        (Shape(b=8, h=16, s=512, t=512, d=256, dtype=F16), ["mma"]),
        (Shape(b=8, h=16, s=512, t=512, d=64), ["ffma"]),
    ],
)
def test_attention_takes_wgmma_first_where_it_fills_the_card(shape: Shape, names: list[str]) -> None:
    assert [i.name for i in implementations(attention_kernel(shape), "sm_90a")] == names
