"""``run`` and ``verify``: what is done with an engine, or with a model that is compiled on the fly."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from arcweld.compiler.api import compile_graph
from arcweld.compiler.cli.common import check_writable, interface, is_engine, open_graph, out
from arcweld.compiler.cli.shapes import Shape, load_arrays, parse_open_shapes, parse_ranges, parse_shapes, sizes_of
from arcweld.compiler.dims import evaluate
from arcweld.compiler.errors import AccuracyError, UsageError
from arcweld.compiler.metrics import relative_error
from arcweld.compiler.paths import replacing
from arcweld.compiler.samples import sample_inputs, sample_sizes
from arcweld.runtime.engine import Engine, load

Opt = typer.Option
Device = Annotated[str, Opt("--device", help="cuda, cuda:N or sim.")]
Shapes = Annotated[str, Opt("--shapes", "--input-shapes", help="Input shapes: x:1x3x224x224.")]
Load = Annotated[str, Opt("--loadInputs", "--load-inputs", help="x:file.npy,y:raw.bin or all.npz.")]
Range = Annotated[list[str], Opt("--val-range", help="Range of random values: [0,1] or x:[0,1].")]
Seed = Annotated[int, Opt("--seed", help="Seed of random inputs.")]


def open_engine(path: str, device: str, shapes: str) -> Engine:
    """Loads an engine file, or compiles a model for the device without object code for others."""
    if is_engine(path):
        return load(path, device or None)
    graph = open_graph(path, parse_open_shapes(shapes) if shapes else None)
    return compile_graph(graph, device=device or None, verify="off")


def make_feeds(engine: Engine, shapes: str, files: str, ranges: list[str], seed: int) -> dict[str, np.ndarray]:
    """Inputs for an engine: from files where given, else random."""
    given = parse_shapes(shapes) if shapes else {}
    graph = interface(engine.data)
    sizes = sample_sizes(graph, sizes_of(graph, given))
    known: dict[str, tuple[np.dtype, Shape | None]] = {
        v.name: (v.dtype.numpy, tuple(evaluate(d, sizes) for d in v.shape)) for v in graph.inputs
    }
    loaded = load_arrays(files, known) if files else {}
    feeds = sample_inputs(graph, sizes, seed=seed, ranges=parse_ranges(ranges))
    feeds.update(loaded)
    return feeds


def run(
    path: Annotated[str, typer.Argument(help="Engine or ONNX file.")] = "",
    load_engine: Annotated[str, Opt("--loadEngine", help="Engine file (another spelling of the argument).")] = "",
    device: Device = "", shapes: Shapes = "", load_inputs: Load = "", val_range: Range = [], seed: Seed = 0,  # noqa: B006
    export: Annotated[str, Opt("--exportOutput", "--save-outputs", help="Write outputs to a .npz or .json file.")] = "",
) -> None:  # fmt: skip
    """Runs an engine once and prints what comes out."""
    target = check_writable(export) if export else None
    engine = open_engine(one_path(path, load_engine), device, shapes)
    feeds = make_feeds(engine, shapes, load_inputs, val_range, seed)
    engine.run(feeds)
    start = time.perf_counter()
    results = engine.run(feeds)
    seconds = time.perf_counter() - start
    for name, array in results.items():
        preview = np.array2string(np.asarray(array).ravel()[:6], precision=5, separator=", ", max_line_width=1000)
        out.print(f"{name}: {array.dtype}{list(array.shape)} {preview}")
    out.print(f"ran on {engine.device.name} ({engine.device.arch}) in {seconds * 1e3:.3f} ms")
    if target is not None:
        write_outputs(target, results)


def write_outputs(target: Path, results: dict[str, np.ndarray]) -> None:
    """Writes results as .npz, or as trtexec's JSON; bfloat16 as float32. The file appears whole or not at all."""
    results = {k: v if v.dtype.kind in "biufc" else v.astype(np.float32) for k, v in results.items()}
    with replacing(target) as temporary, temporary.open("wb") as stream:
        if target.suffix == ".json":
            rows = [
                {"name": k, "dimensions": "x".join(map(str, v.shape)), "values": v.ravel().tolist()}
                for k, v in results.items()
            ]
            stream.write(json.dumps(rows).encode())
        else:
            np.savez(stream, **results)  # type: ignore[arg-type]


