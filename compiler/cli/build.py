"""``onnx-to-engine MODEL -o ENGINE``: builds an engine."""

from __future__ import annotations

from typing import Annotated

import typer
from arcweld.compiler.api import build_data
from arcweld.compiler.build import DEFAULT_ARCHS
from arcweld.compiler.cli.common import check_writable, err, note_ignored, open_graph, out, progress_bar
from arcweld.compiler.cli.shapes import check_ranges, parse_open_shapes, parse_shapes, sizes_of
from arcweld.compiler.errors import UnsupportedError, UsageError
from arcweld.compiler.summary import summary
from arcweld.runtime.devices import choose, gpu_count
from arcweld.runtime.engine_file import write_engine

Opt = typer.Option
_COMPATIBLE = "Accepted for compatibility."
_ARCH = f"Architectures to compile for; default: the local GPU, else {','.join(DEFAULT_ARCHS)}."
_TOLERANCE = "Largest relative error of the outputs; negative: the precision's own."


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
    shapes: Annotated[str, Opt("--shapes", help="Fixed input shapes: x:1x3x224x224,y:1x8.")] = "",
    min_shapes: Annotated[str, Opt("--minShapes", help="Smallest input shapes.")] = "",
    opt_shapes: Annotated[str, Opt("--optShapes", help="Shapes to verify with.")] = "",
    max_shapes: Annotated[str, Opt("--maxShapes", help="Largest input shapes.")] = "",
    arch: Annotated[str, Opt("--arch", help=_ARCH)] = "",
    device: Annotated[str, Opt("--device", help="Where to verify: cuda, cuda:N, sim.")] = "",
    verify: Annotated[str, Opt("--verify", help="full, quick or off.")] = "quick",
    verify_budget: Annotated[float, Opt("--verifyBudget", help="Seconds for quick verification.")] = 20.0,
    tolerance: Annotated[float, Opt("--tolerance", help=_TOLERANCE)] = -1.0,
    disable: Annotated[str, Opt("--disable", help="Passes to leave out, separated by commas.")] = "",
    dump: Annotated[str, Opt("--dump", help="Folder for the graph after each pass and every kernel.")] = "",
    quiet: Annotated[bool, Opt("--quiet", help="No progress bar.")] = False,
    verbose: Annotated[bool, Opt("--verbose", help="Time of each stage.")] = False,
    skip_inference: Annotated[bool, Opt("--skipInference", "--buildOnly", help=_COMPATIBLE)] = False,
    optimization_level: Annotated[str, Opt("--builderOptimizationLevel", help=_COMPATIBLE)] = "",
    timing_cache: Annotated[str, Opt("--timingCacheFile", help=_COMPATIBLE)] = "",
    memory_pool: Annotated[str, Opt("--memPoolSize", help=_COMPATIBLE)] = "",
    iterations: Annotated[str, Opt("--iterations", hidden=True)] = "",
    warm_up: Annotated[str, Opt("--warmUp", hidden=True)] = "",
    duration: Annotated[str, Opt("--duration", hidden=True)] = "",
    cuda_graph: Annotated[bool, Opt("--useCudaGraph", hidden=True)] = False,
    no_transfers: Annotated[bool, Opt("--noDataTransfers", hidden=True)] = False,
) -> None:  # fmt: skip
    """Builds an engine from an ONNX file, verifies it, and prints one line about it."""
    note_ignored(
        {
            "skipInference": skip_inference, "builderOptimizationLevel": optimization_level,
            "timingCacheFile": timing_cache, "memPoolSize": memory_pool, "iterations": iterations, "warmUp": warm_up,
            "duration": duration, "useCudaGraph": cuda_graph, "noDataTransfers": no_transfers,
        }
    )  # fmt: skip
    source = _one_source(model, onnx)
    if not output:
        raise UsageError("no engine file to write was named", hint="add -o model.engine")
    check_writable(output)
    if int8 or fp8:
        raise UnsupportedError(f"--{'int8' if int8 else 'fp8'} is not available yet", hint="use --fp16 or --bf16")
    if fp16 and bf16:
        raise UsageError("--fp16 and --bf16 exclude each other")
    precision = "bf16" if bf16 else "fp16" if fp16 or best else "fp32"
    graph = open_graph(source, parse_open_shapes(shapes) if shapes else None, _maybe(min_shapes), _maybe(max_shapes))
    sizes = sizes_of(graph, parse_shapes(opt_shapes)) if opt_shapes else None
    check_ranges(graph, sizes or {})
    where = choose(device or None)
    archs = tuple(a.strip() for a in arch.split(",") if a.strip()) or (None if gpu_count() else DEFAULT_ARCHS)
    with progress_bar(quiet) as report:
        done, used, _ = build_data(
            graph, precision=precision, arch=archs, device=where, verify=verify, verify_budget=verify_budget,
            tolerance=None if tolerance < 0 else tolerance, tf32=tf32, progress=report, dump=dump or None,
            disable=[d for d in disable.split(",") if d], sizes=sizes,
        )  # fmt: skip
        write_engine(output, done.data)
    if verbose:
        for stage, seconds in done.seconds.items():
            err.print(f"{stage:>10} {seconds:8.2f} s")
    out.print(summary(done, used))


def _maybe(text: str) -> dict[str, tuple[int, ...]] | None:
    return parse_shapes(text) if text else None


def _one_source(model: str, onnx: str) -> str:
    if bool(model) == bool(onnx):
        raise UsageError("name one ONNX file", hint="onnx-to-engine model.onnx -o model.engine")
    return model or onnx
