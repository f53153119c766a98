"""Finds the pass from which on a build is wrong, and of fusion the node that joins a region: a binary search.

It builds with a limit of optimising (``compiler.options.Limit``), as LLVM's ``-opt-bisect-limit`` does. Where already
the optimised graph is wrong when numpy evaluates it, no kernel is built.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from arcweld.compiler.dims import evaluate
from arcweld.compiler.errors import ArcweldError, VerifyError
from arcweld.compiler.ir import Graph, Node, Value
from arcweld.compiler.options import Limit
from arcweld.compiler.reference import run_reference
from arcweld.compiler.region import FusedGraph
from arcweld.compiler.text import node_text
from arcweld.debug.case import Case, Failure, compared
from arcweld.debug.folder import new_folder, save_case, write_script
from arcweld.driver.build import materialise_outputs, without_passed_on
from arcweld.driver.metrics import relative_error
from arcweld.passes.dce import remove_dead
from arcweld.passes.fusion import Fuser
from arcweld.passes.pipeline import PASSES, applications, run_passes

EVERY = 1 << 30  # more fusions than a graph has nodes
MOST_BYTES = 1 << 30  # of values that are kept at a time to compare two graphs
MOST_NODES = 8  # that a finding names
Test = Callable[[Limit], Failure | None]
Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Culprit:
    """The step from which on a build is wrong.

    number    of the pass in the order of running, from 1 on; 0: the build is wrong without any pass
    name      of the pass; empty for 0
    fusion    the number of the fusion, from 1 on; None if it is another pass, or no single fusion
    nodes     the model's nodes that the step changes or joins
    in_numpy  whether the graph is wrong already, whatever kernels make of it
    failure   how the build with the step is wrong; it is right without
    """

    number: int
    name: str
    fusion: int | None
    nodes: tuple[str, ...]
    in_numpy: bool
    failure: Failure

    @property
    def limit(self) -> Limit:
        """The limit with the step as the last one."""
        return Limit(self.number, self.fusion)

    @property
    def before(self) -> Limit:
        """The limit without the step."""
        return Limit(self.number, self.fusion - 1) if self.fusion else Limit(max(self.number - 1, 0))


def bisect(case: Case, told: Told | None = None) -> Culprit | None:
    """The step that makes a case wrong; None if the case is right. ``told`` is called with each attempt's result.

    Raises as ``Case.failure``.
    """
    tell = told or (lambda text: None)
    want = case.wanted()
    whole = case.failure(want)
    if whole is None:
        return None
    tell(f"all passes: {whole.detail}")

    def in_numpy(limit: Limit) -> Failure | None:
        return _graph_failure(case.limited(limit), want)

    def built(limit: Limit) -> Failure | None:
        return case.limited(limit).failure(want)

    total = len(applications())
    graph_is_wrong = in_numpy(Limit(len(PASSES))) is not None
    test, last = (in_numpy, len(PASSES)) if graph_is_wrong else (built, total)
    search = _Search(test, tell)
    number, failure = search.passes(last, whole)
    if number == 0:
        return Culprit(0, "", None, (), graph_is_wrong, failure)
    found = Culprit(number, applications()[number - 1], None, (), graph_is_wrong, failure)
    if found.name == "fusion":
        return _fusion(case, found, search)
    return replace(found, nodes=_nodes(case, found))


@dataclass(slots=True)
class _Search:
    """A binary search for the first limit at which ``test`` fails."""

    test: Test
    tell: Told

    def passes(self, last: int, whole: Failure) -> tuple[int, Failure]:
        """The number of the pass, or 0, and the failure with it."""
        return self._first(last, whole, Limit, lambda n: f"{n} passes, the last is {applications()[n - 1]}")

    def fusions(self, number: int, last: int, whole: Failure) -> tuple[int, Failure]:
        """The number of the fusion, or 0, and the failure with it."""
        return self._first(last, whole, lambda k: Limit(number, k), lambda k: f"{k} fusions")

    def _first(
        self, last: int, whole: Failure, limit: Callable[[int], Limit], name: Callable[[int], str]
    ) -> tuple[int, Failure]:
        none = self.test(limit(0))
        if none is not None:
            self.tell(f"none: {none.detail}")
            return 0, none
        low, high, found = 0, last, whole
        while high - low > 1:
            middle = (low + high) // 2
            failure = self.test(limit(middle))
            self.tell(f"{name(middle)}: {failure.detail if failure else 'right'}")
            if failure is None:
                low = middle
            else:
                high, found = middle, failure
        return high, found


def _graph_failure(case: Case, want: Mapping[str, np.ndarray]) -> Failure | None:
    """How the optimised graph is wrong when numpy evaluates it."""
    try:
        graph = _optimised(case)
        values = run_reference(graph, case.feeds, bind=case.sizes)
    except VerifyError as error:
        return Failure(error.code, error.message)
    except (ArcweldError, MemoryError):
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} in {Path(last.filename).name}:{last.name}"
        return Failure(kind, f"{kind}: {error}")
    got = {label: values[o.name] for label, o in zip(graph.labels(), graph.outputs)}
    return compared(got, {label: want[label] for label in got}, case.tolerance)


def _optimised(case: Case) -> Graph:
    return run_passes(materialise_outputs(without_passed_on(case.graph)), case.options)


# ------------------------------------------------------------------------------------------------- what it changes


def _fusion(case: Case, found: Culprit, search: _Search) -> Culprit:
    """The culprit with the fusion that makes the build wrong, if a single one does."""
    number = found.number
    part = case.limited(Limit(number, EVERY)).build().part_at(case.sizes)
    joined = _joined(part.fused, Limit(number, EVERY))
    k, failure = search.fusions(number, len(joined), found.failure)
    if not k:
        return found
    single = replace(found, fusion=k, failure=failure)
    return replace(single, nodes=tuple(dict.fromkeys((*joined[k - 1], *_nodes(case, single))))[:MOST_NODES])


def _joined(fused: FusedGraph, limit: Limit) -> list[tuple[str, str]]:
    """The nodes (producer, consumer) of each fusion, in order."""
    fuser = Fuser(remove_dead(fused.graph), limit)
    fuser.run()
    return fuser.joined


def _nodes(case: Case, found: Culprit) -> tuple[str, ...]:
    """The model's nodes that a pass changes; of a graph that it makes wrong those that make the first wrong value."""
    limits = (found.before, found.limit)
    if found.number > len(PASSES):
        regions = [case.limited(x).build().part_at(case.sizes).fused.regions for x in limits]
        old = {tuple(map(node_text, r.nodes)) for r in regions[0]}
        return _origins(n for r in regions[1] if tuple(map(node_text, r.nodes)) not in old for n in r.nodes)
    before, after = (_optimised(case.limited(x)) for x in limits)
    texts = {node_text(n) for n in before.nodes}
    changed = [n for n in after.nodes if node_text(n) not in texts]
    wrong = _first_wrong(case, before, after) if found.in_numpy else None
    if wrong is None:
        return _origins(changed)
    needed = _needed(after, wrong.name)
    return _origins([n for n in changed if n.output.name in needed] or [after.producers()[wrong.name]])


