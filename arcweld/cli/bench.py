"""``bench``: times of whole calls with trtexec's summary of them, and the time of each kernel."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from arcweld.cli.common import check_writable, interface, out, print_json, print_table, waiting
from arcweld.cli.compare import Judged, compare, summary_row
from arcweld.cli.contestants import Asked, is_comparison, kind_of
from arcweld.cli.estimate import engine_sizes
from arcweld.cli.inputs import (
    Batch,
    Bf16,
    Device,
    Fp16,
    Load,
    Range,
    Seed,
    Shapes,
    Trust,
    Values,
    Verbose,
    feeds_for,
    open_engine,
    precision_of,
)
from arcweld.cli.inspect import engine_report
from arcweld.cli.recorders import Recorders, Row, open_recorders, sample_row
from arcweld.cli.run import DumpOutput, Export, one_path, output_file, print_outputs, write_outputs
from arcweld.cli.shapes import sizes_of
from arcweld.cli.timing import Schedule, Timed, engine_call, measure
from arcweld.compiler.errors import UsageError
from arcweld.compiler.paths import replacing
from arcweld.report.layers import layer_info
from arcweld.report.profiles import Measured, fingerprint, profile_rows
from arcweld.runtime.engine import Engine
from arcweld.runtime.engine_file import EngineData
from arcweld.runtime.profiler import HOST, ROUNDS, LaunchTime, profile

Opt = typer.Option
_DEVICE_ARRAYS = "Keep inputs and results on the GPU, so that copies are not timed."
_THRESHOLD = "Percent by which a contestant may be slower than the first; beyond it the exit code is 1."


def bench(
    paths: Annotated[list[str] | None, typer.Argument(help="Engine or ONNX file; several are compared.")] = None,
    load_engine: Annotated[str, Opt("--loadEngine", help="Engine file (another spelling of the argument).")] = "",
    onnx: Annotated[str, Opt("--onnx", help="ONNX file (another spelling of the argument, or --onnxrt's model).")] = "",
    device: Device = "", shapes: Shapes = "", batch: Batch = 0, values: Values = "", load_inputs: Load = "",
    val_range: Range = [],  # noqa: B006
    seed: Seed = 0, fp16: Fp16 = False, bf16: Bf16 = False, verbose: Verbose = False,
    trust: Trust = False,
    iterations: Annotated[int, Opt("--iterations", min=1, help="Least number of timed runs.")] = 10,
    warm_up: Annotated[float, Opt("--warmUp", min=0, help="Milliseconds of warming up.")] = 200.0,
    duration: Annotated[float, Opt("--duration", min=0, help="Least seconds of timed runs.")] = 3.0,
    percentile: Annotated[str, Opt("--percentile", help="Percentiles to print, like 90,95,99.")] = "90,95,99",
    streams: Annotated[int, Opt("--infStreams", "--streams", min=1, help="Streams that call at the same time.")] = 1,
    sleep_time: Annotated[float, Opt("--sleepTime", min=0, help="Milliseconds before the first timed run.")] = 0.0,
    idle_time: Annotated[float, Opt("--idleTime", min=0, help="Milliseconds after each run.")] = 0.0,
    cuda_graph: Annotated[bool, Opt("--useCudaGraph/--noCudaGraph", help="Replay CUDA graphs.")] = True,
    no_transfers: Annotated[bool, Opt("--noDataTransfers", help=_DEVICE_ARRAYS)] = False,
    skip: Annotated[bool, Opt("--skipInference", "--buildOnly", help="Only load the engine.")] = False,
    dump_output: DumpOutput = False, export: Export = "",
    export_times: Annotated[str, Opt("--exportTimes", help="Write every latency to a JSON file.")] = "",
    dump_profile: Annotated[bool, Opt("--dumpProfile", help="Print the time of every kernel (needs a GPU).")] = False,
    export_profile: Annotated[str, Opt("--exportProfile", help="Write the same as JSON, as trtexec does.")] = "",
    dump_layers: Annotated[bool, Opt("--dumpLayerInfo", help="Print which nodes each kernel computes.")] = False,
    export_layers: Annotated[str, Opt("--exportLayerInfo", help="Write the same as JSON, as trtexec does.")] = "",
    onnxrt: Annotated[bool, Opt("--onnxrt", help="Compare with ONNX Runtime on the model.")] = False,
    provider: Annotated[str, Opt("--provider", help="ONNX Runtime's: cpu or cuda; by default the device's.")] = "",
    torch: Annotated[str, Opt("--torch", help="Compare with a module: model.pt2, or package.module:name.")] = "",
    torch_compile: Annotated[bool, Opt("--torchCompile", help="Compare with torch.compile of it too.")] = False,
    threshold: Annotated[float, Opt("--threshold", help=_THRESHOLD, show_default=False)] = -1.0,
    price: Annotated[float, Opt("--price", min=0, help="Price of an hour of the machine.", show_default=False)] = 0.0,
    as_json: Annotated[bool, Opt("--json", help="Print JSON.")] = False,
    jsonl: Annotated[str, Opt("--jsonl", help="Write everything that is measured as JSON lines.")] = "",
    wandb: Annotated[str, Opt("--wandb", help="Log it to this project of Weights & Biases.")] = "",
) -> None:  # fmt: skip
    """Times calls of an engine, in trtexec's words, or compares several. No figure is comparable across devices."""
    if not all(math.isfinite(x) for x in (warm_up, duration, sleep_time, idle_time, threshold, price)):
        raise UsageError("--warmUp, --duration, --sleepTime, --idleTime, --threshold and --price are finite numbers")
    sources, model = _sources(paths or [], load_engine, onnx, onnxrt)
    asked = Asked(
        sources, model, onnxrt, provider, torch, torch_compile, device, shapes, batch, values,
        precision_of(fp16, bf16), trust, load_inputs, val_range, seed, cuda_graph, not no_transfers,
    )  # fmt: skip
    judged = Judged(
        tuple(_percentiles(percentile)), price or None, threshold / 100 if threshold >= 0 else None, as_json
    )
    extras = Extras(
        skip, dump_output, export, export_times, dump_profile, export_profile, dump_layers, export_layers
    )
    schedule = Schedule(iterations, warm_up / 1e3, duration, streams, sleep_time / 1e3, idle_time / 1e3)
    recorders = open_recorders(jsonl, wandb, [*sources, *filter(None, [model])])
    if not is_comparison(asked):
        _time_one(asked, schedule, judged, extras, recorders)
        return
    if (name := extras.first()) is not None:
        raise UsageError(f"{name} is for one engine", hint="leave it out of a comparison; --jsonl has every latency")
    compare(asked, schedule, judged, recorders)


