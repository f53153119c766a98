"""``onnx-to-engine MODEL -o ENGINE``: builds an engine."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from arcweld.cli.archs import parse_archs
from arcweld.cli.bench import show_layers, writable
from arcweld.cli.common import check_writable, err, is_engine, note, open_graph, out, progress_bar
from arcweld.cli.inputs import Batch, InOut, Load, Range, Values, make_feeds, precision_of
from arcweld.cli.precisions import CONSTRAINTS, layer_precisions
from arcweld.cli.shapes import batch_sizes, check_ranges, parse_shapes, sizes_of
from arcweld.cli.trtexec import check_formats
from arcweld.compiler.errors import UnsupportedError, UsageError
from arcweld.compiler.ir import Graph
from arcweld.compiler.options import LOOP_LIMIT
from arcweld.driver.api import build_data
from arcweld.driver.build import DEFAULT_ARCHS
from arcweld.driver.summary import summary
from arcweld.runtime.devices import choose
from arcweld.runtime.engine_file import write_engine

Opt = typer.Option
_ARCH = f"Architectures to compile for, like sm_90a,native; default: native, else {','.join(DEFAULT_ARCHS)}; or list."
_SHAPES = "Input shapes: x:1x3x224x224,y:1x8, or open ones: x:[n,3,32*h,32*w]."
_LOOPS = "How often at most a loop runs whose end depends on data."
_RANGES = "Sizes with kernels of their own: s=1,b=1..8;s=1, or none; default: decode steps and small batches."
_LAYERS = "Precision of single nodes: *conv*:fp32,fc1:fp16."
_TOLERANCE = "Largest relative error of the outputs; default: the precision's own."


def build(
    model: Annotated[str, typer.Argument(help="ONNX file.")] = "",
    output: Annotated[str, Opt("-o", "--output", "--saveEngine", help="Engine file to write.")] = "",
    onnx: Annotated[str, Opt("--onnx", help="ONNX file (another spelling of the argument).")] = "",
    fp16: Annotated[bool, Opt("--fp16", help="Compute in half precision, verified against f32.")] = False,
    bf16: Annotated[bool, Opt("--bf16", help="Compute in bfloat16, verified against f32.")] = False,
    best: Annotated[bool, Opt("--best", help="The fastest verified precision: fp16.")] = False,
    int8: Annotated[bool, Opt("--int8", help="Not available yet.")] = False,
    fp8: Annotated[bool, Opt("--fp8", help="Not available yet.")] = False,
    tf32: Annotated[bool, Opt("--tf32/--noTF32", help="Let f32 matrix products round operands to tf32.")] = False,
    shapes: Annotated[str, Opt("--shapes", "--input-shapes", help=_SHAPES)] = "",
    min_shapes: Annotated[str, Opt("--minShapes", help="Smallest input shapes.")] = "",
    opt_shapes: Annotated[str, Opt("--optShapes", help="Shapes to verify with.")] = "",
    max_shapes: Annotated[str, Opt("--maxShapes", help="Largest input shapes.")] = "",
    size_ranges: Annotated[str, Opt("--sizeRanges", help=_RANGES)] = "",
    batch: Batch = 0, values: Values = "", inout: InOut = "", load_inputs: Load = "", val_range: Range = [],  # noqa: B006
    layer_precisions_: Annotated[str, Opt("--layerPrecisions", help=_LAYERS)] = "",
    constraints: Annotated[str, Opt("--precisionConstraints", help="none ignores --layerPrecisions.")] = "prefer",
    input_formats: Annotated[str, Opt("--inputIOFormats", help="The inputs' types, which are checked.")] = "",
    output_formats: Annotated[str, Opt("--outputIOFormats", help="The outputs' types, which are checked.")] = "",
    compatibility: Annotated[str, Opt("--hardwareCompatibilityLevel", help="none, or ampere+.")] = "none",
    arch: Annotated[str, Opt("--arch", help=_ARCH)] = "",
    device: Annotated[str, Opt("--device", help="Where to verify: cuda, cuda:N, sim.")] = "",
    verify: Annotated[str, Opt("--verify", help="full, quick or off.")] = "quick",
    verify_budget: Annotated[float, Opt("--verifyBudget", help="CPU seconds for quick verification.")] = 20.0,
    tolerance: Annotated[float | None, Opt("--tolerance", help=_TOLERANCE)] = None,
    strict: Annotated[bool, Opt("--strict", help="Refuse operators that the host would compute.")] = False,
    loop_limit: Annotated[int, Opt("--loopLimit", help=_LOOPS)] = LOOP_LIMIT,
    disable: Annotated[str, Opt("--disable", help="Passes to leave out, separated by commas.")] = "",
    dump: Annotated[str, Opt("--dump", help="Folder for the graph after each pass and every kernel.")] = "",
    dump_layers: Annotated[bool, Opt("--dumpLayerInfo", help="Print which nodes each kernel computes.")] = False,
    export_layers: Annotated[str, Opt("--exportLayerInfo", help="Write the same as JSON, as trtexec does.")] = "",
    quiet: Annotated[bool, Opt("--quiet", help="Nothing about progress.")] = False,
    verbose: Annotated[bool, Opt("--verbose", help="Time of each stage.")] = False,
) -> None:  # fmt: skip
    """Builds an engine from an ONNX file, verifies it, and prints one line about it."""
    archs = parse_archs(arch, compatibility)
    if archs == ():
        return
    source = _one_source(model, onnx)
    is_engine(source)  # says what is wrong with the file before anything else
    if not output:
        bench = f"`onnx-to-engine bench {source}` times it without a file"
        raise UsageError("no engine file to write was named", hint=f"add -o model.engine; {bench}")
    check_writable(output, source)
    layers_to = writable(export_layers, source)
    if int8 or fp8:
        raise UnsupportedError(f"--{'int8' if int8 else 'fp8'} is not available yet", hint="use --fp16 or --bf16")
    precision = precision_of(fp16 or (best and not bf16), bf16)
    started = time.perf_counter()
    graph = open_graph(source, shapes, min_shapes, max_shapes, values, inout, loop_limit)
    imported = time.perf_counter()
    _check_formats(graph, input_formats, output_formats)
    precision, kept = _precisions(layer_precisions_, constraints, precision, graph)
    sizes = batch_sizes(graph, batch) | (sizes_of(graph, parse_shapes(opt_shapes)) if opt_shapes else {})
    check_ranges(graph, sizes)
    feeds = None
    if load_inputs or val_range:
        feeds = make_feeds(graph, parse_shapes(opt_shapes) if opt_shapes else {}, load_inputs, val_range, 0, batch)
    where = choose(device or None)
    with progress_bar(quiet) as report:
        done, used, _ = build_data(
            graph, precision=precision, arch=archs, device=where, verify=verify, verify_budget=verify_budget,
            tolerance=tolerance, tf32=tf32, progress=report, dump=dump or None, keep_f32=kept,
            disable=[d.strip() for d in disable.split(",") if d.strip()], sizes=sizes or None, feeds=feeds,
            ranges=_ranges(size_ranges), strict=strict,
        )  # fmt: skip
        built = time.perf_counter()
        write_engine(output, done.data)
    stages = {n: s for n, s in done.seconds.items() if n != "total"}
    done.seconds = {"import": imported - started, **stages, "write": time.perf_counter() - built}
    done.seconds["total"] = sum(done.seconds.values())
    if verbose:
        for stage, seconds in done.seconds.items():
            err.print(f"{stage:>10} {seconds:8.2f} s")
    if dump_layers or layers_to:
        show_layers(done.data, dump_layers, layers_to, (done.data.archs or ("sm_80",))[0])
    out.print(summary(done, used))


def _precisions(text: str, constraints: str, precision: str, graph: Graph) -> tuple[str, frozenset[str]]:
    """The precision of the build, and the nodes that stay in f32. Raises UsageError as ``layer_precisions``."""
    if constraints not in CONSTRAINTS:
        raise UsageError(f"precisionConstraints: {constraints!r} is not one of {', '.join(CONSTRAINTS)}")
    if text and constraints == "none":
        note("--layerPrecisions has no effect: --precisionConstraints is none")
    if not text or constraints == "none":
        return precision, frozenset()
    if constraints == "obey":
        note("--precisionConstraints=obey means prefer: what would break the outputs in half precision stays in f32")
    return layer_precisions(text, precision, graph)


def _ranges(text: str) -> list[str] | None:
    """The ranges of ``--sizeRanges``; None without it."""
    return None if not text else [] if text == "none" else text.split(";")


def _check_formats(graph: Graph, inputs: str, outputs: str) -> None:
    if inputs:
        check_formats(inputs, "inputIOFormats", {v.name: v.dtype.value for v in graph.inputs})
    if outputs:
        found = {n: v.dtype.value for n, v in zip(graph.labels(), graph.outputs)}
        check_formats(outputs, "outputIOFormats", found)


def _one_source(model: str, onnx: str) -> str:
    if bool(model) == bool(onnx):
        raise UsageError("name one ONNX file", hint="onnx-to-engine model.onnx -o model.engine")
    return model or onnx
