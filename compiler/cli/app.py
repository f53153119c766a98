"""The entry point of ``onnx-to-engine``: subcommands, exit codes, and one clear line for every error."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer
from arcweld.compiler.cli.build import build
from arcweld.compiler.cli.common import err
from arcweld.compiler.cli.doctor import doctor
from arcweld.compiler.cli.inspect import explain, inspect
from arcweld.compiler.cli.run import bench, run, verify
from arcweld.compiler.errors import ArcweldError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Compiles ONNX models to engines of fused CUDA kernels. `onnx-to-engine model.onnx -o model.engine` builds.",
)  # fmt: skip
COMMANDS = {"build": build, "run": run, "bench": bench, "inspect": inspect, "explain": explain, "verify": verify, "doctor": doctor}
for _name, _function in COMMANDS.items():
    app.command(_name)(_function)


def arguments(argv: Sequence[str]) -> list[str]:
    """The command line with ``build`` (or ``bench``, where an engine is loaded as trtexec does) put in where no
    subcommand is named."""
    words = list(argv)
    if words and words[0] not in COMMANDS and words[0] not in ("--help", "-h"):
        loads = any(w == "--loadEngine" or w.startswith("--loadEngine=") for w in words)
        words.insert(0, "bench" if loads else "build")
    return words


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Exit codes: 0 ok, 1 accuracy, 2 usage or a damaged file, 3 unsupported, 4 environment."""
    words = arguments(sys.argv[1:] if argv is None else argv)
    try:
        code = app(words, standalone_mode=False)
    except ArcweldError as error:
        err.print(f"error: {error}", markup=False)
        return error.exit_code
    except (typer.Exit, SystemExit) as stop:
        return int(getattr(stop, "exit_code", getattr(stop, "code", 0)) or 0)
    except KeyboardInterrupt:
        err.print("interrupted; nothing was written")
        return 130
    except Exception as error:
        # click's own complaints about the command line carry a message and a code; anything else is a defect and goes up
        show = getattr(error, "format_message", None)
        if show is None:
            raise
        err.print(f"error: {show()}", markup=False)
        return int(getattr(error, "exit_code", 2))
    return int(code or 0)
