"""The table of docs/models.md counts what the compiler makes today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from arcweld.compiler.errors import EnvironmentError_
from arcweld.compiler.onnx.importer import import_onnx
from arcweld.compiler.options import Options
from arcweld.driver.build import build_graph
from arcweld.models.catalogue import MODELS
from arcweld.models.fetch import fetch

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
BLOCK = TEXT.partition("<!-- make figures: catalogue -->")[2].partition("<!-- end -->")[0]
ROWS = re.findall(r"^\| `(\w+)` \| .* \| (\d+) \| (\d+)(?: \((\d+)\))? \| \S+ \|$", BLOCK, re.M)


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.parametrize(("name", "nodes", "launches", "kernels"), ROWS, ids=[r[0] for r in ROWS])
def test_counts_of_a_row(name: str, nodes: str, launches: str, kernels: str) -> None:
    try:
        path = fetch(name)
    except EnvironmentError_ as error:
        pytest.skip(str(error))
    graph = import_onnx(path, **MODELS[name].import_options())
    build = build_graph(graph, Options(arch=("sm_80",)), compile_kernels=False)
    made = len(build.data.program.launches), len(build.data.sources)
    assert (int(nodes), (int(launches), int(kernels or launches))) == (len(build.imported.nodes), made)


def test_rows_are_found() -> None:
    assert [r[0] for r in ROWS] == list(MODELS)
