"""Modelled times of whole models, beside measured ones: ``python -m arcweld.models.chains`` prints both.

The measurements are the files ``docs/benchmarks/chains-*.json``: graphs of kernels whose tiles are known. The model of
time is fitted to single kernels; each graph is judged with constants that have seen no kernel of its problems.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from arcweld.codegen.cost.fitted import FITTED
from arcweld.codegen.cost.model import StreamWork, TiledWork, full_rate
from arcweld.compiler.cards import Card, card
from arcweld.models.calibrate import KINDS, MEASURED, Fitted, Row, fit, measured


@dataclass(frozen=True, slots=True)
class Chain:
    """A measured model: its kernels with how often each occurs, and milliseconds of a replay of its graph.

    ``overlapping``: each kernel may begin while its predecessor ends (programmatic dependent launch).
    """

    model: str
    overlapping: bool
    kernels: tuple[tuple[int, Row], ...]
    ms: float

    def modelled_ms(self, on: Card, fitted: Fitted) -> float:
        """Modelled milliseconds, on a card that the chain keeps hot."""
        busy = sum(n * full_rate(r.work.tiling, on) for n, r in self.kernels if isinstance(r.work, TiledWork))
        load = busy / sum(n * r.under(0.0).modelled(on, fitted) for n, r in self.kernels)
        return sum(n * r.under(load).modelled(on, fitted) for n, r in self.kernels) / 1e3

    def error(self, on: Card, fitted: Fitted) -> float:
        """Modelled by measured time, less 1."""
        return self.modelled_ms(on, fitted) / self.ms - 1


def measured_chains(path: Path) -> tuple[Card, list[Chain]]:
    """The card and the models of a file of measurements."""
    data = json.loads(path.read_text(encoding="utf-8"))
    found = []
    for c in data["chains"]:
        found.append(_chain(c, c["ms"], True))
        if "ms_without_overlap" in c:
            found.append(_chain(c, c["ms_without_overlap"], False))
    return card(data["card"]), found


def _chain(c: Mapping[str, Any], ms: float, overlapping: bool) -> Chain:
    return Chain(c["model"], overlapping, tuple((k["times"], _row(k, overlapping)) for k in c["kernels"]), ms)


def _row(kernel: Mapping[str, Any], overlapping: bool) -> Row:
    row = KINDS[kernel["kind"]]({"chained": overlapping, "us": 0.0, **kernel})
    return replace(row, work=replace(row.work, chained=overlapping))


def held_out(chains: Sequence[Chain], rows: Sequence[Row], on: Card) -> Iterator[tuple[Chain, Fitted]]:
    """Each model, with constants that were fitted without any kernel that solves a problem of it (``alike``)."""
    found: dict[frozenset[Row], Fitted] = {}
    for c in chains:
        left = frozenset(r for r in rows if not any(alike(r, own) for _, own in c.kernels))
        if left not in found:
            found[left] = fit([r for r in rows if r in left], on, FITTED)
        yield c, found[left]


def alike(a: Row, b: Row) -> bool:
    """Whether two kernels solve one problem, by whatever algorithm: memory-bound ones, if their bytes differ by 5 %."""
    if a.kind.removesuffix("_mma") != b.kind.removesuffix("_mma"):
        return False
    if isinstance(a.work, StreamWork) and isinstance(b.work, StreamWork):
        same = abs(a.work.nbytes - b.work.nbytes) <= 0.05 * b.work.nbytes
        return same and (a.work.unpacked > 0) == (b.work.unpacked > 0)
    return a.problem.removesuffix(", alone") == b.problem.removesuffix(", alone")


def main() -> None:
    """Prints measured and modelled milliseconds of each model, with constants that have seen none of its problems."""
    (path,) = sorted(MEASURED.glob("chains-*.json"))
    on, chains = measured_chains(path)
    _, rows = measured(path.with_name(path.name.replace("chains-", "kernels-")))
    errors = []
    for c, fitted in held_out(chains, rows, on):
        errors.append(abs(c.error(on, fitted)))
        print(f"{c.ms:8.4f} {c.modelled_ms(on, fitted):8.4f} {c.error(on, fitted):+7.1%}  {c.model}"
              + ("" if c.overlapping else ", without overlap"))  # fmt: skip
    print(f"{len(chains)} models, median error {np.median(errors):.1%}, at worst {max(errors):.1%}")


if __name__ == "__main__":
    main()
