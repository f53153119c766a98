"""``export``: what is known of an engine's kernels, in the forms that other tools open."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from arcweld.cli.common import check_writable, is_engine, out
from arcweld.cli.inputs import InOut, Values, precision_of
from arcweld.cli.report import Profiled, Subject, timeline_of
from arcweld.compiler.errors import UsageError
from arcweld.compiler.paths import replacing
from arcweld.report.explorer import collection, node_data
from arcweld.report.layers import layer_info
from arcweld.report.netron import annotate, check_place, read_model
from arcweld.report.timeline import Timeline, timeline_rows
from arcweld.report.trace import trace

Opt = typer.Option
Make = Callable[[Timeline, Subject, str], Any]  # of the timeline, what it is about, and the file's name
FORMATS: Mapping[str, Make] = {
    "perfetto": lambda times, about, name: trace(times, name),
    "trex": lambda times, about, name: layer_info(about.data, times.estimate.sizes, times.estimate.card.arch),
    "trex-profile": lambda times, about, name: timeline_rows(times),
    "model-explorer": lambda times, about, name: collection(times, about.data.program, name),
    "model-explorer-data": lambda times, about, name: node_data(times, about.data.program),
}
NETRON = "netron"


def export(
    path: Annotated[str, typer.Argument(help="Engine or ONNX file.")],
    form: Annotated[str, Opt("--format", help=f"Form: {', '.join((*FORMATS, NETRON))}.")] = "",
    output: Annotated[str, Opt("-o", "--output", help="File to write.")] = "",
    card: Annotated[str, Opt("--card", help="Card: h100, a100, l4, or a description in a file.")] = "h100",
    profile: Profiled = "",
    onnx: Annotated[str, Opt("--onnx", "--model", help="The ONNX file that an engine was built from (netron).")] = "",
    shapes: Annotated[str, Opt("--shapes", "--input-shapes", help="Input shapes: x:1x3x224x224.")] = "",
    fp16: Annotated[bool, Opt("--fp16", help="In half precision (of a model).")] = False,
    bf16: Annotated[bool, Opt("--bf16", help="In bfloat16 (of a model).")] = False,
    values: Values = "", inout: InOut = "",
) -> None:  # fmt: skip
    """Writes kernels, nodes and times, modelled or those of a profile, for Perfetto, trex, Netron or Model Explorer."""
    if form not in (*FORMATS, NETRON):
        raise UsageError(f"--format: {form!r} is not one of {', '.join((*FORMATS, NETRON))}")
    if not output:
        raise UsageError("no file to write was named", hint="add -o FILE")
    read = [path, *filter(None, (profile, onnx)), *([card] if card.endswith(".json") else [])]
    target = check_writable(output, *read)
    source = _model(path, onnx) if form == NETRON else ""
    times, about = timeline_of(path, card, profile, shapes, precision_of(fp16, bf16), values, inout)
    if form == NETRON:
        _write_annotated(source, target, times)
    else:
        text = json.dumps(FORMATS[form](times, about, Path(path).name), allow_nan=False)
        with replacing(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
    kernels = sum(not s.on_host for s in times.slices)
    out.print(f"{output}: {kernels} launches, {times.times}")


def _model(path: str, onnx: str) -> str:
    """The ONNX file to annotate. Raises UsageError for an engine whose model is not named."""
    if is_engine(path) and not onnx:
        raise UsageError("an engine holds no ONNX model", hint="add --onnx model.onnx, from which it was built")
    if not is_engine(path) and onnx and not Path(path).samefile(onnx):
        raise UsageError("two models are named", hint="leave --onnx out, or name an engine")
    return onnx or path


def _write_annotated(source: str, target: Path, times: Timeline) -> None:
    model = read_model(source)
    check_place(model, Path(source), target)
    nodes, strays = annotate(model, times)
    if not nodes and strays:
        raise UsageError(f"none of {source}'s nodes is computed by the engine", hint="name the model it was built from")
    with replacing(target) as temporary:
        temporary.write_bytes(model.SerializeToString())
    total = len(model.graph.node)
    rest = f"; {strays} launches are of no node of it" if strays else ""
    out.print(f"{nodes} of {total} nodes are annotated{rest}; the others take no launch, or were computed by the build")
