"""The benchmark: times engines and torch in the same process on the same GPU; writes JSON named after the GPU.

    python -m arcweld.models.bench --out docs/benchmarks [--only bert_b1_s128,resnet50_b1]

Speeds are ratios to torch (eager, and eager under a CUDA graph) and shares of the roofline floor: the larger of weight
bytes / measured copy bandwidth and operations / measured matrix rate. Outputs are compared with torch in f64.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from arcweld.compiler.errors import EnvironmentError_
from arcweld.driver import api
from arcweld.models.builders import Built, build
from arcweld.runtime.devices import gpu_count
from arcweld.runtime.engine import load
from arcweld.runtime.profiler import profile

CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "bert_b1_s128": ("bert", {"batch": 1, "length": 128}, "fp16"),
    "bert_b32_s128": ("bert", {"batch": 32, "length": 128}, "fp16"),
    "minilm_b1_s32": ("bert", {"batch": 1, "length": 32, "layers": 6, "hidden": 384, "heads": 12}, "fp16"),
    "vit_b16_b1": ("vit_b16", {"batch": 1}, "fp16"),
    "gpt2_b1_s512": ("gpt2", {"batch": 1, "length": 512}, "fp16"),
    "resnet50_b1": ("resnet50", {"batch": 1}, "fp16"),
    "resnet50_b32": ("resnet50", {"batch": 32}, "fp16"),
    "mobilenet_v2_b1": ("mobilenet_v2", {"batch": 1}, "fp16"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark and writes one JSON file named after the GPU. Returns 1 if a part failed, else 0.

    The file has an error in the place of a part that failed. Only a complete run replaces the file of a complete run.
    Raises EnvironmentError_ without a GPU.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="docs/benchmarks")
    parser.add_argument("--only", default="")
    parser.add_argument("--profile", action="store_true", help="time every kernel by itself")
    options = parser.parse_args(argv)
    if not gpu_count():
        raise EnvironmentError_("the benchmark needs an NVIDIA GPU", hint="onnx-to-engine doctor says what is missing")
    names = [n for n in options.only.split(",") if n] or list(CASES)
    report: dict[str, Any] = {"environment": environment(), "ceilings": ceilings(), "models": {}}
    limits = report["ceilings"]
    parts: dict[str, Callable[[], dict[str, Any]]] = {} if options.only else {
        "kernels": functools.partial(bench_kernels, limits), "host": bench_host, "load": bench_load,
    }  # fmt: skip
    failed: list[str] = []
    for name in names:
        started = time.perf_counter()
        entry = attempt(name, functools.partial(bench_model, name, options.profile, limits), failed)
        report["models"][name] = entry
        print(f"{name}: {headline(entry)} ({time.perf_counter() - started:.0f} s)", flush=True)
        write(report, Path(options.out), whole=False)
    for name, part in parts.items():
        report[name] = attempt(name, part, failed)
        print(name, json.dumps(report[name]), flush=True)
    whole = not options.only and not failed
    print(f"wrote {write(report, Path(options.out), whole)}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def attempt(name: str, part: Callable[[], dict[str, Any]], failed: list[str]) -> dict[str, Any]:
    """The result of a part, or its error, so that one failure does not lose the other results."""
    try:
        return part()
    except Exception as error:
        traceback.print_exc()
        failed.append(name)
        return {"error": f"{type(error).__name__}: {error}"}


def write(report: dict[str, Any], folder: Path, whole: bool) -> Path:
    """Writes the report as GPU.json, or as GPU.partial.json while parts are missing; returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    card = report["environment"]["gpu"].replace(" ", "-").lower()
    target, partial = folder / f"{card}.json", folder / f"{card}.partial.json"
    path = target if whole else partial
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    if whole:
        partial.unlink(missing_ok=True)
    return path


