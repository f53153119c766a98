"""What the subcommands share: the console, progress bars, opening models and engines, notes about accepted flags."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arcweld.compiler.api import Input, import_model
from arcweld.compiler.build import Progress as Report
from arcweld.compiler.cli.shapes import Shape, dynamic_shapes
from arcweld.compiler.dims import Dim, IntExpr, free_symbols, parse
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import UsageError
from arcweld.compiler.ir import Graph, TensorType, Value
from arcweld.compiler.text import parse_graph
from arcweld.runtime.engine_file import EngineData
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
NO_EFFECT = {
    "skipInference": "a build never times the engine, `onnx-to-engine bench` does",
    "builderOptimizationLevel": "every build does all it can",
    "timingCacheFile": "compiled kernels are kept in the folder ARCWELD_CACHE_DIR",
    "memPoolSize": "the workspace is exactly what the model needs, `onnx-to-engine inspect` prints it",
    "noDataTransfers": "there is nothing to copy to",
}
STAGES = {"codegen": "rendering kernels", "nvrtc": "compiling kernels", "verify": "verifying"}


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[Report | None]:
    """A progress bar on stderr, one line a stage; None when quiet or when stderr is no terminal."""
    if quiet or not err.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description:>20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bars:
        tasks: dict[str, object] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(STAGES.get(stage, stage), total=total)
            bars.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]

        yield report


def is_engine(path: str) -> bool:
    """True for an engine file, intact or not, by its first bytes; raises UsageError where there is no file."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def open_graph(
    model: str, shapes: Mapping[str, Sequence[int | str]] | None = None, low: Mapping[str, Shape] | None = None,
    high: Mapping[str, Shape] | None = None,
) -> Graph:  # fmt: skip
    """Imports an ONNX file with ``shapes`` (sizes, names, expressions), or with open dimensions between ``low`` and
    ``high``.
    """
    if shapes and (low or high):
        raise UsageError("give either --shapes or --minShapes/--maxShapes")
    if shapes:
        return import_model(model, inputs=[Input(n, s) for n, s in shapes.items()])
    graph = import_model(model)
    if not (low or high):
        return graph
    ranged = dynamic_shapes(graph, low or {}, high or {})
    return import_model(model, inputs=[Input(n, [_entry(d) for d in s]) for n, s in ranged.items()])


def _entry(d: Dim) -> Any:
    """A dimension as ``Input.shape`` has it."""
    if not isinstance(d, IntExpr):
        return d
    s = next(iter(free_symbols(d)))
    return (s.name, s.lo, s.hi)


def interface(data: EngineData) -> Graph:
    """An engine's inputs as a graph: the whole stored graph, which tells which inputs are indices. Raises ModelError
    where it cannot be read.
    """
    if data.graph:
        return parse_graph(data.graph)
    inputs = tuple(
        Value(t.name, TensorType(DType(t.dtype), tuple(parse(d) for d in t.shape))) for t in data.program.inputs
    )
    return Graph(data.program.name, inputs, (), ())


def note_ignored(flags: Mapping[str, object]) -> None:
    """Says which accepted flags have no effect here, and why none is needed."""
    for flag, value in flags.items():
        if value not in (None, False, ""):
            why = NO_EFFECT.get(flag, "a build does not time the engine, `onnx-to-engine bench` does")
            err.print(f"note: --{flag} has no effect: {why}", markup=False)


def check_writable(path: str) -> Path:
    """The path of a file to be written. Raises UsageError at once, not after minutes of work, where it can't be."""
    target = Path(path)
    folder = next(p for p in target.absolute().parents if p.exists())
    if target.is_dir():
        raise UsageError(f"{path} cannot be written: it is a folder")
    if not folder.is_dir():
        raise UsageError(f"{path} cannot be written: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{path} cannot be written: no permission to write to {folder}")
    return target


def megabytes(n: int) -> str:
    """Bytes, exactly, with the rounded size for people: ``23,590,724 B (23.6 MB)``."""
    return f"{n:,} B ({n / 1e6:.1f} MB)"
