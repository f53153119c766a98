"""``debug``: which kernel, pass or node makes results wrong, and the smallest model that shows it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from arcweld.cli.common import interface, is_engine, open_graph, out, print_json, print_table, waiting
from arcweld.cli.debug_reports import print_culprit, print_divergence, print_right
from arcweld.cli.inputs import Bf16, Device, Fp16, Load, Range, Seed, Shapes, Trust, Values, make_feeds, precision_of
from arcweld.cli.shapes import parse_shapes, parse_values
from arcweld.compiler.errors import UsageError
from arcweld.compiler.ir import Graph
from arcweld.debug.bisect import bisect as find_culprit
from arcweld.debug.bisect import write_culprit
from arcweld.debug.case import Case, prepare
from arcweld.debug.divergence import REFERENCES, compare_kernels
from arcweld.debug.folder import SCRIPT, check_folder
from arcweld.debug.kernel_case import checked, write_divergence
from arcweld.debug.precision import needed_in_f32, write_precision
from arcweld.debug.reduce import reduce as find_smallest
from arcweld.debug.reduce import write_reduced
from arcweld.debug.subject import Subject
from arcweld.runtime.engine import load

Opt = typer.Option
FOUND = 1  # the exit status where something is wrong
Model = Annotated[str, typer.Argument(help="ONNX file.")]
Output = Annotated[str, Opt("-o", "--output", help="Folder to write; default: the model's name and the command's.")]
Force = Annotated[bool, Opt("--force", help="Replace a folder that debug wrote before.")]
_TOLERANCE = "Largest relative error of the outputs; default: the precision's own."
Tolerance = Annotated[float | None, Opt("--tolerance", help=_TOLERANCE)]
Disable = Annotated[str, Opt("--disable", help="Passes to leave out, separated by commas.")]
Json = Annotated[bool, Opt("--json", help="Print JSON and nothing else.")]
Seconds = Annotated[float, Opt("--seconds", min=1.0, help="How long to search.")]

debug = typer.Typer(help="Find out why results are wrong, and leave a script that shows it.")


@debug.command("first-divergence", short_help="The first kernel whose results differ from the reference.")
def first_divergence(
    path: Annotated[str, typer.Argument(help="ONNX or engine file.")], output: Output = "", force: Force = False,
    reference: Annotated[str, Opt("--reference", help="f64, or f32 for the model's own types.")] = REFERENCES[0],
    device: Device = "", shapes: Shapes = "", values: Values = "", load_inputs: Load = "",
    val_range: Range = [],  # noqa: B006
    seed: Seed = 0, fp16: Fp16 = False, bf16: Bf16 = False, tolerance: Tolerance = None, disable: Disable = "",
    trust: Trust = False, json: Json = False,
) -> None:  # fmt: skip
    """Compares every kernel's results with the reference, on the reference's operands and on the engine's own."""
    if reference not in REFERENCES:
        raise UsageError(f"--reference: {reference!r} is not one of {', '.join(REFERENCES)}")
    target = _target(path, output, "first-divergence", force)
    given = _Inputs(shapes, load_inputs, val_range, seed)
    if is_engine(path):
        if values or fp16 or bf16 or disable:
            raise UsageError(f"{path} is an engine already: --values, --fp16, --bf16 and --disable are for models")
        _check_tolerance(tolerance)
        engine = load(path, device or None, trusted=trust)
        subject = Subject.of_engine(engine, given.feeds(interface(engine.data), built=True) or {}, tolerance)
    else:
        subject = Subject.of_case(_case(path, device, given, values, precision_of(fp16, bf16), tolerance, disable))
    with _telling(json) as tell:
        found = compare_kernels(subject, reference, tell)
        first = found.first
        said = checked(subject, first, reference) if first is not None and first.cause != "precision" else ""
    if json:
        print_json({**dataclasses.asdict(found), "wrong": found.wrong, "checked": said})
    else:
        print_divergence(found, said)
    if found.wrong:
        write_divergence(target, subject, found, reference, force)
        _end(target, json)


@debug.command("bisect", short_help="The pass, and of fusion the fusion, from which on results are wrong.")
def bisect(
    model: Model, output: Output = "", force: Force = False, device: Device = "", shapes: Shapes = "",
    values: Values = "", load_inputs: Load = "",
    val_range: Range = [],  # noqa: B006
    seed: Seed = 0, fp16: Fp16 = False, bf16: Bf16 = False, tolerance: Tolerance = None, disable: Disable = "",
    json: Json = False,
) -> None:  # fmt: skip
    """Builds a model with ever narrower limits of optimising until one step separates right results from wrong ones."""
    target = _target(model, output, "bisect", force)
    given = _Inputs(shapes, load_inputs, val_range, seed)
    case = _case(model, device, given, values, precision_of(fp16, bf16), tolerance, disable)
    with _telling(json) as tell:
        found = find_culprit(case, tell)
    if json:
        print_json(None if found is None else dataclasses.asdict(found))
    elif found is None:
        print_right(case)
    else:
        print_culprit(found)
    if found is not None:
        write_culprit(target, case, found, force)
        _end(target, json)


