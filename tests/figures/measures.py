"""What ``make figures`` measures: each function returns the lines of the block with its name."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from machine import on_this_machine
from pages import ROOT

sys.path.insert(0, str(ROOT / "tests" / "project"))
sys.path.insert(0, str(ROOT / "tests" / "torch"))
import coverage_table
import one_build
import transformers_zoo

from arcweld.codegen.cost.fitted import FITTED
from arcweld.codegen.templates.select import IMPLEMENTATIONS
from arcweld.compiler.onnx.importer import import_onnx
from arcweld.compiler.ops.registry import all_ops
from arcweld.compiler.options import Options
from arcweld.compiler.torch.table import handled
from arcweld.driver import api
from arcweld.driver.build import build_graph
from arcweld.driver.metrics import relative_error
from arcweld.driver.summary import summary
from arcweld.models import calibrate, chains
from arcweld.models.builders import build, export_onnx
from arcweld.models.catalogue import MODELS
from arcweld.models.fetch import fetch
from arcweld.runtime.sim.device import SimDevice

HALF = ("minilm_l6_int8", "open_nsfw", "ppocr_rec", "terrain_unet")
KINDS = {
    "product": "matrix products", "convolution": "convolutions", "attention": "attention by `wgmma`",
    "attention_mma": "attention by `mma.sync`",
    "decode": "attention of one query to a cache",
    "rows": "norms and pools, whose operands are in the L2 cache", "stream": "copies, norms and products of one row",
}  # of kernels that times are modelled of
COVERAGE = ROOT / "build" / "coverage.json"


@contextmanager
def empty_cache() -> Iterator[dict[str, str]]:
    """The environment of a process that finds nothing cached."""
    with tempfile.TemporaryDirectory() as folder:
        yield {**os.environ, "ARCWELD_CACHE_DIR": folder}


def worst_error(name: str, engine: Any) -> float:
    """Of a catalogue model's engine against ONNX Runtime, on the catalogue's inputs."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(fetch(name)), options, providers=["CPUExecutionProvider"])
    feeds = MODELS[name].feeds()
    known, taken = {i.name for i in session.get_inputs()}, {t.name for t in engine.inputs}
    labels = [o.name for o in session.get_outputs()]
    want = dict(zip(labels, session.run(labels, {k: v for k, v in feeds.items() if k in known})))
    got = engine.run({k: v for k, v in feeds.items() if k in taken})
    return max(relative_error(got[label], want[label]) for label in labels)


def catalogue() -> list[str]:
    """Nodes, kernels and error of every published model."""
    rows = ["| model | what it is | nodes | kernels | error |", "|---|---|---|---|---|"]
    for name, model in MODELS.items():
        graph = import_onnx(str(fetch(name)), **model.import_options())
        data = build_graph(graph, Options(arch=("sm_80",)), compile_kernels=False).data
        launches, kernels = len(data.program.launches), len(data.sources)
        distinct = f" ({kernels})" if kernels != launches else ""
        error = worst_error(name, api.compile_graph(graph, device="sim", verify="off"))
        rows.append(f"| `{name}` | {model.summary} | {len(graph.nodes)} | {launches}{distinct} | {error:.1e} |")
    return [*rows, "", on_this_machine()]


def transformers() -> list[str]:
    """Nodes, kernels and error of every small model of transformers, through ``torch.compile``."""
    rows = ["| model | class | ATen nodes | compiled | kernels | error |", "|---|---|---|---|---|---|"]
    logging.disable(logging.WARNING)
    for name, entry in transformers_zoo.ZOO.items():
        found = transformers_zoo.run(entry)
        nodes, compiled = (sum(getattr(r, k) for r in found.reports) for k in ("nodes", "compiled"))
        kernels = sum(b.kernels or 0 for r in found.reports for b in r.blocks)
        error = max(relative_error(a.numpy(), b.numpy()) for a, b in zip(found.got, found.want))
        rows.append(f"| `{name}` | `{entry.model}` | {nodes} | {compiled} | {kernels} | {error:.1e} |")
    logging.disable(logging.NOTSET)
    return [*rows, "", on_this_machine()]


def half() -> list[str]:
    """Default builds in f16: error, nodes that stay in f32, and what the choice and the verification took."""
    rows = ["| model | error | nodes in f32 | choice | verification |", "|---|---|---|---|---|"]
    for name in HALF:
        graph = import_onnx(str(fetch(name)), **MODELS[name].import_options())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # how far f16 reaches is no figure of this table
            made, engine = api.build_engine(graph, precision="fp16", device="sim")
        error, note = worst_error(name, engine), made.data.verify["promotion"]["note"]
        seconds = [f"{made.seconds[stage]:.1f} s" for stage in ("promotion", "verify")]
        rows.append(f"| `{name}` | {error:.1e} | {note.removesuffix(' stay in f32')} | {' | '.join(seconds)} |")
    return [*rows, "", on_this_machine()]


