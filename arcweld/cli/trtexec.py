"""Command lines of trtexec as they are: which subcommands they mean, and the lines of trtexec's log that scripts read.

trtexec builds an engine and then times it; here ``build`` and ``bench`` do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from arcweld.cli.arguments import INERT, REFUSED, Item, Note, Spellings, items, joined, note_or_refuse
from arcweld.cli.shapes import parse_open_shapes
from arcweld.compiler.errors import UsageError

_OUTPUT = ("--saveEngine", "--output", "-o")
_MODEL = "--onnx"
_ENGINE = "--loadEngine"
_SKIP = ("--skipInference", "--buildOnly")
_SHAPES = ("--shapes", "--input-shapes")
_FOR_MODELS = ("--values", "--fp16", "--bf16")  # `bench` takes these for a model, not for an engine
_DECIDED = "the engine is built already"


def is_line(argv: Sequence[str], commands: Mapping[str, object]) -> bool:
    """True for a line as trtexec has them: options only, without a subcommand, and one of them names the model or
    the engine.
    """
    if not argv or argv[0] in commands or not argv[0].startswith("--"):
        return False
    return any(re.match(f"({_MODEL}|{_ENGINE})(=|$)", w) for w in argv)


def banner(state: str, argv: Sequence[str], version: str) -> str:
    """trtexec's line about a run that is ``RUNNING``, has ``PASSED`` or has ``FAILED``, which scripts look for."""
    return f"&&&& {state} Arcweld.onnx-to-engine [Arcweld v{version}] # onnx-to-engine {' '.join(argv)}"


@contextmanager
def commands(argv: Sequence[str], options: Spellings, note: Note) -> Iterator[list[list[str]]]:
    """The subcommands, with their words, that a line of trtexec means. ``options`` are those of all subcommands.

    * ``--loadEngine``: ``bench``; options about building have no effect.
    * ``--onnx`` with ``--saveEngine``: ``build``, and ``bench`` of the result if the line has an option about timing.
    * ``--onnx`` alone: both, with an engine file that is removed at the end.

    Raises UsageError for an option that trtexec does not have, and UnsupportedError for one that cannot be honoured.
    """
    found = list(_honoured(argv, options, note))
    names = {i.name for i in found}
    if _ENGINE in names:
        yield [["bench", *_flat(_for_engine(found, options, note))]]
        return
    times = names & (set(options["bench"]) - set(options["build"]) - set(_SKIP)) and not names & set(_SKIP)
    if names & set(_OUTPUT):
        build = [i for i in found if _belongs(i, "build", options) or not times]
        timing = [_bench(found, next(i.value or "" for i in found if i.name in _OUTPUT), options)] if times else []
        if not timing and not names & set(_SKIP):
            note("the engine is built and not timed: add an option about timing, or use `onnx-to-engine bench`")
        yield [["build", *_flat(_noted(build, options, note))], *timing]
        return
    with TemporaryDirectory(prefix="arcweld-") as folder:
        engine = str(Path(folder) / "model.engine")
        build = [i for i in found if _belongs(i, "build", options)]
        timing = [] if names & set(_SKIP) else [_bench(found, engine, options)]
        yield [["build", *_flat(build), "--saveEngine", engine, *_archs(names)], *timing]


def _honoured(argv: Sequence[str], options: Spellings, note: Note) -> Iterator[Item]:
    """The options that a subcommand has. Says of the others why they have no effect."""
    known = {name: valued for own in (options["bench"], options["build"]) for name, valued in own.items()}
    tables = {f"--{n}": o.valued for table in (INERT, REFUSED) for n, o in table.items()}
    for item in items(joined(argv), lambda name: known.get(name, tables.get(name, False))):
        if item.name in known or item.name not in tables:
            yield item  # an unknown option is the subcommand's to complain about
        else:
            note_or_refuse(item.name.removeprefix("--"), item.value or "", note)


def _belongs(item: Item, command: str, options: Spellings) -> bool:
    others = {name for c in ("build", "bench") if c != command for name in options[c]}
    return item.name in options[command] or item.name not in others


def _for_engine(found: Sequence[Item], options: Spellings, note: Note) -> Iterator[Item]:
    for item in found:
        built = item.name in options["build"] and item.name not in options["bench"]
        if built or item.name in _FOR_MODELS:
            note(f"{item.name} has no effect: {_DECIDED}")
        else:
            yield item


def _noted(found: Sequence[Item], options: Spellings, note: Note) -> Iterator[Item]:
    for item in found:
        if item.name not in options["build"] and item.name.removeprefix("--") in INERT:
            note_or_refuse(item.name.removeprefix("--"), item.value or "", note)
        else:
            yield item


def _bench(found: Sequence[Item], engine: str, options: Spellings) -> list[str]:
    """The words that time the engine that was built: at the shapes of ``--shapes``, or else of ``--optShapes``."""
    given = {i.name: i.value for i in found}
    shapes = next((v for n in (*_SHAPES, "--optShapes") if (v := given.get(n))), "")
    if shapes and not all(isinstance(d, int) for s in parse_open_shapes(shapes).values() for d in s):
        shapes = ""  # open ones: of typical sizes then
    own = [i for i in found if i.name in options["bench"] and i.name not in (_MODEL, *_SHAPES, *_FOR_MODELS)]
    return ["bench", _ENGINE, engine, *(["--shapes", shapes] if shapes else []), *_flat(own)]


def _archs(names: set[str]) -> list[str]:
    """Without a GPU, the engine that is only timed needs no object code for all architectures."""
    from arcweld.runtime.devices import gpu_count

    return [] if "--arch" in names or gpu_count() else ["--arch", "sm_80"]


def _flat(found: Sequence[Item] | Iterator[Item]) -> list[str]:
    return [w for item in found for w in item.words()]


def check_formats(text: str, what: str, found: Mapping[str, str]) -> None:
    """Checks ``--inputIOFormats`` or ``--outputIOFormats``: one ``type:format`` for all tensors, or one for each.

    ``found`` are the tensors' types in Arcweld's spelling, by name. Raises UsageError for another number of them, and
    for types or formats other than the model's: an engine keeps these.
    """
    specs = [s.strip() for s in text.split(",")]
    if len(specs) not in (1, len(found)):
        raise UsageError(f"{what}: {len(specs)} formats for {len(found)} tensors ({', '.join(found)})")
    for (name, kept), spec in zip(found.items(), specs * len(found) if len(specs) == 1 else specs):
        asked, _, layout = spec.partition(":")
        if _TYPES.get(asked) != kept:
            hint = "leave it out, or change the model's own type: an engine keeps the model's interface"
            raise UsageError(f"{what}: {name} is {kept}, not {asked}", hint=hint)
        if layout not in ("", "chw"):
            raise UsageError(f"{what}: {name} cannot be {layout}", hint="tensors are dense, in row-major order: chw")


_TYPES = {
    "fp32": "f32", "fp16": "f16", "bf16": "bf16", "int64": "i64", "int32": "i32", "int8": "i8", "uint8": "u8",
    "bool": "bool",
}  # fmt: skip
