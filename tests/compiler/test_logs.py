"""``ARCWELD_LOG``: every area that it names says something about a build, the others stay quiet."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from arcweld.compiler.errors import UsageError
from arcweld.compiler.logs import AREAS, configure
from arcweld.compiler.text import parse_graph
from arcweld.driver.api import build_engine

GRAPH = """graph 'logged'
input %x: f32[4, 8]
weight %w: f32[8, 6]
%i: f32[4, 8] = Identity(%x) @ 'copy'
%m: f32[4, 6] = MatMul(%i, %w) @ 'product'
%r: f32[4, 6] = Relu(%m) @ 'relu'
output %r
"""
# area -> what a build of the graph has it say
SAID = {
    "passes": "cleanup: 3 nodes -> 2",
    "fusion": "m: contract of MatMul, Relu",
    "codegen": "contract_matmul_relu for sm_80",
    "nvrtc": "contract_matmul_relu",
    "sim": "compiling contract_matmul_relu",
}


@pytest.fixture(autouse=True)
def _levels() -> Iterator[None]:
    names = ("arcweld", *(f"arcweld.{a}" for a in AREAS))
    before = [logging.getLogger(n).level for n in names]
    handlers = list(logging.getLogger("arcweld").handlers)
    yield
    for name, level in zip(names, before):
        logging.getLogger(name).setLevel(level)
    logging.getLogger("arcweld").handlers[:] = handlers


@pytest.mark.parametrize("area", SAID)
def test_an_area_speaks_when_it_is_asked_to(
    area: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ARCWELD_CACHE_DIR", str(tmp_path))
    configure(f"+{area}")
    weights = {"w": np.ones((8, 6), np.float32)}
    build_engine(parse_graph(GRAPH, weights=weights), device="sim", arch="sm_80")
    said = [r.getMessage() for r in caplog.records if r.name == f"arcweld.{area}"]
    assert any(SAID[area] in text for text in said), said
    assert not [r for r in caplog.records if r.levelno < logging.INFO and r.name != f"arcweld.{area}"]


def test_an_unknown_area_is_named() -> None:
    with pytest.raises(UsageError, match="'fusoin'"):
        configure("+fusoin")