def _sources(paths: list[str], load_engine: str, onnx: str, onnxrt: bool) -> tuple[tuple[str, ...], str]:
    """The engines and models that are named, and the model that is named for ONNX Runtime alone."""
    named = [*paths, *filter(None, [load_engine])]
    if onnxrt and named:
        return tuple(named), onnx
    if (onnx and named) or (load_engine and paths):
        raise UsageError("name one engine or model file", hint="several are compared: bench a.engine b.engine")
    return tuple(filter(None, [*named, onnx])), ""


@dataclass(frozen=True, slots=True)
class Extras:
    """What ``bench`` prints and writes of a single engine beside its times; each as the option of that name."""

    skip: bool
    dump_output: bool
    export: str
    export_times: str
    dump_profile: bool
    export_profile: str
    dump_layers: bool
    export_layers: str

    @property
    def printing(self) -> tuple[str, ...]:
        """The names of those that print what no JSON holds."""
        return ("--skipInference", "--dumpOutput", "--dumpLayerInfo")

    def first(self, among: Collection[str] = ()) -> str | None:
        """The first option that is used, as the command line has it: of all, or of some."""
        names = (
            "--skipInference", "--dumpOutput", "--exportOutput", "--exportTimes", "--dumpProfile", "--exportProfile",
            "--dumpLayerInfo", "--exportLayerInfo",
        )  # fmt: skip
        used = (name for name, f in zip(names, fields(self)) if getattr(self, f.name))
        return next((name for name in used if not among or name in among), None)


