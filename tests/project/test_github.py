"""The workflow and the forms of .github: they are valid, run what exists, and ask for what a report needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from arcweld.cli.app import main

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
FORMS = sorted(p for p in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if p.name != "config.yml")
TEXTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *GITHUB.rglob("*.yml"), *GITHUB.glob("*.md")])


def parsed(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_workflow_runs_the_tests_on_the_oldest_python_that_is_promised() -> None:
    job = parsed(GITHUB / "workflows" / "test.yml")["jobs"]["test"]
    browser, emulator, *made = (step["run"] for step in job["steps"] if "run" in step)
    assert "install --yes chromium" in browser
    assert "qemu-user" in emulator
    assert made == ["make peers", "make test", "make modelled"]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={job['strategy']['matrix']['python'][0]}"


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.stem)
def test_forms_are_complete(path: Path) -> None:
    """The rules of GitHub's form schema that a mistake would break, as GitHub then shows no form at all."""
    form = parsed(path)
    assert set(form) == {"name", "description", "labels", "body"}
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert {part["type"] for part in fields} <= {"input", "textarea"}
    assert all(re.fullmatch(r"[a-z-]+", part["id"]) and part["attributes"]["label"] for part in fields)
    names = [part["id"] for part in fields]
    labels = [part["attributes"]["label"] for part in fields]
    assert len(names) == len(set(names)) == len(set(labels))
    required = {part["id"] for part in fields if part.get("validations", {}).get("required")}
    assert "doctor" in required
    assert {"bug": "reproducer", "wrong-result": "seed", "unsupported-operator": "report"}[path.stem] in required


def test_every_issue_goes_through_a_form() -> None:
    assert [p.stem for p in FORMS] == ["bug", "unsupported-operator", "wrong-result"]
    assert parsed(GITHUB / "ISSUE_TEMPLATE" / "config.yml") == {"blank_issues_enabled": False}


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.name)
def test_targets_of_make_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = re.findall(r"(?:`|^ {4}|run: )make ([a-z-]+)", path.read_text(encoding="utf-8"), re.M)
    assert set(named) - targets == set()


def test_commands_that_forms_name_exist(capsys: pytest.CaptureFixture[str]) -> None:
    named = {c for p in FORMS for c in re.findall(r"`onnx-to-engine ([a-z]+)(?: |`)", p.read_text(encoding="utf-8"))}
    assert {"doctor", "inspect", "verify"} <= named
    for command in named:
        assert main([command, "--help"]) == 0
    capsys.readouterr()
    assert main(["build", "--help"]) == 0
    assert "--verify" in capsys.readouterr().out
    assert main(["verify", "--help"]) == 0
    assert "--seed" in capsys.readouterr().out
