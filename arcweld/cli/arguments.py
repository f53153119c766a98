"""Preprocesses the command line: adds an omitted subcommand, and accepts spellings of trtexec and Polygraphy.

Errors for unknown words come with a suggestion.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from arcweld.compiler.errors import UsageError


class Inert(NamedTuple):
    """An option of trtexec that has no effect: whether it takes a value, for which subcommands, and why."""

    valued: bool
    commands: tuple[str, ...]
    why: str


_BUILD, _BOTH = ("build",), ("build", "bench")
_NOT_TIMED = "a build does not time the engine, `onnx-to-engine bench` does"
_ALL_IN = "every engine holds all of it, `onnx-to-engine inspect` prints it"
INERT: dict[str, Inert] = {
    "skipInference": Inert(False, _BUILD, _NOT_TIMED), "buildOnly": Inert(False, _BUILD, _NOT_TIMED),
    "iterations": Inert(True, _BUILD, _NOT_TIMED), "warmUp": Inert(True, _BUILD, _NOT_TIMED),
    "duration": Inert(True, _BUILD, _NOT_TIMED), "useCudaGraph": Inert(False, _BUILD, _NOT_TIMED),
    "noDataTransfers": Inert(False, _BUILD, _NOT_TIMED), "percentile": Inert(True, _BUILD, _NOT_TIMED),
    "builderOptimizationLevel": Inert(True, _BUILD, "every build does all it can"),
    "timingCacheFile": Inert(True, _BUILD, "compiled kernels are kept in the folder ARCWELD_CACHE_DIR"),
    "memPoolSize": Inert(True, _BUILD, "the workspace is exactly what the model needs, `inspect` prints it"),
    "workspace": Inert(True, _BUILD, "the workspace is exactly what the model needs, `inspect` prints it"),
    "profilingVerbosity": Inert(True, _BUILD, _ALL_IN),
    "refit": Inert(False, _BUILD, "weights can always be replaced"),
    "stronglyTyped": Inert(False, _BUILD, "without --fp16 and --bf16 the types are the model's"),
    "versionCompatible": Inert(False, _BUILD, "engines hold the source of their kernels"),
    "avgRuns": Inert(True, _BOTH, "every run is counted by itself"),
    "useSpinWait": Inert(False, _BOTH, "waiting always spins"),
    "separateProfileRun": Inert(False, _BOTH, "profiling is always a run of its own"),
}  # fmt: skip
# Polygraphy's options that take several words
_LISTS = ("--val-range", "--input-shapes", "--load-inputs", "--atol", "--rtol", "--check-error-stat")
_TOP = ("--help", "-h", "--version")


def complete(argv: Sequence[str], commands: Collection[str], note: Callable[[str], None]) -> list[str]:
    """The words of the command line as the subcommands take them.

    An omitted subcommand is added: ``bench`` for ``--loadEngine``, as trtexec does, else ``build``. Options without
    effect are removed, and ``note`` is called with the reason. Lists of values are joined by commas. Raises UsageError
    for a first word that is neither a subcommand nor a possible file.
    """
    words = list(argv)
    if words and words[0] == "help":
        words = [*words[1:2], "--help"]
    if not words or words[0] in _TOP:
        return words
    if words[0] not in commands:
        _check_first(words[0], commands)
        loads = any(re.match("--loadEngine(=|$)", w) for w in words)
        words.insert(0, "bench" if loads else "build")
    return [words[0], *_joined(_without_inert(words[0], words[1:], note))]


def _check_first(word: str, commands: Collection[str]) -> None:
    if word.startswith("-") or re.search(r"[./\\]", word) or Path(word).exists():
        return
    near = difflib.get_close_matches(word, commands, 1, 0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"subcommands: {', '.join(commands)}"
    raise UsageError(f"there is no subcommand and no file called {word!r}", hint=hint)


def _without_inert(command: str, words: Sequence[str], note: Callable[[str], None]) -> list[str]:
    kept: list[str] = []
    rest = iter(words)
    for w in rest:
        name, equals, _ = w.removeprefix("--").partition("=")
        found = INERT.get(name) if w.startswith("--") else None
        if found is None or command not in found.commands:
            kept.append(w)
            continue
        if found.valued and not equals and next(rest, None) is None:
            raise UsageError(f"--{name} needs a value")
        note(f"--{name} has no effect: {found.why}")
    return kept


def _joined(words: Sequence[str]) -> list[str]:
    """``--val-range x:[0,1] y:[0,2]`` as one value."""
    out: list[str] = []
    grows = False
    for w in words:
        if grows and re.match(r"[^-].*:.", w) and not Path(w).exists():
            out[-1] += "," + w
            continue
        grows = bool(out) and out[-1] in _LISTS
        out.append(w)
    return out


def elsewhere(option: str, options: Mapping[str, Collection[str]]) -> str | None:
    """A hint for an unknown option: the subcommands that have it, according to ``options``; None if none has."""
    homes = [f"`{name}`" for name, known in options.items() if option in known]
    return f"{option} is an option of {', '.join(homes)}" if homes else None
