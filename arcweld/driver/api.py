"""From a model in any supported form to a verified engine: what ``arcweld.compile`` and the command line call."""

from __future__ import annotations

import difflib
import logging
import os
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np

from arcweld.codegen.nvrtc.compiler import Job, compile_job
from arcweld.compiler.errors import EnvironmentError_, UsageError
from arcweld.compiler.ir import Graph
from arcweld.compiler.options import LOOP_LIMIT, Options
from arcweld.compiler.signature import spread
from arcweld.driver.ahead import ahead
from arcweld.driver.blas import one_thread
from arcweld.driver.build import Build, Progress, build_graph
from arcweld.driver.costs import ReferenceCost
from arcweld.driver.draws import Sample, draw_sample, given_sample
from arcweld.driver.evidence import ENGINE_TOLERANCE, VerifyOptions, verify_build
from arcweld.driver.headroom import warn_of_headroom
from arcweld.driver.inputs import Input as Input
from arcweld.driver.inputs import check_inputs, checked_ranges, checked_sizes
from arcweld.driver.promotion import KERNELS, Promotion, promote
from arcweld.driver.samples import sample_sizes
from arcweld.driver.staged_build import build_stages
from arcweld.driver.stages import has_host_nodes, refuse_fallbacks
from arcweld.driver.state import with_state
from arcweld.driver.summary import half_share, summary
from arcweld.runtime.arrays import host_array
from arcweld.runtime.device import Device
from arcweld.runtime.devices import open_device
from arcweld.runtime.engine import Engine

log = logging.getLogger("arcweld")
TAIL = 1 << 16  # bytes read from the end of an archive, where its directory is


class CompileOptions(TypedDict, total=False):
    """The keyword arguments that ``compile``, ``compile_graph``, ``build_engine`` and ``build_data`` share.

    precision      fp32 | fp16 | bf16: the type that f32 models compute in; verified against the f32 reference
    arch           architectures to compile for (``["sm_90a"]``); default: the local GPU's, or none for the sim device
    device         where the engine runs: ``cuda``, ``sim``; default: ARCWELD_DEVICE, else a GPU, else sim
    verify         quick, full or off
    verify_budget  seconds of CPU time that quick verification may take
    tolerance      largest relative error of the outputs; default: that of the precision
    tf32           whether f32 matrix products may round their operands to tf32
    keep_f32       names of the model's nodes that stay f32 whatever ``precision`` says
    disable        names of passes to leave out
    progress       called with (stage, done, total)
    dump           folder for the graph after each pass, every kernel and every cubin
    sizes          sizes of symbolic dimensions to verify with, by name
    feeds          inputs to verify with, by name; default: random ones
    ranges         sizes of symbolic dimensions that get kernels of their own, the first range that holds:
                   ``[{"tokens": 1, "batch": (1, 8)}, {"tokens": 1}]``; default: those of decode steps and small batches
    strict         whether operators without kernels are refused; else the host computes them inside the engine
    """

    precision: str
    arch: Sequence[str] | str | None
    device: Device | str | None
    verify: str
    verify_budget: float
    tolerance: float | None
    tf32: bool
    keep_f32: Collection[str]
    disable: Sequence[str] | str
    progress: Progress | None
    dump: str | os.PathLike[str] | None
    sizes: Mapping[str, int] | None
    feeds: Mapping[str, Any] | None
    ranges: Sequence[Mapping[str, int | tuple[int, int]] | str] | None
    strict: bool


@contextmanager
def _memory_for(doing: str) -> Iterator[None]:
    """Turns a MemoryError of numpy into an EnvironmentError_ that says what was being done."""
    try:
        yield
    except MemoryError as error:
        what = f"there is not enough memory for {doing}: {error}"
        raise EnvironmentError_(what, hint="give smaller sizes, or leave verification out") from None


