"""The contestants of a comparison: engines, models, ONNX Runtime and PyTorch, ready to be called on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from arcweld.cli.common import interface, is_engine, waiting
from arcweld.cli.inputs import feeds_for, open_engine
from arcweld.cli.rivals import OnnxRuntime, Torch, provider_for
from arcweld.cli.run import check_same_model
from arcweld.cli.shapes import sizes_of
from arcweld.cli.timing import Call, Sample, by_host_clock, engine_call
from arcweld.compiler.errors import InputError, UsageError
from arcweld.driver.metrics import largest_error, relative_error
from arcweld.runtime.engine import Engine
from arcweld.runtime.plan import describe


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asks to be compared, and with which inputs; each as the option of that name."""

    paths: tuple[str, ...]
    onnx: str = ""
    onnxrt: bool = False
    provider: str = ""
    torch: str = ""
    torch_compile: bool = False
    device: str = ""
    shapes: str = ""
    batch: int = 0
    values: str = ""
    precision: str = "fp32"
    trusted: bool = False
    files: str = ""
    ranges: list[str] = field(default_factory=list)
    seed: int = 0
    graphs: bool = True
    copies: bool = True


@dataclass(frozen=True, slots=True)
class Contestant:
    """One that is timed.

    outputs  its results on the inputs of all, by the first engine's names
    memory   bytes on the device during a call, weights included; None where nobody tells
    """

    name: str
    kind: str
    call: Call
    outputs: Mapping[str, np.ndarray]
    memory: int | None


def is_comparison(asked: Asked) -> bool:
    """Whether more than one contestant is asked for."""
    return len(asked.paths) > 1 or asked.onnxrt or bool(asked.torch) or asked.torch_compile


def kind_of(path: str, precision: str) -> str:
    """``engine``, or what a model was compiled to."""
    return "engine" if is_engine(path) else f"model, {precision}"


def open_contestants(asked: Asked) -> tuple[Engine, list[Contestant]]:
    """The first engine, and all contestants in order: engines and models, ONNX Runtime, PyTorch.

    Raises UsageError for engines with different inputs or outputs and for options that contradict each other, and as
    opening each of them does.
    """
    _check(asked)
    engines = [_opened(asked, path) for path in asked.paths]
    first, feeds = engines[0], feeds_for(
        engines[0], asked.paths[0], asked.shapes, asked.files, asked.ranges, asked.seed, asked.batch
    )  # fmt: skip
    for path, engine in zip(asked.paths[1:], engines[1:]):
        check_same_interface(asked.paths[0], first, path, engine)
    found: list[Contestant] = []
    with waiting("running every contestant once"):
        for path, engine in zip(asked.paths, engines):
            found.append(_of_engine(asked, path, engine, feeds))
        found += _rivals(asked, first, feeds)
    return first, _named_apart(found)


def _check(asked: Asked) -> None:
    if not asked.paths:
        raise UsageError("name an engine or a model to compare with", hint="its inputs are those of all contestants")
    if asked.torch_compile and not asked.torch:
        raise UsageError("--torchCompile compiles the module of --torch", hint="add --torch=model.pt2")
    if asked.provider and not asked.onnxrt:
        raise UsageError("--provider is ONNX Runtime's", hint="add --onnxrt")
    if asked.onnxrt and not _model_for_onnxruntime(asked):
        raise UsageError("ONNX Runtime needs the model that the engine was built from", hint="add --onnx model.onnx")
    if (asked.precision != "fp32" or asked.values) and all(map(is_engine, asked.paths)):
        option = f"--{asked.precision}" if asked.precision != "fp32" else "--values"
        raise UsageError(f"all contestants are engines already: {option} is for models", hint=f"leave out {option}")


def _model_for_onnxruntime(asked: Asked) -> str:
    return asked.onnx or next((p for p in asked.paths if not is_engine(p)), "")


def _opened(asked: Asked, path: str) -> Engine:
    own = is_engine(path)
    values, precision = ("", "fp32") if own else (asked.values, asked.precision)
    shapes = "" if own else asked.shapes
    engine = open_engine(path, asked.device, shapes, values, precision, trusted=asked.trusted)
    return engine if asked.graphs else Engine(engine.data, engine.device, graphs=False, trusted=asked.trusted)


