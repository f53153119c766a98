"""Makes a failing model smaller as long as it fails in the same way: first by halves, then node by node.

Every candidate is built and run like the model. What a cut takes away is replaced by an input, which gets the value
that the reference has there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from arcweld.compiler.dims import Dim, evaluate
from arcweld.compiler.errors import ArcweldError, ModelError
from arcweld.compiler.ir import Graph
from arcweld.compiler.reference import run_reference
from arcweld.compiler.text import all_symbols
from arcweld.debug.case import Case, Failure
from arcweld.debug.folder import INPUTS, new_folder, save_arrays, save_case, write_script
from arcweld.debug.simpler import bypasses, cuts, extents, fewer_outputs, outputs, simplest, windows, without_symbols
from arcweld.driver.api import import_model

SECONDS = 300.0
MODEL = "model.onnx"
Told = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Reduced:
    """The smallest failing case that was found.

    case      its graph and inputs
    failure   how it fails
    original  how the whole model fails
    model     the part of the ONNX model, as ``onnx.ModelProto``; None for a graph that was not imported from one
    nodes     of the whole model's graph
    """

    case: Case
    failure: Failure
    original: Failure
    model: Any
    nodes: int


def reduce(
    case: Case, model: Any = None, *, constants: Mapping[str, np.ndarray] | None = None, seconds: float = SECONDS,
    told: Told | None = None,
) -> Reduced | None:  # fmt: skip
    """The smallest case that fails as ``case`` does; None if that does not fail.

    model      the ONNX model (``onnx.ModelProto``) that the graph was imported from: then the result is a part of it,
               with nodes as they are; without it operands may take the place of results, and extents shrink too
    constants  inputs that were constants for the import, by the model's names
    seconds    after which the search ends with what it has
    told       called with each smaller case

    Raises as ``Case.failure``.
    """
    original = case.failure()
    if original is None:
        return None
    search = _Search(case, original, model, constants or {}, told or (lambda text: None))
    start = _Small(case, original, model)
    found = simplest(start, lambda s: search.simpler(s.case), search.attempt, time.monotonic() + seconds)
    return Reduced(found.case, found.failure, original, found.model, len(case.graph.nodes))


@dataclass(frozen=True, slots=True, eq=False)
class _Small:
    """A candidate: cut out of the graph of ``origin``, and without all its inputs' values until it is tried."""

    case: Case
    failure: Failure
    model: Any
    origin: Case | None = None


@dataclass(slots=True, eq=False)
class _Search:
    """The candidates of one search and their judge."""

    whole: Case
    original: Failure
    model: Any
    constants: Mapping[str, np.ndarray]
    told: Told

    def simpler(self, case: Case) -> Iterator[_Small]:
        """Candidates that are simpler than ``case``."""
        graph = case.graph
        steps = [windows(graph), outputs(graph), cuts(graph), fewer_outputs(graph)]
        if self.model is None:
            steps.append(bypasses(graph))
        for g in (g for step in steps for g in step):
            fewer = len(g.nodes) < len(graph.nodes) or len(g.outputs) < len(graph.outputs)
            if fewer and g.nodes and self._can_be_cut(g):
                yield _Small(replace(case, graph=_tidy(g)), self.original, None, case)
        for g, sizes in without_symbols(graph, case.sizes):
            yield _Small(replace(case, graph=g, sizes=sizes), self.original, None, case)
        for g in extents(graph) if self.model is None else ():
            yield _Small(replace(case, graph=g), self.original, None, case)

    def _can_be_cut(self, graph: Graph) -> bool:
        """True if the ONNX model has a tensor for all that a candidate reads and gives."""
        if self.model is None:
            return True
        from arcweld.compiler.onnx.extract import tensor_names

        names = tensor_names(self.model)
        return all(v.name in names for v in (*graph.inputs, *graph.outputs))

    def attempt(self, candidate: _Small) -> _Small | None:
        """The candidate with its inputs and its part of the ONNX model, if it fails like the whole."""
        assert candidate.origin is not None
        try:
            case = self._with_feeds(candidate.case, candidate.origin)
            model = None if self.model is None else self._extracted(case)
            if model is not None:
                case = _imported(model, case)
            failure = case.failure()
        except ArcweldError:  # a cut may leave what is no model: sizes that nothing tells, indices without a table
            return None
        if failure is None or failure.kind != self.original.kind:
            return None
        self.told(f"{len(case.graph.nodes)} nodes: {failure.detail}")
        return _Small(case, failure, model)

    def _extracted(self, case: Case) -> Any:
        from arcweld.compiler.onnx.extract import extract

        return extract(self.model, case.graph.inputs, case.graph.outputs, case.sizes, self.constants)

    def _with_feeds(self, case: Case, before: Case) -> Case:
        """The candidate with values for its inputs, which are values of the case before."""
        graph = case.graph
        names = {v.name for v in graph.inputs}
        new = names - before.feeds.keys()
        values = run_reference(before.graph, before.feeds, keep=new, bind=before.sizes) if new else {}
        feeds = {n: before.feeds[n] if n in before.feeds else values[n] for n in names}
        if len(graph.symbols()) < len(all_symbols(graph)):
            graph = _fixed(graph, case.sizes)
        sizes = _known(graph, case.sizes)
        cut = {v.name: _cut(feeds[v.name], v.shape, case.sizes) for v in graph.inputs}
        return replace(case, graph=graph, feeds=cut, sizes=sizes)


def _cut(array: np.ndarray, shape: Collection[Dim], sizes: Mapping[str, int]) -> np.ndarray:
    return array[tuple(slice(0, evaluate(d, sizes)) for d in shape)]


def _known(graph: Graph, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of a graph's symbols. Raises ModelError for a symbol without one."""
    if odd := [s.name for s in graph.symbols() if s.name not in sizes]:
        raise ModelError(f"nothing says how large {odd[0]} is")
    return {s.name: sizes[s.name] for s in graph.symbols()}


def _tidy(graph: Graph) -> Graph:
    """The graph without the roles of inputs and outputs that are no longer there."""
    labels, inputs = set(graph.labels()), {v.name for v in graph.inputs}
    aliases = {label: n for label, n in graph.aliases.items() if label in labels and n in inputs}
    return graph.replace(aliases=aliases, takes=(), gives=())


def _fixed(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    """The graph with its sizes as numbers."""
    left = dict(sizes)
    while graph.symbols():
        found = next(without_symbols(graph, left), None)
        if found is None:
            raise ModelError("the sizes cannot be fixed")
        graph, left = found
    return graph


def _imported(model: Any, case: Case) -> Case:
    """The case of the model as a user would compile it."""
    graph = import_model(model)
    plain = graph.replace(output_labels=graph.labels(), initial={})
    return replace(
        case, graph=plain, sizes=_known(plain, case.sizes), feeds={v.name: case.feeds[v.name] for v in plain.inputs}
    )


def write_reduced(path: str | Path, found: Reduced, force: bool = False) -> None:
    """Writes a folder with the smallest failing model, its inputs and a script that builds, runs and compares it."""
    with new_folder(path, force) as folder:
        facts = save_case(folder, found.case)
        if found.model is not None:
            import onnx

            onnx.save(found.model, folder / MODEL)
            save_arrays(folder / INPUTS, found.case.feeds)
        nodes = [f"{n.op} {n.name}" for n in found.case.graph.nodes]
        write_script(folder, "reduce", {**facts, "nodes": nodes, "found": found.failure.detail, "of": found.nodes})