@debug.command("reduce", short_help="The smallest part of a model that fails as the model does.")
def reduce(
    model: Model, output: Output = "", force: Force = False, seconds: Seconds = 300.0, device: Device = "",
    shapes: Shapes = "", values: Values = "", load_inputs: Load = "",
    val_range: Range = [],  # noqa: B006
    seed: Seed = 0, fp16: Fp16 = False, bf16: Bf16 = False, tolerance: Tolerance = None, disable: Disable = "",
    json: Json = False,
) -> None:  # fmt: skip
    """Cuts nodes off a failing model as long as it fails in the same way. Writes an ONNX file, inputs and a script."""
    target = _target(model, output, "reduce", force)
    given = _Inputs(shapes, load_inputs, val_range, seed)
    case = _case(model, device, given, values, precision_of(fp16, bf16), tolerance, disable)
    proto, constants = _proto(model, values)
    with _telling(json) as tell:
        found = find_smallest(case, proto, constants=constants, seconds=seconds, told=tell)
    nodes = [] if found is None else [f"{n.op} {n.name}" for n in found.case.graph.nodes]
    if json:
        print_json(None if found is None else {"nodes": nodes, "of": found.nodes, "failure": found.failure.detail})
    elif found is None:
        print_right(case)
    else:
        out.print(f"{len(nodes)} of {found.nodes} nodes fail by themselves: {', '.join(nodes)}")
        out.print(f"{found.failure.kind}: {found.failure.detail}")
    if found is not None:
        write_reduced(target, found, force)
        _end(target, json)


@debug.command("precision", short_help="The nodes that half precision needs in f32.")
def precision(
    model: Model, output: Output = "", force: Force = False, seconds: Seconds = 300.0, device: Device = "",
    shapes: Shapes = "", values: Values = "", load_inputs: Load = "",
    val_range: Range = [],  # noqa: B006
    seed: Seed = 0, fp16: Fp16 = False, bf16: Bf16 = False, tolerance: Tolerance = None, disable: Disable = "",
    json: Json = False,
) -> None:  # fmt: skip
    """Finds the nodes that have to stay in f32 for the outputs to be within the tolerance."""
    target = _target(model, output, "precision", force)
    given = _Inputs(shapes, load_inputs, val_range, seed)
    asked = precision_of(fp16, bf16)
    case = _case(model, device, given, values, asked, tolerance, disable, promoted=False)
    with _telling(json) as tell:
        found = needed_in_f32(case, seconds, tell)
    if json:
        print_json(dataclasses.asdict(found))
    else:
        out.print(f"all nodes in {asked}: relative error {found.narrow:.2e}, may be {found.tolerance:.1e}")
        if found.kept:
            out.print(f"{len(found.kept)} of {found.total} nodes stay in f32: relative error {found.error:.2e}")
            print_table(("node", "why", "error of it alone"), [(k.name, k.why, f"{k.error:.2e}") for k in found.kept])
            out.print("--layerPrecisions=" + ",".join(f"{k.name}:fp32" for k in found.kept))
        else:
            out.print("no node needs f32")
        if found.failure is not None:
            out.print(f"but the build is wrong: {found.failure.detail}")
    if found.kept or found.failure is not None:
        write_precision(target, case, found, force)
        _end(target, json)


# ------------------------------------------------------------------------------------------------------------ inputs


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What the command line says of inputs."""

    shapes: str
    files: str
    ranges: list[str]
    seed: int

    def feeds(self, graph: Graph, built: bool = False) -> dict[str, np.ndarray] | None:
        """Inputs by name; None where nothing is said that decides them: a model's ``shapes`` are in its graph."""
        if not (self.files or self.ranges or self.seed or built):
            return None
        return make_feeds(graph, parse_shapes(self.shapes) if built and self.shapes else {}, self.files, self.ranges,
                          self.seed)  # fmt: skip


def _case(
    path: str, device: str, given: _Inputs, values: str, precision: str, tolerance: float | None, disable: str,
    promoted: bool = True,
) -> Case:  # fmt: skip
    if is_engine(path):
        raise UsageError(f"{path} is an engine, a model is needed here", hint="name the ONNX file it was built from")
    _check_tolerance(tolerance)
    graph = open_graph(path, given.shapes, values=values)
    names = [d.strip() for d in disable.split(",") if d.strip()]
    return prepare(
        graph, precision=precision, device=device or None, feeds=given.feeds(graph), disable=names,
        tolerance=tolerance, promoted=promoted,
    )  # fmt: skip


def _check_tolerance(tolerance: float | None) -> None:
    if tolerance is not None and not tolerance >= 0:  # NaN too
        raise UsageError(f"{tolerance!r} is no tolerance", hint="a number from 0 on")


def _proto(path: str, values: str) -> tuple[Any, dict[str, np.ndarray]]:
    """The ONNX model with its external data, and those of its inputs that ``--values`` makes constants."""
    import onnx

    from arcweld.compiler.onnx.importer import constant_input

    model = onnx.load(path)
    given = parse_values(values)
    return model, {v.name: constant_input(v, given[v.name]) for v in model.graph.input if v.name in given}


def _target(path: str, output: str, command: str, force: bool) -> Path:
    is_engine(path)  # says that the file cannot be read before anything else
    return check_folder(output or f"{Path(path).stem}.{command}", force)


# ------------------------------------------------------------------------------------------------------------ output


@contextmanager
def _telling(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Says on stderr every few seconds what is being done."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NaN in what is wrong is no news
        if quiet:
            yield lambda text: None
            return
        with waiting("searching") as say:
            yield say


def _end(target: Path, quiet: bool) -> None:
    """Says what was written, and ends the command."""
    if not quiet:
        out.print(f"python {target / SCRIPT} shows it")
    raise typer.Exit(FOUND)
