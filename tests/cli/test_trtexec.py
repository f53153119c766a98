"""Command lines of trtexec from practice, as they are: what they build, time, print and refuse."""

from __future__ import annotations

import json
import re
import shlex
import sys
import threading
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_models import mlp, mlp_result, mlp_weights, save_model
from onnx import helper

from arcweld.cli import bench as bench_module
from arcweld.cli import timing
from arcweld.cli.app import main, options_of_commands
from arcweld.cli.arguments import INERT, REFUSED
from arcweld.runtime.engine import Engine, load
from arcweld.runtime.engine_file import read_engine

Words = pytest.CaptureFixture[str]
NUMBER = r"[\d.e+-]+"
PARTS = ("Latency", "Enqueue Time", "H2D Latency", "GPU Compute Time", "D2H Latency")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    mlp(path / "model.onnx")
    np.random.default_rng(3).random((4, 16), np.float32).tofile(path / "x.bin")
    assert main([str(path / "model.onnx"), "-o", str(path / "ready.engine"), "--device", "sim", "--arch=sm_80"]) == 0
    return path


@pytest.fixture(autouse=True)
def quick(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[timing.Schedule]]:
    """On the simulator, in the models' folder, with a few runs instead of seconds of them; the schedules asked for."""
    monkeypatch.setenv("ARCWELD_DEVICE", "sim")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("arcweld.cli.archs.DEFAULT_ARCHS", ("sm_80",))
    asked: list[timing.Schedule] = []

    def measure(make: object, schedule: timing.Schedule) -> timing.Timed:
        asked.append(schedule)
        few = replace(schedule, iterations=min(schedule.iterations, 3), duration=0.0, warm_up=0.0)
        return timing.measure(make, few)  # type: ignore[arg-type]

    monkeypatch.setattr(bench_module, "measure", measure)
    yield asked
    for made in folder.glob("made*"):
        made.unlink()


