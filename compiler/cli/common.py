"""What the subcommands share: the console, progress bars, opening models and engines, notes about accepted flags."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from arcweld.compiler.api import Input, import_model
from arcweld.compiler.build import Progress as Report
from arcweld.compiler.cli.shapes import Shape, dynamic_shapes
from arcweld.compiler.dims import IntExpr, free_symbols
from arcweld.compiler.errors import UsageError
from arcweld.compiler.ir import Graph
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
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
    """True for an engine file; raises UsageError where there is no file."""
    if not Path(path).is_file():
        raise UsageError(f"there is no file {path}")
    return zipfile.is_zipfile(path)


def open_graph(
    model: str, shapes: Mapping[str, Shape] | None = None, low: Mapping[str, Shape] | None = None,
    high: Mapping[str, Shape] | None = None,
) -> Graph:  # fmt: skip
    """Imports an ONNX file with fixed ``shapes``, or with open dimensions between ``low`` and ``high``."""
    if shapes and (low or high):
        raise UsageError("give either --shapes or --minShapes/--maxShapes")
    if shapes:
        return import_model(model, inputs=[Input(n, s) for n, s in shapes.items()])
    graph = import_model(model)
    if not (low or high):
        return graph
    ranged = dynamic_shapes(graph, low or {}, high or {})
    return import_model(model, inputs=[Input(n, [_entry(d) for d in s]) for n, s in ranged.items()])


def _entry(d: object) -> object:
    """A dimension as ``Input.shape`` has it."""
    if not isinstance(d, IntExpr):
        return d
    s = next(iter(free_symbols(d)))
    return (s.name, s.lo, s.hi)


def note_ignored(flags: Mapping[str, object]) -> None:
    """Says which accepted flags have no effect here, and why none is needed."""
    for flag, value in flags.items():
        if value not in (None, False, ""):
            err.print(f"note: --{flag} is accepted for compatibility and has no effect here")


def megabytes(n: int) -> str:
    """Bytes, exactly, with the rounded size for people: ``23,590,724 B (23.6 MB)``."""
    return f"{n:,} B ({n / 1e6:.1f} MB)"
