"""``run`` and ``verify``: run an engine, or a model compiled for the occasion, and compare its outputs."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from arcweld.cli.common import check_writable, is_engine, out, waiting
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
from arcweld.cli.rivals import OnnxRuntime
from arcweld.cli.shapes import parse_tolerance, parse_values
from arcweld.compiler.errors import AccuracyError, UsageError
from arcweld.compiler.paths import replacing
from arcweld.driver.api import Input, import_model
from arcweld.driver.evidence import ENGINE_TOLERANCE
from arcweld.driver.metrics import relative_error
from arcweld.runtime.engine import Engine

Opt = typer.Option
OUTPUT_FILES = (".npz", ".json")
Export = Annotated[str, Opt("--exportOutput", "--save-outputs", help="Write outputs to a .npz or .json file.")]
DumpOutput = Annotated[bool, Opt("--dumpOutput", help="Print every element of the outputs.")]
STATISTICS = ("elemwise", "max", "mean", "median")


def run(
    path: Annotated[str, typer.Argument(help="Engine or ONNX file.")] = "",
    load_engine: Annotated[str, Opt("--loadEngine", help="Engine file (another spelling of the argument).")] = "",
    device: Device = "", shapes: Shapes = "", batch: Batch = 0, values: Values = "", load_inputs: Load = "",
    val_range: Range = [],  # noqa: B006
    seed: Seed = 0, fp16: Fp16 = False, bf16: Bf16 = False, verbose: Verbose = False,
    trust: Trust = False,
    dump_output: DumpOutput = False, export: Export = "",
) -> None:  # fmt: skip
    """Runs an engine once and prints what comes out."""
    source = one_path(path, load_engine)
    target = output_file(export, source)
    engine = open_engine(source, device, shapes, values, precision_of(fp16, bf16), trusted=trust)
    feeds = feeds_for(engine, source, shapes, load_inputs, val_range, seed, batch)
    with waiting("running"):
        engine.run(feeds)
        start = time.perf_counter()
        results = engine.run_tensors(feeds)
        seconds = time.perf_counter() - start
    if dump_output:
        print_outputs(results)
    for name, array in results.items() if not dump_output else ():
        preview = np.array2string(np.asarray(array).ravel()[:6], precision=5, separator=", ", max_line_width=1000)
        out.print(f"{name}: {array.dtype}{list(array.shape)} {preview}")
    out.print(f"ran on {engine.device.name} ({engine.device.arch}) in {seconds * 1e3:.3f} ms")
    if target is not None:
        write_outputs(target, results)


def output_file(path: str, source: str) -> Path | None:
    """The file for outputs that a path names, checked; None for none. Raises UsageError for another kind of file."""
    target = check_writable(path, source) if path else None
    if target is not None and target.suffix not in OUTPUT_FILES:
        raise UsageError(f"{path}: outputs are written as {' or '.join(OUTPUT_FILES)}", hint=f"name it {path}.npz")
    return target


def print_outputs(results: Mapping[str, np.ndarray]) -> None:
    """Prints all elements of the results, as trtexec does: the shape, then the elements in row-major order."""
    out.print("Output Tensors:")
    for name, array in results.items():
        out.print(f"{name}: ({'x'.join(map(str, array.shape))})")
        # strings as literals: a model's labels may hold what a terminal acts on
        out.print(" ".join(repr(x) if isinstance(x, str) else str(x) for x in np.asarray(array).ravel()))


def write_outputs(target: Path, results: dict[str, np.ndarray]) -> None:
    """Writes results atomically as .npz, or as JSON in trtexec's form.

    bfloat16 is written as float32, strings as numpy's arrays of characters.
    """
    results = {k: _writable(v) for k, v in results.items()}
    with replacing(target) as temporary, temporary.open("wb") as stream:
        if target.suffix == ".json":
            rows = [
                {"name": k, "dimensions": "x".join(map(str, v.shape)), "values": v.ravel().tolist()}
                for k, v in results.items()
            ]
            stream.write(json.dumps(rows).encode())
            return
        with zipfile.ZipFile(stream, "w") as archive:  # np.savez fails for outputs named like its parameters
            for k, v in results.items():
                with archive.open(f"{k}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, v, allow_pickle=False)


def _writable(array: np.ndarray) -> np.ndarray:
    if array.dtype == object:
        return array.astype(np.str_)
    return array if array.dtype.kind in "biufc" else array.astype(np.float32)


def one_path(path: str, other: str) -> str:
    """The path given by one of two spellings. Raises UsageError if neither or both are used."""
    if bool(path) == bool(other):
        raise UsageError("name one engine or model file")
    return path or other


def verify(
    path: Annotated[str, typer.Argument(help="Engine or ONNX file.")] = "",
    load_engine: Annotated[str, Opt("--loadEngine", help="Engine file (another spelling of the argument).")] = "",
    model: Annotated[str, Opt("--onnx", "--model", help="The ONNX file that an engine was built from.")] = "",
    onnxrt: Annotated[bool, Opt("--onnxrt", help="Compare with ONNX Runtime instead of the numpy references.")] = False,
    atol: Annotated[str, Opt("--atol", help="Absolute tolerance: 1e-5, or y:1e-5 for one output.")] = "",
    rtol: Annotated[str, Opt("--rtol", help="Relative tolerance: 1e-3, or y:1e-3 for one output.")] = "",
    statistic: Annotated[str, Opt("--check-error-stat", help=f"What to bound: {', '.join(STATISTICS)}.")] = "elemwise",
    device: Device = "", shapes: Shapes = "", batch: Batch = 0, values: Values = "", load_inputs: Load = "",
    val_range: Range = [],  # noqa: B006
    seed: Seed = 0, fp16: Fp16 = False, bf16: Bf16 = False, verbose: Verbose = False,
    trust: Trust = False,
) -> None:  # fmt: skip
    """Compares an engine's outputs with ONNX Runtime or the numpy references. Exit code 1 if they differ."""
    path = one_path(path, load_engine) if path or load_engine else model
    source = model or ("" if is_engine(path) else path)
    if not source:
        raise UsageError("an engine is verified against its model", hint="add --onnx model.onnx")
    if statistic not in STATISTICS:
        raise UsageError(f"check-error-stat: {statistic!r} is not one of {', '.join(STATISTICS)}")
    built = is_engine(path)
    engine = open_engine(path, device, shapes, "" if built else values, precision_of(fp16, bf16), trusted=trust)
    frozen = check_same_model(engine, source, values)
    names = [t.name for t in engine.outputs]
    absolute, relative = parse_tolerance(atol, "atol", names), parse_tolerance(rtol, "rtol", names)
    feeds = feeds_for(engine, path, shapes, load_inputs, val_range, seed, batch)
    with waiting("computing the reference") as say:
        want = (
            OnnxRuntime(source, engine, feeds, frozen).results() if onnxrt else _numpy(source, engine, feeds, frozen)
        )
        say("running")
        got = engine.run_tensors(feeds)
    failed = []
    for name, w in want.items():
        tolerance = Tolerance(
            absolute.get(name, absolute.get("")), relative.get(name, relative.get("")), _promised(engine, name)
        )
        fine, text = tolerance.judge(np.asarray(got[name]), w, statistic)
        out.print(f"{'pass' if fine else 'FAIL'} {name}: {text}")
        if not fine:
            failed.append(name)
    if failed:
        raise AccuracyError(f"{len(failed)} of {len(want)} outputs differ: {', '.join(failed)}", node=path)