# whether the line times the engine, and the options that have no effect
LINES = {
    "--onnx=model.onnx": (True, []),
    "--explicitBatch --onnx=model.onnx": (True, ["explicitBatch"]),
    "--onnx=model.onnx --saveEngine=made.engine": (False, []),
    "--onnx=model.onnx --saveEngine=made.engine --optShapes=x:4x16 --skipInference": (False, ["skipInference"]),
    "--onnx=model.onnx --saveEngine=made.trt --shapes=x:4x16 --avgRuns=100 --fp16 --workspace=20480 --useCudaGraph":
        (True, ["avgRuns", "workspace"]),
    "--onnx=model.onnx --workspace=16280 --minShapes=x:1x16 --optShapes=x:32x16 --maxShapes=x:32x16"
    " --saveEngine=made.engine --avgRuns=100 --fp16": (False, ["workspace", "avgRuns"]),
    "--onnx=model.onnx --saveEngine=made.plan --memPoolSize=workspace:4096 --best --verbose":
        (False, ["memPoolSize"]),
    "--onnx=model.onnx --stronglyTyped --timingCacheFile=cache.trt --shapes=x:3x16 --useCudaGraph"
    " --profilingVerbosity=detailed --exportLayerInfo=made.json": (True, ["stronglyTyped", "timingCacheFile",
                                                                          "profilingVerbosity"]),
    "--loadEngine=ready.engine --shapes=x:8x16 --warmUp=500 --duration=10 --useSpinWait --iterations=100":
        (True, ["useSpinWait"]),
    "--loadEngine=ready.engine --batch=8 --streams=2 --threads --exposeDMA --fp16":
        (True, ["threads", "exposeDMA", "fp16"]),
    "--loadEngine=ready.engine --infStreams=2 --profilingVerbosity=detailed --dumpLayerInfo --separateProfileRun":
        (True, ["profilingVerbosity", "separateProfileRun"]),
    "--loadEngine ready.engine --loadInputs=x:x.bin --shapes=x:4x16 --dumpOutput --exportOutput=made.json":
        (True, []),
    "--loadEngine=ready.engine --skipInference": (False, []),
    "--onnx=model.onnx --saveEngine=made.engine --fp16 --precisionConstraints=obey --layerPrecisions=*:fp16,fc2:fp32"
    " --sparsity=enable --builderOptimizationLevel=5": (False, ["sparsity", "builderOptimizationLevel"]),
    "--onnx=model.onnx --saveEngine=made.engine --hardwareCompatibilityLevel=ampere+ --versionCompatible"
    " --inputIOFormats=fp32:chw --outputIOFormats=fp32:chw --noTF32": (False, ["versionCompatible"]),
    "--onnx=model.onnx --saveEngine=made.engine --exportTimes=made.json --sleepTime=1 --idleTime=1 --percentile=99"
    " --tacticSources=-CUBLAS,+CUDNN --noBuilderCache": (True, ["tacticSources", "noBuilderCache"]),
}  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_lines_from_practice_run_as_they_are(line: str, folder: Path, capsys: Words) -> None:
    timed, inert = LINES[line]
    assert main(shlex.split(line)) == 0
    shown = capsys.readouterr()
    first, *_, last = shown.out.splitlines()
    for text, state in ((first, "RUNNING"), (last, "PASSED")):
        assert text.startswith(f"&&&& {state} Arcweld.onnx-to-engine [Arcweld v")
        assert text.endswith(f" # onnx-to-engine {line}")
    noted = re.findall(r"^note: --(\w+) has no effect: .", shown.err, re.M)
    assert sorted(noted) == sorted(inert)
    assert bool(re.search(rf"^Throughput: {NUMBER} qps$", shown.out, re.M)) is timed
    made = re.findall(r"=(made\S+)", line)
    assert sorted(p.name for p in folder.glob("made*")) == sorted(made)
    for name in made:
        if "saveEngine=" + name in line:
            assert load(name, "sim")(np.ones((4, 16), np.float32)).shape == (4, 10)


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("--onnx=model.onnx --saveEngine=made.engine --plugins=./libops.so", 3, "there are no plug-ins"),
        ("--loadEngine=ready.engine --staticPlugins=libops.so", 3, "there are no plug-ins"),
        ("--onnx=model.onnx --int8 --calib=model.cache --saveEngine=made.engine", 3, "there is no calibration"),
        ("--onnx=model.onnx --int8 --saveEngine=made.engine", 3, "--int8 is not available yet"),
        ("--onnx=model.onnx --useDLACore=0 --allowGPUFallback", 3, "there are no engines for DLA"),
        ("--onnx=model.onnx --sparsity=force --saveEngine=made.engine", 3, "--sparsity=force cannot be honoured"),
        ("--onnx=model.onnx --layerPrecisions=*:int8 --saveEngine=made.engine", 3, "int8 is not available yet"),
        ("--onnx=model.onnx --layerPrecisions=fc3:fp16 --saveEngine=made.engine", 2, "close: fc2, fc1"),
        ("--onnx=model.onnx --layerPrecisions=fc1:half --saveEngine=made.engine", 2, "'half' is no precision"),
        ("--onnx=model.onnx --fp16 --layerPrecisions=fc1:bf16 --saveEngine=made.engine", 2, "exclude each other"),
        ("--onnx=model.onnx --inputIOFormats=fp16:chw --saveEngine=made.engine", 2, "x is f32, not fp16"),
        ("--onnx=model.onnx --outputIOFormats=fp32:hwc8 --saveEngine=made.engine", 2, "y cannot be hwc8"),
        ("--onnx=model.onnx --hardwareCompatibilityLevel=all --saveEngine=made.engine", 2, "'all' is not one of"),
        ("--loadEngine=ready.engine --batch=4 --shapes=x:8x16x2", 2, "rank"),
        ("--loadEngine=ready.engine --dumpProfile --separateProfileRun", 2, "profiling needs a GPU"),
        ("--onnx=model.onnx --precisionConstraints=maybe --saveEngine=made.engine", 2, "'maybe' is not one of"),
        ("--onnx=nowhere.onnx --saveEngine=made.engine", 2, "nowhere.onnx"),
        ("--onnx=model.onnx --saveEngin=made.engine", 2, "--saveEngin"),
        ("--onnx=model.onnx --calib", 2, "--calib needs a value"),
    ],
)
def test_what_cannot_be_honoured_is_one_clear_error(
    line: str, code: int, message: str, folder: Path, capsys: Words
) -> None:
    assert main(shlex.split(line)) == code
    shown = capsys.readouterr()
    assert message in shown.err
    assert len(re.findall("^error: ", shown.err, re.M)) == 1
    assert "Traceback" not in shown.err
    assert shown.out.splitlines()[-1].startswith("&&&& FAILED ")
    assert not list(folder.glob("made*"))


