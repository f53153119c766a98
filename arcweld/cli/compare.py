"""``bench`` of several contestants: interleaved timing, and which of them is faster, by how much and how surely."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arcweld.cli.common import megabytes, out, print_json, print_table, waiting
from arcweld.cli.contestants import Asked, Contestant, differences, open_contestants
from arcweld.cli.recorders import Recorders, Row, sample_row
from arcweld.cli.rounds import Rounds, Timing, interleave
from arcweld.cli.timing import Schedule
from arcweld.compiler.errors import RegressionError, UsageError
from arcweld.driver.comparison import Ratio, compare_rounds, drift, sentence

MILLION = 1e6


@dataclass(frozen=True, slots=True)
class Judged:
    """How a measurement is told: percentiles to print, the price of an hour or None, the share of time by which a
    contestant may be slower than the first or None, and whether JSON is printed.
    """

    percentiles: tuple[float, ...]
    price: float | None
    threshold: float | None
    as_json: bool


def compare(asked: Asked, schedule: Schedule, judged: Judged, recorders: Recorders) -> None:
    """Times all contestants and prints the comparison. Raises RegressionError for one beyond the threshold."""
    if schedule.streams > 1:
        raise UsageError("contestants are compared on one stream", hint="leave out --infStreams")
    first, found = open_contestants(asked)
    if len(found) < 2:
        raise UsageError("there is one contestant only", hint="name two engines, or add --onnxrt or --torch")
    with waiting("timing"):
        rounds = interleave({c.name: c.call for c in found}, schedule, asked.seed)
    base, *others = found
    times = dict(zip((c.name for c in found), rounds.turns.T))
    ratios = {c.name: compare_rounds(times[base.name], times[c.name], asked.seed) for c in others}
    report: dict[str, Any] = {
        "device": first.device.name, "arch": first.device.arch, "seed": asked.seed, "rounds": len(rounds.turns),
        "drift": drift(rounds.turns), "threshold": judged.threshold,
        "contestants": [_contestant_row(c, base, rounds.timings[c.name], judged) for c in found],
        "comparisons": [_comparison_row(base, c, ratios[c.name], judged) for c in others],
    }  # fmt: skip
    if judged.as_json:
        print_json(report)
    else:
        _print(report, ratios)
    recorders.write(report, _calls(rounds))
    _judge(report)


def summary_row(name: str, kind: str, latencies: Sequence[float], judged: Judged) -> Row:
    """What is told of one contestant's latencies (milliseconds), and what a million calls cost."""
    t = np.array(latencies)
    row: Row = {
        "name": name, "kind": kind, "calls": len(t), "minMs": float(t.min()), "maxMs": float(t.max()),
        "meanMs": float(t.mean()), "medianMs": float(np.median(t)),
        "percentilesMs": {f"{p:g}": float(np.percentile(t, p)) for p in judged.percentiles},
        "qps": 1e3 / float(t.mean()),
    }  # fmt: skip
    if judged.price is not None:
        row["costPerMillion"] = float(t.mean()) / 1e3 * MILLION / 3600 * judged.price
    return row


def _contestant_row(c: Contestant, base: Contestant, timings: Sequence[Timing], judged: Judged) -> Row:
    row = summary_row(c.name, c.kind, [t.sample.latency for t in timings], judged)
    return row | {"memoryBytes": c.memory, "outputs": differences(base, c)}


def _comparison_row(base: Contestant, other: Contestant, ratio: Ratio, judged: Judged) -> Row:
    row = {"base": base.name, "other": other.name, "text": sentence(base.name, other.name, ratio), **ratio.report()}
    if judged.threshold is not None:
        row["regressed"] = ratio.regressed(judged.threshold)
    return row


def _calls(rounds: Rounds) -> Iterator[Row]:
    """Every timed call, round by round."""
    every = [(t.round, name, t) for name, own in rounds.timings.items() for t in own]
    for number, name, t in sorted(every, key=lambda x: x[0]):
        yield {"contestant": name, "round": number, **sample_row(t.sample)}


def _print(report: Mapping[str, Any], ratios: Mapping[str, Ratio]) -> None:
    out.print(f"device: {report['device']} ({report['arch']}), {report['rounds']} rounds, seed {report['seed']}")
    _print_contestants(report["contestants"])
    for row in report["comparisons"]:
        out.print(row["text"])
        ratio = ratios[row["other"]]
        if ratio.before is not None and ratio.after is not None:
            change = " to ".join(f"{100 * (x - 1):+.1f} %" for x in (ratio.before, ratio.after))
            out.print(f"  this went from {change} while it was measured: measure longer, or with more --warmUp")
    if report["drift"]:
        way = "slower" if report["drift"] > 0 else "faster"
        text = f"the machine became {100 * abs(report['drift']):.0f} % {way} while it measured"
        out.print(f"{text}: the comparison allows for it, the latencies do not")


def _print_contestants(rows: Sequence[Row]) -> None:
    percentiles = [f"p{p}" for p in rows[0]["percentilesMs"]]
    priced = "costPerMillion" in rows[0]
    numbers = ["calls", "median ms", "mean", "min", *percentiles, "qps", "error", *["cost of a million"] * priced]
    cells = [
        [
            str(r["calls"]), *(f"{r[k]:.4g}" for k in ("medianMs", "meanMs", "minMs")),
            *(f"{ms:.4g}" for ms in r["percentilesMs"].values()), f"{r['qps']:.4g}", _error(r),
            *([f"{r['costPerMillion']:.4g}"] if priced else []),
            "not told" if r["memoryBytes"] is None else megabytes(r["memoryBytes"]), r["name"],
        ]
        for r in rows
    ]  # fmt: skip
    print_table((*numbers, "memory", "contestant"), cells, numbers)
    out.print(f"error: the largest relative error of an output, from {rows[0]['name']}")


def _error(row: Row) -> str:
    return f"{max((o['relative_error'] for o in row['outputs'].values()), default=0.0):.1e}"


def _judge(report: Mapping[str, Any]) -> None:
    slower = [row for row in report["comparisons"] if row.get("regressed")]
    if slower:
        texts = "; ".join(row["text"] for row in slower)
        raise RegressionError(f"slower than the threshold of {100 * report['threshold']:g} % allows: {texts}")