def builds() -> list[str]:
    """Seconds and peak memory of builds for sm_90a without verification, cold and with object code cached."""
    rows = [
        "| model | precision | kernels compiled | cold | warm | weights of the model | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for title, path in _files(Path(folder)):
            for precision, short in (("fp32", "f32"), ("fp16", "f16")):
                with empty_cache() as environment:
                    cold, warm = (_one_build(path, precision, environment) for _ in range(2))
                sizes = f"{cold['weights'] / 1e6:.0f} MB | {cold['peak'] / 1e6:.0f} MB"
                times = f"{cold['seconds']:.1f} s | {warm['seconds']:.1f} s"
                rows.append(f"| {title} | {short} | {cold['kernels']} | {times} | {sizes} |")
    return [*rows, "", on_this_machine()]


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    for title, name, options in (("BERT-base, 128 tokens", "bert", {"length": 128}), ("ResNet-50", "resnet50", {})):
        model = build(name, **options)
        yield title, str(export_onnx(model.module, model.args, folder / f"{name}.onnx"))
    yield "PP-OCRv4 recogniser", str(fetch("ppocr_rec"))


def _one_build(path: str, precision: str, environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, one_build.__file__, path, precision]
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return result


def demo() -> list[str]:
    """The demonstration from an empty cache, download included."""
    with empty_cache() as environment:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "arcweld.models.demo"], env=environment, check=True, capture_output=True)
        seconds = time.perf_counter() - begin
        cubins = sum(p.is_file() for p in (Path(environment["ARCWELD_CACHE_DIR"]) / "nvrtc").rglob("*"))
    return [f"From an empty cache: {seconds:.0f} s ({cubins} cubins), download included.", "", on_this_machine()]


def simulator() -> list[str]:
    """Seconds of one call on the simulator, for one stream of images or sentences."""
    rows = ["| model | one call on the simulator |", "|---|---|"]
    for title, name in (("MobileNetV2, 224 x 224", "mobilenet_v2"), ("ResNet-50, 224 x 224", "resnet50")):
        model = build(name)
        engine = api.compile(model.module, *model.args, device="sim", verify="off")
        rows.append(f"| {title} | {_fastest(lambda e=engine, a=model.args: e(*a)):.2f} s |")
    ids = np.random.default_rng(0).integers(1000, 20000, (1, 32))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    engine = api.compile(str(fetch("minilm_l6_int8")), device="sim", verify="off")
    rows.append(f"| MiniLM-L6, 32 tokens | {_fastest(lambda: engine.run(feeds)):.2f} s |")
    return [*rows, "", on_this_machine()]


def _fastest(call: Callable[[], Any], times: int = 3) -> float:
    """The least seconds of some calls, after one that makes what later ones find."""
    call()
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def resnet18() -> list[str]:
    """The line that a build logs."""
    model = build("resnet18")
    made, _ = api.build_engine(api.import_model(model.module, *model.args), device="sim")
    call = ">>> engine = arcweld.compile(torchvision.models.resnet18().eval(), torch.randn(1, 3, 224, 224))"
    text = re.sub(r"(.{80,115}, )", r"\1\n", summary(made, SimDevice())).replace(" \n", "\n")
    return ["```", call, *text.split("\n"), "```", "", on_this_machine()]


def counts() -> list[str]:
    """Operators, templates, and the size of the wheel."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--no-deps", "--disable-pip-version-check", "--quiet", "--wheel-dir", folder]
        subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True)
        (wheel,) = Path(folder).glob("arcweld-*.whl")
        size = wheel.stat().st_size / 1e6
    return [
        f"The IR has {len(all_ops())} operators, and kernels have {len(IMPLEMENTATIONS)} kinds of loop nest.",
        f"{len(handled())} ATen overloads are known. The wheel has about {size:.1f} MB.",
    ]


def timemodel() -> list[str]:
    """How far modelled times are from measured ones, by kind of kernel, and on problems that a fit has not seen."""
    on, rows = calibrate.measured(calibrate.MEASURED / "kernels-h100.json")
    parts = [(own, f) for own, f in calibrate.held_out(rows, on, FITTED, 6)]
    lines = ["| kernels | measured | median error | where the fit has not seen the problem |", "|---|---|---|---|"]
    for kind, name in KINDS.items():
        seen = calibrate.relative_errors([r for r in rows if r.kind == kind], on, FITTED)
        unseen = [
            e for own, f in parts for e in calibrate.relative_errors([r for r in own if r.kind == kind], on, f)
        ]
        lines.append(f"| {name} | {len(seen)} | {100 * np.median(seen):.1f} % | {100 * np.median(unseen):.1f} % |")
    made = calibrate.choices([r for r in rows if r.kind == "product"], on, FITTED)
    first, behind = sum(c.behind == 0 for c in made), max(c.behind for c in made)
    worst = f"at worst, the one that it puts first takes {100 * behind:.1f} % longer"
    text = f"Of {len(made)} products it puts the best measured tactic first for {first}; {worst}."
    on, models = chains.measured_chains(calibrate.MEASURED / "chains-h100.json")
    errors = {abs(c.error(on, f)): c.model for c, f in chains.held_out(models, rows, on)}
    middle, most = 100 * np.median([*errors]), max(errors)
    whole = (
        f"Of {len(models)} whole models, where the fit has seen none of their kernels, the median error is "
        f"{middle:.1f} %, and the largest {100 * most:.0f} %: {errors[most]}."
    )
    return [*lines, "", text, "", whole]


def coverage() -> list[str]:
    """Lines and branches of the fast tier, from the report that ``make coverage`` wrote."""
    table = coverage_table.lines(coverage_table.by_folder(json.loads(COVERAGE.read_text(encoding="utf-8"))))
    return [*table, "", on_this_machine()]


MEASURES: dict[str, Callable[[], Sequence[str]]] = {
    f.__name__: f
    for f in (counts, catalogue, transformers, half, builds, demo, simulator, resnet18, timemodel, coverage)
}