def environment() -> dict[str, str]:
    """The GPU's name, the versions of the software, and the date."""
    import torch

    from arcweld.codegen.nvrtc.compiler import version

    return {
        "gpu": torch.cuda.get_device_name(0), "torch": torch.__version__, "nvrtc": version(),
        "date": time.strftime("%Y-%m-%d"), "python": sys.version.split()[0],
    }  # fmt: skip


def ceilings() -> dict[str, float]:
    """Measured peak rates: bytes a second of a large copy (read plus written), operations a second in f16."""
    import torch

    a = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    b = torch.empty_like(a)
    copy = timed(lambda: b.copy_(a), 10)
    m = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    product = timed(lambda: torch.mm(m, m), 5)
    return {"copy_bytes_per_s": 2 * a.numel() / copy, "f16_flops": 2 * 8192**3 / product}


def timed(fn: Callable[[], Any], runs: int, rounds: int = 7) -> float:
    """Seconds of one call: the median over ``rounds`` of the mean of ``runs`` calls between two CUDA events."""
    import torch

    fn()
    torch.cuda.synchronize()
    times = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(runs):
            fn()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)) * 1e-3 / runs)
    return statistics.median(times)


def bench_model(name: str, with_profile: bool, limits: dict[str, float]) -> dict[str, Any]:
    """Times a model of ``CASES`` as engine, as eager torch and as torch in a CUDA graph, on the same inputs.

    ``limits`` are the rates of ``ceilings``.
    """
    import torch

    builder, arguments, precision = CASES[name]
    built = build(builder, **arguments)
    started = time.perf_counter()
    graph = api.import_model(built.module, *built.args)
    done, engine = api.build_engine(graph, precision=precision, device="cuda", verify="off")
    seconds = time.perf_counter() - started
    args = tuple(a.cuda() for a in built.args)
    with torch.no_grad():
        want = built.module.double()(*[a.double() if a.is_floating_point() else a for a in built.args]).float()
    got = engine(*args).float().cpu()
    error = float((got - want).norm() / want.norm())
    peers = torch_times(built, args)
    for _ in range(3):
        result = engine(*args)  # the second call with the same arrays is captured
    ours = timed(lambda: engine(*args), 50)
    replay = graph_time(engine, args)
    weights = sum(w.nbytes for w in engine.data.weights.values())
    flops = sum(int(x.flops) for x in engine.program.launches if x.flops.isdigit())
    floor = max(weights / limits["copy_bytes_per_s"], flops / limits["f16_flops"])
    entry: dict[str, Any] = {
        "precision": precision, "kernels": len(done.planned), "build_s": seconds, "relative_error": error,
        "arcweld_call_ms": ours * 1e3, "arcweld_graph_ms": replay * 1e3, "floor_ms": floor * 1e3,
        **{f"torch_{k}_ms": v * 1e3 for k, v in peers.items()},
        "ratio_to_torch_graph": peers["graph"] / replay, "share_of_floor": floor / replay,
    }  # fmt: skip
    if with_profile:
        feeds = {t.name: a.numpy() for t, a in zip(engine.inputs, built.args)}
        rows = profile(engine, feeds)
        entry["profile"] = [
            {"kernel": r.kernel, "us": r.seconds * 1e6, "MB": r.nbytes / 1e6, "GFLOP": r.flops / 1e9} for r in rows
        ]
    del result
    return entry


def graph_time(engine: Any, args: tuple[Any, ...]) -> float:
    """Seconds of one replay of a CUDA graph into which the caller has captured the engine."""
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        engine(*args)
    torch.cuda.synchronize()
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded, stream=stream):
        engine(*args)
    return timed(recorded.replay, 50)


def torch_times(built: Built, args: tuple[Any, ...]) -> dict[str, float]:
    """Seconds of torch in half precision: ``eager``, and ``graph`` for a CUDA graph.

    Models of images are timed in both memory formats; the smaller time counts.
    """
    import torch

    torch.backends.cudnn.benchmark = True
    module = built.module.float().half().cuda()
    halves = tuple(a.half() if a.is_floating_point() else a for a in args)
    found = _recorded_times(module, halves)
    if any(a.dim() == 4 for a in halves):
        last = torch.channels_last
        module = module.to(memory_format=last)
        other = _recorded_times(module, tuple(a.to(memory_format=last) if a.dim() == 4 else a for a in halves))
        found = {k: min(v, other[k]) for k, v in found.items()}
    module.cpu().float()
    return found


