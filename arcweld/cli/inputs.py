"""Shared by ``run``, ``bench``, ``verify`` and ``build``: common options, opening an engine, making inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import typer

from arcweld.cli.common import interface, is_engine, open_graph, progress_bar
from arcweld.cli.shapes import (
    Shape,
    batch_sizes,
    load_arrays,
    parse_open_shapes,
    parse_ranges,
    parse_shapes,
    sizes_of,
)
from arcweld.compiler.dims import evaluate
from arcweld.compiler.errors import UsageError
from arcweld.compiler.ir import Graph
from arcweld.compiler.logs import configure
from arcweld.driver.api import compile_graph
from arcweld.driver.samples import sample_inputs, sample_sizes
from arcweld.runtime.engine import Engine, load

Opt = typer.Option
Device = Annotated[str, Opt("--device", help="cuda, cuda:N or sim.")]
Shapes = Annotated[str, Opt("--shapes", "--input-shapes", help="Input shapes: x:1x3x224x224.")]
_BATCH = "Size of the first dimension of all inputs, where it is open."
Batch = Annotated[int, Opt("--batch", min=0, show_default=False, help=_BATCH)]
Load = Annotated[str, Opt("--loadInputs", "--load-inputs", help="x:file.npy,y:raw.bin or all.npz.")]
Range = Annotated[list[str], Opt("--val-range", help="Range of random values: [0,1] or x:[0,1].")]
Seed = Annotated[int, Opt("--seed", min=0, help="Seed of random inputs.")]
Values = Annotated[str, Opt("--values", help="Inputs of a model that are constants: sr:16000,mode:[1,0].")]
_INOUT = "Inputs that outputs take over, in place: 'past*' by name, or state:stateN."
InOut = Annotated[str, Opt("--inout", help=_INOUT)]
Fp16 = Annotated[bool, Opt("--fp16", help="Compile a model in half precision.")]
Bf16 = Annotated[bool, Opt("--bf16", help="Compile a model in bfloat16.")]
Trust = Annotated[bool, Opt("--trust", help="Run any engine file on sim, where its kernels are host code.")]
Verbose = Annotated[bool, Opt("--verbose", callback=lambda on: configure("info") if on else None, help="Log more.")]


def precision_of(fp16: bool, bf16: bool) -> str:
    """The precision that two flags name. Raises UsageError for both."""
    if fp16 and bf16:
        raise UsageError("--fp16 and --bf16 exclude each other")
    return "fp16" if fp16 else "bf16" if bf16 else "fp32"


def open_engine(
    path: str, device: str, shapes: str, values: str = "", precision: str = "fp32", *, trusted: bool = False
) -> Engine:
    """Loads an engine file (``trusted`` as for ``load``), or compiles an ONNX model for the device.

    A model is verified unless the precision is fp32: verification decides which nodes stay in f32. Raises UsageError
    for a precision or values together with an engine file.
    """
    if not is_engine(path):
        graph = open_graph(path, shapes, values=values)
        level = "off" if precision == "fp32" else "quick"
        with progress_bar() as report:
            return compile_graph(graph, device=device or None, verify=level, precision=precision, progress=report)
    if precision != "fp32" or values:
        asked = f"--{precision}" if precision != "fp32" else "--values"
        raise UsageError(f"{path} is an engine already: {asked} is for models", hint="build another engine with it")
    return load(path, device or None, trusted=trusted)


def feeds_for(
    engine: Engine, path: str, shapes: str, files: str, ranges: list[str], seed: int, batch: int = 0
) -> dict[str, np.ndarray]:
    """Inputs by name for the engine that ``open_engine`` made from the same ``path`` and ``shapes``.

    ``batch`` is the size of the first dimensions, 0 for any.
    """
    if is_engine(path):
        given = parse_shapes(shapes) if shapes else {}
    else:  # a model's shapes may be open ones
        given = _concrete(parse_open_shapes(shapes)) if shapes else {}
    return make_feeds(interface(engine.data), given, files, ranges, seed, batch)


def _concrete(shapes: Mapping[str, Sequence[int | str]]) -> dict[str, Shape]:
    found = {n: tuple(d for d in s if isinstance(d, int)) for n, s in shapes.items()}
    return {n: s for n, s in found.items() if len(s) == len(shapes[n])}


def make_feeds(
    graph: Graph, shapes: Mapping[str, Shape], files: str, ranges: list[str], seed: int = 0, batch: int = 0
) -> dict[str, np.ndarray]:
    """An array for each input, from ``files`` or else random, by name. Sizes come from ``shapes`` and the files.

    Raises UsageError for shapes, files and a ``batch`` that contradict each other or the graph.
    """
    types = {v.name: v.dtype for v in graph.inputs}
    loaded = load_arrays(files, types) if files else {}
    known = dict(shapes)
    for name, array in loaded.items():
        if isinstance(array, np.ndarray):
            if name in known and known[name] != array.shape:
                raise UsageError(f"the file for {name} has the shape {list(array.shape)}, not {list(known[name])}")
            known[name] = array.shape
    sizes = sample_sizes(graph, batch_sizes(graph, batch) | sizes_of(graph, known))
    feeds: dict[str, np.ndarray] = {}
    for v in graph.inputs:
        given = loaded.get(v.name)
        if given is not None:
            shape = tuple(evaluate(d, sizes) for d in v.shape)
            feeds[v.name] = given if isinstance(given, np.ndarray) else given.read(v.name, v.dtype.numpy, shape)
    return sample_inputs(graph, sizes, seed=seed, ranges=parse_ranges(ranges)) | feeds
