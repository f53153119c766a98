"""``bench``: latencies of whole calls, in trtexec's terms, and the time of each kernel."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from arcweld.cli.common import check_writable, note, out, print_table
from arcweld.cli.inputs import (
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
from arcweld.cli.run import one_path
from arcweld.compiler.errors import UsageError
from arcweld.compiler.paths import replacing
from arcweld.runtime.engine import Engine

Opt = typer.Option
_DEVICE_ARRAYS = "Keep inputs and results on the GPU, so that copies are not timed."


def bench(
    path: Annotated[str, typer.Argument(help="Engine or ONNX file.")] = "",
    load_engine: Annotated[str, Opt("--loadEngine", help="Engine file (another spelling of the argument).")] = "",
    onnx: Annotated[str, Opt("--onnx", help="ONNX file (another spelling of the argument).")] = "",
    device: Device = "", shapes: Shapes = "", values: Values = "", load_inputs: Load = "", val_range: Range = [],  # noqa: B006
    seed: Seed = 0, fp16: Fp16 = False, bf16: Bf16 = False, verbose: Verbose = False,
    trust: Trust = False,
    iterations: Annotated[int, Opt("--iterations", min=1, help="Least number of timed runs.")] = 10,
    warm_up: Annotated[float, Opt("--warmUp", min=0, help="Milliseconds of warming up.")] = 200.0,
    duration: Annotated[float, Opt("--duration", min=0, help="Least seconds of timed runs.")] = 3.0,
    percentile: Annotated[str, Opt("--percentile", help="Percentiles to print, like 90,95,99.")] = "90,95,99",
    cuda_graph: Annotated[bool, Opt("--useCudaGraph/--noCudaGraph", help="Replay CUDA graphs.")] = True,
    no_transfers: Annotated[bool, Opt("--noDataTransfers", help=_DEVICE_ARRAYS)] = False,
    export_times: Annotated[str, Opt("--exportTimes", help="Write every latency to a JSON file.")] = "",
    dump_profile: Annotated[bool, Opt("--dumpProfile", help="Print the time of every kernel (needs a GPU).")] = False,
    export_profile: Annotated[str, Opt("--exportProfile", help="Write the time of every kernel as JSON.")] = "",
    dump_layers: Annotated[bool, Opt("--dumpLayerInfo", help="Print which nodes each kernel computes.")] = False,
    export_layers: Annotated[str, Opt("--exportLayerInfo", help="Write what `inspect --json` prints.")] = "",
) -> None:  # fmt: skip
    """Times calls of an engine, in trtexec's words. No figure is comparable across devices."""
    percentiles = _percentiles(percentile)
    if not (math.isfinite(warm_up) and math.isfinite(duration)):
        raise UsageError("--warmUp and --duration are finite numbers")
    source = one_path(path or onnx, load_engine)
    times_to, profile_to, layers_to = (_target(p, source) for p in (export_times, export_profile, export_layers))
    engine = open_engine(source, device, shapes, values, precision_of(fp16, bf16), trusted=trust)
    if (dump_profile or profile_to) and not engine.device.measures_time:
        raise UsageError(f"device {engine.device.name} cannot be profiled", hint="profiling needs a GPU")
    if not cuda_graph:
        engine = Engine(engine.data, engine.device, graphs=False)
    if dump_layers or layers_to:
        _show_layers(engine, dump_layers, layers_to)
    feeds = feeds_for(engine, source, shapes, load_inputs, val_range, seed)
    times = _measure(_call(engine, feeds, no_transfers), iterations, warm_up / 1e3, duration)
    _print_times(times, percentiles, engine)
    _write(times_to, [{"latencyMs": t} for t in times])
    if dump_profile or profile_to:
        _show_profile(engine, feeds, dump_profile, profile_to)


def _call(engine: Engine, feeds: dict[str, np.ndarray], on_device: bool) -> Callable[[], object]:
    """The call to time, from inputs to finished results. Both are on the host unless ``on_device``."""
    if not on_device:
        return lambda: engine.run(feeds)
    if engine.device.gpu_index is None:
        note("--noDataTransfers has no effect: there is nothing to copy to")
        return lambda: engine.run(feeds)
    import cupy

    there = {k: cupy.asarray(v) for k, v in feeds.items()}

    def call() -> None:
        engine.run(there)
        cupy.cuda.get_current_stream().synchronize()

    return call


def _measure(call: Callable[[], object], iterations: int, warm_up: float, duration: float) -> list[float]:
    """Milliseconds of each call; at least ``iterations`` calls and ``duration`` seconds, after ``warm_up`` seconds."""
    end = time.perf_counter() + warm_up
    call()
    while time.perf_counter() < end:
        call()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < iterations or time.perf_counter() - begin < duration:
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def _percentiles(text: str) -> list[float]:
    try:
        found = [float(p) for p in text.split(",") if p.strip()]
    except ValueError:
        found = [-1.0]
    if not all(0 <= p <= 100 for p in found):
        raise UsageError(f"percentile: {text!r} is no list of numbers from 0 to 100", hint="write 90,95,99")
    return found


def _print_times(times: list[float], percentiles: list[float], engine: Engine) -> None:
    t = np.array(times)
    tail = "".join(f", percentile({p:g}%) = {np.percentile(t, p):.4g} ms" for p in percentiles)
    out.print(f"device: {engine.device.name} ({engine.device.arch}), {len(times)} runs")
    out.print(f"Throughput: {1e3 / t.mean():.6g} qps")
    out.print(
        f"Latency: min = {t.min():.6g} ms, max = {t.max():.6g} ms, mean = {t.mean():.6g} ms, "
        f"median = {np.median(t):.6g} ms{tail}"
    )


def _target(path: str, source: str) -> Path | None:
    return check_writable(path, source) if path else None


def _write(target: Path | None, rows: Any) -> None:
    if target is not None:
        with replacing(target) as temporary:
            temporary.write_text(json.dumps(rows), encoding="utf-8")


def _show_layers(engine: Engine, shown: bool, target: Path | None) -> None:
    report = engine_report(engine.data, {})
    for x in report["launches"] if shown else ():
        out.print(f"{x['kernel']} ({x['template']}): {', '.join(x['nodes'])}", markup=False)
    _write(target, report)


def _show_profile(engine: Engine, feeds: Mapping[str, np.ndarray], shown: bool, target: Path | None) -> None:
    """Prints or writes the time of each launch: microseconds, share of the sum, bytes and operations a second."""
    from arcweld.runtime.profiler import profile

    found = profile(engine, feeds)
    total = sum(t.seconds for t in found)
    origins = {x.name: ", ".join(x.origin) for x in engine.program.launches}
    rows: list[dict[str, Any]] = [
        {
            "name": t.name, "kernel": t.kernel, "nodes": origins[t.name], "timeMs": t.seconds * 1e3,
            "percentage": 100 * t.seconds / total, "GB/s": t.nbytes / t.seconds / 1e9,
            "TFLOP/s": t.flops / t.seconds / 1e12,
        }
        for t in found
    ]  # fmt: skip
    _write(target, rows)
    if not shown:
        return
    cells = [
        (f"{1e3 * r['timeMs']:.2f}", f"{r['percentage']:.1f}", f"{r['GB/s']:.0f}", f"{r['TFLOP/s']:.2f}", r["kernel"],
         r["nodes"])
        for r in sorted(rows, key=lambda r: -r["timeMs"])
    ]  # fmt: skip
    numbers = ("us", "%", "GB/s", "TFLOP/s")
    print_table((*numbers, "kernel", "nodes"), cells, numbers)
