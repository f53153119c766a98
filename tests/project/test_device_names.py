"""Devices are asked what they can do: only ``runtime/devices.py`` may tell them apart by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("arcweld", "compiler", "passes", "codegen", "runtime", "serving", "models")
NAMES = ("cuda", "sim")


def questions(tree: ast.AST) -> Iterator[int]:
    """Lines that compare something with a device's name, by ==, in, match or startswith."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            asked: list[ast.AST] = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            asked = [node.value]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "startswith":
            asked = list(node.args)
        else:
            continue
        if any(is_name(part) for top in asked for part in ast.walk(top)):
            yield node.lineno if not isinstance(node, ast.MatchValue) else node.value.lineno


def is_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.rstrip(":") in NAMES


def test_no_module_asks_for_a_devices_name() -> None:
    found = []
    for path in sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if place != "runtime/devices.py":
            found += [f"{place}:{line}" for line in questions(ast.parse(path.read_text(encoding="utf-8")))]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        'device.name == "sim"', '"cuda" != engine.device.name', 'name in ("cuda", "sim")', 'name.startswith("cuda:")',
        'name.startswith(("sim", "cpu"))', 'match name:\n    case "sim" | "cpu":\n        pass',
    ],
)  # fmt: skip
def test_questions_are_found(text: str) -> None:
    assert list(questions(ast.parse(text)))


@pytest.mark.parametrize("text", ['device = "sim"', 'torch.zeros(3, device="cuda")', 'kind == "simple"'])
def test_other_uses_of_the_names_are_none(text: str) -> None:
    assert list(questions(ast.parse(text))) == []