def compile(
    model: Any, *args: Any, inputs: Sequence[Input] | Input = (), kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None, loop_limit: int = LOOP_LIMIT, **options: Unpack[CompileOptions],
) -> Engine:  # fmt: skip
    """Compiles a model and returns a verified engine.

    model    a path to an ONNX file, its bytes, an ``onnx.ModelProto``, a ``torch.export.ExportedProgram``, or a
             ``torch.nn.Module`` and example arguments (``*args``, ``kwargs``; ``dynamic_shapes`` as torch.export has)
    inputs   shapes and element types of inputs, where the model leaves them open or where they should be fixed
    options  see ``CompileOptions``

    ``loop_limit``: how often at most a loop of an ONNX model runs whose end depends on data.

    Raises ModelError for an invalid model, UnsupportedError with the list of all operators that can't be compiled,
    AccuracyError for an error above tolerance, UsageError for wrong arguments, EnvironmentError_ for something missing.
    """
    if unknown := [name for name in options if name not in CompileOptions.__annotations__]:
        near = difflib.get_close_matches(unknown[0], CompileOptions.__annotations__, 1)
        known = f"did you mean {near[0]}?" if near else f"options: {', '.join(CompileOptions.__annotations__)}"
        raise UsageError(f"compile has no option {unknown[0]!r}", hint=known)
    graph = import_model(
        model, *args, inputs=inputs, kwargs=kwargs, dynamic_shapes=dynamic_shapes, loop_limit=loop_limit
    )
    return compile_graph(graph, **options)


@_memory_for("the import")
def import_model(
    model: Any, *args: Any, inputs: Sequence[Input] | Input = (), kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None, loop_limit: int = LOOP_LIMIT,
) -> Graph:  # fmt: skip
    """Imports a model in any of the forms that ``compile`` takes.

    Raises ModelError for an invalid model, UnsupportedError with the list of all operators that can't be imported,
    UsageError for arguments that do not fit the form of the model.
    """
    kind = type(model)
    asked = check_inputs(inputs)
    if isinstance(model, str | os.PathLike | bytes) or kind.__name__ == "ModelProto":
        from arcweld.compiler.onnx.importer import import_onnx

        if args or kwargs or dynamic_shapes:
            raise UsageError("example arguments are for torch modules", hint="inputs= says what is known of the inputs")
        _refuse_archive(model)
        shared = set(asked.state)
        graph = import_onnx(model, shapes=asked.shapes, values=asked.values, shared=shared, loop_limit=loop_limit)
    elif any(c.__module__.startswith("torch.") for c in kind.__mro__):
        from arcweld.compiler.torch import importer

        if inputs:
            raise UsageError(
                "inputs= is for ONNX models", hint="give a torch module example arguments and dynamic_shapes"
            )
        if kind.__name__ == "ExportedProgram":
            graph = importer.import_exported(model)
        elif not args and not kwargs:
            raise UsageError(
                f"a {kind.__name__} is compiled with example arguments",
                hint="arcweld.compile(module, x), or kwargs={…}",
            )
        else:
            graph = importer.import_module(model, args, dict(kwargs or {}), dynamic_shapes)
    else:
        raise UsageError(
            f"can't compile a {kind.__module__}.{kind.__name__}",
            hint="pass an ONNX path or ModelProto, a torch.nn.Module with example arguments, or an ExportedProgram",
        )
    asked.check(graph)
    return with_state(graph, asked.state)


def _refuse_archive(model: Any) -> None:
    """Raises UsageError for an engine file or another zip archive, which the ONNX reader would call damaged."""
    name, head, tail = "this", b"", b""
    if isinstance(model, bytes):
        head, tail = model[:4], model[-TAIL:]
    elif isinstance(model, str | os.PathLike) and Path(model).is_file():
        name = os.fspath(model)
        with open(model, "rb") as file:
            head = file.read(4)
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            tail = file.read()
    if head != b"PK\x03\x04":
        return
    if b"manifest.json" in tail:
        raise UsageError(f"{name} is an engine, an ONNX model is needed here", hint="arcweld.load opens engines")
    hint = "a PyTorch model is loaded in Python, and its module given to arcweld.compile"
    raise UsageError(f"{name} is an archive, not an ONNX model", hint=hint)


def compile_graph(graph: Graph, **options: Unpack[CompileOptions]) -> Engine:
    """Compiles an imported graph; see ``compile``."""
    return build_engine(graph, **options)[1]


