"""``bench`` of several contestants on the simulator: what it prints, writes and refuses, and that it is right."""

from __future__ import annotations

import builtins
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from cli_models import mlp, mlp_result, mlp_weights, save_model
from onnx import helper as h

import arcweld
from arcweld.cli import contestants as contestants_module
from arcweld.cli import recorders, rivals
from arcweld.cli.app import main
from arcweld.cli.timing import Call, Sample, engine_call
from arcweld.runtime.engine import Engine
from arcweld.runtime.profiler import HOST, LaunchTime

QUICK = ("--duration=0", "--warmUp=0", "--iterations=1")
Printed = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its engine in two precisions, an engine of one size, and one with another input."""
    folder = tmp_path_factory.mktemp("compare")
    model = mlp(folder / "mlp.onnx")
    for name, words in {"a": [], "half": ["--fp16"], "three": ["--shapes=x:3x16"]}.items():
        made = ["build", str(model), "-o", str(folder / f"{name}.engine"), "--arch=sm_80", "--device=sim", *words]
        assert main(made) == 0
    other = save_model(folder / "o.onnx", [h.make_node("Relu", ["z"], ["y"])], {"z": ["N", 16]}, {"y": ["N", 16]})
    assert main(["build", str(other), "-o", str(folder / "other.engine"), "--arch=sm_80", "--device=sim"]) == 0
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCWELD_DEVICE", "sim")
    monkeypatch.chdir(folder)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    def run(*command: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main([*command]) == code
        found = capsys.readouterr()
        return found.err if code else found.out

    return run


def net() -> torch.nn.Module:
    """The model of ``mlp``, as PyTorch has it."""
    w = {n: torch.from_numpy(a) for n, a in mlp_weights().items()}

    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(torch.relu(x @ w["w1"] + w["b1"]) @ w["w2"], -1)

    return Net()


# ------------------------------------------------------------------------------------------------------- what it says


def test_four_contestants(printed: Printed, tmp_path: Path) -> None:
    """Engines, a model and ONNX Runtime: each one's error is that of numpy's result."""
    x = np.random.default_rng(1).standard_normal((5, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    words = ["a.engine", "half.engine", "mlp.onnx", "--onnxrt", f"--loadInputs=x:{tmp_path / 'x.npy'}", "--price=3.6"]
    report = json.loads(printed("bench", *words, *QUICK, "--shapes=x:5x16", "--json"))
    rows = {r["name"]: r for r in report["contestants"]}
    assert list(rows) == ["a.engine", "half.engine", "mlp.onnx", "ONNX Runtime (cpu)"]
    for r in rows.values():
        assert r["calls"] >= report["rounds"] >= 20
        assert r["minMs"] <= r["medianMs"] <= r["percentilesMs"]["90"] <= r["percentilesMs"]["99"] <= r["maxMs"]
        assert r["qps"] == pytest.approx(1e3 / r["meanMs"])
        assert r["costPerMillion"] == pytest.approx(r["meanMs"])  # a second costs a thousandth
    want = mlp_result(x, mlp_weights())
    half = arcweld.load("half.engine", "sim").run({"x": x})["y"]
    error = np.linalg.norm(half.astype(np.float64) - want) / np.linalg.norm(want)
    assert rows["half.engine"]["outputs"]["y"]["relative_error"] == pytest.approx(error, rel=0.01)
    assert rows["ONNX Runtime (cpu)"]["outputs"]["y"]["relative_error"] < 1e-6
    assert rows["a.engine"]["memoryBytes"] == arcweld.load("a.engine", "sim").memory(N=5).total
    assert rows["ONNX Runtime (cpu)"]["memoryBytes"] is None
    assert [(c["base"], c["other"]) for c in report["comparisons"]] == [("a.engine", n) for n in list(rows)[1:]]
    last = report["comparisons"][-1]
    assert last["differs"]  # the simulator is far slower than ONNX Runtime
    assert last["text"].startswith("ONNX Runtime (cpu) is ")
    assert "% faster than a.engine (p < 0.001)" in last["text"]


def test_what_is_printed(printed: Printed) -> None:
    lines = printed("bench", "a.engine", "a.engine", *QUICK, "--percentile=50,95", "--price=2").splitlines()
    assert lines[0].startswith("device: sim (")
    columns = "calls median ms mean min p50 p95 qps error cost of a million memory contestant"
    assert lines[1].split() == columns.split()
    assert [line.rsplit("  ", 1)[-1] for line in lines[2:4]] == ["a.engine", "a.engine (2)"]
    assert lines[4] == "error: the largest relative error of an output, from a.engine"
    assert "a.engine" in lines[5]


def times_of(monkeypatch: pytest.MonkeyPatch, calls: Mapping[str, int]) -> None:
    """Lets one timed call of an engine be so many calls, by its path: more of the same work takes longer."""
    opened: dict[int, str] = {}
    open_engine = contestants_module.open_engine

    def remember(name: str, *words: Any, **options: Any) -> Engine:
        engine = open_engine(name, *words, **options)
        opened[id(engine)] = name
        return engine

    def several(engine: Engine, feeds: Mapping[str, np.ndarray], copies: bool) -> Call:
        call, count = engine_call(engine, feeds, copies), calls[opened[id(engine)]]

        def later() -> Sample:
            return [call() for _ in range(count)][-1]

        return later

    monkeypatch.setattr(contestants_module, "open_engine", remember)
    monkeypatch.setattr(contestants_module, "engine_call", several)


def measured(printed: Printed) -> dict[str, Any]:
    """``copy.engine`` compared with ``other.engine``, as long as it takes on a busy machine to tell 5 %."""
    for seconds in (1, 3, 9):
        words = ("bench", "other.engine", "copy.engine", f"--duration={seconds}", "--json")
        (row,) = json.loads(printed(*words))["comparisons"]
        if row["high"] - row["low"] < 0.06:
            break
    return row


@pytest.mark.slow
def test_a_real_slowdown_is_found(folder: Path, printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of an engine with 5 % more work, on the simulator by the real clock; the copy alone does not differ.

    How large a busy machine makes it look is left open: what interrupts both adds the same time to both.
    """
    (folder / "copy.engine").write_bytes((folder / "other.engine").read_bytes())
    times_of(monkeypatch, {"other.engine": 20, "copy.engine": 20})
    same = measured(printed)
    times_of(monkeypatch, {"other.engine": 20, "copy.engine": 21})
    slower = measured(printed)
    assert not same["differs"], same["text"]
    assert slower["differs"], slower["text"]
    assert 1.02 < slower["time_ratio"] < 1.08, slower["text"]


