"""``diff``: what differs between two engines: kernels, types, bytes, modelled time, weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from arcweld.cli.common import interface, is_engine, megabytes, out, print_json, print_table
from arcweld.cli.estimate import engine_sizes
from arcweld.cli.shapes import sizes_of
from arcweld.compiler.cards import Card
from arcweld.compiler.cards import card as card_called
from arcweld.compiler.errors import InputError, UsageError
from arcweld.driver.engine_diff import EngineDiff, compare_engines
from arcweld.driver.estimate import Estimate, estimate_engine
from arcweld.runtime.engine_file import EngineData, read_engine

Opt = typer.Option
DIFFERENT = 1  # the exit code, as that of diff(1)


def diff(
    before: Annotated[str, typer.Argument(help="Engine file.")],
    after: Annotated[str, typer.Argument(help="Engine file to compare with it.")],
    card: Annotated[str, Opt("--card", help="Model both times on this card: h100, a100, l4.")] = "h100",
    shapes: Annotated[str, Opt("--shapes", "--input-shapes", help="Input shapes: x:1x3x224x224.")] = "",
    brief: Annotated[bool, Opt("--brief", help="Leave out the lines of CUDA.")] = False,
    as_json: Annotated[bool, Opt("--json", help="Print JSON.")] = False,
) -> None:
    """Says what differs between two engines. The exit code is 0 if nothing does, else 1."""
    on = card_called(card)
    for path in (before, after):
        if not is_engine(path):
            raise UsageError(f"{path} is no engine", hint="build both models, and compare the engines")
    a, b = read_engine(before), read_engine(after)
    found = compare_engines(a, b)
    times = modelled(a, b, on, shapes)
    if as_json:
        print_json(_report(before, after, found, times, on))
    elif found.differs:
        _print(found, times, on, brief)
    else:
        out.print(f"{before} and {after} run the same")
    if found.differs:
        raise typer.Exit(DIFFERENT)


def modelled(a: EngineData, b: EngineData, on: Card, shapes: str) -> tuple[Estimate, Estimate] | str:
    """The estimates of both engines at the same shapes, by default those that the first was verified with.

    If the engines' inputs differ, each has its own. Returns the reason as text where a size is missing. Raises
    UsageError for shapes that do not fit, and for a card that the kernels do not run on.
    """
    sizes = engine_sizes(a, shapes)
    verified: dict[str, list[int]] = (a.verify or {}).get("shapes", {})
    if shapes or a.program.inputs != b.program.inputs:
        theirs = engine_sizes(b, shapes)
    else:
        theirs = sizes_of(interface(b), {n: tuple(shape) for n, shape in verified.items()})
    try:
        return estimate_engine(a, on, sizes), estimate_engine(b, on, theirs)
    except InputError as error:
        given = all(s.name in sizes for s in a.program.symbols) and all(s.name in theirs for s in b.program.symbols)
        return f"{error.message}{', and data decide it' if given else ': give --shapes'}"


def _report(
    before: str, after: str, found: EngineDiff, times: tuple[Estimate, Estimate] | str, on: Card
) -> dict[str, Any]:
    """All of it as plain data; pairs are of the first and of the second engine."""
    told: dict[str, Any] = {"card": on.name, "modelled": True}
    if isinstance(times, str):
        told["not_modelled"] = times
    else:
        told["latency_ms"] = [e.seconds * 1e3 for e in times]
        told["workspace_bytes"] = [e.workspace for e in times]
        told["kernel_us"] = {n: list(pair) for n, pair in _kernel_times(*times).items()}
    return {"before": before, "after": after, "differs": found.differs, **asdict(found), "time": told}


def _kernel_times(before: Estimate, after: Estimate) -> dict[str, tuple[float, float]]:
    """Modelled microseconds of each kernel's launches together, by the name of its source."""
    sums: list[Counter[str]] = [Counter(), Counter()]
    for total, e in zip(sums, (before, after)):
        for x in e.launches:
            total[x.source] += x.modelled.us  # type: ignore[assignment]
    return {n: (float(sums[0][n]), float(sums[1][n])) for n in sorted({*sums[0], *sums[1]})}


def _print(found: EngineDiff, times: tuple[Estimate, Estimate] | str, on: Card, brief: bool) -> None:
    for what, (old, new) in found.interface.items():
        out.print(f"{what}: {old or 'none'} -> {new or 'none'}")
    if found.archs[0] != found.archs[1]:
        out.print("architectures: " + " -> ".join(", ".join(own) or "none (sim only)" for own in found.archs))
    count = Counter(k.status for k in found.kernels)
    out.print("kernels: " + ", ".join(f"{count[s]} {s}" for s in ("added", "removed", "changed")))
    out.print(f"launches: {found.launches[0]} -> {found.launches[1]}")
    for name, (old, new) in found.types.items():
        out.print(f"launches that write {name}: {old} -> {new}")
    for what, (old, new) in found.nbytes.items():
        out.print(f"{what}: {megabytes(old)}" + (f" -> {megabytes(new)}" if old != new else ""))
    _print_times(times, on)
    _print_kernels(found, {} if isinstance(times, str) else _kernel_times(*times))
    for text in found.settings:
        out.print(f"launched in another way: {text}")
    for text in found.objects:
        out.print(f"other object code of the same source: {text}")
    if found.order:
        out.print("the programs differ in names, order or memory, with the same kernels and weights")
    _print_weights(found)
    for k in found.kernels if not brief else ():
        for line in k.source:
            out.print(line)


def _print_times(times: tuple[Estimate, Estimate] | str, on: Card) -> None:
    if isinstance(times, str):
        out.print(f"time: not modelled, {times}")
        return
    old, new = times
    change = 100 * (new.seconds / old.seconds - 1)
    milliseconds = f"{old.seconds * 1e3:.4g} ms -> {new.seconds * 1e3:.4g} ms ({change:+.1f} %)"
    out.print(f"time, modelled on {on.title}: {milliseconds}")
    out.print(f"workspace: {megabytes(old.workspace)} -> {megabytes(new.workspace)}")


def _print_kernels(found: EngineDiff, times: Mapping[str, tuple[float, float]]) -> None:
    def us(name: str, side: int) -> str:
        return f"{times[name][side]:.4g}" if name in times else ""

    rows = [
        (
            k.status, us(k.before, 0), us(k.after, 1), f"{k.launches[0]} -> {k.launches[1]}",
            k.before if k.before == k.after else " -> ".join(filter(None, (k.before, k.after))), ", ".join(k.nodes),
        )
        for k in found.kernels
    ]  # fmt: skip
    if rows:
        columns = ("kernel is", "us before", "after", "launches", "kernel", "nodes")
        print_table(columns, rows, ("us before", "after"))


def _print_weights(found: EngineDiff) -> None:
    rows = []
    for w in found.weights:
        types = w.after if w.before == w.after else " -> ".join(filter(None, (w.before, w.after)))
        error = "" if w.relative_error is None else f"relative error {w.relative_error:.1e}"
        rows.append((w.status, w.name, types, f"{w.nbytes[0]:,} -> {w.nbytes[1]:,}", error))
    if rows:
        print_table(("weight is", "weight", "type", "bytes", "values"), rows)