def build_engine(graph: Graph, **options: Unpack[CompileOptions]) -> tuple[Build, Engine]:
    """Like ``compile_graph``, and returns the Build (graphs, launches, timings) too."""
    build, device, engine = build_data(graph, **options)
    if engine is None:
        return build, Engine(build.data, device)
    engine.own_weights()
    return build, engine


@_memory_for("the build")
def build_data(
    graph: Graph, *, precision: str = "fp32", arch: Sequence[str] | str | None = None,
    device: Device | str | None = None, verify: str = "quick", verify_budget: float = 20.0,
    tolerance: float | None = None, tf32: bool = False, keep_f32: Collection[str] = (),
    disable: Sequence[str] | str = (),
    progress: Progress | None = None, dump: str | os.PathLike[str] | None = None,
    sizes: Mapping[str, int] | None = None, feeds: Mapping[str, Any] | None = None,
    ranges: Sequence[Mapping[str, int | tuple[int, int]] | str] | None = None, strict: bool = False,
    other_sizes: bool = True,
) -> tuple[Build, Device, Engine | None]:  # fmt: skip
    """The build, the device that was chosen, and the engine if verification has opened one on it.

    The engine may read weights in the files that the importer mapped, until ``own_weights``. Without an engine nothing
    is loaded onto the device. ``other_sizes``: whether verification tries sizes beside those of its inputs. See
    ``CompileOptions`` for the other arguments and ``compile`` for the errors.
    """
    checks = VerifyOptions(verify, verify_budget, tolerance, other_sizes)
    sizes = checked_sizes(sizes)
    feeds = None if feeds is None else checked_feeds(graph, feeds)
    where = open_device(device)
    if has_host_nodes(graph):
        if strict:
            refuse_fallbacks(graph)
        kept = known_nodes(graph, keep_f32)
        if ranges:
            raise UsageError("a model in stages takes no ranges of sizes", hint="leave out ranges")
        return build_stages(
            graph, build_data, where, feeds, sizes, kept,
            {"precision": precision, "arch": arch, "verify": verify, "verify_budget": verify_budget,
             "tolerance": tolerance, "tf32": tf32, "disable": disable, "progress": progress, "dump": dump},
        )  # fmt: skip
    archs = (arch,) if isinstance(arch, str) else tuple(arch) if arch is not None else (where.arch,)
    left_out = {disable} if isinstance(disable, str) else disable
    options = Options(precision=precision, arch=archs, disable=frozenset(left_out), tf32=tf32,
                      keep_f32=known_nodes(graph, keep_f32), ranges=checked_ranges(ranges, graph))  # fmt: skip
    started = time.monotonic()
    folder = None if dump is None else Path(dump)
    if folder is not None:
        _make_folder(folder)
    before = {"inputs": 0.0}
    promotion: Promotion | None = None
    with one_thread() if where.is_simulator else nullcontext(), _drawn(graph, sizes, feeds, checks) as drawn:
        if drawn is None and precision != "fp32":
            text = f"without verification no node is kept in f32: all of the model computes in {precision}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        elif drawn is not None and precision != "fp32" and drawn.result().feeds:
            before["inputs"] = time.monotonic() - started
            if progress is not None:
                progress("promotion", 0, 1)
            promotion = _promotion(graph, options, drawn.result(), checks)
            options = replace(options, keep_f32=options.keep_f32 | promotion.origins)
            before["promotion"] = time.monotonic() - started - before["inputs"]
        build = build_graph(
            graph, options, progress=progress, dump=folder, compile_kernels=arch is not None or where.needs_object_code
        )
        engine = None
        if drawn is not None:
            built = time.monotonic()
            sample = drawn.result()
            before["inputs"] += time.monotonic() - built
            engine = _verified(build, where, sample, checks, promotion, progress)
        build.sizes = dict(sample.sizes) if drawn is not None else sample_sizes(graph, sizes)
    build.seconds = before | build.seconds
    build.seconds["total"] = time.monotonic() - started
    log.info("%s", summary(build, where))
    return build, where, engine


@contextmanager
def _drawn(
    graph: Graph, sizes: Mapping[str, int] | None, feeds: Mapping[str, np.ndarray] | None, checks: VerifyOptions
) -> Iterator[Future[Sample] | None]:
    """The inputs to verify with, which a thread draws and evaluates; None where nothing is verified."""
    if checks.level == "off":
        yield None
        return
    with ahead(lambda: draw_sample(graph, sizes) if feeds is None else given_sample(graph, sizes, feeds)) as drawn:
        yield drawn


