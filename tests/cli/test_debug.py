"""``debug``: what it prints, its exit codes, the folders it leaves, and what it says of bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_models import mlp, save_model
from injection import edited
from onnx import TensorProto, helper

from arcweld.cli.app import main
from arcweld.driver.api import build_engine, import_model

Printed = Callable[..., str]
COMMANDS = ("first-divergence", "bisect", "reduce", "precision")


def dropped(text: str) -> str:
    """The kernel without Relu."""
    return text.replace("max_nan(t2, 0.0f)", "t2").replace("max_nan(t1, 0.0f)", "t1")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARCWELD_DEVICE", "sim")
    monkeypatch.chdir(tmp_path)
    mlp(tmp_path / "m.onnx")
    return tmp_path


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    def run(*command: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(["debug", *command]) == code
        found = capsys.readouterr()
        return found.err if code > 1 else found.out

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_that_is_right(command: str, printed: Printed, folder: Path) -> None:
    more = ["--fp16"] if command == "precision" else []
    text = printed(command, "m.onnx", *more)
    assert text.startswith("nothing is wrong: ") or text.endswith("no node needs f32\n")
    assert [p.name for p in folder.iterdir()] == ["m.onnx"]
    assert json.loads(printed(command, "m.onnx", "--json", *more)) is None or command in (
        "first-divergence",
        COMMANDS[3],
    )


def test_an_engine_with_a_wrong_kernel(printed: Printed, folder: Path) -> None:
    """Another process finds it: the wrong kernel is in the file, and in the folder that is left."""
    with edited(dropped):
        build_engine(import_model("m.onnx"), device="sim", verify="off")[1].save("wrong.engine")
    text = printed("first-divergence", "wrong.engine", "--shapes=x:3x16", code=1)
    assert text.startswith(
        "the first kernel that diverges does not compute what its nodes say: contract_matmul_add_relu"
    )
    assert "\n  nodes: fc1, relu\n" in text
    assert text.endswith("python wrong.first-divergence/reproduce.py shows it\n")
    again = subprocess.run(
        [sys.executable, "wrong.first-divergence/reproduce.py"], capture_output=True, text=True, check=False
    )
    assert (again.returncode, again.stderr) == (1, "")
    assert "of fc1, relu" in again.stdout
    report = json.loads(printed("first-divergence", "wrong.engine", "--force", "--json", code=1))
    wrong = [b for b in report["boundaries"] if b["cause"]]
    assert [b["nodes"] for b in wrong] == [["fc1", "relu"]]
    text_of = Path("wrong.engine").read_bytes()
    member, line = wrong[0]["source"].split(":")
    assert member.encode() in text_of
    assert int(line) > 1


def test_checked_mode_names_a_missing_barrier(printed: Printed) -> None:
    """Without the barrier behind the first tiles, warps read what is not there yet."""
    with edited(lambda text: text.replace("Group::sync();", ";") if "contract_matmul_add_relu" in text else text):
        text = printed("first-divergence", "m.onnx", "--shapes=x:40x16", code=1)
        report = json.loads(printed("first-divergence", "m.onnx", "--shapes=x:40x16", "--force", "--json", code=1))
    assert "nodes: fc1, relu" in text
    assert "checked mode: " in text
    assert "race" in report["checked"] or "uninitialised" in report["checked"], report["checked"]


def test_the_other_searches_of_a_wrong_kernel(printed: Printed, folder: Path) -> None:
    with edited(dropped):
        text = printed("bisect", "m.onnx", "--shapes=x:3x16", code=1)
        assert "wrong without any pass" in text  # Relu by itself is wrong too
        text = printed("reduce", "m.onnx", "-o", "small", "--seconds=60", code=1)
    assert text.startswith("1 of 4 nodes fail by themselves: Relu relu\n")
    model = onnx.load("small/model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [n.op_type for n in model.graph.node] == ["Relu"]
    assert list(np.load("small/inputs.npz")) == ["a"]


def test_precision(printed: Printed, folder: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "big"], ["a"], name="up"),
        helper.make_node("Mul", ["a", "big"], ["b"], name="far"),
        helper.make_node("Softmax", ["b"], ["y"], name="softmax", axis=-1),
    ]
    save_model(folder / "p.onnx", nodes, {"x": [4, 8]}, {"y": [4, 8]}, {"big": np.float32(1e3)})
    text = printed("precision", "p.onnx", "--fp16", code=1)
    assert "far" in text
    assert "--layerPrecisions=" in text
    line = next(x for x in text.splitlines() if x.startswith("--layerPrecisions="))
    assert main(["build", "p.onnx", "-o", "p.engine", "--fp16", line]) == 0


def test_errors_that_add_up(printed: Printed) -> None:
    """Below what rounding gives, no kernel is at fault, and the engine with its inputs is what is left."""
    text = printed("first-divergence", "m.onnx", "--tolerance=1e-9", code=1)
    assert "output y has relative error" in text
    assert "no kernel is wrong by itself" in text
    done = subprocess.run(
        [sys.executable, "m.first-divergence/reproduce.py"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "the engine, of the whole model" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = printed(command, "--help")
    assert max(map(len, text.splitlines())) <= 80
    assert "--force" in text


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["bisect", "m.onnx", "--disable=fusoin"], 2, "no pass is called fusoin"),
        (["bisect", "m.onnx", "--loadInputs=x:wide.npy"], 2, "axis 1 of input x is 16, not 17"),
        (["reduce", "m.onnx", "--loadInputs=x:text.npy"], 2, "text.npy"),
        (["bisect", "m.onnx", "-o", "m.onnx"], 2, "is no folder that `debug` wrote"),
        (["bisect", "m.onnx", "-o", "m.onnx", "--force"], 2, "is no folder that `debug` wrote"),
        (["bisect", "m.onnx", "-o", "full", "--force"], 2, "is no folder that `debug` wrote"),
        (["bisect", "m.onnx", "-o", "before"], 2, "before exists"),
        (["bisect", "m.onnx", "-o", "no/where"], 2, "there is no folder"),
        (["bisect", "m.onnx", "--tolerance=nan"], 2, "no tolerance"),
        (["bisect", "m.onnx", "--fp16", "--bf16"], 2, "exclude each other"),
        (["bisect", "m.engine"], 2, "a model is needed here"),
        (["first-divergence", "m.engine", "--fp16"], 2, "is an engine already"),
        (["first-divergence", "m.engine", "--loadInputs=x:wide.npy"], 2, "axis 1 of input x"),
        (["first-divergence", "m.onnx", "--reference=f16"], 2, "'f16' is not one of f64, f32"),
        (["first-divergence", "none.onnx"], 2, "none.onnx cannot be read"),
        (["first-divergence", "text.npy"], 2, "text.npy"),
        (["precision", "m.onnx"], 2, "in fp32 all nodes stay in f32"),
        (["bisect", "stages.onnx"], 3, "is in stages"),
        (["first-divergence", "stages.engine"], 3, "is in stages"),
        (["frobnicate", "m.onnx"], 2, "frobnicate"),
        ([], 2, "Missing command"),
    ],
)  # fmt: skip
def test_bad_input(words: list[str], code: int, message: str, printed: Printed, folder: Path) -> None:
    np.save("wide.npy", np.zeros((2, 17), np.float32))
    Path("text.npy").write_text("nothing of the kind")
    for name, file in (("full", "x.txt"), ("before", "reproduce.py")):
        (folder / name).mkdir()
        (folder / name / file).write_text("kept")
    if any("stages" in w for w in words):
        nodes = [
            helper.make_node("NonZero", ["x"], ["i"]),
            helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        ]
        save_model(folder / "stages.onnx", nodes, {"x": [6, 4]}, {"f": [2, "k"]})
    for engine in (w for w in words if w.endswith(".engine")):
        model = engine.replace(".engine", ".onnx")
        build_engine(import_model(model), device="sim", verify="off")[1].save(engine)
    before = sorted(folder.rglob("*"))
    text = printed(*words, code=code)
    assert message in text
    assert text.startswith("error: ")
    assert "Traceback" not in text
    assert sorted(folder.rglob("*")) == before
    assert (folder / "full" / "x.txt").read_text() == (folder / "before" / "reproduce.py").read_text() == "kept"
