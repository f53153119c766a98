"""Shared by the subcommands: consoles, progress bars, opening models, writable paths, notes, tables and JSON."""

from __future__ import annotations

import json
import math
import os
import textwrap
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from arcweld.cli.shapes import dynamic_shapes, parse_inout, parse_open_shapes, parse_shapes, parse_values
from arcweld.compiler.dims import Dim, parse
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import EnvironmentError_, UsageError
from arcweld.compiler.ir import Graph, TensorType, Value
from arcweld.compiler.logs import printable
from arcweld.compiler.options import LOOP_LIMIT
from arcweld.compiler.text import parse_graph
from arcweld.driver.api import Input, import_model
from arcweld.driver.build import Progress as ProgressCallback
from arcweld.driver.staged_build import stored_graphs
from arcweld.driver.stages import of_known_sizes
from arcweld.driver.summary import bytes_text
from arcweld.runtime.engine_file import EngineData


@contextmanager
def serving_packages(what: str) -> Iterator[None]:
    """Around imports of ``arcweld.serving``: a package that is missing is an error that says how ``what`` gets it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).startswith("arcweld"):
            raise
        hint = 'pip install "arcweld[serve]"'
        raise EnvironmentError_(f"{what} needs the Python package {error.name}", hint=hint) from error


class _Console(Console):
    """Prints texts without what a terminal would obey, because names in them come from files.

    On a terminal, lines are wrapped between words; a longer word stays whole.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(self._shown(x) if isinstance(x, str) else x for x in objects), **options)

    def _shown(self, text: str) -> str:
        limit = self.columns
        return _wrapped(printable(text), limit) if limit else printable(text)

    @property
    def columns(self) -> int:
        """The terminal's width; 0 where the output is no terminal, whatever FORCE_COLOR says."""
        return self.width if self.file.isatty() else 0

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # the command's exit code is not rich's to choose


def _wrapped(text: str, width: int) -> str:
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        whole = {"break_long_words": False, "break_on_hyphens": False, "replace_whitespace": False}
        lines += textwrap.wrap(line, width, subsequent_indent=f"{indent}  ", **whole) or [line]  # type: ignore[arg-type]
    return "\n".join(lines)


out = _Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
err = _Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
STAGES = {
    "promotion": "trying half precision", "codegen": "rendering kernels", "nvrtc": "compiling kernels",
    "verify": "verifying kernels",
}  # fmt: skip
PULSE = 5.0  # seconds between lines about work that goes on, where stderr is no terminal


@contextmanager
def progress_bar(quiet: bool = False) -> Iterator[ProgressCallback | None]:
    """Shows the progress of a build on stderr; None if ``quiet``.

    On a terminal that is a bar for each stage, else a line every few seconds.
    """
    if quiet:
        yield None
    elif err.columns:
        with _bars() as report:
            yield report
    else:
        with waiting("preparing") as say:
            yield lambda stage, done, total: say(f"{STAGES.get(stage, stage)}, {done} of {total}")


@contextmanager
def _bars() -> Iterator[ProgressCallback]:
    columns = (TextColumn("{task.description:>21}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bars:
        tasks: dict[str, object] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(STAGES.get(stage, stage), total=total)
            bars.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]

        yield report


@contextmanager
def waiting(text: str) -> Iterator[Callable[[str], None]]:
    """Says every few seconds on stderr what goes on, and for how long; the function that it yields changes the text."""
    begin, ended, said = time.monotonic(), threading.Event(), [text]

    def pulse() -> None:
        while not ended.wait(PULSE):
            err.print(f"{said[0]}, {time.monotonic() - begin:.0f} s")

    def change(new: str) -> None:
        said[0] = new

    thread = threading.Thread(target=pulse, daemon=True)
    thread.start()
    try:
        yield change
    finally:
        ended.set()
        thread.join()


def is_engine(path: str) -> bool:
    """True if the first bytes are those of an engine file. Raises UsageError if the file cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


def open_graph(
    model: str, shapes: str = "", low: str = "", high: str = "", values: str = "", inout: str = "",
    loop_limit: int = LOOP_LIMIT,
) -> Graph:  # fmt: skip
    """Imports an ONNX file. The other arguments are spelled as on the command line.

    ``shapes`` holds sizes, names and expressions, ``low`` and ``high`` the bounds of dimensions that stay symbolic,
    ``values`` the inputs that become constants, and ``inout`` those that outputs take over; ``loop_limit`` is a number.
    Raises UsageError for what cannot be parsed, and as ``import_model``.
    """
    constants = [Input(n, value=v) for n, v in parse_values(values).items()]
    state = _taken_over(model, inout, {i.name for i in constants}) if inout else {}

    def read(given: Mapping[str, Sequence[int | str | Dim]]) -> Graph:
        declared = [Input(n, given.get(n), inout=state.get(n, False)) for n in dict.fromkeys((*given, *state))]
        return import_model(model, inputs=[*declared, *constants], loop_limit=loop_limit)

    graph = read(parse_open_shapes(shapes) if shapes else {})
    if low or high:
        least, most = (parse_shapes(text) if text else {} for text in (low, high))
        graph = read(dynamic_shapes(graph, least or most, most or least))
    return graph


def _taken_over(model: str, inout: str, constants: Collection[str]) -> dict[str, str | bool]:
    from arcweld.compiler.onnx.importer import input_names

    return parse_inout(inout, [n for n in input_names(model) if n not in constants])


def interface(data: EngineData) -> Graph:
    """A graph with an engine's inputs: the stored graph, which shows which inputs are indices, or else inputs only.

    Raises ModelError for a stored graph that cannot be parsed.
    """
    if data.graph and not data.program.steps:
        return parse_graph(data.graph)
    inputs = tuple(
        Value(t.name, TensorType(DType(t.dtype), tuple(parse(d) for d in t.shape))) for t in data.program.inputs
    )
    nodes = tuple(n for graph in stored_graphs(data) for n in graph.nodes)
    return of_known_sizes(Graph(data.program.name, inputs, (), nodes))


def note(text: str) -> None:
    """Prints a line on stderr about something that does not stop the command."""
    err.print(f"note: {text}")


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
    print(json.dumps(finite(report), indent=2))


def finite(x: Any) -> Any:
    """Plain data for JSON: NaN and infinities become None."""
    if isinstance(x, dict):
        return {k: finite(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [finite(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()) -> None:
    """Prints a table; ``right`` names the columns to align right.

    On a terminal, a row that is wider goes on below, indented, and no word is broken. Otherwise each row is one line.
    """
    widths = [max(map(len, column)) for column in zip(columns, *rows)]
    for r in (columns, *rows):
        cells = [x.rjust(w) if c in right else x.ljust(w) for x, w, c in zip(r, widths, columns)]
        line = "  ".join(cells).rstrip()
        limit = out.columns or len(line)
        for part in [line] if len(line) <= limit else _below(cells, limit):
            out.print(part)


def _below(cells: Sequence[str], limit: int) -> Iterator[str]:
    """A row as lines of at most ``limit`` characters, if no word is longer. The last cell is parted at spaces."""
    *fixed, last = cells
    line = ""
    for i, word in enumerate([*fixed, *last.split()]):
        gap = "  " if i <= len(fixed) else " "
        longer = f"{line}{gap}{word}" if line else word
        if line and len(longer.rstrip()) > limit:
            yield line.rstrip()
            longer = f"    {word}"
        line = longer
    yield line.rstrip()
