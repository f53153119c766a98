"""``bench``: times of whole calls with trtexec's summary of them, and the time of each kernel."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from arcweld.cli.common import check_writable, interface, note, out, print_table, waiting
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
from arcweld.cli.run import DumpOutput, Export, one_path, output_file, print_outputs, write_outputs
from arcweld.cli.shapes import sizes_of
from arcweld.cli.timing import Call, Sample, Schedule, Timed, gpu_call, host_call, measure
from arcweld.compiler.errors import UsageError
from arcweld.compiler.paths import replacing
from arcweld.report.layers import layer_info
from arcweld.report.profiles import Measured, fingerprint, profile_rows
from arcweld.runtime.engine import Engine
from arcweld.runtime.engine_file import EngineData

Opt = typer.Option
_DEVICE_ARRAYS = "Keep inputs and results on the GPU, so that copies are not timed."


def bench(
    path: Annotated[str, typer.Argument(help="Engine or ONNX file.")] = "",
    load_engine: Annotated[str, Opt("--loadEngine", help="Engine file (another spelling of the argument).")] = "",
    onnx: Annotated[str, Opt("--onnx", help="ONNX file (another spelling of the argument).")] = "",
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
) -> None:  # fmt: skip
    """Times calls of an engine, in trtexec's words. No figure is comparable across devices."""
    percentiles = _percentiles(percentile)
    if not all(math.isfinite(x) for x in (warm_up, duration, sleep_time, idle_time)):
        raise UsageError("--warmUp, --duration, --sleepTime and --idleTime are finite numbers")
    source = one_path(path or onnx, load_engine)
    times_to, profile_to, layers_to = (writable(p, source) for p in (export_times, export_profile, export_layers))
    outputs_to = output_file(export, source)
    engine = open_engine(source, device, shapes, values, precision_of(fp16, bf16), trusted=trust)
    if (dump_profile or profile_to) and not engine.device.measures_time:
        raise UsageError(f"device {engine.device.name} cannot be profiled", hint="profiling needs a GPU")
    if not cuda_graph:
        engine = Engine(engine.data, engine.device, graphs=False, trusted=trust)
    feeds = {} if skip else feeds_for(engine, source, shapes, load_inputs, val_range, seed, batch)
    if dump_layers or layers_to:
        show_layers(engine.data, dump_layers, layers_to, engine.device.arch, feeds)
    if skip:
        out.print(f"loaded {engine.program.name} on {engine.device.name} ({engine.device.arch})")
        return
    schedule = Schedule(iterations, warm_up / 1e3, duration, streams, sleep_time / 1e3, idle_time / 1e3)
    with waiting("timing"):
        timed = measure(lambda: _call(engine, feeds, not no_transfers), schedule)
    _print_times(timed, percentiles, engine, schedule)
    _write(times_to, [_row(s) for s in timed.samples])
    if dump_output or outputs_to:
        results = engine.run_tensors(feeds)
        if dump_output:
            print_outputs(results)
        if outputs_to is not None:
            write_outputs(outputs_to, results)
    if dump_profile or profile_to:
        _show_profile(engine, feeds, dump_profile, profile_to)


def _call(engine: Engine, feeds: dict[str, np.ndarray], copies: bool) -> Call:
    """The call to time; its inputs and results are on the host if ``copies``."""
    if engine.device.gpu_index is None:
        if not copies:
            note("--noDataTransfers has no effect: there is nothing to copy to")
        return host_call(engine, feeds)
    if any(t.dtype == "bf16" for t in (*engine.inputs, *engine.outputs)):
        note("the parts of a call are not told apart: CuPy has no arrays of bfloat16")
        return host_call(engine, feeds)
    return gpu_call(engine, feeds, copies)


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


def _row(sample: Sample) -> dict[str, float]:
    """One run in the file of ``--exportTimes``, with trtexec's names."""
    found = {
        "latencyMs": sample.latency, "enqueueMs": sample.enqueue, "h2dMs": sample.h2d, "computeMs": sample.compute,
        "d2hMs": sample.d2h,
    }  # fmt: skip
    return {name: ms for name, ms in found.items() if ms is not None}


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


def _show_profile(engine: Engine, feeds: Mapping[str, np.ndarray], shown: bool, target: Path | None) -> None:
    """Prints or writes the time of each launch, and of what the host does between: its share, bytes, operations."""
    from arcweld.runtime.profiler import HOST, ROUNDS, profile

    found = profile(engine, feeds, rounds=ROUNDS)
    if target is not None:
        data, device = engine.data, engine.device
        said = Measured(fingerprint(data), device.name, device.arch, feed_sizes(data, feeds))
        _write(target, profile_rows(found, ROUNDS, said))
    if not shown:
        return
    total = sum(t.seconds for t in found)
    origins = {x.name: ", ".join(x.origin) for x in engine.program.all_launches()}
    rows: list[dict[str, Any]] = [
        {
            "name": t.name, "kernel": t.kernel, "nodes": origins.get(t.name, t.name), "runs": t.runs,
            "onHost": t.template == HOST, "bytes": t.nbytes, "timeMs": t.seconds * 1e3,
            "percentage": 100 * t.seconds / total, "GB/s": t.nbytes / t.seconds / 1e9,
            "TFLOP/s": t.flops / t.seconds / 1e12,
        }
        for t in found
    ]  # fmt: skip
    cells = [
        (f"{1e3 * r['timeMs']:.2f}", f"{r['percentage']:.1f}", f"{r['GB/s']:.0f}", f"{r['TFLOP/s']:.2f}",
         str(r["runs"]), f"on the host: {r['kernel']}" if r["onHost"] else r["kernel"], r["nodes"])
        for r in sorted(rows, key=lambda r: -r["timeMs"])
    ]  # fmt: skip
    numbers = ("us", "%", "GB/s", "TFLOP/s", "runs")
    print_table((*numbers, "kernel", "nodes"), cells, numbers)