def check_same_interface(base: str, first: Engine, path: str, engine: Engine) -> None:
    """Raises UsageError where two engines, named by their paths, differ in the names or types of inputs, or in the
    names of outputs.
    """
    for kind in ("inputs", "outputs"):
        ours, theirs = (dict(_tensors(e, kind)) for e in (first, engine))
        if ours != theirs:
            shown = [", ".join(f"{n} {t}".strip() for n, t in own.items()) for own in (theirs, ours)]
            raise UsageError(
                f"{path} and {base} cannot be compared: their {kind} are {shown[0]} and {shown[1]}",
                hint="compare engines of the same model, or of models with the same interface",
            )


def _tensors(engine: Engine, kind: str) -> Iterator[tuple[str, str]]:
    """Names and element types of inputs, names of outputs: a build in half precision may change these types."""
    for t in engine.inputs if kind == "inputs" else engine.outputs:
        yield t.name, t.dtype if kind == "inputs" else ""


def _of_engine(asked: Asked, path: str, engine: Engine, feeds: dict[str, np.ndarray]) -> Contestant:
    own = {n: a.copy() for n, a in feeds.items()}  # a call changes state in place: that of the next contestant stays
    outputs = {n: np.array(a) for n, a in _first_results(path, engine, own).items()}
    call = by_host_clock(engine_call(engine, own, asked.copies))
    return Contestant(path, kind_of(path, asked.precision), call, outputs, _memory(engine, feeds))


def _first_results(path: str, engine: Engine, feeds: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The results of a first call. Raises UsageError where the engine does not take inputs of these shapes."""
    try:
        return engine.run_tensors(feeds)
    except InputError as error:
        shapes = ",".join(f"{n}:{'x'.join(map(str, a.shape))}" for n, a in feeds.items())
        takes = ", ".join(f"{t.name}: {describe(t)}" for t in engine.inputs)
        raise UsageError(
            f"{path} does not take the inputs {shapes}: {error.message}", hint=f"give --shapes that fit {takes}"
        ) from error


def _memory(engine: Engine, feeds: Mapping[str, np.ndarray]) -> int | None:
    """What a context of the engine needs for these inputs; None where data decide."""
    sizes = sizes_of(interface(engine.data), {n: a.shape for n, a in feeds.items()})
    try:
        return engine.memory(**{s.name: sizes[s.name] for s in engine.program.symbols}).total
    except InputError:
        return None


def _rivals(asked: Asked, first: Engine, feeds: Mapping[str, np.ndarray]) -> Iterator[Contestant]:
    if asked.onnxrt:
        model, provider = _model_for_onnxruntime(asked), provider_for(first, asked.provider)
        frozen = check_same_model(first, model, asked.values)
        rival = OnnxRuntime(model, first, feeds, frozen, provider, asked.copies)
        yield Contestant(f"ONNX Runtime ({provider})", "onnxruntime", _timed(rival.run), rival.results(), None)
    for compiled in (False, True) if asked.torch else ():
        if compiled and not asked.torch_compile:
            continue
        module = Torch(asked.torch, first, feeds, compiled, asked.copies)
        kind = "torch.compile" if compiled else "torch eager"
        yield Contestant(
            f"{kind} ({asked.torch})", kind, _timed(module.run), module.results(), module.peak_bytes()
        )


def _timed(run: Callable[[], Any]) -> Call:
    def call() -> Sample:
        run()
        return Sample(0.0)

    return by_host_clock(call)


def _named_apart(found: Sequence[Contestant]) -> list[Contestant]:
    """The contestants with names of their own: the second of two equal ones is ``a.engine (2)``."""
    seen: dict[str, int] = {}
    named = []
    for c in found:
        seen[c.name] = count = seen.get(c.name, 0) + 1
        name = c.name if count == 1 else f"{c.name} ({count})"
        named.append(Contestant(name, c.kind, c.call, c.outputs, c.memory))
    return named


def differences(base: Contestant, other: Contestant) -> dict[str, dict[str, float]]:
    """How far the outputs of one contestant are from those of another, by output.

    ``relative_error`` and, of floats, ``largest_error`` as in ``arcweld.driver.metrics``; of strings, the share that
    differs. Raises UsageError for outputs of other shapes.
    """
    found: dict[str, dict[str, float]] = {}
    for name, want in base.outputs.items():
        got = other.outputs[name]
        if got.shape != want.shape:
            raise UsageError(
                f"output {name} of {other.name} is {list(got.shape)}, of {base.name} {list(want.shape)}",
                hint="compare contestants of the same model",
            )
        if want.dtype == object or got.dtype == object:
            found[name] = {"relative_error": float(np.mean(got != want)) if want.size else 0.0}
            continue
        found[name] = {"relative_error": relative_error(got, want)}
        if want.dtype.kind not in "biu":
            found[name]["largest_error"] = largest_error(got, want)
    return found
