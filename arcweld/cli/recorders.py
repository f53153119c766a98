"""Where ``bench`` writes what it measures: JSON lines in a file, and a run of Weights & Biases."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcweld.cli.common import check_writable, finite
from arcweld.cli.timing import Sample
from arcweld.compiler.errors import EnvironmentError_, UsageError
from arcweld.compiler.paths import replacing

Row = dict[str, Any]
SEVERAL = ("contestants", "comparisons", "kernels")  # lists in a report


def sample_row(sample: Sample) -> dict[str, float]:
    """One call with trtexec's names; what was not measured is left out."""
    found = {
        "latencyMs": sample.latency, "enqueueMs": sample.enqueue, "h2dMs": sample.h2d, "computeMs": sample.compute,
        "d2hMs": sample.d2h,
    }  # fmt: skip
    return {name: ms for name, ms in found.items() if ms is not None}


@dataclass(frozen=True, slots=True)
class Recorders:
    """The file of JSON lines, or None, and the project of Weights & Biases, or an empty name."""

    lines: Path | None
    project: str

    def write(self, report: Mapping[str, Any], calls: Iterable[Row]) -> None:
        """Writes everything that was measured.

        The file gets a line for the run (``"row": "run"``), for each contestant, comparison, profiled kernel and timed
        call. Weights & Biases gets the calls as history, everything else as the summary. Raises EnvironmentError_ for a
        file or a run that cannot be written.
        """
        rows = list(calls)
        if self.lines is not None:
            with replacing(self.lines) as temporary, temporary.open("w", encoding="utf-8") as stream:
                for row in _rows(report, rows):
                    stream.write(json.dumps(finite(row)) + "\n")
        if self.project:
            _to_wandb(self.project, report, rows)


def open_recorders(lines: str, project: str, sources: Iterable[str]) -> Recorders:
    """The recorders that the options name, checked before anything is measured.

    Raises UsageError for a file that exists, because measurements are not repeatable, or that cannot be written;
    EnvironmentError_ where Weights & Biases is asked for and not installed.
    """
    target = check_writable(lines, *sources) if lines else None
    if target is not None and target.exists():
        raise UsageError(
            f"{lines} exists, and measurements are never replaced", hint="name another file, or remove this one"
        )
    if project:
        _wandb()
    return Recorders(target, project)


def _of_run(report: Mapping[str, Any]) -> Row:
    return {k: v for k, v in report.items() if k not in SEVERAL}


def _rows(report: Mapping[str, Any], calls: Iterable[Row]) -> Iterator[Row]:
    yield {"row": "run", **_of_run(report)}
    for kind in SEVERAL:
        for row in report.get(kind, ()):
            yield {"row": kind.removesuffix("s"), **row}
    for row in calls:
        yield {"row": "call", **row}


def _wandb() -> Any:
    try:
        import wandb
    except ImportError:
        raise EnvironmentError_(
            "Weights & Biases is not installed, and --wandb asks for it", hint='pip install wandb, or ".[wandb]"'
        ) from None
    return wandb


def _to_wandb(project: str, report: Mapping[str, Any], calls: Iterable[Row]) -> None:
    """One run: a step for each timed call, with the metrics under the contestant's name."""
    wandb = _wandb()
    config = _of_run(report)
    try:
        with wandb.init(project=project, job_type="bench", config=config) as run:
            for row in calls:
                name = row["contestant"]
                run.log({f"{name}/{k}": v for k, v in row.items() if k != "contestant"})
            for kind in SEVERAL:
                for row in report.get(kind, ()):
                    own = row.get("name") or f"{row['other']} to {row['base']}"
                    run.summary[own] = finite(row)
    except wandb.Error as error:
        raise EnvironmentError_(
            f"Weights & Biases refused the run: {error}", hint="wandb login, or WANDB_MODE=offline"
        ) from error
