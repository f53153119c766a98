"""What users of trtexec, Polygraphy and ONNX Runtime type by habit, and what careless users type."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from cli_models import mlp, mlp_result, mlp_weights, save_model
from onnx import TensorProto, helper, numpy_helper

from arcweld.cli import doctor
from arcweld.cli.app import COMMANDS, main, options_of_commands
from arcweld.cli.common import print_json, print_table
from arcweld.runtime.engine import load
from arcweld.runtime.engine_file import read_engine

Words = pytest.CaptureFixture[str]
QUICK = ["--arch=sm_80", "--verify=off"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mlp(tmp_path_factory.mktemp("models") / "mlp.onnx")


@pytest.fixture(scope="module")
def engine(model: Path) -> Path:
    path = model.parent / "mlp.engine"
    assert main([str(model), "-o", str(path), "--device", "sim", "--arch=sm_80"]) == 0
    return path


@pytest.fixture(autouse=True)
def on_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCWELD_DEVICE", "sim")


def switched(path: Path) -> Path:
    """``x + shift`` or ``-x``, by the input ``mode``; ``z`` is an integer output."""
    info = helper.make_tensor_value_info
    out = [info("b", TensorProto.FLOAT, None)]
    plus = helper.make_graph([helper.make_node("Add", ["x", "shift"], ["b"], name="plus")], "plus", [], out)
    minus = helper.make_graph([helper.make_node("Neg", ["x"], ["b"], name="minus")], "minus", [], out)
    nodes = [
        helper.make_node("Equal", ["mode", "one"], ["is_one"], name="compare"),
        helper.make_node("If", ["is_one"], ["y"], then_branch=plus, else_branch=minus, name="choice"),
        helper.make_node("Cast", ["y"], ["z"], to=TensorProto.INT64, name="round"),
    ]
    kinds = (("x", TensorProto.FLOAT, ["n", 4]), ("mode", TensorProto.INT64, []), ("shift", TensorProto.FLOAT, [4]))
    graph = helper.make_graph(
        nodes, "switched", [info(*k) for k in kinds],
        [info("y", TensorProto.FLOAT, ["n", 4]), info("z", TensorProto.INT64, ["n", 4])],
        [numpy_helper.from_array(np.int64(1), "one")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


# -------------------------------------------------------------------------------------------------- constant inputs


def test_inputs_can_be_made_constants(tmp_path: Path, capsys: Words) -> None:
    path, built = switched(tmp_path / "s.onnx"), tmp_path / "s.engine"
    assert main(["inspect", str(path)]) == 0  # both branches would be built, and the host would choose
    np.save(tmp_path / "shift.npy", np.float32([1, 2, 3, 4]))
    for mode, shift in ((1, "[1,2,3,4]"), (1, tmp_path / "shift.npy"), (7, "[0,0,0,0]")):
        values = f"--values=mode:{mode},shift:{shift}"
        assert main(["inspect", str(path), values]) == 0
        assert main([str(path), "-o", str(built), *QUICK, values]) == 0
        x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        given = {"x": x, "mode": np.array(mode, np.int64), "shift": np.float32([1, 2, 3, 4])}
        np.testing.assert_array_equal(load(built, "sim").run({"x": x})["y"], session.run(["y"], given)[0])
        for against in ([], ["--onnxrt"]):
            assert main(["verify", str(built), f"--onnx={path}", values, "--shapes=x:3x4", *against]) == 0
            assert main(["verify", str(path), values, *against]) == 0
    assert main(["explain", str(path), "--values=mode:1", "choice/plus"]) == 0
    capsys.readouterr()
    assert main(["verify", str(built), f"--onnx={path}"]) == 2
    assert "made constants are given with --values" in capsys.readouterr().err
    for wrong in ("mode:x", "mode:[1,2]", "mode:.5", "mode:1e30", "mode", 'mode:"a"', "mode:nowhere.npy"):
        assert main([str(path), "-o", str(built), *QUICK, f"--values={wrong}"]) == 2
    assert main(["run", str(built), "--values=mode:1"]) == 2


def test_open_shapes_have_ranges(model: Path, tmp_path: Path, capsys: Words) -> None:
    built = tmp_path / "r.engine"
    ranges = ["--shapes=x:[4*n,16]", "--minShapes=x:8x16", "--maxShapes=x:40x16"]
    assert main([str(model), "-o", str(built), *QUICK, *ranges, "--optShapes=x:16x16"]) == 0
    (symbol,) = read_engine(built).program.symbols
    assert (symbol.name, symbol.lo, symbol.hi) == ("n", 2, 10)
    capsys.readouterr()
    assert main([str(model), "-o", str(built), *QUICK, *ranges[:2], "--maxShapes=x:42x16"]) == 2
    assert "is 4*n in the model, which cannot be 42" in capsys.readouterr().err
    assert main([str(model), "-o", str(built), *QUICK, "--maxShapes=x:8x16"]) == 0
    assert read_engine(built).program.symbols == ()


# ---------------------------------------------------------------------------------------------- trtexec, Polygraphy


def test_options_of_trtexec_that_need_nothing(model: Path, engine: Path, tmp_path: Path, capsys: Words) -> None:
    words = ["--workspace=4096", "--memPoolSize", "workspace:64", "--avgRuns=10", "--useSpinWait", "--buildOnly"]
    assert main([f"--onnx={model}", f"--saveEngine={tmp_path / 'a.engine'}", *QUICK, *words, "--noTF32"]) == 0
    noted = capsys.readouterr().err
    for name in ("workspace", "memPoolSize", "avgRuns", "useSpinWait", "buildOnly"):
        assert f"note: --{name} has no effect: " in noted
    timing = ["--iterations=2", "--warmUp=0", "--duration=0"]
    assert "on sim" in command(f"--loadEngine={engine}", *timing, "--avgRuns=5", "--verbose").stderr
    assert main(["bench", f"--onnx={model}", "--fp16", *timing]) == 0
    assert main(["build", f"--onnx={model}", f"--saveEngine={tmp_path / 'a.engine'}", "--dumpProfile"]) == 2
    assert "--dumpProfile is an option of `bench`" in capsys.readouterr().err
    assert main([f"--onnx={model}", "--avgRuns"]) == 2


def test_a_gpu_by_its_number(engine: Path, capsys: Words) -> None:
    for name in ("7", "cuda:7"):
        assert main(["run", str(engine), f"--device={name}"]) == 4
        assert "there is no GPU 7" in capsys.readouterr().err


def test_lists_as_polygraphy_has_them(model: Path, capsys: Words) -> None:
    def run(*words: str) -> str:
        assert main(["run", *words, "--seed=3"]) == 0
        return capsys.readouterr().out.splitlines()[0]

    want = run(str(model), "--val-range=[0,1],x:[3,4]", "--shapes=x:2x16")
    assert want == run(str(model), "--val-range", "[0,1]", "x:[3,4]", "--input-shapes", "x:[2,16]")
    assert want == run("--val-range", "[0,1]", "x:[3,4]", "--input-shapes", "x:[2,16]", "--seed=3", str(model))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 0),
        (["--atol=0", "--rtol=0"], 1),
        (["--atol", "y:1e-3", "--rtol=0"], 0),
        (["--atol=0", "y:1e-3", "--rtol=0"], 2),  # with `=` the list is written with commas
        (["--atol=0,y:1e-3", "--rtol=0"], 0),
        (["--atol=1e-3,y:0", "--rtol=0"], 1),
        (["--rtol=1e-3", "--atol=0"], 0),
        (["--check-error-stat=max"], 0),
        (["--check-error-stat=mean", "--atol=0", "--rtol=0"], 1),
        (["--check-error-stat=median", "--atol=1e-4"], 0),
        (["--check-error-stat=worst"], 2),
        (["--atol=nan"], 2),
        (["--atol=-1"], 2),
        (["--atol=q:1"], 2),
        (["--fp16"], 0),
        (["--fp16", "--atol=1e-9", "--rtol=0"], 1),
    ],
)
def test_tolerances(words: list[str], code: int, model: Path) -> None:
    assert main(["verify", str(model), "--onnxrt", "--shapes=x:6x16", *words]) == code


def test_integers_are_equal_or_wrong(tmp_path: Path) -> None:
    """A relative tolerance would let the 1000th class pass for the 1001st."""
    shapes = {"x": [4, 4]}, {"y": [4, 4]}
    cast = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT32, name="cast")
    add = helper.make_node("Add", ["x", "w"], ["s"], name="add")
    later = helper.make_node("Cast", ["s"], ["y"], to=TensorProto.INT32, name="cast")
    first = save_model(tmp_path / "a.onnx", [cast], *shapes, check=False)
    second = save_model(tmp_path / "b.onnx", [add, later], *shapes, {"w": np.float32([1])}, check=False)
    for path in (first, second):
        proto = onnx.load(path)
        proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT32
        onnx.save(proto, path)
    built = tmp_path / "a.engine"
    assert main([str(first), "-o", str(built), *QUICK]) == 0
    assert main(["verify", str(built), f"--onnx={first}", "--onnxrt", "--val-range=[5000,6000]"]) == 0
    assert main(["verify", str(built), f"--onnx={second}", "--onnxrt", "--val-range=[5000,6000]"]) == 1
    assert main(["verify", str(built), f"--onnx={second}", "--onnxrt", "--val-range=[5000,6000]", "--atol=1"]) == 0


def test_changed_weights_are_noticed(model: Path, engine: Path, tmp_path: Path, capsys: Words) -> None:
    changed = load(engine, "sim")
    weights = {n: a * (1.01 if n == "w2" else 1) for n, a in mlp_weights().items()}
    changed.update_weights({"w2": weights["w2"].astype(np.float32)})
    changed.save(tmp_path / "changed.engine")
    assert main(["inspect", str(tmp_path / "changed.engine")]) == 0
    assert "weights replaced since: w2\n" in capsys.readouterr().out
    for against in ([], ["--onnxrt"]):
        assert main(["verify", str(tmp_path / "changed.engine"), f"--onnx={model}", *against]) == 1
    other = mlp(tmp_path / "other.onnx", {n: a.astype(np.float32) for n, a in weights.items()})
    assert main(["verify", str(tmp_path / "changed.engine"), f"--onnx={other}", "--onnxrt"]) == 0


def test_verification_can_be_given_inputs(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 16), np.float32))
    built = tmp_path / "a.engine"
    assert main([str(model), "-o", str(built), "--arch=sm_80", f"--loadInputs=x:{tmp_path / 'x.npy'}"]) == 0
    assert read_engine(built).verify["shapes"] == {"x": [5, 16]}


def test_one_file_sets_the_sizes_of_the_others(tmp_path: Path, capsys: Words) -> None:
    nodes = [helper.make_node("Add", ["x", "z"], ["y"], name="add")]
    path = save_model(tmp_path / "two.onnx", nodes, {"x": ["n", 4], "z": ["n", 4]}, {"y": ["n", 4]})
    np.save(tmp_path / "x.npy", np.zeros((7, 4), np.float32))
    assert main(["run", str(path), f"--loadInputs=x:{tmp_path / 'x.npy'}"]) == 0
    assert "y: float32[7, 4]" in capsys.readouterr().out
    assert main(["run", str(path), f"--loadInputs=x:{tmp_path / 'x.npy'}", "--shapes=x:3x4"]) == 2
    assert "has the shape [7, 4], not [3, 4]" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- carelessness


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["insect", "{model}"], 2, "did you mean `inspect`?"),
        (["frobnicate"], 2, "subcommands: build"),
        (["{model}", "-o", "{model}"], 2, "it is read"),
        (["{model}", "-o", "{folder}/nowhere/x.engine"], 2, "there is no folder"),
        (["{engine}", "-o", "{out}"], 2, "is an engine"),
        (["explain", "{engine}"], 2, "is an engine"),
        (["{model}", "-o", "{out}", "--tolerance=nan"], 2, "no tolerance"),
        (["{model}", "-o", "{out}", "--verifyBudget=-1"], 2, "no budget"),
        (["{model}", "-o", "{out}", "--dump={notes}/d"], 2, "cannot be made"),
        (["run", "{engine}", "--exportOutput={engine}"], 2, "it is read"),
        (["run", "{engine}", "--exportOutput={folder}/y.txt"], 2, ".npz or .json"),
        (["run", "{engine}", "--loadInputs=x:{folder}"], 2, "there is no file"),
        (["run", "{engine}", "--loadInputs=x:{npy}"], 2, "cannot be read as an array"),
        (["run", "{engine}", "--loadInputs={npz}"], 2, "cannot be read as an array"),
        (["run", "{engine}", "--loadInputs=x:{notes}"], 2, "elements"),
        (["run", "{engine}", "--loadInputs={notes}.npy"], 2, "does not name an input"),
        (["run", "{engine}", "--shapes=4x16"], 2, "write name:4x16"),
        (["run", "{engine}", "--shapes=x:999999999999x16"], 4, "not enough memory"),
        (["run", "{engine}", "--seed=-1"], 2, "--seed"),
        (["run", "{engine}", "--fp16"], 2, "is an engine already"),
        (["bench", "{engine}", "--iterations=0"], 2, "--iterations"),
        (["bench", "{engine}", "--duration=inf"], 2, "finite"),
        (["bench", "{engine}", "--exportTimes={engine}"], 2, "it is read"),
        (["bench", "{engine}", "--exportProfile={folder}/p.json"], 2, "needs a GPU"),
    ],
)  # fmt: skip
def test_said_in_one_line_before_anything_is_done(
    words: list[str], code: int, message: str, model: Path, engine: Path, tmp_path: Path, capsys: Words
) -> None:
    before = model.read_bytes(), engine.read_bytes()
    folder = tmp_path / "folder"
    folder.mkdir()
    places = {"model": model, "engine": engine, "out": tmp_path / "o.engine", "folder": folder}
    for kind in ("notes", "npy", "npz"):
        places[kind] = tmp_path / ("notes.txt" if kind == "notes" else f"bad.{kind}")
        places[kind].write_text("nothing of the kind")
    assert main([w.format(**places) for w in words]) == code
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert (model.read_bytes(), engine.read_bytes()) == before
    assert list(folder.iterdir()) == []


def test_names_and_paths_of_any_script(tmp_path: Path, capsys: Words) -> None:
    folder = tmp_path / "späte Modelle" / "模型"
    folder.mkdir(parents=True)
    nodes = [helper.make_node("Relu", ["größe"], ["[bold]y"], name="knoten [1]")]
    path = save_model(folder / "m ü.onnx", nodes, {"größe": ["n", 4]}, {"[bold]y": ["n", 4]})
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    np.save(folder / "x ä.npy", x)
    built, results = folder / "m ü.engine", folder / "y.npz"
    assert main([str(path), "-o", str(built), "--arch=sm_80"]) == 0
    assert main(["run", str(built), f"--loadInputs=größe:{folder / 'x ä.npy'}", f"--exportOutput={results}"]) == 0
    assert "[bold]y: float32[3, 4]" in capsys.readouterr().out
    np.testing.assert_array_equal(np.load(results)["[bold]y"], np.maximum(x, 0))
    assert main(["verify", str(built), f"--onnx={path}", "--onnxrt"]) == 0
    assert main(["inspect", str(built)]) == 0
    assert "knoten [1]" in capsys.readouterr().out


def test_an_output_called_like_an_argument_of_numpy(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["file"], name="a"), helper.make_node("Neg", ["x"], ["args"], name="b")]
    path = save_model(tmp_path / "m.onnx", nodes, {"x": [4]}, {"file": [4], "args": [4]})
    assert main(["run", str(path), f"--exportOutput={tmp_path / 'y.npz'}"]) == 0
    assert set(np.load(tmp_path / "y.npz").files) == {"file", "args"}


SCRIPT = "import sys; from arcweld.cli.app import main; sys.exit(main(sys.argv[1:]))"


def command(*words: object, **more: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", SCRIPT, *map(str, words)]
    return subprocess.run(line, text=True, capture_output=True, check=False, timeout=120, **more)  # type: ignore[call-overload, no-any-return]


def test_output_that_nobody_can_take(engine: Path) -> None:
    shell = f"{sys.executable} -c '{SCRIPT}' inspect {engine} | true; echo ${{PIPESTATUS[0]}}"
    piped = subprocess.run(["bash", "-c", shell], text=True, capture_output=True, check=True)
    assert piped.stdout.strip() in ("0", "141")
    assert piped.stderr == ""
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", SCRIPT, "inspect", engine], stdout=full, stderr=-1, check=False)
    assert done.returncode == 4
    assert done.stderr == b"error: not all could be written: No space left on device\n"


def test_output_is_plain_and_whole_where_it_is_no_terminal(engine: Path, tmp_path: Path) -> None:
    loud = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "20", "PYTHONIOENCODING": "ascii"}
    report = command("inspect", engine, "--json", env=loud, stdin=subprocess.DEVNULL)
    assert json.loads(report.stdout)["name"] == "mlp"
    text = command("inspect", engine, env={**os.environ, "COLUMNS": "20", "NO_COLOR": "1"}).stdout
    assert "\x1b" not in text
    assert any("rowwise_softmax" in line and line.endswith("softmax") for line in text.splitlines())
    shown = command("inspect", mlp(tmp_path / "größer.onnx"), env=loud)  # a name that ASCII cannot say
    assert shown.returncode == 0
    assert "gr\\xf6\\xdfer.onnx: 4 nodes" in shown.stdout


def test_reports_hold_no_numbers_that_json_lacks(capsys: Words) -> None:
    print_json({"a": [float("nan"), 1.5, (float("inf"),)], "b": "ü"})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"a": [None, 1.5, [None]], "b": "ü"}


def test_tables_align(capsys: Words) -> None:
    print_table(("name", "n"), [("a[b]", "1"), ("longer", "22")], ("n",))
    assert capsys.readouterr().out == "name     n\na[b]     1\nlonger  22\n"


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("name", [*COMMANDS, ""])
def test_help_fits_into_the_columns(
    name: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: Words
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([*filter(None, [name]), "-h" if columns == 80 else "--help"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= columns
    assert "…" not in shown  # nothing is cut off
    lists = r"\[(ARGS|nodes|paths)\]\.\.\.|(nodes|paths)\.\.\."
    assert "..." not in re.sub(lists, "", shown)
    words = {w for line in shown.splitlines() for w in re.split(r"[\s,/]+", line)}
    assert {*options_of_commands().get(name, {})} - words == set()  # no name is broken
    if name == "build":
        assert "x:[n,3,32*h,32*w]" in shown


def on_a_terminal(*words: object, folder: Path, columns: int = 80) -> list[str]:
    """The lines of the command with a terminal of that width as its output, without control characters."""
    reading, writing = os.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "dumb"}
    line = [sys.executable, "-c", SCRIPT, *map(str, words)]
    streams = {"stdout": writing, "stderr": writing, "stdin": subprocess.DEVNULL}
    with subprocess.Popen(line, **streams, env=environment, cwd=folder) as process:  # type: ignore[call-overload]
        os.close(writing)
        text = b""
        with contextlib.suppress(OSError):  # how the other end's closing shows
            while part := os.read(reading, 1 << 16):
                text += part
        os.close(reading)
        assert process.wait(120) == 0
    return text.decode().replace("\r\n", "\n").splitlines()


def test_reports_on_a_terminal_break_no_word(tmp_path: Path) -> None:
    """A terminal breaks longer lines anywhere."""
    names = [f"encoder.layers.{i}.feed_forward.intermediate_activation" for i in range(6)]
    nodes = [
        helper.make_node("Relu" if i % 2 else "Neg", [f"v{i}" if i else "x"], [f"v{i + 1}" if i < 5 else "y"], name=n)
        for i, n in enumerate(names)
    ]
    path = save_model(tmp_path / "long.onnx", nodes, {"x": ["batch_size", 16]}, {"y": ["batch_size", 16]})
    built = tmp_path / "long.engine"
    assert main([str(path), "-o", str(built), "--arch=sm_80"]) == 0
    for words in (["inspect", built.name], ["inspect", path.name], ["explain", path.name]):
        lines = on_a_terminal(*words, folder=tmp_path)
        found = {w.strip(",:") for line in lines for w in line.split()}
        assert words == ["inspect", path.name] or set(names) <= found
        assert all(len(line) <= 80 or " " not in line.strip() for line in lines), lines


def test_shell_completion() -> None:
    shown = command("--show-completion", "bash").stdout
    assert "complete -o default -F _onnx_to_engine_completion onnx-to-engine" in shown
    asking = {"_ONNX_TO_ENGINE_COMPLETE": "complete_bash"}
    for typed, want in (
        ("onnx-to-engine bench --inf", ["--infStreams"]), ("onnx-to-engine ins", ["inspect"]),
        ("onnx-to-engine build --layer", ["--layerPrecisions"]),
    ):  # fmt: skip
        place = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
        assert command(env={**os.environ, **asking, **place}).stdout.split() == want
    assert "--install-completion" in command("--help").stdout


def test_architectures_by_name(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Words) -> None:
    assert main(["--arch=list"]) == 0
    known = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"sm_80", "sm_86", "sm_89", "sm_90a", "sm_120"} <= set(known)
    assert known[0] == "sm_80"
    built = tmp_path / "n.engine"
    monkeypatch.setattr("arcweld.cli.archs.gpu_count", lambda: 0)
    assert main([str(model), "-o", str(built), "--arch=native"]) == 4
    assert "there is no GPU\n  hint: name it: sm_90a" in capsys.readouterr().err
    monkeypatch.setattr("arcweld.cli.archs.gpu_count", lambda: 2)
    local = {"cuda:0": "sm_90a", "cuda:1": "sm_80"}
    monkeypatch.setattr("arcweld.cli.archs.open_device", lambda name: types.SimpleNamespace(arch=local[name]))
    assert main([str(model), "-o", str(built), "--arch=native,sm_80", "--verify=off"]) == 0
    assert read_engine(built).archs == ("sm_80", "sm_90a")


def test_no_words_at_all(capsys: Words) -> None:
    assert main([]) == 2
    shown = capsys.readouterr()
    assert "Usage: " in shown.out
    assert shown.err == ""
    assert main(["help", "run"]) == 0
    assert "--exportOutput" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------- doctor


def test_doctor_reports_all_even_where_checks_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Words
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ARCWELD_CACHE_DIR", str(tmp_path / "file" / "below"))

    def broken() -> None:
        raise AttributeError("half of CuPy is missing")

    monkeypatch.setitem(doctor.CHECKS, "NVRTC", broken)
    assert main(["doctor"]) == 4
    out = capsys.readouterr().out
    assert "miss NVRTC: AttributeError: half of CuPy is missing" in out
    assert "miss cache: the cache folder" in out
    assert "remedy: set ARCWELD_CACHE_DIR" in out
    assert "ok   packages" in out


def test_doctor_knows_which_packages_are_needed(monkeypatch: pytest.MonkeyPatch, capsys: Words) -> None:
    versions = {"onnx": "1.2.0", "cupy-cuda12x": None, "cupy-cuda13x": "14.0.0", "rich": None}
    version = importlib.metadata.version

    def fake(name: str) -> str:
        found = versions[name] if name in versions else version(name)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", fake)
    assert main(["doctor"]) == 4
    out = capsys.readouterr().out
    assert "miss packages: missing or too old: onnx>=1.19, rich>=13.9\n" in out
    assert "remedy: pip install 'onnx>=1.19' 'rich>=13.9'\n" in out


@pytest.mark.parametrize(
    ("version", "init", "count", "said"),
    [
        (11040, 0, 1, "knows CUDA 11.4 at most"), (12080, 803, 1, "does not start (CUDA error 803)"),
        (12080, 0, 0, "shows no GPU"), (13000, 0, 1, ""),
    ],
)  # fmt: skip
def test_doctor_tells_what_is_wrong_with_the_driver(
    version: int, init: int, count: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Driver:
        def __init__(self, name: str) -> None:
            assert name == "libcuda.so.1"

        def cuDriverGetVersion(self, out: object) -> int:
            out._obj.value = version  # type: ignore[attr-defined]
            return 0

        def cuInit(self, flags: int) -> int:
            return init

        def cuDeviceGetCount(self, out: object) -> int:
            out._obj.value = count  # type: ignore[attr-defined]
            return 0

    monkeypatch.setattr(doctor.ctypes, "CDLL", Driver)
    trouble, remedy = doctor.driver_trouble()
    assert said in trouble
    assert bool(trouble) == bool(said) == bool(remedy)


def test_results_of_the_documented_kind(engine: Path, tmp_path: Path) -> None:
    """The command line in a process of its own, with everything closed that can be."""
    x = np.random.default_rng(5).standard_normal((2, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    files = f"--loadInputs=x:{tmp_path}/x.npy --exportOutput={tmp_path}/y.npz"
    shell = f"{sys.executable} -c '{SCRIPT}' run {engine} {files} <&- >&- 2>&-"
    done = subprocess.run(["bash", "-c", shell], check=False)
    assert done.returncode == 0
    np.testing.assert_allclose(np.load(tmp_path / "y.npz")["y"], mlp_result(x, mlp_weights()), rtol=1e-5, atol=1e-6)
