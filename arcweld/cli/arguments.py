"""Preprocesses the command line: adds an omitted subcommand, and accepts spellings of trtexec and Polygraphy.

Errors for unknown words come with a suggestion.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from arcweld.compiler.errors import UnsupportedError, UsageError

Note = Callable[[str], None]
Spellings = Mapping[str, Mapping[str, bool]]  # by subcommand: its options, and whether they take a value


class Inert(NamedTuple):
    """An option of trtexec that has no effect on subcommands without it: whether it takes a value, and why."""

    valued: bool
    why: str


class Refused(NamedTuple):
    """An option of trtexec that would change results and cannot be honoured. ``only`` is the one value refused."""

    valued: bool
    why: str
    hint: str
    only: str = ""


_TIMED = "`onnx-to-engine bench` times engines"
_WORKSPACE = "the workspace is exactly what the model needs, `inspect` prints it"
_ALL_IN = "every engine holds all of it, `onnx-to-engine inspect` prints it"
_CACHE = "compiled kernels are kept in the folder ARCWELD_CACHE_DIR"
_TACTICS = "tactics are chosen by an analytical model, without timing them"
_WHOLE = "an engine file holds its weights and needs no library of TensorRT"
_ANY = "engines hold the source of their kernels"
_BUILT = "it is decided when the engine is built"
_OLD = "it is obsolete in trtexec too"
_MEMORY = "memory is allocated once, as much as the engine needs"
INERT: dict[str, Inert] = {
    # timing
    "skipInference": Inert(False, "a build does not time the engine, `onnx-to-engine bench` does"),
    "buildOnly": Inert(False, "a build does not time the engine, `onnx-to-engine bench` does"),
    "iterations": Inert(True, _TIMED), "warmUp": Inert(True, _TIMED), "duration": Inert(True, _TIMED),
    "percentile": Inert(True, _TIMED), "useCudaGraph": Inert(False, _TIMED), "noDataTransfers": Inert(False, _TIMED),
    "sleepTime": Inert(True, _TIMED), "idleTime": Inert(True, _TIMED), "streams": Inert(True, _TIMED),
    "infStreams": Inert(True, _TIMED), "avgRuns": Inert(True, "every run is counted by itself"),
    "useSpinWait": Inert(False, "waiting always spins"), "exposeDMA": Inert(False, "copies never overlap kernels"),
    "threads": Inert(False, "every stream has a thread of its own"),
    "separateProfileRun": Inert(False, "profiling is always a run of its own"),
    "timeDeserialize": Inert(False, "ARCWELD_LOG=info says what loading does"),
    "timeRefit": Inert(False, "`Engine.update_weights` replaces weights in place"),
    "useManagedMemory": Inert(False, _MEMORY), "persistentCacheRatio": Inert(True, "kernels do not pin the L2 cache"),
    "allocationStrategy": Inert(True, _MEMORY), "useProfile": Inert(True, "an engine has one range of shapes"),
    # building
    "builderOptimizationLevel": Inert(True, "every build does all it can"),
    "timingCacheFile": Inert(True, _CACHE), "noBuilderCache": Inert(False, _CACHE),
    "disableCompilationCache": Inert(False, _CACHE), "errorOnTimingCacheMiss": Inert(False, _CACHE),
    "memPoolSize": Inert(True, _WORKSPACE), "workspace": Inert(True, _WORKSPACE),
    "profilingVerbosity": Inert(True, _ALL_IN), "nvtxMode": Inert(True, _ALL_IN),
    "dumpOptimizationProfile": Inert(False, "`onnx-to-engine inspect` prints the range of shapes"),
    "refit": Inert(False, "weights can always be replaced"),
    "stronglyTyped": Inert(False, "without --fp16 and --bf16 the types are the model's"),
    "versionCompatible": Inert(False, _ANY), "runtimePlatform": Inert(True, _ANY),
    "excludeLeanRuntime": Inert(False, _WHOLE), "leanDLLPath": Inert(True, _WHOLE), "useRuntime": Inert(True, _WHOLE),
    "stripWeights": Inert(False, _WHOLE), "stripAllWeights": Inert(False, _WHOLE),
    "allowWeightStreaming": Inert(False, "weights are on the device as a whole"),
    "weightStreamingBudget": Inert(True, "weights are on the device as a whole"),
    "minTiming": Inert(True, _TACTICS), "avgTiming": Inert(True, _TACTICS), "maxTactics": Inert(True, _TACTICS),
    "maxNbTactics": Inert(True, _TACTICS), "tacticSources": Inert(True, _TACTICS), "heuristic": Inert(False, _TACTICS),
    "tilingOptimizationLevel": Inert(True, _TACTICS), "preview": Inert(True, "there are no preview features"),
    "maxAuxStreams": Inert(True, "an engine runs on one stream"),
    "tempdir": Inert(True, "files appear whole, beside where they will be"),
    "tempfileControls": Inert(True, "files appear whole, beside where they will be"),
    "pluginInstanceNorm": Inert(False, "there is one InstanceNormalization, fused as all operators are"),
    "directIO": Inert(False, "inputs and outputs are never reformatted"),
    "sparsity": Inert(True, "no kernel uses sparsity: results are those of the dense weights"),
    "explicitBatch": Inert(False, "the batch is always a dimension of the inputs"),
    "explicitPrecision": Inert(False, _OLD), "consistency": Inert(False, _OLD), "safe": Inert(False, _OLD),
    "restricted": Inert(False, _OLD), "allowGPUFallback": Inert(False, "everything runs on the GPU"),
    "maxBatch": Inert(True, "--minShapes and --maxShapes bound the batch, --batch gives it"),
    "inputIOFormats": Inert(True, _BUILT), "outputIOFormats": Inert(True, _BUILT),
    "layerPrecisions": Inert(True, _BUILT), "precisionConstraints": Inert(True, _BUILT),
    "hardwareCompatibilityLevel": Inert(True, _BUILT),
}  # fmt: skip
_NO_PLUGINS = "there are no plug-ins"
_SUPPORT = "leave it out; `onnx-to-engine inspect model.onnx` lists what the model needs and Arcweld lacks"
_NO_CALIBRATION = "there is no calibration: a type of 8 bits would change results"
_QUANTISED = "quantise the model itself (QuantizeLinear, DequantizeLinear): it is computed as it says"
_GPU_ONLY = ("there are no engines for DLA", "leave it out: everything runs on the GPU")
REFUSED: dict[str, Refused] = {
    "plugins": Refused(True, _NO_PLUGINS, _SUPPORT), "staticPlugins": Refused(True, _NO_PLUGINS, _SUPPORT),
    "dynamicPlugins": Refused(True, _NO_PLUGINS, _SUPPORT),
    "setPluginsToSerialize": Refused(True, _NO_PLUGINS, _SUPPORT),
    "calib": Refused(True, _NO_CALIBRATION, _QUANTISED), "minShapesCalib": Refused(True, _NO_CALIBRATION, _QUANTISED),
    "optShapesCalib": Refused(True, _NO_CALIBRATION, _QUANTISED),
    "maxShapesCalib": Refused(True, _NO_CALIBRATION, _QUANTISED),
    "int4": Refused(False, "types of 4 bits are not available yet", "use --fp16 or --bf16"),
    "useDLACore": Refused(True, *_GPU_ONLY), "buildDLAStandalone": Refused(False, *_GPU_ONLY),
    "layerDeviceTypes": Refused(True, *_GPU_ONLY),
    "layerOutputTypes": Refused(True, "a result has the type that its node computes in", "use --layerPrecisions"),
    "sparsity": Refused(
        True, "it overwrites weights with zeros", "use --sparsity=enable, or prune the model itself", "force"
    ),
}  # fmt: skip
# Polygraphy's options that take several words
_LISTS = ("--val-range", "--input-shapes", "--load-inputs", "--atol", "--rtol", "--check-error-stat")
_TOP = ("--help", "-h", "--version", "--install-completion", "--show-completion")


class Item(NamedTuple):
    """A word of the command line: an option by name (with dashes) with its value, or a bare word without a name."""

    name: str
    value: str | None

    def words(self) -> list[str]:
        """The item as the subcommands take it."""
        if not self.name:
            return [self.value or ""]
        return [self.name] if self.value is None else [self.name, self.value]


def items(words: Sequence[str], valued: Callable[[str], bool]) -> Iterator[Item]:
    """The words as options and bare words; ``valued`` says which options take a value.

    Raises UsageError for an option without its value.
    """
    rest = iter(words)
    for w in rest:
        if not w.startswith("-") or w == "-":
            yield Item("", w)
            continue
        name, equals, value = w.partition("=") if w.startswith("--") else (w, "", "")
        if equals:
            yield Item(name, value)
        elif not valued(name):
            yield Item(name, None)
        else:
            following = next(rest, None)
            if following is None:
                raise UsageError(f"{name} needs a value")
            yield Item(name, following)


def complete(argv: Sequence[str], options: Spellings, note: Note) -> list[str]:
    """The words of the command line as the subcommands take them. ``options`` are those of all subcommands.

    An omitted subcommand is added: ``bench`` for ``--loadEngine``, as trtexec does, else ``build``. Options without
    effect are removed, and ``note`` is called with the reason. Lists of values are joined by commas. Raises UsageError
    for a first word that is neither a subcommand nor a possible file, and UnsupportedError for a refused option.
    """
    words = list(argv)
    if words and words[0] == "help":
        words = [*words[1:2], "--help"]
    if not words or words[0].partition("=")[0] in _TOP:
        return words
    if words[0] not in options:
        _check_first(words[0], options)
        loads = any(re.match("--loadEngine(=|$)", w) for w in words)
        words.insert(0, "bench" if loads else "build")
    return [words[0], *joined(_without_inert(options[words[0]], words[1:], note))]


def _check_first(word: str, commands: Collection[str]) -> None:
    if word.startswith("-") or re.search(r"[./\\]", word) or Path(word).exists():
        return
    near = difflib.get_close_matches(word, commands, 1, 0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"subcommands: {', '.join(commands)}"
    raise UsageError(f"there is no subcommand and no file called {word!r}", hint=hint)


def _without_inert(own: Collection[str], words: Sequence[str], note: Note) -> list[str]:
    """The words without options of trtexec that the subcommand, which has the options ``own``, does not need."""
    kept: list[str] = []
    rest = iter(words)
    for w in rest:
        name, equals, value = w.removeprefix("--").partition("=")
        found, refused = (t.get(name) if w.startswith("--") else None for t in (INERT, REFUSED))
        if f"--{name}" in own or (found is None and refused is None):
            kept.append(w)
            continue
        if (found or refused).valued and not equals:  # type: ignore[union-attr]
            value = next(rest, "")
            if not value:
                raise UsageError(f"--{name} needs a value")
        note_or_refuse(name, value, note)
    return kept


def note_or_refuse(name: str, value: str, note: Note) -> None:
    """Says why an option (without dashes) has no effect. Raises UnsupportedError if results would depend on it."""
    refused = REFUSED.get(name)
    if refused is not None and refused.only in ("", value):
        shown = f"--{name}={value}" if refused.only else f"--{name}"
        raise UnsupportedError(f"{shown} cannot be honoured: {refused.why}", hint=refused.hint)
    note(f"--{name} has no effect: {INERT[name].why}")


def joined(words: Sequence[str]) -> list[str]:
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
