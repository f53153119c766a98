"""The commands on a model whose shapes depend on data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from arcweld.cli.app import main


@pytest.fixture
def chosen(tmp_path: Path) -> Path:
    """Values above 0, in order, and the different rows of a table."""
    nodes = [
        h.make_node("Relu", ["x"], ["r"]), h.make_node("NonZero", ["r"], ["i"], name="where"),
        h.make_node("Transpose", ["i"], ["t"]), h.make_node("GatherND", ["x", "t"], ["v"], name="take"),
        h.make_node("Exp", ["v"], ["e"], name="exp"), h.make_node("Sigmoid", ["table"], ["p"]),
        h.make_node("Unique", ["p"], ["kept"], name="rows", axis=0),
    ]  # fmt: skip
    inputs = [("x", ["n", 5]), ("table", [6, 2])]
    outputs = [("e", T.FLOAT), ("kept", T.FLOAT)]
    graph = h.make_graph(
        nodes, "chosen", [h.make_tensor_value_info(n, T.FLOAT, s) for n, s in inputs],
        [h.make_tensor_value_info(n, t, None) for n, t in outputs],
    )  # fmt: skip
    path = tmp_path / "chosen.onnx"
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_all_commands_know_stages(
    chosen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCWELD_DEVICE", "sim")
    built, shapes = tmp_path / "chosen.engine", "--shapes=x:3x5,table:6x2"

    def printed(*command: str) -> str:
        assert main(list(command)) == 0
        return capsys.readouterr().out

    assert "1 fallback (Unique), 2 stages, 1 host read" in printed(str(chosen), "-o", str(built))
    text = printed("inspect", str(built))
    assert "on the host: Unique of p (48 bytes) gives kept" in text
    assert "_count * 2 * 4 bytes)" in text
    assert "i_count from 0 (where)" in text
    report = json.loads(printed("inspect", str(built), "--json"))
    assert [row["step"] for row in report["steps"]] == ["run", "read", "call", "run"]
    assert {row["nodes"][-1] for row in report["launches"]} >= {"where", "exp"}
    assert "e: float32" in printed("run", str(built), shapes)
    for against in ([], ["--onnxrt"]):
        assert printed("verify", str(built), f"--onnx={chosen}", shapes, *against).count("pass") == 2
    quick = ("--duration=0", "--warmUp=0", "--json")
    compared = json.loads(printed("bench", str(built), f"--onnx={chosen}", "--onnxrt", shapes, *quick))
    for row in compared["contestants"]:
        assert max(o["relative_error"] for o in row["outputs"].values()) < 1e-6
    assert printed("diff", str(built), str(built), shapes) == f"{built} and {built} run the same\n"
    narrow = tmp_path / "narrow.engine"
    printed(str(chosen), "-o", str(narrow), "--shapes=x:2x5")
    assert main(["diff", str(built), str(narrow), "--json"]) == 1
    changed = json.loads(capsys.readouterr().out)
    assert changed["interface"]["input x"] == ["f32[n, 5]", "f32[2, 5]"]
    assert changed["time"]["not_modelled"] == "the size of 'i_count' is needed, and data decide it"
    assert main([str(chosen), "-o", str(tmp_path / "strict.engine"), "--strict"]) == 3
    assert "Unique [rows]: there is no kernel" in capsys.readouterr().err
    assert not (tmp_path / "strict.engine").exists()
    explained: Callable[..., str] = printed
    assert "one pointwise kernel" in explained("explain", str(chosen), "take", "exp")
