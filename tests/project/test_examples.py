"""The scripts of examples/ run by themselves, and their results are right."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(p.stem for p in EXAMPLES.glob("*.py") if p.stem != "small_model")


@pytest.fixture
def main_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[..., Any]]:
    """The function ``main`` of a script, on the simulator."""
    monkeypatch.setenv("ARCWELD_DEVICE", "sim")
    monkeypatch.syspath_prepend(EXAMPLES)
    return lambda name: runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]  # type: ignore[no-any-return]


def onnx_runtime(folder: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": x})[0]
    return result


def close(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_onnx_file(main_of: Any, tmp_path: Path) -> None:
    x, y = main_of("onnx_file")(tmp_path)
    close(y, onnx_runtime(tmp_path, x))
    assert (tmp_path / "model.engine").is_file()


def test_torch_module(main_of: Any) -> None:
    torch.testing.assert_close(*main_of("torch_module")(), rtol=1e-4, atol=1e-5)


def test_torch_compile(main_of: Any, capsys: pytest.CaptureFixture[str]) -> None:
    torch._dynamo.reset()
    torch.testing.assert_close(*main_of("torch_compile")(), rtol=1e-4, atol=1e-5)
    assert "1 left to PyTorch: aten.linalg_qr.default x1" in capsys.readouterr().out


def test_open_sizes(main_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = main_of("open_sizes")(tmp_path)
    assert len(results) == 3
    for shape, y in results.items():
        close(y, onnx_runtime(tmp_path, np.full(shape, 0.5, np.float32)))
    assert "dimension batch is 9; the engine serves 1 to 8" in capsys.readouterr().out


def test_prompt_and_steps(main_of: Any, capsys: pytest.CaptureFixture[str]) -> None:
    states = main_of("prompt_and_steps")()
    assert [tuple(y.shape) for y, _ in states] == [(1, n, 32) for n in (6, 1, 1, 1, 1)]
    for y, expected in states:
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    said = capsys.readouterr().out
    assert "at tokens=1: 3" in said
    assert "input 'at' holds the index 64, which is out of range for an axis of 64 elements" in said


def test_kv_cache(main_of: Any) -> None:
    states = main_of("kv_cache")()
    assert len(states) == 5
    for y, expected in states:
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def test_half_precision(main_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evidence = main_of("half_precision")(tmp_path)
    (output,) = evidence["outputs"]
    assert output["status"] == "verified"
    assert 0 < output["error"] <= output["tolerance"] == 1e-2
    shown = capsys.readouterr().out
    assert "conv.weight" in shown.splitlines()[-1]
    assert "fc.weight" not in shown.splitlines()[-1]


def test_swap_weights(main_of: Any, tmp_path: Path) -> None:
    before, after = main_of("swap_weights")(tmp_path)
    close(before, onnx_runtime(tmp_path, np.random.default_rng(1).random((2, 3, 16, 16), np.float32)))
    close(after, np.full((2, 5), 0.2, np.float32))  # equal scores are equal probabilities


def test_read_engine(main_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = main_of("read_engine")(tmp_path)
    shown = capsys.readouterr().out
    assert shown.startswith("for sm_80, sm_90a; ")
    for node in ("conv", "relu", "pool", "flatten", "fc", "softmax"):
        assert any(node in x.origin for x in engine.program.launches)
    assert shown.count(": verified, relative error") == len(engine.data.sources)


def test_onnx_runtime_calls(main_of: Any, tmp_path: Path) -> None:
    by_name, bound = main_of("onnx_runtime_calls")(tmp_path)
    want = onnx_runtime(tmp_path, np.random.default_rng(1).random((2, 3, 16, 16), np.float32))
    close(by_name, want)
    close(bound, want)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_run_by_themselves(name: str, tmp_path: Path) -> None:
    """From another folder, as a user starts them; nothing is left in it."""
    line = [sys.executable, str(EXAMPLES / f"{name}.py")]
    environment = {**os.environ, "ARCWELD_DEVICE": "sim"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert list(tmp_path.iterdir()) == []


def test_all_scripts_are_listed_and_tested() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for name in SCRIPTS:
        assert f"[{name}.py]({name}.py)" in listed
        assert f"test_{name}" in globals()
    assert len(SCRIPTS) >= 6


def test_custom_op(main_of: Any) -> None:
    y, expected, kernels, apart = main_of("custom_op")()
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert (kernels, apart) == (1, 4)
