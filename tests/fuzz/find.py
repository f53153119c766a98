"""Checks one case; a failing one is shrunk and written to a file that reproduces it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from case import Case, Failure, check, write
from shrink import shrink

SHRINKING = 120.0  # seconds at most


@dataclass(frozen=True)
class Finding:
    """A failing case, shrunk, and its file."""

    case: Case
    failure: Failure
    file: Path

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for findings that are likely one and the same."""
        return (self.failure.stage, self.failure.kind, *(n.op for n in self.case.graph.nodes))

    def __str__(self) -> str:
        nodes = ", ".join(n.op for n in self.case.graph.nodes)
        what = f"case {self.case.seed} fails ({self.failure.stage}: {self.failure.kind})"
        return f"{what}, shrunk to {nodes}: {self.file}\n{self.failure.detail}"


def find(case: Case, out: Path) -> Finding | None:
    """What is wrong with a case, or None."""
    failure = check(case)
    if failure is None:
        return None
    small = shrink(case, failure, SHRINKING)
    failure = check(small, failure.stage) or failure
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{case.seed}.txt"
    file.write_text(write(small, failure), encoding="utf-8")
    return Finding(small, failure, file)
