"""``report``: one HTML file about an engine or a model, with the modelled time of every kernel on a card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from arcweld.cli.common import check_writable, is_engine, open_graph, out
from arcweld.cli.estimate import engine_sizes
from arcweld.cli.inputs import InOut, Values, precision_of
from arcweld.cli.inspect import refused_fusions
from arcweld.cli.steps_report import step_lines, steps_report
from arcweld.compiler.cards import Card
from arcweld.compiler.cards import card as card_called
from arcweld.compiler.errors import UsageError
from arcweld.compiler.ir import Graph
from arcweld.compiler.options import Options
from arcweld.compiler.paths import replacing
from arcweld.driver.estimate import estimate_engine, planned
from arcweld.driver.samples import sample_sizes
from arcweld.driver.stages import of_known_sizes
from arcweld.driver.summary import bytes_text
from arcweld.report.collect import collect
from arcweld.report.page import render
from arcweld.report.profiles import check_profile, read_profile, sizes_in
from arcweld.report.timeline import Timeline, measured, modelled
from arcweld.runtime.engine_file import EngineData, read_engine

Opt = typer.Option
Profiled = Annotated[str, Opt("--profile", help="Measured times: what `bench --exportProfile` wrote.")]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is reported on or exported: an engine's data, or what a model would become; the values of the symbols; and
    the graph of a model, None for an engine.
    """

    data: EngineData
    sizes: Mapping[str, int]
    graph: Graph | None


def subject(path: str, card: Card, shapes: str, precision: str, values: str = "", inout: str = "") -> Subject:
    """The engine or the model in a file; a model is planned for the card. Raises UsageError for options of models that
    an engine cannot have.
    """
    if is_engine(path):
        if precision != "fp32" or values or inout:
            raise UsageError(
                "an engine has its precision and its inputs",
                hint="leave out --fp16, --bf16, --values and --inout, or name the model",
            )
        data = read_engine(path)
        return Subject(data, engine_sizes(data, shapes), None)
    graph = open_graph(path, shapes, values=values, inout=inout)
    return Subject(planned(graph, precision, card.arch), sample_sizes(of_known_sizes(graph), None), graph)


def timeline_of(
    path: str, card: str, profile: str, shapes: str, precision: str, values: str, inout: str
) -> tuple[Timeline, Subject]:
    """What is reported on or exported, with its times: those of the profile's file, or else modelled ones.

    Raises UsageError for the profile of a model, and for other sizes than it was measured with; ProfileError for a
    profile that is damaged, or of another engine; and as ``subject``.
    """
    on = card_called(card.strip())
    if not profile:
        about = subject(path, on, shapes, precision, values, inout)
        return modelled(estimate_engine(about.data, on, about.sizes)), about
    if not is_engine(path):
        raise UsageError("--profile is for engines: a model was not measured", hint="name the engine")
    found = read_profile(profile)
    about = subject(path, on, shapes, precision, values, inout)
    sizes = about.sizes if shapes else {**about.sizes, **sizes_in(found)}
    estimate = estimate_engine(about.data, on, sizes)
    check_profile(found, profile, about.data, [x.name for x in estimate.launches])
    if found.measured is not None and dict(found.measured.sizes) != dict(estimate.sizes):
        raise UsageError("--profile was measured with other sizes than --shapes gives", hint="leave --shapes out")
    return measured(estimate, found), about


def report(
    path: Annotated[str, typer.Argument(help="ONNX or engine file.")],
    output: Annotated[str, Opt("-o", "--output", help="HTML file to write.")] = "",
    card: Annotated[str, Opt("--card", help="Card: h100, a100, l4, or a description in a file.")] = "h100",
    profile: Profiled = "",
    shapes: Annotated[str, Opt("--shapes", "--input-shapes", help="Input shapes: x:1x3x224x224.")] = "",
    fp16: Annotated[bool, Opt("--fp16", help="In half precision (of a model).")] = False,
    bf16: Annotated[bool, Opt("--bf16", help="In bfloat16 (of a model).")] = False,
    values: Values = "", inout: InOut = "",
) -> None:  # fmt: skip
    """Writes what is known and modelled of an engine or a model as one HTML file, which needs nothing else."""
    if not output:
        raise UsageError("no file to write was named", hint="add -o report.html")
    read = [path, *filter(None, [profile]), *([card] if card.endswith(".json") else [])]
    target = check_writable(output, *read)
    times, about = timeline_of(path, card, profile, shapes, precision_of(fp16, bf16), values, inout)
    refusals, precision = None, ""
    if about.graph is not None:
        precision = precision_of(fp16, bf16)
        refusals = refused_fusions(about.graph, Options(precision=precision, arch=(times.estimate.card.arch,)))
    found = collect(
        Path(path).name, about.data, times,
        steps=list(step_lines(steps_report(about.data.program))), refusals=refusals, precision=precision,
    )  # fmt: skip
    page = render(found, about.data.sources)
    with replacing(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    out.print(f"{output}: {bytes_text(len(page.encode()))}, {found.kernels_text}, "
              f"modelled {found.modelled_us / 1e3:.3g} ms on {found.card}"
              + (f", kernels {found.measured}" if found.measured else ""))  # fmt: skip