def one_path(path: str, other: str) -> str:
    """The one of two spellings that was used. Raises UsageError for none or both."""
    if bool(path) == bool(other):
        raise UsageError("name one engine or model file")
    return path or other


def verify(
    path: Annotated[str, typer.Argument(help="Engine or ONNX file.")],
    model: Annotated[str, Opt("--onnx", "--model", help="The ONNX file that an engine was built from.")] = "",
    onnxrt: Annotated[bool, Opt("--onnxrt", help="Compare with ONNX Runtime instead of the numpy references.")] = False,
    atol: Annotated[float, Opt("--atol", help="Absolute tolerance of an element.")] = 1e-5,
    rtol: Annotated[float, Opt("--rtol", help="Relative tolerance of an element.")] = 1e-3,
    device: Device = "", shapes: Shapes = "", load_inputs: Load = "", val_range: Range = [], seed: Seed = 0,  # noqa: B006
) -> None:  # fmt: skip
    """Compares an engine's outputs with ONNX Runtime or the numpy references. Exit code 1 if they differ."""
    source = model or ("" if is_engine(path) else path)
    if not source:
        raise UsageError("an engine is verified against its model", hint="add --onnx model.onnx")
    engine = open_engine(path, device, shapes)
    _check_same_model(engine, source)
    feeds = make_feeds(engine, shapes, load_inputs, val_range, seed)
    want = _onnxruntime(source, feeds) if onnxrt else _numpy(source, feeds)
    got = engine.run(feeds)
    failed = []
    for name, w in want.items():
        g = np.asarray(got[name])
        diff = np.abs(_wide(g) - _wide(w)) if w.size and g.shape == w.shape else np.zeros(1)
        fine = g.shape == w.shape and np.allclose(_wide(g), _wide(w), rtol, atol, equal_nan=True)
        out.print(
            f"{'pass' if fine else 'FAIL'} {name}: max abs {np.nanmax(diff):.3e}, "
            f"relative {relative_error(g, w.astype(g.dtype)):.3e}"
        )
        if not fine:
            failed.append(name)
    if failed:
        raise AccuracyError(f"{len(failed)} of {len(want)} outputs differ: {', '.join(failed)}", node=path)


def _check_same_model(engine: Engine, model: str) -> None:
    """Raises UsageError where the names of inputs and outputs tell that the engine is another model's."""
    from arcweld.compiler.onnx.proto import load_model
    from arcweld.compiler.onnx.symbols import sanitise

    graph = load_model(model)[0].graph
    weights = {t.name for t in graph.initializer}
    theirs = ({sanitise(v.name) for v in graph.input if v.name not in weights}, {v.name for v in graph.output})
    ours = ({t.name for t in engine.inputs}, {t.name for t in engine.outputs})
    for kind, mine, other in zip(("inputs", "outputs"), ours, theirs):
        if mine != other:
            names = f"{', '.join(sorted(mine))}, those of the model {', '.join(sorted(other))}"
            raise UsageError(f"the engine was not built from {model}: its {kind} are {names}")


def _wide(a: np.ndarray) -> np.ndarray:
    return a.astype(np.float64)


def _onnxruntime(model: str, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    try:
        import onnxruntime
    except ImportError:
        raise UsageError("ONNX Runtime is not installed", hint="pip install onnxruntime") from None
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds)))


def _numpy(model: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    from arcweld.compiler.reference import run_reference

    graph = open_graph(model)
    values = run_reference(graph, feeds)
    return {label: values[o.name] for label, o in zip(graph.labels(), graph.outputs)}

