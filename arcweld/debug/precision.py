"""Finds the nodes that must stay in f32 so that a build in half precision meets a tolerance.

The search is that of a build (``driver/promotion.py``); then each node is tried without, so that those that remain are
needed, one by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from arcweld.compiler.errors import UsageError
from arcweld.debug.case import Case, Failure
from arcweld.debug.folder import new_folder, save_case, write_script
from arcweld.driver.promotion import KERNELS, evaluate_f32, narrowed_error, promote, rank
from arcweld.passes.pipeline import run_passes

SECONDS = 300.0
Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Kept:
    """A node of the model that stays in f32.

    why    ``overflow``: f16 does not hold what it computes; ``rounding``
    error  the relative error that rounding causes in it alone; infinite where it overflows
    """

    name: str
    why: str
    error: float


@dataclass(frozen=True, slots=True)
class Precision:
    """Which nodes a precision needs in f32.

    tolerance  of the outputs' relative errors
    narrow     the largest such error if no node stays in f32, in numpy
    error      with the nodes in f32
    kept       the nodes; the largest errors first
    total      nodes of the model that compute in floats of f32
    tested     how many of the kept nodes were tried without: each of them is needed
    failure    how the build with these nodes in f32 fails on the device; None if it does not
    """

    precision: str
    tolerance: float
    narrow: float
    error: float
    kept: tuple[Kept, ...]
    total: int
    tested: int
    failure: Failure | None

    @property
    def names(self) -> frozenset[str]:
        """The names of the nodes."""
        return frozenset(k.name for k in self.kept)


def needed_in_f32(case: Case, seconds: float = SECONDS, told: Told | None = None) -> Precision:
    """The nodes of a case in half precision that have to stay in f32, beside those that its options keep.

    seconds  of CPU time, about
    told     called with each step

    Raises UsageError for a case in f32, and as ``Case.failure``.
    """
    options, graph, tell = case.options, case.graph, told or (lambda text: None)
    if options.precision == "fp32":
        raise UsageError("in fp32 all nodes stay in f32", hint="name a precision: --fp16 or --bf16")
    end = time.process_time() + seconds
    plain = run_passes(graph, replace(options, precision="fp32"))
    want, large, readers = evaluate_f32(plain, case.feeds, case.sizes, options.float_type)

    def error(origins: frozenset[str]) -> float:
        return narrowed_error(graph, options, case.feeds, case.sizes, want, origins)

    limit = KERNELS * case.tolerance
    narrow = error(frozenset())
    tell(f"all nodes in {options.precision}: error {narrow:.2e}")
    chosen = frozenset[str]()
    if not narrow <= limit:
        found = promote(graph, options, case.feeds, case.sizes, tolerance=limit, budget=seconds / 2)
        chosen = found.origins
        tell(found.note)
    ranked = rank(plain, case.feeds, case.sizes, options.float_type)
    errors: dict[str, float] = {}
    for e, n in ranked:
        for o in n.origin:
            errors[o] = max(e, errors.get(o, 0.0))
    kept, tested = _tried_without(chosen, errors, lambda origins: error(origins) <= limit, end)
    over = {o for n in (*large, *readers) for o in n.origin}
    rows = tuple(
        Kept(o, "overflow" if o in over else "rounding", errors.get(o, 0.0))
        for o in sorted(kept, key=lambda o: (-errors.get(o, 0.0), o))
    )
    failure = replace(case, options=replace(options, keep_f32=options.keep_f32 | kept)).failure()
    return Precision(options.precision, case.tolerance, narrow, error(kept), rows, len(errors), tested, failure)


def _tried_without(
    chosen: frozenset[str], errors: dict[str, float], fine: Callable[[frozenset[str]], bool], end: float
) -> tuple[frozenset[str], int]:
    """``chosen`` without what is not needed, those of the least errors first; how many of the rest were tried."""
    kept, tested = chosen, 0
    for o in sorted(chosen, key=lambda o: (errors.get(o, 0.0), o)):
        if time.process_time() > end:
            break
        if fine(kept - {o}):
            kept = kept - {o}
        else:
            tested += 1
    return kept, tested


def write_precision(path: str | Path, case: Case, found: Precision, force: bool = False) -> None:
    """Writes a folder with a script that builds the model without and with the nodes in f32, and compares both."""
    with new_folder(path, force) as folder:
        facts = save_case(folder, case)
        nodes = [{"name": k.name, "why": k.why, "error": k.error} for k in found.kept]
        write_script(folder, "precision", {**facts, "nodes": nodes, "narrow": found.narrow, "error": found.error})
