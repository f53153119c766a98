"""What ``debug`` prints for people."""

from __future__ import annotations

from arcweld.cli.common import out, print_table
from arcweld.debug.bisect import Culprit
from arcweld.debug.boundaries import Boundary, Divergence
from arcweld.debug.case import Case

MOST_ROWS = 12


def print_right(case: Case) -> None:
    """Says that a case is right."""
    out.print(f"nothing is wrong: all outputs are within {case.tolerance:.0e} of the reference on {case.device.name}")


def print_divergence(found: Divergence, checked: str = "") -> None:
    """Prints the first kernel at fault and what checked mode says of it, what else is wrong, and the largest errors."""
    b = found.first
    if not found.wrong:
        results = len(found.boundaries)
        out.print(f"nothing is wrong: {results} results of kernels and the outputs agree with the reference")
    elif b is not None:
        _print_first(b)
        if checked:
            out.print(f"  checked mode: {checked}")
    for what, errors in (
        ("passes change output {} by {:.2e}: `debug bisect` finds which", found.passes),
        ("as a whole the engine gives another output {} than its kernels one by one, by {:.2e}", found.runtime),
        ("output {} has relative error {:.2e}", found.outputs),
    ):
        for label in found.beyond(errors):
            out.print(what.format(label, errors[label]))
    others = found.beyond(found.passes) or found.beyond(found.runtime)
    if found.beyond(found.outputs) and b is None and not others:
        out.print("no kernel is wrong by itself: their errors add up, the largest first")
    rows = [
        (x.kernel, x.value, f"{x.local:.1e}", f"{x.limit:.0e}", f"{x.inherited:.1e}", f"{x.total:.1e}", _nodes(x))
        for x in found.ranked()[:MOST_ROWS]
    ]
    if rows:
        columns = ("kernel", "result", "local", "may be", "inherited", "total", "nodes")
        print_table(columns, rows, columns[2:6])
    if len(found.boundaries) > MOST_ROWS:
        out.print(f"  and {len(found.boundaries) - MOST_ROWS} results with smaller errors; --json has all")


def _print_first(b: Boundary) -> None:
    causes = {
        "kernel": "does not compute what its nodes say",
        "precision": "stores types that do not hold its result: `debug precision` finds which nodes need f32",
        "crash": "fails",
    }
    out.print(f"the first kernel that diverges {causes[b.cause]}: {b.kernel} ({b.source})")
    out.print(f"  nodes: {', '.join(b.nodes)}")
    if b.detail:
        out.print(f"  {b.detail}")
        return
    worst = f", most at [{', '.join(map(str, b.worst))}]" if b.worst else ""
    out.print(f"  result {b.value}: local error {b.local:.2e}, may be {b.limit:.0e}{worst}")


def _nodes(b: Boundary) -> str:
    names = [n.rsplit("/", 1)[-1] or n for n in b.nodes]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def print_culprit(found: Culprit) -> None:
    """Prints the step that makes a build wrong."""
    if not found.number:
        out.print(f"the build is wrong without any pass that can be left out: {found.failure.detail}")
        out.print("`debug first-divergence` tells a wrong kernel from a wrong graph")
        return
    place = "the graph is wrong after" if found.in_numpy else "results are wrong with"
    fusion = f", fusion {found.fusion}" if found.fusion else ""
    out.print(f"{place} pass {found.number}, {found.name}{fusion}: {found.failure.detail}")
    verb = "it joins" if found.fusion else "it changes"
    out.print(f"  {verb}: {', '.join(found.nodes) or 'no node that the model names'}")
