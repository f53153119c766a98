"""Names of a model reach the terminal as text: no control code in them is obeyed."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_models import save_model
from onnx import helper

from arcweld.cli import common
from arcweld.cli.app import main
from arcweld.compiler.logs import _Printable, printable

# sets the title, clears the screen, colours, rings, goes back, reverses the direction; C1's one-byte CSI
EVIL = "a\x1b]0;title\x07\x1b[2J\x1b[31mred\b\r\x9b31m\u202eb"
OBEYED = "\x1b\x07\b\r\x9b\u202e"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name=f"{EVIL}1"),
        helper.make_node("Relu", ["a"], [f"{EVIL}y"], name=f"{EVIL}2"),
    ]
    weights = {"w": np.eye(8, dtype=np.float32)}
    return save_model(tmp_path / "evil.onnx", nodes, {"x": ["n", 8]}, {f"{EVIL}y": ["n", 8]}, weights, check=False)


@pytest.mark.parametrize("terminal", [True, False])
def test_no_command_prints_control_codes(
    terminal: bool, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for console in (common.out, common.err):
        monkeypatch.setattr(console, "_force_terminal", terminal)
        monkeypatch.setattr(console, "no_color", True)
        monkeypatch.setattr(console, "_color_system", None)
    engine = str(model.with_suffix(".engine"))
    lines = [
        [str(model), "-o", engine, "--device=sim", "--arch=sm_80", "--quiet", "--verbose"],
        ["inspect", str(model)],
        ["inspect", engine],
        ["inspect", engine, "--json"],
        ["run", engine, "--device=sim"],
        ["verify", engine, "--onnx", str(model), "--device=sim"],
        ["bench", engine, "--device=sim", "--duration=0", "--warmUp=0", "--dumpLayerInfo"],
        ["explain", str(model), f"{EVIL}1", f"{EVIL}2"],
        ["explain", str(model), f"{EVIL}1", f"{EVIL}none"],
        ["run", engine, "--device=sim", f"--shapes={EVIL}:1x8"],
        ["run", f"{EVIL}.engine"],
        [EVIL],
    ]
    shown = ""
    for words in lines:
        main(words)
        got = capsys.readouterr()
        shown += got.out + got.err
        assert not set(OBEYED) & set(got.out + got.err), words
    assert "\\x1b" in shown


def test_logs(model: Path) -> None:
    command = [sys.executable, "-m", "arcweld", "run", str(model), "--device=sim"]
    environment = {**os.environ, "ARCWELD_LOG": "debug,+fusion"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "Relu" in done.stderr
    assert not set(OBEYED) & set(done.stderr)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Printable("%(message)s"))
    handler.emit(logging.LogRecord("arcweld", logging.INFO, "", 0, "node %s", (EVIL,), None))
    assert stream.getvalue() == f"node {printable(EVIL)}\n"


def test_a_defect_shows_no_control_codes(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(EVIL)

    monkeypatch.setattr("arcweld.cli.run.open_engine", fail)
    assert main(["run", str(model)]) == 70
    shown = capsys.readouterr().err
    assert "RuntimeError" in shown
    assert not set(OBEYED) & set(shown)


def test_other_text_stays_as_it_is() -> None:
    text = "Größe\t名前 → naïve\nπ \\ '\U0001f600'"
    assert printable(text) == text
    assert printable("\x1b[0m\x7f") == "\\x1b[0m\\x7f"
