"""Shared by the subcommands: consoles, progress bars, opening models, writable paths, notes, tables and JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from arcweld.cli.shapes import dynamic_shapes, parse_open_shapes, parse_shapes, parse_values
from arcweld.compiler.dims import Dim, parse
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import UsageError
from arcweld.compiler.ir import Graph, TensorType, Value
from arcweld.compiler.logs import printable
from arcweld.compiler.text import parse_graph
from arcweld.driver.api import Input, import_model
from arcweld.driver.build import Progress as ProgressCallback
from arcweld.driver.summary import bytes_text
from arcweld.runtime.engine_file import EngineData


class _Console(Console):
    """Prints to the terminal. Texts lose what a terminal would obey, because names in them come from files."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable(x) if isinstance(x, str) else x for x in objects), **options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # the command's exit code is not rich's to choose


out = _Console(highlight=False, soft_wrap=True)
err = _Console(stderr=True, highlight=False, soft_wrap=True)
STAGES = {"codegen": "rendering kernels", "nvrtc": "compiling kernels", "verify": "verifying"}


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[ProgressCallback | None]:
    """A progress bar on stderr with one line for each stage; None if ``quiet`` or if stderr is no terminal."""
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
    """True if the first bytes are those of an engine file. Raises UsageError if the file cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def open_graph(model: str, shapes: str = "", low: str = "", high: str = "", values: str = "") -> Graph:
    """Imports an ONNX file. The other arguments are spelled as on the command line.

    ``shapes`` holds sizes, names and expressions, ``low`` and ``high`` the bounds of dimensions that stay symbolic, and
    ``values`` the inputs that become constants. Raises UsageError for what cannot be parsed, and as ``import_model``.
    """
    constants = [Input(n, value=v) for n, v in parse_values(values).items()]

    def read(given: Mapping[str, Sequence[int | str | Dim]]) -> Graph:
        return import_model(model, inputs=[*(Input(n, s) for n, s in given.items()), *constants])

    graph = read(parse_open_shapes(shapes) if shapes else {})
    if not (low or high):
        return graph
    least, most = (parse_shapes(text) if text else {} for text in (low, high))
    return read(dynamic_shapes(graph, least or most, most or least))


def interface(data: EngineData) -> Graph:
    """A graph with an engine's inputs: the stored graph, which shows which inputs are indices, or else inputs only.

    Raises ModelError for a stored graph that cannot be parsed.
    """
    if data.graph:
        return parse_graph(data.graph)
    inputs = tuple(
        Value(t.name, TensorType(DType(t.dtype), tuple(parse(d) for d in t.shape))) for t in data.program.inputs
    )
    return Graph(data.program.name, inputs, (), ())


def note(text: str) -> None:
    """Prints a line on stderr about something that does not stop the command."""
    err.print(f"note: {text}", markup=False)


def check_writable(path: str, *sources: str) -> Path:
    """The path of a file to be written, checked before the work instead of after it.

    Raises UsageError if it cannot be written, or if it is one of ``sources``, which are read.
    """
    target = Path(path)
    folder = target.absolute().parent
    if target.is_dir():
        raise UsageError(f"{path} cannot be written: it is a folder")
    if target.exists() and not target.is_file():
        raise UsageError(f"{path} cannot be written: it is not a file")
    if not folder.exists():
        raise UsageError(f"{path} cannot be written: there is no folder {folder}", hint=f"mkdir -p {folder}")
    if not folder.is_dir():
        raise UsageError(f"{path} cannot be written: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{path} cannot be written: no permission to write to {folder}")
    if target.exists() and any(Path(s).exists() and target.samefile(s) for s in sources):
        raise UsageError(f"{path} cannot be written: it is read", hint="give the result a name of its own")
    return target


def megabytes(n: int) -> str:
    """The exact number of bytes with the rounded size: ``23,590,724 B (23.6 MB)``."""
    return f"{n:,} B ({bytes_text(n)})" if n >= 1000 else f"{n} B"


def print_json(report: object) -> None:
    """Prints a report as JSON, without the terminal's formatting; NaN and infinities become null."""
    print(json.dumps(_finite(report), indent=2))


def _finite(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: _finite(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_finite(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()) -> None:
    """Prints a table; ``right`` names the columns to align right.

    On a terminal the last column is wrapped to the width. Otherwise each row is one line.
    """
    if out.is_terminal:
        table = Table(box=None, pad_edge=False)
        for c in columns:
            last = c == columns[-1]
            table.add_column(c, justify="right" if c in right else "left", overflow="fold", no_wrap=not last)
        for r in rows:
            table.add_row(*(escape(printable(x)) for x in r))
        out.print(table)
        return
    widths = [max(map(len, column)) for column in zip(columns, *rows)]
    for r in (columns, *rows):
        cells = (x.rjust(w) if c in right else x.ljust(w) for x, w, c in zip(r, widths, columns))
        out.print("  ".join(cells).rstrip(), markup=False)