def _promised(engine: Engine, output: str) -> float | None:
    """The tolerance of an output in the evidence, if it is above that of fp32; else None."""
    rows: list[dict[str, Any]] = (engine.data.verify or {}).get("outputs", [])
    found = next((float(r["tolerance"]) for r in rows if r["output"] == output and r.get("tolerance")), 0.0)
    return found if found > ENGINE_TOLERANCE["fp32"] else None


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two arrays may differ.

    ``atol`` and ``rtol`` bound the absolute and the relative difference of elements; None takes the default. If both
    are None, a relative error (see ``relative_error``) of at most ``norm`` is accepted too.
    """

    atol: float | None
    rtol: float | None
    norm: float | None

    def judge(self, got: np.ndarray, want: np.ndarray, statistic: str) -> tuple[bool, str]:
        """Whether ``got`` is near enough, and the figures."""
        if got.shape != want.shape:
            return False, f"shape {list(got.shape)}, not {list(want.shape)}"
        if got.dtype == object:
            wrong = int((got != want).sum())
            return not wrong, f"{wrong} of {got.size} strings differ"
        g, w = got.astype(np.float64), want.astype(np.float64)
        same = (g == w) | (np.isnan(g) & np.isnan(w))
        with np.errstate(invalid="ignore", divide="ignore"):
            difference = np.where(same, 0.0, np.abs(g - w))
            ratio = np.where(same, 0.0, difference / np.abs(w))
        error = relative_error(got, want.astype(got.dtype))
        text = f"max abs {difference.max(initial=0):.3e}, relative {error:.3e}"
        if self.atol is None and self.rtol is None:
            if got.dtype.kind in "biu":
                return bool(same.all()), text
            if self.norm is not None and error <= self.norm:
                return True, f"{text}, allowed {self.norm:g}"
        atol = 1e-5 if self.atol is None else self.atol
        rtol = 1e-3 if self.rtol is None else self.rtol
        if statistic == "elemwise":
            return bool(np.all(difference <= atol + rtol * np.where(same, 0, np.abs(w)))), text
        reduce: Any = {"max": np.max, "mean": np.mean, "median": np.median}[statistic]
        figures = [float(reduce(x)) if x.size else 0.0 for x in (difference, ratio)]
        fine = figures[0] <= atol or figures[1] <= rtol
        return fine, f"{text}, {statistic} abs {figures[0]:.3e}, {statistic} rel {figures[1]:.3e}"


def check_same_model(engine: Engine, model: str, values: str) -> dict[str, np.ndarray]:
    """The model's inputs that the engine has as constants, from ``values``. Raises UsageError where the names of
    inputs and outputs tell that the engine is another model's.
    """
    from arcweld.compiler.onnx.importer import constant_input
    from arcweld.compiler.onnx.proto import load_model
    from arcweld.compiler.text import sanitize

    graph = load_model(model)[0].graph
    given = parse_values(values)
    weights = {t.name for t in graph.initializer}
    inputs = {v.name: v for v in graph.input if v.name not in weights}
    if unknown := sorted(set(given) - set(inputs)):
        raise UsageError(f"the model has no input {unknown[0]!r}", hint=f"its inputs are {', '.join(inputs)}")
    theirs = ({sanitize(n) for n in inputs if n not in given}, {v.name for v in graph.output})
    ours = ({a.name for a in engine.arguments}, {a.name for a in engine.results})
    for kind, mine, other in zip(("inputs", "outputs"), ours, theirs):
        if mine != other:
            names = f"{', '.join(sorted(mine))}, those of the model {', '.join(sorted(other))}"
            hint = "inputs that were made constants are given with --values" if mine < other else None
            raise UsageError(f"the engine was not built from {model}: its {kind} are {names}", hint=hint)
    lists = [n for n in given if not inputs[n].type.HasField("tensor_type")]
    if lists:
        raise UsageError(f"{lists[0]} is a constant that is no tensor: verify compares tensors", hint="leave it open")
    return {n: constant_input(inputs[n], v) for n, v in given.items()}


def _numpy(
    model: str, engine: Engine, feeds: Mapping[str, np.ndarray], frozen: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    from arcweld.compiler.onnx.proto import load_model
    from arcweld.compiler.text import sanitize
    from arcweld.driver.staged_reference import reference_outputs

    names = {sanitize(v.name): v.name for v in load_model(model)[0].graph.input}
    for a in engine.arguments:
        names |= {item: f"{names[a.name]}.{k}" for k, item in enumerate(a.items) if a.kind == "sequence"}
    inputs = [Input(names[n], a.shape) for n, a in feeds.items()]
    graph = import_model(model, inputs=inputs + [Input(n, value=a) for n, a in frozen.items()])
    values = reference_outputs(graph, feeds)
    return {label: values[o.name] for label, o in zip(graph.labels(), graph.outputs)}