@pytest.mark.parametrize(("threshold", "code"), [("20", 1), ("300", 0)])
def test_a_regression_beyond_the_threshold(
    threshold: str, code: int, printed: Printed, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The exit code is 1, and what was measured is written all the same."""
    (folder / "b.engine").write_bytes((folder / "a.engine").read_bytes())
    times_of(monkeypatch, {"a.engine": 2, "b.engine": 3})
    lines = tmp_path / "found.jsonl"
    words = ["bench", "a.engine", "b.engine", "--duration=0.3", f"--threshold={threshold}", f"--jsonl={lines}"]
    said = printed(*words, code=code)
    assert ("error: slower than the threshold of 20 % allows: b.engine is" in said) is bool(code)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [r["regressed"] for r in rows if r["row"] == "comparison"] == [bool(code)]


def test_json_lines_have_every_call(printed: Printed, tmp_path: Path) -> None:
    lines = tmp_path / "found.jsonl"
    report = json.loads(printed("bench", "a.engine", "half.engine", *QUICK, f"--jsonl={lines}", "--json", "--seed=3"))
    run, *rows = (json.loads(line) for line in lines.read_text().splitlines())
    assert run == {"row": "run", **{k: report[k] for k in ("device", "arch", "seed", "rounds", "drift", "threshold")}}
    for kind in ("contestant", "comparison"):
        assert [r for r in rows if r["row"] == kind] == [{"row": kind, **r} for r in report[f"{kind}s"]]
    calls = [r for r in rows if r["row"] == "call"]
    for c in report["contestants"]:
        own = [r["latencyMs"] for r in calls if r["contestant"] == c["name"]]
        assert (len(own), min(own)) == (c["calls"], c["minMs"])
    assert [r["round"] for r in calls] == sorted(r["round"] for r in calls)
    assert {r["round"] for r in calls} == set(range(report["rounds"]))


def test_one_engine_has_json_and_json_lines_too(printed: Printed, tmp_path: Path) -> None:
    lines = tmp_path / "one.jsonl"
    report = json.loads(printed("bench", "a.engine", *QUICK, "--json", f"--jsonl={lines}", "--price=3.6"))
    (row,) = report["contestants"]
    assert (row["name"], row["calls"], report["comparisons"]) == ("a.engine", 1, [])
    assert row["costPerMillion"] == pytest.approx(row["meanMs"])
    kinds = [json.loads(line)["row"] for line in lines.read_text().splitlines()]
    assert kinds == ["run", "contestant", "call"]


def test_a_profile_is_part_of_what_was_measured(
    printed: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels' times of a GPU, which are made up here, are rows like the others."""
    launch = LaunchTime("d", "contract", "contract", 3e-6, 3e-6, 6000, 12_000)
    made_up = [launch, LaunchTime("y", "x", HOST, 1e-6, 1e-6, 0, 0)]
    monkeypatch.setattr("arcweld.cli.bench.profile", lambda *_, **__: made_up)
    monkeypatch.setattr("arcweld.runtime.sim.device.SimDevice.measures_time", True)
    lines = tmp_path / "profile.jsonl"
    words = ("bench", "a.engine", *QUICK, "--dumpProfile")
    report = json.loads(printed(*words, "--json", f"--jsonl={lines}"))
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [r for r in rows if r["row"] == "kernel"] == [{"row": "kernel", **k} for k in report["kernels"]]
    first, host = report["kernels"]
    assert (first["nodes"], first["onHost"], host["onHost"]) == ("fc2", False, True)
    assert [first[n] for n in ("percentage", "GB/s", "timeMs")] == pytest.approx([75, 2, 3e-3])
    table = printed(*words).splitlines()[-2:]
    assert table[0].split() == ["3.00", "75.0", "2", "0.00", "1", "contract", "fc2"]


def test_state_that_calls_change_is_each_contestants_own(printed: Printed, folder: Path) -> None:
    """A sum that grows with each call: all contestants begin with the same one."""
    nodes = [h.make_node("Add", ["sum", "x"], ["more"]), h.make_node("Neg", ["more"], ["y"])]
    shapes = {"x": [4, 8], "sum": [4, 8]}
    save_model(folder / "sum.onnx", nodes, shapes, {"y": [4, 8], "more": [4, 8]})
    built = ["build", "sum.onnx", "-o", "sum.engine", "--inout=sum:more", "--arch=sm_80"]
    assert main(built) == 0
    report = json.loads(printed("bench", *["sum.engine"] * 3, "--onnx=sum.onnx", "--onnxrt", *QUICK, "--json"))
    for c in report["contestants"]:
        assert [o["relative_error"] for o in c["outputs"].values()] == [0, 0]


# ------------------------------------------------------------------------------------------------------------ rivals


def test_torch_as_a_module_and_as_a_file(printed: Printed, folder: Path) -> None:
    (folder / "their_code.py").write_text("def make():\n    from test_compare import net\n    return net()\n")
    n = torch.export.Dim("n", min=2, max=64)
    torch.export.save(torch.export.export(net(), (torch.zeros(4, 16),), dynamic_shapes=({0: n},)), "net.pt2")
    for spec in ("their_code:make", "net.pt2"):
        report = json.loads(printed("bench", "a.engine", f"--torch={spec}", *QUICK, "--shapes=x:4x16", "--json"))
        rival = report["contestants"][1]
        assert (rival["name"], rival["kind"]) == (f"torch eager ({spec})", "torch eager")
        assert 0 < rival["outputs"]["y"]["relative_error"] < 1e-6


@pytest.mark.skipif("ARCWELD_EVERY" not in os.environ, reason="ARCWELD_EVERY=1 runs it: C++ takes a minute to compile")
def test_torch_compile(printed: Printed, folder: Path) -> None:
    (folder / "compiled_code.py").write_text("from test_compare import net\nmodel = net()\n")
    words = ["bench", "a.engine", "--torch=compiled_code:model", "--torchCompile", *QUICK, "--shapes=x:4x16", "--json"]
    report = json.loads(printed(*words))
    assert [c["kind"] for c in report["contestants"]] == ["engine", "torch eager", "torch.compile"]
    assert report["contestants"][2]["outputs"]["y"]["relative_error"] < 1e-6


def test_without_copies_onnx_runtime_has_its_inputs_bound(printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[object] = []
    bound = onnxruntime.InferenceSession.run_with_iobinding
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "run_with_iobinding", lambda s, b: runs.append(bound(s, b))
    )
    report = json.loads(printed("bench", "mlp.onnx", "--onnxrt", "--noDataTransfers", *QUICK, "--json"))
    assert len(runs) > report["contestants"][1]["calls"]  # those that are not timed too


def test_the_engine_of_a_model_against_onnx_runtime_on_it(printed: Printed) -> None:
    """``--onnx`` names ONNX Runtime's model where there is an engine, and is a contestant where there is none."""
    for words, first in ((["a.engine"], "a.engine"), ([], "mlp.onnx")):
        report = json.loads(printed("bench", *words, "--onnx=mlp.onnx", "--onnxrt", *QUICK, "--json"))
        assert [c["name"] for c in report["contestants"]] == [first, "ONNX Runtime (cpu)"]


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["a.engine", "other.engine"], 2, "their inputs are z f32 and x f32"),
        (["a.engine", "three.engine"], 2, "three.engine does not take the inputs x:1x16"),
        (["a.engine", "o.onnx"], 2, "o.onnx and a.engine cannot be compared"),
        (["a.engine", "no.engine"], 2, "no.engine cannot be read"),
        (["a.engine", "--onnxrt"], 2, "ONNX Runtime needs the model"),
        (["a.engine", "--onnxrt", "--onnx=o.onnx"], 2, "the engine was not built from o.onnx"),
        (["mlp.onnx", "--onnxrt", "--provider=tpu"], 2, "'tpu' is not one of cpu, cuda"),
        (["mlp.onnx", "--onnxrt", "--provider=cuda"], 4, "this ONNX Runtime has no CUDAExecutionProvider"),
        (["a.engine", "a.engine", "--provider=cpu"], 2, "add --onnxrt"),
        (["a.engine", "a.engine", "--fp16"], 2, "all contestants are engines already: --fp16 is for models"),
        (["a.engine", "a.engine", "--infStreams=2"], 2, "on one stream"),
        (["a.engine", "a.engine", "--dumpProfile"], 2, "--dumpProfile is for one engine"),
        (["a.engine", "a.engine", "--exportTimes=t.json"], 2, "--jsonl has every latency"),
        (["a.engine", "--json", "--dumpOutput"], 2, "--json prints nothing else: --dumpOutput would"),
        (["a.engine", "--threshold=5"], 2, "name two engines or more"),
        (["a.engine", "a.engine", "--threshold=nan"], 2, "finite"),
        (["a.engine", "a.engine", "--price=-1"], 2, "--price"),
        (["a.engine", "--onnx=mlp.onnx"], 2, "several are compared"),
        (["--torch=net.pt2"], 2, "name an engine or a model"),
        (["a.engine", "--torchCompile"], 2, "add --torch=model.pt2"),
        (["a.engine", "--torch=absent.pt2"], 2, "absent.pt2 cannot be read"),
        (["a.engine", "--torch=mlp.onnx"], 2, "names no module"),
        (["a.engine", "--torch=no_such_package:net"], 2, "No module named 'no_such_package'"),
        (["a.engine", "--torch=math:nothing"], 2, "math:nothing cannot be imported: AttributeError"),
        (["a.engine", "--torch=math:pi"], 2, "math:pi is a float"),
        (["a.engine", "--torch=json:loads"], 2, "json:loads failed: TypeError"),
        (["a.engine", "--torch=torch.nn:Identity"], 2, "output y of torch eager"),
        (["a.engine", "a.engine", "--jsonl=a.engine"], 2, "it is read"),
        (["a.engine", "a.engine", "--jsonl=nowhere/x.jsonl"], 2, "there is no folder"),
    ],
)
def test_what_is_refused(words: list[str], code: int, said: str, printed: Printed) -> None:
    error = printed("bench", *words, *QUICK, code=code)
    assert error.count("error: ") == 1
    assert said in error
    assert "Traceback" not in error


