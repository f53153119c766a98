"""Damaged engine files: a real engine with any bytes changed is refused, or is the engine it was."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cli_models import mlp
from hypothesis import example, given, settings
from hypothesis import strategies as st

from arcweld.cli.app import main
from arcweld.compiler.errors import EngineFileError, InputError
from arcweld.driver.api import compile as compile_model
from arcweld.runtime.engine import Engine, load
from arcweld.runtime.engine_file import parse_engine
from arcweld.runtime.session import InferenceSession
from arcweld.runtime.sim.device import SimDevice


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine with object code, PTX, evidence and weights."""
    folder = tmp_path_factory.mktemp("engines")
    engine = compile_model(mlp(folder / "mlp.onnx"), arch=["sm_80"], device="sim")
    engine.save(folder / "mlp.engine")
    return folder / "mlp.engine"


@settings(max_examples=2000)
@given(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8)), max_size=3),
    st.one_of(st.none(), st.floats(0, 1)),
)
@example([], 0.0)
@example([(0.0, b"PK\x05\x06")], None)
def test_changed_bytes(path: Path, changes: list[tuple[float, bytes]], end: float | None) -> None:
    original = path.read_bytes()
    data = bytearray(original)
    for where, new in changes:
        at = int(where * len(data))
        data[at : at + len(new)] = new[: len(data) - at]
    if end is not None:
        del data[int(end * len(data)) :]
    try:
        engine = parse_engine(memoryview(bytes(data)))
    except EngineFileError:
        return
    intact = parse_engine(memoryview(original))
    assert engine.program == intact.program
    assert engine.sources == intact.sources
    assert engine.cubins == intact.cubins
    assert all(np.array_equal(engine.weights[n], intact.weights[n]) for n in intact.weights)


def test_inspecting_runs_nothing_of_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a compiler was started or a library loaded")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert main(["inspect", str(path)]) == 0
    with pytest.raises(AssertionError, match="library loaded"):  # what loading it would do
        load(path, SimDevice())


@pytest.mark.parametrize("kind", ["truncated", "flipped", "empty", "text", "model", "folder"])
def test_the_command_line_refuses_in_one_line(
    kind: str, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, bad = bytearray(path.read_bytes()), tmp_path / "bad.engine"
    data[len(data) // 2] ^= 16
    contents = {"truncated": path.read_bytes()[:-100], "flipped": bytes(data), "empty": b"", "text": b"hello\n"}
    if kind == "model":
        bad = path.parent / "mlp.onnx"
    elif kind == "folder":
        bad.mkdir()
    else:
        bad.write_bytes(contents[kind])
    with pytest.raises(EngineFileError):
        load(bad, "sim")
    if kind != "model":  # which the command would compile
        for command in ("run", "bench", "inspect"):
            assert main([command, str(bad)]) in (2, 3)
            shown = capsys.readouterr().err
            assert "error: " in shown
            assert "bad.engine" in shown


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "'x' is missing"),
        ({"y": np.zeros((1, 16), np.float32)}, "no input 'y'"),
        ({"x": np.zeros((1, 16), np.float64)}, "got f64"),
        ({"x": np.zeros((1, 16), np.int32)}, "got i32"),
        ({"x": np.zeros((1, 17), np.float32)}, "17"),
        ({"x": np.zeros(16, np.float32)}, "1"),
        ({"x": [[0.0] * 16]}, "list"),
        ({"x": "text"}, "str"),
        ({"x": None}, "None"),
        ({"x": np.array([["a"] * 16])}, ""),
        ({"x": np.zeros((1, 16), np.float32), "z": 1}, "no input 'z'"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_named(path: Path, feeds: dict[str, object], message: str) -> None:
    engine = load(path, "sim")
    with pytest.raises(InputError) as caught:
        engine.run(feeds)
    assert message in str(caught.value)
    with pytest.raises(InputError):
        InferenceSession(path, "sim").run(None, feeds)
    assert Engine(engine.data, "sim")(np.zeros((2, 16), np.float32)).shape == (2, 10)  # and harm nothing