def _verified(
    build: Build, where: Device, sample: Sample, checks: VerifyOptions, promotion: Promotion | None,
    progress: Progress | None,
) -> Engine:  # fmt: skip
    """The engine of a build, after verification on ``where``; the build then has the evidence."""
    started = time.monotonic()
    engine = Engine(build.data, where, borrow=True)  # the weights may stay in the files that the importer mapped
    told = None if progress is None else _kernel_counter(progress, len(build.data.sources))
    evidence = verify_build(build, engine, sample, checks, build.precision, promotion, told)
    warn_of_headroom(evidence)
    build.data = engine.data = replace(build.data, verify=evidence)
    build.seconds["verify"] = time.monotonic() - started
    if promotion is not None and promotion.gave_up:
        _warn_of_f32(build, promotion, checks)
    return engine


def _kernel_counter(progress: Progress, kernels: int) -> Callable[[str], None]:
    """Turns what verification says that it does into the number of kernels begun, which other sizes do not add to."""
    begun: set[str] = set()

    def told(doing: str) -> None:
        if doing.startswith("kernel "):
            begun.add(doing)
        progress("verify", len(begun), kernels)

    progress("verify", 0, kernels)
    return told


def known_nodes(graph: Graph, names: Collection[str]) -> frozenset[str]:
    """``names`` as a set. Raises UsageError for one that no node of the model has."""
    if isinstance(names, str):
        raise UsageError("keep_f32 is a collection of names", hint=f"write [{names!r}]")
    known = {o for n in graph.nodes for o in n.origin} if names else set()
    if unknown := sorted(set(names) - known):
        near = difflib.get_close_matches(unknown[0], known, 3, 0.3)
        raise UsageError(
            f"keep_f32: no node is called {unknown[0]!r}", hint=f"close: {', '.join(near)}" if near else None
        )
    return frozenset(names)


def checked_feeds(graph: Graph, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays of any kind as host arrays, by input name. Raises UsageError for a name of no input."""
    feeds = spread(graph.takes, feeds)
    known = [v.name for v in graph.inputs]
    if unknown := sorted(set(feeds) - set(known)):
        raise UsageError(f"the model has no input {unknown[0]!r}", hint=f"its inputs are {', '.join(known)}")
    return {name: host_array(value) for name, value in feeds.items()}


def _make_folder(folder: Path) -> None:
    """Makes the folder. Raises UsageError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the folder {folder} cannot be made: {error.strerror}") from None


def _promotion(graph: Graph, options: Options, sample: Sample, checks: VerifyOptions) -> Promotion:
    tolerance = checks.tolerance if checks.tolerance is not None else ENGINE_TOLERANCE[options.precision]
    seconds = ReferenceCost.of(graph).seconds(sample.sizes)
    if 4 * seconds > checks.budget:
        log.warning("finding the nodes that stay in f32 takes about %.0f s", 6 * seconds)
    budget = checks.budget if checks.level == "quick" else 10 * max(seconds, checks.budget)
    return promote(graph, options, sample.feeds, sample.sizes, tolerance=KERNELS * tolerance, budget=budget)


def _warn_of_f32(build: Build, promotion: Promotion, checks: VerifyOptions) -> None:
    """Warns that promotion found no small set, with the share of operations that is left in 16 bits."""
    share = half_share(build, {"fp16": "f16", "bf16": "bf16"}[build.precision]) or 0.0
    tolerance = checks.tolerance if checks.tolerance is not None else ENGINE_TOLERANCE[build.precision]
    text = f"a tolerance of {tolerance:g} leaves {100 * share:.0f} % of the operations in {build.precision}"
    warnings.warn(f"{text}: {promotion.note}", RuntimeWarning, stacklevel=4)


def rebuild_kernel(name: str, source: str, files: dict[str, str], arch: str) -> bytes:
    """The cubin of an engine's embedded source for an architecture that the engine was not built for."""
    job = Job(source, arch, name, headers=tuple(sorted(files.items())))
    return compile_job(job).code