def _origins(nodes: Iterator[Node] | Sequence[Node]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(o for n in nodes for o in n.origin or (n.name,)))[:MOST_NODES]


def _first_wrong(case: Case, before: Graph, after: Graph) -> Value | None:
    """The first value of both graphs, by name, that differs."""
    known = {o.name: o.type for n in before.nodes for o in n.outputs}
    both = [o for n in after.nodes for o in n.outputs if known.get(o.name) == o.type]
    for some in _windows(both, case.sizes):
        keep = {v.name for v in some}
        want, got = (run_reference(g, case.feeds, keep=keep, bind=case.sizes) for g in (before, after))
        for v in some:
            if relative_error(got[v.name], want[v.name]) > case.tolerance:
                return v
    return None


def _windows(values: Sequence[Value], sizes: Mapping[str, int]) -> Iterator[list[Value]]:
    """The values in groups that together take no more than ``MOST_BYTES``, or of one value."""
    group: list[Value] = []
    room = 0
    for v in values:
        nbytes = evaluate(v.type.nbytes, sizes)
        if group and room + nbytes > MOST_BYTES:
            yield group
            group, room = [], 0
        group.append(v)
        room += nbytes
    if group:
        yield group


def _needed(graph: Graph, name: str) -> set[str]:
    """The first outputs of the nodes that a value needs."""
    wanted, found = {name}, set[str]()
    for n in reversed(graph.nodes):
        if any(o.name in wanted for o in n.outputs):
            found.add(n.output.name)
            wanted |= {v.name for v in n.operands()}
    return found


def write_culprit(path: str | Path, case: Case, found: Culprit, force: bool = False) -> None:
    """Writes a folder with a script that builds without and with the step, and compares both with the reference."""
    with new_folder(path, force) as folder:
        facts = save_case(folder, case)
        step = {"number": found.number, "pass": found.name, "fusion": found.fusion, "nodes": found.nodes}
        limits = {"before": [found.before.passes, found.before.fusions], "with": [found.number, found.fusion]}
        write_script(folder, "bisect", {**facts, **step, **limits, "found": found.failure.detail})