@pytest.mark.parametrize("command", ["build", "run", "bench", "verify", "explain", "inspect"])
def test_the_accepted_options_are_those_of_every_subcommand(command: str, capsys: Words) -> None:
    words = {"build": ["-o", "made.engine"], "bench": ["--skipInference"]}.get(command, [])
    own = options_of_commands()[command]
    given = [f"--{name}=1" if o.valued else f"--{name}" for name, o in INERT.items() if f"--{name}" not in own]
    assert main([command, "model.onnx", *words, *given]) == 0
    noted = re.findall(r"^note: (--\w+) has no effect: .", capsys.readouterr().err, re.M)
    assert [w.partition("=")[0] for w in given] == noted
    for name, o in REFUSED.items():
        assert main([command, "model.onnx", *words, f"--{name}={o.only or 1}" if o.valued else f"--{name}"]) == 3
        assert f"error: --{name}" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------- summary


def test_the_summary_says_what_a_device_does_not_measure(capsys: Words) -> None:
    assert main(["bench", "ready.engine", "--percentile=50"]) == 0
    out = capsys.readouterr().out
    statistics = ", ".join(f"{word} = {NUMBER} ms" for word in ("min", "max", "mean", "median", r"percentile\(50%\)"))
    assert re.search(rf"^Latency: {statistics}$", out, re.M)
    for title in (*PARTS[1:], "Total GPU Compute Time"):
        assert f"\n{title}: not measured (device sim does not tell it apart)\n" in out
    assert re.search(rf"^Total Host Walltime: {NUMBER} s$", out, re.M)
    assert "&&&&" not in out  # only where the line is trtexec's


class FakeGpu:
    """What ``gpu_call`` needs of CuPy, with host arrays and a clock that the copies and the engine advance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        gpu = self

        class Array(np.ndarray):
            def set(self, source: np.ndarray, stream: object) -> None:
                self[...] = source
                gpu.now += 2.0

            def get(self, stream: object, out: np.ndarray, blocking: bool) -> None:
                out[...] = self
                gpu.now += 3.0

        class Event:
            def record(self, stream: object) -> None:
                self.at = gpu.now

            def synchronize(self) -> None:
                pass

        class Context:
            def __init__(self, *_: object, **__: object) -> None:
                pass

            def __enter__(self) -> None:
                pass

            def __exit__(self, *_: object) -> None:
                pass

            def synchronize(self) -> None:
                pass

        self.array = Array
        cuda = types.SimpleNamespace(
            Device=Context, Stream=Context, Event=Event, get_elapsed_time=lambda a, b: b.at - a.at,
            alloc_pinned_memory=bytearray,
        )  # fmt: skip
        cupy = types.SimpleNamespace(cuda=cuda, asarray=lambda a: np.array(a).view(Array))
        monkeypatch.setitem(sys.modules, "cupy", cupy)


class FakeEngine:
    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.device = types.SimpleNamespace(gpu_index=0)

    def run_tensors(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.gpu.now += 5.0
        return {"y": (feeds["x"] + 1).view(self.gpu.array)}


def test_on_a_gpu_a_latency_is_the_sum_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch)
    x = np.ones((2, 3), np.float32)
    call = timing.gpu_call(FakeEngine(gpu), {"x": x}, copies=True)  # type: ignore[arg-type]
    found = call()
    assert (found.h2d, found.compute, found.d2h, found.latency) == (2.0, 5.0, 3.0, 10.0)
    assert found.enqueue is not None
    assert found.enqueue >= 0
    found = timing.gpu_call(FakeEngine(gpu), {"x": x}, copies=False)()  # type: ignore[arg-type]
    assert (found.h2d, found.compute, found.d2h, found.latency) == (None, 5.0, None, 5.0)


def test_the_whole_summary_of_a_gpu(capsys: Words) -> None:
    engine = load("ready.engine", "sim")
    samples = tuple(timing.Sample(10.0 + i, 0.5, 2.0, 5.0 + i, 3.0) for i in range(3))
    schedule = timing.Schedule(3, 0, 0)
    bench_module._print_times(timing.Timed(samples, 0.5), [90.0], engine, schedule)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[2:]] == [
        "Throughput", *PARTS, "Total Host Walltime", "Total GPU Compute Time",
    ]  # fmt: skip
    assert lines[2:4] == [
        "Throughput: 6 qps",
        "Latency: min = 10 ms, max = 12 ms, mean = 11 ms, median = 11 ms, percentile(90%) = 11.8 ms",
    ]
    assert lines[-2:] == ["Total Host Walltime: 0.5 s", "Total GPU Compute Time: 0.018 s"]


def test_streams_call_at_the_same_time() -> None:
    """Each call waits for one of every other stream: in turns, this would never end."""
    together = threading.Barrier(3, timeout=60)
    threads = set()

    def make() -> timing.Call:
        def call() -> timing.Sample:
            threads.add(threading.get_ident())
            together.wait()
            return timing.Sample(1.0)

        return call

    found = timing.measure(make, timing.Schedule(iterations=4, warm_up=0, duration=0, streams=3))
    assert (len(found.samples), len(threads)) == (12, 3)

    def failing() -> timing.Call:
        raise ValueError("no memory")

    with pytest.raises(ValueError, match="no memory"):
        timing.measure(failing, timing.Schedule(1, 0, 0, streams=2))


def test_every_stream_has_a_context_of_its_own(quick: list[timing.Schedule], monkeypatch: pytest.MonkeyPatch) -> None:
    used = set()
    context = Engine._context

    def spy(engine: Engine, stream: int) -> object:
        found = context(engine, stream)
        used.add(found)
        return found

    monkeypatch.setattr(Engine, "_context", spy)
    assert main(["bench", "ready.engine", "--infStreams=3", "--idleTime=1", "--sleepTime=2"]) == 0
    assert len(used) == 3
    assert (quick[0].streams, quick[0].idle, quick[0].sleep) == (3, 1e-3, 2e-3)


# ------------------------------------------------------------------------------------------------------ meanings


def test_dump_output_prints_every_element(capsys: Words) -> None:
    x = np.fromfile("x.bin", np.float32).reshape(4, 16)
    for command in ("run", "bench"):
        assert main([command, "ready.engine", "--loadInputs=x:x.bin", "--shapes=x:4x16", "--dumpOutput"]) == 0
        out = capsys.readouterr().out
        values = np.array(out.partition("y: (4x10)\n")[2].splitlines()[0].split(" "), np.float64)
        np.testing.assert_allclose(values.reshape(4, 10), mlp_result(x, mlp_weights()), rtol=1e-5, atol=1e-6)


def test_batch_is_the_first_dimension_where_it_is_open(tmp_path: Path, capsys: Words) -> None:
    assert main(["run", "ready.engine", "--batch=7"]) == 0
    assert "y: float32[7, 10]" in capsys.readouterr().out
    assert main(["build", "model.onnx", "-o", "made.engine", "--batch=6"]) == 0
    assert read_engine("made.engine").verify["shapes"] == {"x": [6, 16]}
    fixed = save_model(tmp_path / "f.onnx", [helper.make_node("Relu", ["x"], ["y"])], {"x": [2, 4]}, {"y": [2, 4]})
    assert main(["run", str(fixed), "--batch=2"]) == 0
    assert main(["run", str(fixed), "--batch=3"]) == 2
    assert "the first dimension of input x is 2, not 3" in capsys.readouterr().err
    ranges = ["--minShapes=x:1x16", "--maxShapes=x:4x16"]
    assert main(["build", "model.onnx", "-o", "made.engine", "--batch=6", *ranges]) == 2
    assert "is 6 in --batch, its range is 1 to 4" in capsys.readouterr().err


def half_products(path: str) -> set[str]:
    """The nodes of an engine's launches that read a weight in f16."""
    program = read_engine(path).program
    half = {t.name for t in program.weights if t.dtype == "f16"}
    return {n for x in program.launches for n in x.origin if half.intersection(x.reads)}