def _recorded_times(module: Any, args: tuple[Any, ...]) -> dict[str, float]:
    import torch

    with torch.no_grad():
        eager = timed(lambda: module(*args), 10)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                module(*args)
        torch.cuda.synchronize()
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded, stream=stream):
            module(*args)
        return {"eager": eager, "graph": timed(recorded.replay, 50)}


def bench_kernels(limits: dict[str, float]) -> dict[str, Any]:
    """Times memory-bound fused kernels: bytes a second, and their share of the measured copy bandwidth."""
    import torch

    found = {}
    for name, module in memory_bound().items():
        x = torch.randn(16384, 4096)
        graph = api.import_model(module.eval(), x)
        _, engine = api.build_engine(graph, precision="fp16", device="cuda", verify="off")
        rows = profile(engine, {engine.inputs[0].name: x.numpy()}, repeat=5)
        nbytes, seconds = sum(r.nbytes for r in rows), sum(r.seconds for r in rows)
        found[name] = {
            "kernels": len(rows), "us": seconds * 1e6, "GB_per_s": nbytes / seconds / 1e9,
            "share_of_copy": nbytes / seconds / limits["copy_bytes_per_s"],
        }  # fmt: skip
    return found


def memory_bound() -> dict[str, Any]:
    """Small modules that fuse to one memory-bound kernel each."""
    import torch
    from torch import nn

    class BiasGelu(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(4096))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.gelu(x + self.bias)

    class SkipNorm(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(4096)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x * 2.0 + 1.0)

    return {"bias_gelu": BiasGelu(), "layer_norm": SkipNorm(), "softmax": nn.Softmax(-1)}


def bench_host() -> dict[str, float]:
    """Host microseconds of ``engine(x)`` for a small engine that replays a graph, with ``x`` on the GPU."""
    import torch

    built = build("bert", layers=2, hidden=128, heads=2, length=16)
    graph = api.import_model(built.module, *built.args)
    engine = api.compile_graph(graph, precision="fp16", device="cuda", verify="off")
    x = built.args[0].cuda()
    for _ in range(20):
        engine(x)
    torch.cuda.synchronize()
    times = []
    for _ in range(50):
        start = time.perf_counter()
        for _ in range(20):
            engine(x)
        times.append((time.perf_counter() - start) / 20)
        torch.cuda.synchronize()
    return {"engine_call_us": statistics.median(times) * 1e6}


def bench_load() -> dict[str, float]:
    """Seconds to load an engine file of about 100 MB and run it for the first time."""
    import torch

    built = build("bert", layers=7, hidden=768)
    graph = api.import_model(built.module, *built.args)
    engine = api.compile_graph(graph, precision="fp16", device="cuda", verify="off")
    x = built.args[0].cuda()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.engine"
        engine.save(path)
        size = path.stat().st_size
        del engine
        start = time.perf_counter()
        fresh = load(path, device="cuda")
        loaded = time.perf_counter()
        np.asarray(fresh(x).cpu())
        torch.cuda.synchronize()
        end = time.perf_counter()
    return {"file_MB": size / 1e6, "load_s": loaded - start, "first_run_s": end - loaded}


def headline(entry: dict[str, Any]) -> str:
    """The line that is printed for a model's entry in the report."""
    if "error" in entry:
        return str(entry["error"])
    return (
        f"{entry['arcweld_graph_ms']:.3f} ms in a graph ({entry['arcweld_call_ms']:.3f} per call), torch graph "
        f"{entry['torch_graph_ms']:.3f} ms, {entry['ratio_to_torch_graph']:.2f}x, {entry['kernels']} kernels, "
        f"error {entry['relative_error']:.1e}, build {entry['build_s']:.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
