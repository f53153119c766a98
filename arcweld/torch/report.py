"""Reports of the backend, one for each graph: node counts, compiled blocks, and the nodes left to PyTorch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

log = logging.getLogger("arcweld.torch")


@dataclass(slots=True)
class BlockReport:
    """One compiled block.

    nodes     ATen nodes
    kernels   launches of the engine; None before the first call
    seconds   total time of all builds
    builds    how often the engine was built
    updates   how often its weights were updated
    fallback  why PyTorch runs the block instead; None if it does not
    """

    name: str
    nodes: int
    kernels: int | None = None
    seconds: float = 0.0
    builds: int = 0
    updates: int = 0
    fallback: str | None = None


@dataclass(slots=True)
class GraphReport:
    """One graph of ``torch.compile``.

    nodes, compiled  ATen nodes in total and in compiled blocks
    left             (operator, reason) -> number of nodes that PyTorch runs
    eager            why the whole graph was left to PyTorch; None if it was not
    """

    name: str
    nodes: int
    compiled: int
    blocks: list[BlockReport] = field(default_factory=list)
    left: Mapping[tuple[str, str], int] = field(default_factory=dict)
    eager: str | None = None

    def __str__(self) -> str:
        if self.eager is not None:
            return f"{self.name}: left to PyTorch: {self.eager}"
        head = f"{self.name}: {self.compiled} of {self.nodes} ATen nodes in {len(self.blocks)} compiled block"
        head += "s" * (len(self.blocks) != 1)
        rest = "; ".join(f"{op} x{n} ({why})" for (op, why), n in sorted(self.left.items(), key=lambda i: -i[1]))
        return f"{head}, {self.nodes - self.compiled} left to PyTorch" + (f": {rest}" if rest else "")


_REPORTS: list[GraphReport] = []
_KEPT = 256


def add_report(report: GraphReport) -> GraphReport:
    """Keeps a report and logs it in one line, as a warning if something was left to PyTorch."""
    _REPORTS.append(report)
    del _REPORTS[:-_KEPT]
    log.log(logging.WARNING if report.left or report.eager else logging.INFO, "%s", report)
    return report


def torch_report() -> tuple[GraphReport, ...]:
    """The reports of the latest graphs (256 at most), oldest first."""
    return tuple(_REPORTS)


def clear_report() -> None:
    """Forgets all reports."""
    _REPORTS.clear()
