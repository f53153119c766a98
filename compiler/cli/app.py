"""The entry point of ``onnx-to-engine``: subcommands, exit codes, and one clear line for every error."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

import typer
from arcweld.compiler.cli.bench import bench
from arcweld.compiler.cli.build import build
from arcweld.compiler.cli.common import err, out
from arcweld.compiler.cli.doctor import doctor
from arcweld.compiler.cli.inspect import explain, inspect
from arcweld.compiler.cli.run import run, verify
from arcweld.compiler.errors import ArcweldError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Compiles ONNX models to engines of fused CUDA kernels. `onnx-to-engine model.onnx -o model.engine` builds.",
)  # fmt: skip
COMMANDS: dict[str, Callable[..., None]] = {
    "build": build, "run": run, "bench": bench, "inspect": inspect, "explain": explain, "verify": verify,
    "doctor": doctor,
}  # fmt: skip
INTERRUPTED, DEFECT = 130, 70  # as shells and sysexits.h have them
for _name, _function in COMMANDS.items():
    app.command(_name)(_function)


def arguments(argv: Sequence[str]) -> list[str]:
    """The command line with ``build`` (or ``bench``, where an engine is loaded as trtexec does) put in where no
    subcommand is named."""
    words = list(argv)
    if words and words[0] not in COMMANDS and words[0] not in ("--help", "-h", "--version"):
        loads = any(w == "--loadEngine" or w.startswith("--loadEngine=") for w in words)
        words.insert(0, "bench" if loads else "build")
    return words


def _note(message: Warning | str, *_: object) -> None:
    """Shows a warning without the line of code that raised it."""
    err.print(f"note: {message}", markup=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Exit codes: 0 ok, 1 accuracy, 2 usage or a damaged file, 3 unsupported, 4 environment,
    70 a defect of Arcweld, 130 interrupted.
    """
    words = arguments(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--version"]:
        from arcweld import __version__

        out.print(f"arcweld {__version__}")
        return 0
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _note  # type: ignore[assignment]
            code = app(words, standalone_mode=False)
    except ArcweldError as error:
        err.print(f"error: {error}", markup=False)
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except Exception as error:
        # click's own complaints about the command line carry a message and a code; anything else is a defect
        show = getattr(error, "format_message", None)
        if show is None:
            traceback.print_exc()
            err.print("error: this is a defect of Arcweld, not of the model; please report it with the lines above")
            return DEFECT
        err.print(f"error: {show()}", markup=False)
        return int(getattr(error, "exit_code", 2))
    if code == INTERRUPTED:  # typer makes an exit code of KeyboardInterrupt
        err.print("interrupted; nothing was written")
    return int(code or 0)