def _time_one(asked: Asked, schedule: Schedule, judged: Judged, extras: Extras, recorders: Recorders) -> None:
    """Times one engine, and prints and writes what is asked of it."""
    source = one_path(asked.paths[0] if asked.paths else "", "")
    if judged.threshold is not None:
        raise UsageError("--threshold judges comparisons", hint="name two engines or more")
    if judged.as_json and (name := extras.first(extras.printing)) is not None:
        raise UsageError(f"--json prints nothing else: {name} would", hint=f"leave out {name}")
    written = (extras.export_times, extras.export_profile, extras.export_layers)
    times_to, profile_to, layers_to = (writable(p, source) for p in written)
    outputs_to = output_file(extras.export, source)
    engine = open_engine(source, asked.device, asked.shapes, asked.values, asked.precision, trusted=asked.trusted)
    if (extras.dump_profile or profile_to) and not engine.device.measures_time:
        raise UsageError(f"device {engine.device.name} cannot be profiled", hint="profiling needs a GPU")
    if not asked.graphs:
        engine = Engine(engine.data, engine.device, graphs=False, trusted=asked.trusted)
    feeds: Mapping[str, np.ndarray] = {}
    if not extras.skip:
        feeds = feeds_for(engine, source, asked.shapes, asked.files, asked.ranges, asked.seed, asked.batch)
    if extras.dump_layers or layers_to:
        show_layers(engine.data, extras.dump_layers, layers_to, engine.device.arch, feeds)
    if extras.skip:
        out.print(f"loaded {engine.program.name} on {engine.device.name} ({engine.device.arch})")
        return
    with waiting("timing"):
        timed = measure(lambda: engine_call(engine, feeds, asked.copies), schedule)
    found = profile(engine, feeds, rounds=ROUNDS) if extras.dump_profile or profile_to else None
    kernels = None if found is None else _profile_rows(engine, found)
    _tell(asked, timed, judged, engine, schedule, recorders, kernels)
    _write(times_to, [sample_row(s) for s in timed.samples])
    if extras.dump_output or outputs_to:
        results = engine.run_tensors(feeds)
        if extras.dump_output:
            print_outputs(results)
        if outputs_to is not None:
            write_outputs(outputs_to, results)
    if found is not None and profile_to is not None:
        sizes, where = feed_sizes(engine.data, feeds), engine.device
        said = Measured(fingerprint(engine.data), where.name, where.arch, sizes)
        _write(profile_to, profile_rows(found, ROUNDS, said))
    if kernels is not None and extras.dump_profile and not judged.as_json:
        _print_profile(kernels)


def _tell(
    asked: Asked, timed: Timed, judged: Judged, engine: Engine, schedule: Schedule, recorders: Recorders,
    kernels: list[Row] | None,
) -> None:  # fmt: skip
    """Prints and records the times of one engine and, where there are any, of its kernels: trtexec's summary, or JSON.
    """
    (source,) = asked.paths
    row = summary_row(source, kind_of(source, asked.precision), [s.latency for s in timed.samples], judged)
    report = {
        "device": engine.device.name, "arch": engine.device.arch, "streams": schedule.streams,
        "wallSeconds": timed.seconds, "contestants": [row], "comparisons": [],
        "kernels": kernels or [],
    }  # fmt: skip
    if judged.as_json:
        print_json(report)
    else:
        _print_times(timed, list(judged.percentiles), engine, schedule)
        if judged.price is not None:
            out.print(f"Cost of a million calls, one after another: {row['costPerMillion']:.4g}")
    recorders.write(report, ({"contestant": source, **sample_row(s)} for s in timed.samples))


def _percentiles(text: str) -> list[float]:
    try:
        found = [float(p) for p in text.split(",") if p.strip()]
    except ValueError:
        found = [-1.0]
    if not all(0 <= p <= 100 for p in found):
        raise UsageError(f"percentile: {text!r} is no list of numbers from 0 to 100", hint="write 90,95,99")
    return found


PARTS = {
    "Latency": "latency", "Enqueue Time": "enqueue", "H2D Latency": "h2d", "GPU Compute Time": "compute",
    "D2H Latency": "d2h",
}  # fmt: skip


