"""Measured figures stand in the blocks that ``make figures`` writes, and nowhere else."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "figures"
PAGES = SimpleNamespace(**runpy.run_path(str(FOLDER / "pages.py")))
MEASURED = re.compile(r"\b\d[\d.,]* ?(?:s|ms|us|µs|MB|GB|KB|GiB|MiB|%)(?![\w/])|\b\d\.\d+e-\d+\b")
LIMITS = {  # kept by tests: no measurements
    "README.md": {"1 MB"}, "testing.md": {"95 %"}, "language-models.md": {"1 GiB"},
    "serving.md": {"1 GiB", "5 s"},
}  # fmt: skip


def measures() -> set[str]:
    """The functions of measures.py that take nothing and return lines: importing them would import torch."""
    tree = ast.parse((FOLDER / "measures.py").read_text(encoding="utf-8"))
    functions = (f for f in tree.body if isinstance(f, ast.FunctionDef) and not f.args.args)
    return {f.name for f in functions if f.returns is not None and ast.unparse(f.returns) == "list[str]"}


def test_every_block_has_a_measure_and_every_measure_a_block() -> None:
    assert set(PAGES.blocks()) == measures()


@pytest.mark.parametrize("page", PAGES.PAGES, ids=lambda p: p.name)
def test_figures_stand_in_blocks(page: Path) -> None:
    found = set(MEASURED.findall(PAGES.without_blocks(page.read_text(encoding="utf-8"))))
    assert found <= LIMITS.get(page.name, set())


def test_a_block_is_filled_and_the_rest_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = "a\n<!-- make figures: x -->\n{}<!-- end -->\nb\n<!-- make figures: y -->\n<!-- end -->\n"
    page.write_text(text.format("old\n"), "utf-8")
    PAGES.write(page, {"x": ["1", "2"]})
    assert page.read_text("utf-8") == text.format("1\n2\n")
