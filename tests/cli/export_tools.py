"""Helpers of the tests of exports and profiles: models, engines, and a simulator that passes for a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_models import mlp, save_model
from onnx import helper as h

from arcweld.cli.app import main
from arcweld.runtime import profiler
from arcweld.runtime.sim.device import SimDevice

HOSTILE = "</script>\x1b[2J\u202e/fc \"1\""
Printed = Callable[..., str]


@pytest.fixture(autouse=True)
def on_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCWELD_DEVICE", "sim")


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    def run(*command: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main([*command]) == code
        found = capsys.readouterr()
        return found.err if code else found.out

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


def built(model: Path, *options: str) -> Path:
    path = model.with_suffix(".engine")
    assert main([str(model), "-o", str(path), "--arch=sm_90a", "--device=sim", "--quiet", *options]) == 0
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """``mlp`` with a node whose name no terminal and no page should obey."""
    found = onnx.load(mlp(folder / "mlp.onnx"))
    for node in found.graph.node:
        node.name = HOSTILE if node.name == "fc1" else node.name
    onnx.save(found, folder / "mlp.onnx")
    return folder / "mlp.onnx"


@pytest.fixture(scope="module")
def engine(model: Path) -> Path:
    return built(model, "--fp16")


@pytest.fixture(scope="module")
def staged(folder: Path) -> Path:
    """Launches, a size that the host reads, and launches behind it."""
    weights = {"w": np.eye(4, dtype=np.float32), "v": np.ones((2, 4), np.float32)}
    nodes = [
        h.make_node("Gemm", ["x", "w"], ["g"], name="before"), h.make_node("NonZero", ["g"], ["i"], name="where"),
        h.make_node("Cast", ["i"], ["f"], to=onnx.TensorProto.FLOAT, name="cast"),
        h.make_node("Transpose", ["f"], ["t"], name="turn"), h.make_node("Gemm", ["t", "v"], ["y"], name="after"),
    ]  # fmt: skip
    return built(save_model(folder / "staged.onnx", nodes, {"x": [6, 4]}, {"y": ["k", 4]}, weights))


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulator passes for a GPU whose n-th launch takes n us, and 4 n us in one of three rounds."""
    count = iter(range(1, 1000))
    monkeypatch.setattr(SimDevice, "measures_time", True)
    monkeypatch.setattr(
        profiler, "_time", lambda device, prepared, repeat, rounds: [(k := next(count)) * 1e-6, 4e-6 * k, 1e-6 * k]
    )  # fmt: skip


def exported(path: Path, form: str, target: Path, *options: str) -> Any:
    assert main(["export", str(path), f"--format={form}", "-o", str(target), *options]) == 0
    return json.loads(target.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def profiled(engine: Path, target: Path, *options: str) -> list[dict[str, Any]]:
    words = ["--warmUp=0", "--duration=0", "--iterations=1", f"--exportProfile={target}"]
    assert main(["bench", str(engine), *words, *options]) == 0
    found: list[dict[str, Any]] = json.loads(target.read_text())
    return found


def check_trace(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The rules of the Trace Event Format for the events that are there; returns the slices."""
    assert found["displayTimeUnit"] in ("ms", "ns")
    named = {(e["pid"], e["tid"]) for e in found["traceEvents"] if e["name"] == "thread_name"}
    assert [e["name"] for e in found["traceEvents"]].count("process_name") == 1
    ends: dict[tuple[int, int], float] = {}
    for e in found["traceEvents"]:
        assert isinstance(e["name"], str)
        assert isinstance(e["pid"], int)
        assert isinstance(e["tid"], int)
        assert isinstance(e["args"], dict)
        match e["ph"]:
            case "M":
                assert e["name"] in ("process_name", "thread_name", "thread_sort_index")
                assert set(e["args"]) == {"sort_index" if e["name"].endswith("index") else "name"}
            case "C":
                assert e["ts"] >= 0
                assert all(isinstance(v, int | float) for v in e["args"].values())
            case "X":
                row = e["pid"], e["tid"]
                assert row in named
                assert e["dur"] >= 0
                assert e["ts"] >= ends.get(row, 0.0) - 1e-9  # slices of a row may nest, and these do not overlap
                ends[row] = e["ts"] + e["dur"]
            case other:
                pytest.fail(f"{other} is no phase that is written")
    return [e for e in found["traceEvents"] if e["ph"] == "X"]
