"""The entry point of ``onnx-to-engine``: the subcommands, the exit codes, and one line for every error."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated

import typer
from typer.main import get_command

from arcweld.cli import arguments, trtexec
from arcweld.cli.bench import bench
from arcweld.cli.bench_serve import bench_serve
from arcweld.cli.build import build
from arcweld.cli.common import err, out
from arcweld.cli.debug import debug
from arcweld.cli.diff import diff
from arcweld.cli.doctor import doctor
from arcweld.cli.estimate import estimate
from arcweld.cli.export import export
from arcweld.cli.inspect import explain, inspect
from arcweld.cli.llm import build_llm, generate
from arcweld.cli.llm_eval import evaluate
from arcweld.cli.report import report
from arcweld.cli.run import run, verify
from arcweld.cli.serve import serve
from arcweld.compiler.errors import ArcweldError, InternalError

HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    rich_markup_mode=None,  # plain text: rich reads brackets as markup and cuts long names
    pretty_exceptions_enable=False, context_settings=HELP,
    help="Compiles ONNX models to engines of fused CUDA kernels. `onnx-to-engine model.onnx -o model.engine` builds.",
)  # fmt: skip
COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "build": (build, "Build an engine from an ONNX file, and verify it."),
    "run": (run, "Run an engine once."),
    "bench": (bench, "Time an engine, or compare several."),
    "diff": (diff, "Say what differs between two engines."),
    "estimate": (estimate, "Model what a call takes on cards that need not be here."),
    "report": (report, "Write an HTML report on an engine or a model."),
    "export": (export, "Write kernels and times for Perfetto, trex, Netron or Model Explorer."),
    "inspect": (inspect, "Describe a model or an engine."),
    "explain": (explain, "Say which nodes share a kernel, and why."),
    "verify": (verify, "Compare an engine with its model."),
    "build-llm": (build_llm, "Build a language model's engine from its checkpoint."),
    "generate": (generate, "Answer a prompt with a language model."),
    "serve": (serve, "Serve a language model over HTTP, as OpenAI's API."),
    "bench-serve": (bench_serve, "Measure a server of language models, this one or another."),
    "doctor": (doctor, "Check what this machine has and lacks."),
}
NAMES = ("onnx-to-engine", "arcweld")  # of the command; `python -m arcweld` is the first one
USAGE, ENVIRONMENT = 2, 4
DEFECT, INTERRUPTED, BROKEN_PIPE, TERMINATED = 70, 130, 141, 143  # as sysexits.h and shells have them
for _name, (_function, _short) in COMMANDS.items():
    app.command(_name, context_settings=HELP, short_help=_short)(_function)
app.add_typer(debug, name="debug", context_settings=HELP, short_help="Find out why results are wrong.")
app.add_typer(evaluate, name="eval", context_settings=HELP, short_help="Measure a language model on a text.")


def _show_version(asked: bool) -> None:
    if asked:
        out.print(f"arcweld {importlib.metadata.version('arcweld')}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What stands before the subcommand."""


@cache
def options_of_commands() -> dict[str, dict[str, bool]]:
    """All spellings of all options, and whether they take a value, by subcommand; those of ``debug`` together."""
    commands = get_command(app).commands  # type: ignore[attr-defined]
    return {
        name: {
            o: not p.is_flag
            for own in (c, *getattr(c, "commands", {}).values())
            for p in own.params
            if p.param_type_name == "option"
            for o in (*p.opts, *p.secondary_opts)
        }
        for name, c in commands.items()
    }


def _note(message: Warning | str, *_: object) -> None:
    """Shows a warning without the line of code that raised it."""
    err.print(f"note: {message}")


def _fail(message: str, hint: str | None = None) -> None:
    err.print(f"error: {message}" + (f"\n  hint: {hint}" if hint else ""))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Exit codes: 0 ok, 1 accuracy, a regression or a difference, 2 usage or a damaged file,
    3 unsupported, 4 environment, 70 a defect of Arcweld, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):  # names of nodes may not fit the terminal's encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    given = sys.argv[1:] if argv is None else list(argv)
    as_trtexec = trtexec.is_line(given, COMMANDS)
    try:
        with _terminable(), warnings.catch_warnings():
            warnings.showwarning = _note  # type: ignore[assignment]
            if as_trtexec:
                _print_banner("RUNNING", given)
            code = _perform(given, as_trtexec)
            if as_trtexec and not code:
                _print_banner("PASSED", given)
            if sys.stdout is not None:  # as it is where it was closed
                sys.stdout.flush()
    except BaseException as error:
        code = _exit_code(error)
    if code == INTERRUPTED:  # typer makes an exit code of KeyboardInterrupt
        err.print("interrupted; nothing was written")
    if as_trtexec and code not in (0, BROKEN_PIPE):
        _print_banner("FAILED", given)
    return code if given else USAGE


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Lets SIGTERM raise SystemExit, so that temporary files are removed. Signals belong to the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _perform(given: Sequence[str], as_trtexec: bool) -> int:
    """Runs the subcommands that a command line means, until one fails."""
    if not as_trtexec:
        return _call(arguments.complete(given, options_of_commands(), _note))
    with trtexec.commands(given, options_of_commands(), _note) as lines:
        return next((code for words in lines if (code := _call(words))), 0)


def _call(words: Sequence[str]) -> int:
    called = Path(sys.argv[0]).name
    name = called if called in NAMES else NAMES[0]
    return int(app(list(words) or ["--help"], standalone_mode=False, prog_name=name) or 0)


def _print_banner(state: str, given: Sequence[str]) -> None:
    out.print(trtexec.banner(state, given, importlib.metadata.version("arcweld")))


def _exit_code(error: BaseException) -> int:
    """Prints the error, in one sentence unless it is a defect of Arcweld, and returns its exit code."""
    if isinstance(error, ArcweldError):
        if isinstance(error, InternalError):
            _show_traceback(error)
        _fail(str(error))
        return error.exit_code
    if isinstance(error, typer.Abort | KeyboardInterrupt):
        return INTERRUPTED
    # click's own complaints about the command line carry a message and a code
    show = getattr(error, "format_message", None)
    if show is not None:
        _fail(show(), arguments.elsewhere(getattr(error, "option_name", ""), options_of_commands()))
        return int(getattr(error, "exit_code", USAGE))
    if isinstance(error, BrokenPipeError):
        _drop_output()
        return BROKEN_PIPE
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        if error.filename is None:
            _drop_output()
        _fail(f"{reason} [at {error.filename}]" if error.filename else f"not all could be written: {reason}")
        return ENVIRONMENT
    if isinstance(error, MemoryError):
        _fail(f"there is not enough memory: {error}", "give smaller shapes with --shapes")
        return ENVIRONMENT
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("arcweld"):
        _fail(f"the Python package {error.name} is missing", "onnx-to-engine doctor lists what is needed")
        return ENVIRONMENT
    if isinstance(error, SystemExit) and error.code == TERMINATED:
        return TERMINATED
    if not isinstance(error, Exception):
        raise error
    _show_traceback(error)
    _fail("this is a defect of Arcweld, not of the model; please report it with the lines above")
    return DEFECT


def _show_traceback(error: BaseException) -> None:
    err.print("".join(traceback.format_exception(error)), markup=False, end="")


def _drop_output() -> None:
    """Redirects a closed standard output (``| head``) to nowhere, so that flushing its buffer does not fail again."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
