"""The simulator's benchmark: calls in turns with ONNX Runtime on one thread, as ratios of CPU and wall seconds.

    python -m arcweld.models.bench_sim --out docs/benchmarks [--only bert,mobilenet_v2] [--rounds 3]

Writes ``simulator.json``. Both contestants compute the same exported model on the same inputs, in a process that does
nothing else. CPU seconds are those of all threads of the process; a figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arcweld.compiler.errors import UsageError
from arcweld.driver import api
from arcweld.models.builders import build, export_onnx
from arcweld.runtime.sim.device import SimDevice

# SmolLM2-135M's sizes (its config.json), with random weights
SMALL_LLAMA = {"layers": 30, "hidden": 576, "intermediate": 1536, "heads": 9, "groups": 3, "vocabulary": 49152}
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "bert": ("bert", {}, "fp32"),
    "gpt2": ("gpt2", {}, "fp32"),
    "vit_b16": ("vit_b16", {}, "fp32"),
    "resnet50": ("resnet50", {}, "fp32"),
    "mobilenet_v2": ("mobilenet_v2", {}, "fp32"),
    "bert_fp16": ("bert", {}, "fp16"),
    "llama_135m_1_token": ("llama", {**SMALL_LLAMA, "length": 1}, "fp32"),
    "llama_135m_37_tokens": ("llama", {**SMALL_LLAMA, "length": 37}, "fp32"),
}


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds of a call on the simulator with all CPUs (``sim``) and one host thread (``one``), and in ONNX Runtime
    on one thread (``ort``).

    ``difference``: the largest of their results, by the largest result.
    """

    precision: str
    sim_cpu: float
    sim_wall: float
    one_cpu: float
    one_wall: float
    ort_cpu: float
    ort_wall: float
    difference: float

    @property
    def ratio(self) -> float:
        """The CPU seconds of both on one thread, the simulator's by ONNX Runtime's."""
        return self.one_cpu / self.ort_cpu


def measure(name: str, rounds: int) -> Figures:
    """Times one case; both contestants take turns, after one call each that is not counted."""
    import onnxruntime

    model, options, precision = CASES[name]
    made = build(model, **options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(made.module, made.args, path)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        device = SimDevice()
        engine = api.compile(str(path), device=device, verify="off", precision=precision)
    feeds = {i.name: a.numpy() for i, a in zip(session.get_inputs(), made.args, strict=True)}

    def simulated(threads: int) -> Sequence[np.ndarray]:
        device.threads = threads
        return list(engine.run(feeds).values())

    every = device.threads
    calls: tuple[Callable[[], Sequence[np.ndarray]], ...] = (
        lambda: simulated(every), lambda: simulated(1), lambda: session.run(None, feeds)
    )  # fmt: skip
    (got,), _, (want,) = (call() for call in calls)
    spent = [[_timed(call) for call in calls] for _ in range(rounds)]
    (sim_cpu, sim_wall), (one_cpu, one_wall), (ort_cpu, ort_wall) = (
        (statistics.median(s[k][0] for s in spent), statistics.median(s[k][1] for s in spent)) for k in range(3)
    )
    difference = float(np.abs(got - want).max() / np.abs(want).max())
    return Figures(precision, sim_cpu, sim_wall, one_cpu, one_wall, ort_cpu, ort_wall, difference)


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def _machine() -> dict[str, Any]:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    models = {line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")}
    return {"cpu": ", ".join(sorted(models)), "cpus": len(os.sched_getaffinity(0)), "python": sys.version.split()[0]}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the cases, prints a line for each, and writes the file if all of them ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="docs/benchmarks")
    parser.add_argument("--only", default="")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    names = [n for n in options.only.split(",") if n] or list(CASES)
    if unknown := sorted({*names} - {*CASES}):
        raise UsageError(f"no case is called {unknown[0]}", hint=f"one of {', '.join(CASES)}")
    found = {}
    for name in names:
        f = found[name] = measure(name, options.rounds)
        print(
            f"{name} {f.precision}: sim {f.sim_cpu:.3f} CPU s, {f.sim_wall:.3f} s, on one thread {f.one_cpu:.3f} CPU s;"
            f" ONNX Runtime {f.ort_cpu:.3f} CPU s; ratio {f.ratio:.1f}; difference {f.difference:.1e}", flush=True,
        )  # fmt: skip
    if not options.only:
        report = {"machine": _machine(), "seconds": {n: asdict(f) | {"ratio": f.ratio} for n, f in found.items()}}
        path = Path(options.out) / "simulator.json"
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