def test_a_damaged_program_of_torch_export(printed: Printed, folder: Path) -> None:
    (folder / "damaged.pt2").write_bytes(b"PK\x03\x04 and nothing else")
    assert "damaged.pt2 is no program of torch.export" in printed(
        "bench", "a.engine", "--torch=damaged.pt2", *QUICK, code=2
    )


def test_a_file_of_measurements_is_never_replaced(printed: Printed, tmp_path: Path) -> None:
    lines = tmp_path / "kept.jsonl"
    lines.write_text("measured before\n")
    error = printed("bench", "a.engine", "a.engine", *QUICK, f"--jsonl={lines}", code=2)
    assert "kept.jsonl exists, and measurements are never replaced" in error
    assert "hint: name another file, or remove this one" in error
    assert lines.read_text() == "measured before\n"


def test_a_clock_that_jumps(printed: Printed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One error, and no measurement is left."""
    times = iter([i * 1e-3 - (100.0 if i > 150 else 0.0) for i in range(100_000)])
    monkeypatch.setattr("arcweld.cli.timing.time.perf_counter", lambda: next(times))
    lines = tmp_path / "none.jsonl"
    error = printed("bench", "a.engine", "a.engine", "--warmUp=0", "--duration=0", f"--jsonl={lines}", code=4)
    assert "error: the clock " in error
    assert "hint: measure again" in error
    assert not lines.exists()


@pytest.mark.parametrize(
    ("package", "words", "said"),
    [
        ("onnxruntime", ["mlp.onnx", "--onnxrt"], "ONNX Runtime is not installed"),
        ("torch", ["a.engine", "--torch=net.pt2"], "PyTorch is not installed"),
        ("wandb", ["a.engine", "--wandb=mine"], "Weights & Biases is not installed"),
    ],
)
def test_a_missing_extra(
    package: str, words: list[str], said: str, printed: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = builtins.__import__

    def refuse(name: str, *rest: Any, **options: Any) -> Any:
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return before(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    error = printed("bench", *words, *QUICK, code=4)
    assert said in error
    assert f"hint: pip install {package}" in error


def test_a_provider_that_does_not_start(printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime goes on with the CPU then; that would be another contestant."""
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    error = printed("bench", "mlp.onnx", "--onnxrt", "--provider=cuda", *QUICK, code=4)
    assert "CUDAExecutionProvider cannot start here" in error


# ---------------------------------------------------------------------------------------------------- weights & biases


class FakeRun:
    """A run of Weights & Biases that remembers what it is told."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.history, self.summary = options, [], {}  # type: ignore[var-annotated]

    def __enter__(self) -> FakeRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.options["ended"] = True

    def log(self, row: dict[str, float]) -> None:
        self.history.append(row)


def test_what_weights_and_biases_is_told(printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[FakeRun] = []

    class Fake:
        Error = RuntimeError

        @staticmethod
        def init(**options: Any) -> FakeRun:
            runs.append(FakeRun(options))
            return runs[-1]

    monkeypatch.setitem(sys.modules, "wandb", Fake)  # type: ignore[arg-type]
    report = json.loads(printed("bench", "a.engine", "half.engine", *QUICK, "--wandb=mine", "--json"))
    (run,) = runs
    assert (run.options["project"], run.options["config"]["rounds"]) == ("mine", report["rounds"])
    assert run.options["ended"]
    assert len(run.history) == sum(c["calls"] for c in report["contestants"])
    latencies = [row["half.engine/latencyMs"] for row in run.history if "half.engine/latencyMs" in row]
    assert min(latencies) == report["contestants"][1]["minMs"]
    assert run.summary["half.engine to a.engine"] == report["comparisons"][0]
    assert run.summary["a.engine"] == report["contestants"][0]


def test_weights_and_biases_offline(printed: Printed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real client without a network: it leaves a run on disk that holds what was measured."""
    pytest.importorskip("wandb", reason="Weights & Biases is not installed: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    printed("bench", "a.engine", "half.engine", *QUICK, "--wandb=mine")
    (record,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    held = record.read_bytes()
    for word in (b"half.engine/latencyMs", b"half.engine to a.engine", b"medianMs"):
        assert word in held


def test_a_refusal_of_weights_and_biases(printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        class Error(Exception):
            pass

        @staticmethod
        def init(**_: Any) -> None:
            raise Refusing.Error("api_key not configured")

    monkeypatch.setitem(sys.modules, "wandb", Refusing)  # type: ignore[arg-type]
    error = printed("bench", "a.engine", *QUICK, "--wandb=mine", code=4)
    assert "Weights & Biases refused the run: api_key not configured" in error


def test_the_recorders_are_nothing_unless_asked_for() -> None:
    assert recorders.open_recorders("", "", ()) == recorders.Recorders(None, "")
    assert rivals.PROVIDERS.keys() == {"cpu", "cuda"}
