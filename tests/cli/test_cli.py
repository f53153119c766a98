"""``onnx-to-engine``, run in this process on small models: results, spellings, exit codes, notes, files that appear."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from cli_models import mlp, mlp_result, mlp_weights, unknown_operators
from typer.main import get_command

from arcweld.cli import app as cli
from arcweld.cli.app import COMMANDS, app, main
from arcweld.cli.arguments import INERT
from arcweld.compiler.errors import AccuracyError, EnvironmentError_
from arcweld.runtime.engine_file import read_engine

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mlp(tmp_path_factory.mktemp("models") / "mlp.onnx")


@pytest.fixture(scope="module")
def engine(model: Path) -> Path:
    path = model.parent / "mlp.engine"
    assert main([str(model), "-o", str(path), "--arch", "sm_90a", "--device", "sim"]) == 0
    return path


@pytest.fixture(autouse=True)
def on_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCWELD_DEVICE", "sim")


Words = pytest.CaptureFixture[str]


def test_build_prints_one_line_and_no_progress_bar(model: Path, tmp_path: Path, capsys: Words) -> None:
    path = tmp_path / "a.engine"
    assert main([str(model), "-o", str(path), "--arch", "sm_80,sm_90a"]) == 0
    shown = capsys.readouterr()
    line = (
        r"4 nodes -> \d kernels, 0 fallbacks, max err \S+ \(\d/\d kernels verified on sim\), \S+ kB weights, "
        r"\S+ kB workspace at \w+=\d+, built in \S+ s\n"
    )
    assert re.fullmatch(line, shown.out)
    assert "\x1b" not in shown.err
    assert read_engine(path).archs == ("sm_80", "sm_90a")
    assert [p.name for p in tmp_path.iterdir()] == ["a.engine"]


def test_trtexec_spellings_build_the_range_that_they_name(model: Path, tmp_path: Path, capsys: Words) -> None:
    path = tmp_path / "b.engine"
    ranges = ["--minShapes=x:2x16", "--optShapes=x:4x16", "--maxShapes", "x:8x16"]
    flags = ["--fp16", "--noTF32", "--memPoolSize=workspace:64", "--skipInference", "--iterations=5", "--verbose"]
    assert main([f"--onnx={model}", f"--saveEngine={path}", "--arch=sm_80", *ranges, *flags]) == 0
    shown = capsys.readouterr()
    for flag in ("memPoolSize", "skipInference", "iterations"):
        assert f"note: --{flag} has no effect: " in shown.err
    assert re.search(r"nvrtc +\d", shown.err)
    program = read_engine(path).program
    (symbol,) = program.symbols
    assert (symbol.lo, symbol.hi) == (2, 8)
    assert read_engine(path).verify["shapes"] == {"x": [4, 16]}
    assert "f16" in {t.dtype for t in program.weights}


def test_a_fixed_shape(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.engine"
    assert main(["build", str(model), "-o", str(path), "--shapes=x:3x16", "--arch=sm_80"]) == 0
    assert read_engine(path).program.symbols == ()


def test_run_computes_what_numpy_does(engine: Path, model: Path, tmp_path: Path, capsys: Words) -> None:
    x = np.random.default_rng(4).standard_normal((5, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    x.tofile(tmp_path / "x.bin")
    np.savez(tmp_path / "x.npz", x=x)
    want = mlp_result(x, mlp_weights())
    npy, raw, npz = (tmp_path / f"x.{kind}" for kind in ("npy", "bin", "npz"))
    spellings = [f"--loadInputs=x:{npy}", f"--load-inputs=x:{raw}", f"--loadInputs={npz}"]
    for source in (engine, model):
        for given in spellings:
            results = tmp_path / "y.npz"
            assert main(["run", str(source), given, "--shapes=x:5x16", "--save-outputs", str(results)]) == 0
            np.testing.assert_allclose(np.load(results)["y"], want, rtol=1e-5, atol=1e-6)
    assert "y: float32[5, 10]" in capsys.readouterr().out
    results = tmp_path / "y.json"
    assert main(["run", f"--loadEngine={engine}", spellings[0], "--shapes=x:5x16", f"--exportOutput={results}"]) == 0
    (row,) = json.loads(results.read_text())
    assert (row["name"], row["dimensions"]) == ("y", "5x10")
    np.testing.assert_allclose(np.array(row["values"]).reshape(5, 10), want, rtol=1e-5, atol=1e-6)


def test_random_inputs_depend_on_seed_and_range_only(engine: Path, capsys: Words) -> None:
    def line(*words: str) -> str:
        assert main(["run", str(engine), *words]) == 0
        return capsys.readouterr().out.splitlines()[0]

    assert line() == line("--seed=0")
    assert line() != line("--seed=1")
    assert line("--val-range=[5,6]") == line("--val-range", "x:[5,6]") != line()


def test_inspect_an_engine(engine: Path, capsys: Words) -> None:
    assert main(["inspect", str(engine), "--json", "--shapes=x:4x16"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["archs"] == ["sm_90a"]
    assert report["inputs"] == {"x": "f32[N, 16]"}
    assert {n for x in report["launches"] for n in x["nodes"]} == {"fc1", "relu", "fc2", "softmax"}
    assert report["weight_bytes"] == 4 * (16 * 32 + 32 + 32 * 10)
    assert report["input_bytes"] == 256  # 4 * 16 * 4
    assert report["arena_bytes"] >= 4 * 32 * 4 + 4 * 10 * 4
    assert report["verify"]["outputs"][0]["status"] == "verified"
    assert main(["inspect", str(engine)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"workspace 512 B at N=1", text)  # the size that it was verified with
    assert "fc1, relu" in text


def test_inspect_a_model(model: Path, capsys: Words) -> None:
    assert main(["inspect", str(model), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["operators"] == {"Gemm": 1, "Relu": 1, "MatMul": 1, "Softmax": 1}
    assert report["unsupported"] == []
    assert main(["inspect", str(model)]) == 0
    assert "input x: f32[N, 16]" in capsys.readouterr().out


def test_inspect_names_every_unsupported_node(tmp_path: Path, capsys: Words) -> None:
    path = unknown_operators(tmp_path / "unknown.onnx")
    assert main(["inspect", str(path)]) == 3
    shown = capsys.readouterr()
    assert "unsupported first (Foo)" in shown.out
    assert "unsupported second (Bar)" in shown.out
    assert "2 of 3 nodes" in shown.err


def test_explain(model: Path, capsys: Words) -> None:
    assert main(["explain", str(model)]) == 0
    assert "one contract kernel: fc1, relu\n" in capsys.readouterr().out
    assert main(["explain", str(model), "fc1", "relu"]) == 0
    assert capsys.readouterr().out == "one contract kernel: fc1, relu\n"
    assert main(["explain", str(model), "fc1", "softmax"]) == 0
    assert "fc1 and softmax are not neighbours" in capsys.readouterr().out
    assert main(["explain", str(model), "a", "b", "c"]) == 2


@pytest.mark.parametrize("against", [[], ["--onnxrt"]], ids=["numpy", "onnxruntime"])
def test_verify_passes_and_fails(engine: Path, model: Path, tmp_path: Path, against: list[str], capsys: Words) -> None:
    assert main(["verify", str(engine), f"--onnx={model}", "--shapes=x:6x16", *against]) == 0
    assert capsys.readouterr().out.startswith("pass y: max abs ")
    other = mlp(tmp_path / "other.onnx", mlp_weights(1))
    assert main(["verify", str(engine), f"--onnx={other}", "--shapes=x:6x16", *against]) == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("FAIL y: ")
    assert "1 of 1 outputs differ: y" in shown.err
    assert main(["verify", str(engine)]) == 2


def test_bench_speaks_trtexec(engine: Path, tmp_path: Path, capsys: Words) -> None:
    times, layers = tmp_path / "times.json", tmp_path / "layers.json"
    flags = ["--iterations=7", "--warmUp=1", "--duration=0", "--percentile=50,99", "--useCudaGraph", "--dumpLayerInfo"]
    flags += ["--noDataTransfers", f"--exportLayerInfo={layers}"]
    assert main([f"--loadEngine={engine}", f"--exportTimes={times}", *flags]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^Throughput: [\d.e+]+ qps$", out, re.M)
    words = [rf"{word} = [\d.e-]+ ms" for word in ("min", "max", "mean", "median", r"percentile\(50%\)")]
    assert re.search("^Latency: " + ", ".join(words), out, re.M)
    assert "device: sim" in out
    assert "contract): fc1, relu\n" in out
    assert set(json.loads(layers.read_text())) == {"Layers", "Bindings"}
    assert len(json.loads(times.read_text())) == 7


def test_doctor(monkeypatch: pytest.MonkeyPatch, capsys: Words) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "ok   NVRTC" in out
    assert "device sim: ready" in out

    def missing() -> None:
        raise EnvironmentError_("there is no C++ compiler", hint="install one")

    monkeypatch.setattr("arcweld.runtime.sim.build.toolchain", missing)
    monkeypatch.setattr("arcweld.runtime.devices.gpu_count", lambda: 0)
    assert main(["doctor"]) == 4
    out = capsys.readouterr().out
    assert "miss C++ compiler: there is no C++ compiler\n" in out
    assert "needed for device sim; remedy: install one\n" in out
    assert "device cuda: not usable; device sim: not usable" in out


def test_version_and_help(capsys: Words) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"arcweld \d+\.\d+\.\d+\n", capsys.readouterr().out)
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["{model}"], 2, "no engine file"),
        (["-o", "{out}"], 2, "name one ONNX file"),
        (["{model}", "--onnx={model}", "-o", "{out}"], 2, "name one ONNX file"),
        (["nowhere.onnx", "-o", "{out}"], 2, "nowhere.onnx"),
        (["{model}", "-o", "{out}", "--fp16", "--bf16"], 2, "exclude"),
        (["{model}", "-o", "{out}", "--int8"], 3, "not available"),
        (["{model}", "-o", "{out}", "--shapes=x:3x17"], 2, "17"),
        (["{model}", "-o", "{out}", "--shapes=z:3x16"], 2, "z"),
        (["{model}", "-o", "{out}", "--shapes=x:a+1x16"], 2, "not a shape"),
        (["{model}", "-o", "{out}", "--minShapes=x:1x16x2"], 2, "rank"),
        (["{model}", "-o", "{out}", "--minShapes=x:4x16", "--maxShapes=x:2x16"], 2, ""),
        (["{model}", "-o", "{out}", "--shapes=x:3x16", "--minShapes=x:1x16"], 2, "axis 0 of input x is 3, not 1"),
        (["{model}", "-o", "{out}", "--optShapes=x:4x15"], 2, "15"),
        (["{model}", "-o", "{out}", "--arch=sm_9"], 2, "sm_9"),
        (["{model}", "-o", "{out}", "--disable=fusoin"], 2, "no pass is called fusoin"),
        (["{model}", "-o", "{out}", "--device=tpu"], 2, "tpu"),
        (["{model}", "-o", "{out}", "--verify=maybe"], 2, "maybe"),
        (["{model}", "-o", "{folder}"], 2, "it is a folder"),
        (["{model}", "-o", "{model}/x.engine"], 2, "is not a folder"),
        (["{model}", "-o", "{out}", "--tolerance=1e-30"], 1, "y"),
        (["{model}", "--wrong"], 2, "--wrong"),
        (["run"], 2, "name one engine"),
        (["run", "nowhere.engine"], 2, "nowhere.engine"),
        (["run", "{engine}", "--shapes=y:1"], 2, "no input 'y'"),
        (["run", "{engine}", "--shapes=x:1"], 2, "rank 2"),
        (["run", "{engine}", "--loadInputs=x:nowhere.npy"], 2, "nowhere.npy"),
        (["run", "{engine}", "--loadInputs=q:{model}"], 2, "no input 'q'"),
        (["run", "{engine}", "--loadInputs=x:{model}"], 2, "elements"),
        (["run", "{engine}", "--val-range=x:[1]"], 2, "[1]"),
        (["run", "{engine}", "--val-range=x:[2,1]"], 2, "[2,1]"),
        (["run", "{engine}", "--val-range=x:[0,nan]"], 2, "[0,nan]"),
        (["run", "{engine}", "--val-range=q:[0,1]"], 2, "q"),
        (["bench", "{engine}", "--percentile=200"], 2, "200"),
        (["bench", "{engine}", "--iterations=1", "--warmUp=0", "--duration=0", "--dumpProfile"], 2, "needs a GPU"),
        (["inspect", "{notes}"], 2, ""),
        (["verify", "{engine}", "--onnx=nowhere.onnx"], 2, "nowhere.onnx"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_one_line(
    words: list[str], code: int, message: str, model: Path, engine: Path, tmp_path: Path, capsys: Words
) -> None:
    notes, folder = tmp_path / "notes.txt", tmp_path / "folder"
    notes.write_text("not a model")
    folder.mkdir()
    places = {"model": model, "engine": engine, "out": tmp_path / "out.engine", "notes": notes, "folder": folder}
    assert main([w.format(**places) for w in words]) == code
    shown = capsys.readouterr().err
    assert "error: " in shown
    assert message in shown
    assert "Traceback" not in shown
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "notes.txt"]


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (AccuracyError("too far", hint="use fp32"), 1, "use fp32"),
        (ZeroDivisionError("oh"), 70, "defect of Arcweld"),
    ],
)
def test_an_interrupted_or_failing_build_leaves_no_file(
    raised: BaseException, code: int, message: str,
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Words,
) -> None:  # fmt: skip
    import arcweld.driver.api as api

    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(api, "verify_build", fail)
    assert main([str(model), "-o", str(tmp_path / "x.engine"), "--arch=sm_80"]) == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch: pytest.MonkeyPatch, capsys: Words) -> None:
    from arcweld.cli import common

    monkeypatch.setattr(common, "PULSE", 0.02)
    with common.progress_bar() as report:
        assert report is not None
        report("nvrtc", 1, 2)
        time.sleep(0.2)
        report("verify", 0, 1)
        time.sleep(0.2)
    shown = capsys.readouterr().err
    assert re.fullmatch(r"(compiling kernels, 1 of 2, 0 s\n)+(verifying kernels, 0 of 1, 0 s\n)+", shown)
    monkeypatch.setattr(common, "PULSE", 5.0)
    with common.progress_bar() as report:  # what is quick needs no words
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(common._Console, "columns", 80)
    with common.progress_bar(quiet=True) as report:
        assert report is None
    with common.progress_bar() as report:
        assert report is not None
        report("nvrtc", 1, 2)
        report("verify", 1, 1)


def test_long_work_says_what_it_does(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Words
) -> None:
    monkeypatch.setattr("arcweld.cli.common.PULSE", 0.005)
    given = ["--arch=sm_80", "--fp16"]
    assert main([str(model), "-o", str(tmp_path / "x.engine"), *given]) == 0
    said = r"(preparing|trying half precision, 0 of 1|rendering kernels, \d of 3), 0 s\n"
    assert re.match(said, capsys.readouterr().err)
    assert main([str(model), "-o", str(tmp_path / "x.engine"), *given, "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["bench", str(tmp_path / "x.engine"), "--duration=0.1", "--warmUp=0"]) == 0
    assert "timing, 0 s\n" in capsys.readouterr().err


def test_dump_writes_each_pass_and_every_kernel(model: Path, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    assert main([str(model), "-o", str(tmp_path / "x.engine"), "--arch=sm_80", f"--dump={dump}"]) == 0
    names = sorted(p.name for p in dump.iterdir())
    assert "00-import.txt" in names
    assert any(n.endswith(".cu") for n in names)
    assert any(n.endswith(".sm_80.cubin") for n in names)


def test_every_option_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    commands = dict(get_command(app).commands)  # type: ignore[attr-defined]
    commands |= {f"debug {name}": sub for name, sub in commands["debug"].commands.items()}
    for name, sub in commands.items():
        assert f"`{name}`" in text, name
        for parameter in sub.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert f"`{option}`" in text, f"{name} {option}"
    for option in INERT:
        assert f"`--{option}`" in text, option


def test_the_entry_point_is_main() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'onnx-to-engine = "arcweld.cli.app:main"' in pyproject
    assert cli.main is main