def _print_times(timed: Timed, percentiles: list[float], engine: Engine, schedule: Schedule) -> None:
    """Prints trtexec's summary. What was not measured is said, with the reason."""
    where, count = engine.device, len(timed.samples)
    several = f" on {schedule.streams} streams" if schedule.streams > 1 else ""
    out.print(f"device: {where.name} ({where.arch}), {count} runs{several}")
    out.print("=== Performance summary ===")
    out.print(f"Throughput: {count / timed.seconds:.6g} qps")
    copies = "--noDataTransfers leaves out copies"
    missing = f"device {where.name} does not tell it apart" if timed.samples[0].compute is None else copies
    for title, part in PARTS.items():
        values = [getattr(s, part) for s in timed.samples]
        out.print(f"{title}: {f'not measured ({missing})' if None in values else _statistics(values, percentiles)}")
    compute = [s.compute for s in timed.samples if s.compute is not None]
    out.print(f"Total Host Walltime: {timed.seconds:.6g} s")
    total = f"{sum(compute) / 1e3:.6g} s" if compute else f"not measured ({missing})"
    out.print(f"Total GPU Compute Time: {total}")


def _statistics(values: list[float], percentiles: list[float]) -> str:
    t = np.array(values)
    tail = "".join(f", percentile({p:g}%) = {np.percentile(t, p):.4g} ms" for p in percentiles)
    figures = {"min": t.min(), "max": t.max(), "mean": t.mean(), "median": np.median(t)}
    return ", ".join(f"{name} = {ms:.6g} ms" for name, ms in figures.items()) + tail


def writable(path: str, source: str) -> Path | None:
    """The path of a file to write, checked; None for none."""
    return check_writable(path, source) if path else None


def _write(target: Path | None, rows: Any) -> None:
    if target is not None:
        with replacing(target) as temporary:
            temporary.write_text(json.dumps(rows), encoding="utf-8")


def show_layers(
    data: EngineData, shown: bool, target: Path | None, arch: str, feeds: Mapping[str, np.ndarray] | None = None
) -> None:
    """Prints which nodes each kernel computes, or writes the layers as trtexec does, at the sizes of ``feeds``,
    or else those that the engine was verified with.
    """
    for x in engine_report(data, {})["launches"] if shown else ():
        out.print(f"{x['kernel']} ({x['template']}): {', '.join(x['nodes'])}")
    if target is not None:
        sizes = feed_sizes(data, feeds) if feeds else engine_sizes(data, "")
        _write(target, layer_info(data, sizes, arch))


def feed_sizes(data: EngineData, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The values of the symbols with these inputs."""
    return sizes_of(interface(data), {name: array.shape for name, array in feeds.items()})


def _profile_rows(engine: Engine, found: Sequence[LaunchTime]) -> list[Row]:
    """The time of each launch, and of what the host does between: its share, bytes, operations."""
    total = sum(t.seconds for t in found)
    origins = {x.name: ", ".join(x.origin) for x in engine.program.all_launches()}
    return [
        {
            "name": t.name, "kernel": t.kernel, "nodes": origins.get(t.name, t.name), "runs": t.runs,
            "onHost": t.template == HOST, "bytes": t.nbytes, "timeMs": t.seconds * 1e3,
            "percentage": 100 * t.seconds / total, "GB/s": t.nbytes / t.seconds / 1e9,
            "TFLOP/s": t.flops / t.seconds / 1e12,
        }
        for t in found
    ]  # fmt: skip


def _print_profile(rows: list[Row]) -> None:
    cells = [
        (f"{1e3 * r['timeMs']:.2f}", f"{r['percentage']:.1f}", f"{r['GB/s']:.0f}", f"{r['TFLOP/s']:.2f}",
         str(r["runs"]), f"on the host: {r['kernel']}" if r["onHost"] else r["kernel"], r["nodes"])
        for r in sorted(rows, key=lambda r: -r["timeMs"])
    ]  # fmt: skip
    numbers = ("us", "%", "GB/s", "TFLOP/s", "runs")
    print_table((*numbers, "kernel", "nodes"), cells, numbers)