@pytest.mark.parametrize(
    ("words", "half"),
    [
        (["--fp16"], {"fc1", "fc2"}),
        (["--layerPrecisions=*:fp16"], {"fc1", "fc2"}),
        (["--fp16", "--layerPrecisions=*:fp16,fc1:fp32"], {"fc2"}),
        (["--fp16", "--layerPrecisions=fc1:fp32,*:fp16"], {"fc1", "fc2"}),  # the later entry wins
        (["--layerPrecisions=fc2:fp16"], {"fc2"}),
        (["--fp16", "--layerPrecisions=fc*:fp32"], set()),
        (["--fp16", "--layerPrecisions=fc1:fp32", "--precisionConstraints=none"], {"fc1", "fc2"}),
        (["--layerPrecisions=fc1:fp32"], set()),
    ],
)
def test_precision_of_single_nodes(words: list[str], half: set[str]) -> None:
    assert main(["build", "model.onnx", "-o", "made.engine", "--shapes=x:8x16", *words]) == 0
    assert half_products("made.engine") & {"fc1", "fc2"} == half


def test_bench_writes_times_and_outputs(tmp_path: Path) -> None:
    times, outputs = tmp_path / "t.json", tmp_path / "y.json"
    assert main(["bench", "ready.engine", f"--exportTimes={times}", f"--exportOutput={outputs}", "--batch=2"]) == 0
    assert all(list(row) == ["latencyMs"] for row in json.loads(times.read_text()))
    assert json.loads(outputs.read_text())[0]["dimensions"] == "2x10"
