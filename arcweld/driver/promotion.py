"""Promotion: finds the fewest nodes of a half-precision model that must stay in f32 for accurate outputs.

One evaluation in f32 shows which values f16 cannot hold: these nodes, and those that read them, stay in f32. If the
narrowed graph's outputs, evaluated in numpy, are still outside the tolerance, the nodes are ranked by the error that
rounding causes in each of them alone. Errors of many nodes add up like independent ones (as squares), which predicts
how many of the worst must stay; a few evaluations correct the prediction.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node
from arcweld.compiler.ops.registry import concrete, opdef
from arcweld.compiler.options import Options
from arcweld.compiler.reference import run_reference, stream_reference
from arcweld.driver.headroom import LARGEST, Fills
from arcweld.driver.metrics import relative_error
from arcweld.passes.pipeline import run_passes

log = logging.getLogger("arcweld.passes")

LEAST_PROBES, MOST_PROBES = 3, 12  # evaluations of a narrowed graph, whatever the budget, and at most
KERNELS = 0.8  # of the tolerance: kernels sum in another order than numpy, so that their error differs a little
MARGIN = 0.5  # of the squared tolerance that a prediction aims at


@dataclass(frozen=True, slots=True)
class Promotion:
    """The nodes that stay in f32, by origin.

    error      the largest relative error of the outputs in numpy with these nodes in f32; NaN if it was not computed
    note       explains the choice in the evidence
    gave_up    true if no set smaller than all nodes was found to be accurate
    """

    origins: frozenset[str]
    error: float
    note: str
    gave_up: bool = False


def promote(
    graph: Graph, options: Options, feeds: Mapping[str, np.ndarray], sizes: Mapping[str, int], *, tolerance: float,
    budget: float,
) -> Promotion:  # fmt: skip
    """The origins of ``graph`` to keep in f32 so that no output's relative error is above ``tolerance``.

    The search takes about ``budget`` seconds of CPU time, but at least three evaluations of the narrowed graph. When
    they are over, the result is the smallest set found to be accurate so far, or all nodes.
    """
    plain = run_passes(graph, replace(options, precision="fp32"))
    want, large, readers = evaluate_f32(plain, feeds, sizes, options.float_type)

    def error(origins: frozenset[str]) -> float:
        return narrowed_error(graph, options, feeds, sizes, want, origins)

    overflowing = [*large, *readers]
    forced = _origins(overflowing)
    what = f"{len(large)} nodes whose values f16 cannot hold and {len(readers)} that read them"
    what = what if overflowing else "no node"
    first = error(forced)
    if first <= tolerance:
        verb = "stay in f32" if overflowing else "had to stay in f32"
        return Promotion(forced, first, f"{what} {verb}")
    log.info("outputs in %s have relative error %.2e: promoting nodes", options.precision, first)
    ranked = rank(plain, feeds, sizes, options.float_type)
    search = _Search([(s, n) for s, n in ranked if n not in overflowing], lambda nodes: error(forced | _origins(nodes)))
    count, found = search.run(first, tolerance, time.process_time() + budget)
    origins = forced | _origins([n for _, n in search.ranked[:count]])
    total = len(ranked)
    if count < len(search.ranked):
        return Promotion(origins, found, f"{count + len(overflowing)} of {total} nodes stay in f32")
    return Promotion(origins, error(origins), f"all {total} nodes stay in f32: no smaller set was accurate", True)


def narrowed_error(
    graph: Graph, options: Options, feeds: Mapping[str, np.ndarray], sizes: Mapping[str, int],
    want: Sequence[np.ndarray], origins: frozenset[str],
) -> float:  # fmt: skip
    """The largest relative error of an output in numpy, narrowed but for the nodes of ``origins``.

    ``want``: the outputs as ``evaluate_f32`` gives them.
    """
    narrowed = run_passes(graph, replace(options, keep_f32=options.keep_f32 | origins))
    got = run_reference(narrowed, feeds, bind=sizes)
    return max((relative_error(got[n.name], w) for n, w in zip(narrowed.outputs, want, strict=True)), default=0.0)


def evaluate_f32(
    graph: Graph, feeds: Mapping[str, np.ndarray], sizes: Mapping[str, int], half: DType
) -> tuple[list[np.ndarray], list[Node], list[Node]]:
    """The outputs of a graph in f32, the nodes with a value that f16 cannot hold, and others that read such a value."""
    fills, beyond, large, readers = Fills.of(graph), set[str](), list[Node](), list[Node]()
    hold = {o.name: len(graph.nodes) for o in graph.outputs}
    values: Mapping[str, np.ndarray] = {}
    for i, values in stream_reference(graph, feeds, hold=hold, bind=sizes):
        if i < 0 or half is not DType.F16:
            continue
        node = graph.nodes[i]
        if fills.follow(node):
            continue
        over = [o.name for o in node.outputs if o.dtype is DType.F32 and _largest(values[o.name]) > LARGEST]
        if over:
            large.append(node)
        elif any(v.name in beyond for v in node.operands()):
            readers.append(node)
        beyond.update(over)
    outputs = [values[o.name] if o.name in values else graph.weights[o.name].data for o in graph.outputs]
    return outputs, large, readers


def _largest(a: np.ndarray) -> float:
    """The largest finite magnitude."""
    top = float(np.max(np.abs(a), initial=0.0))
    return top if math.isfinite(top) else float(np.max(np.abs(a), initial=0.0, where=np.isfinite(a)))


@dataclass
class _Search:
    """The least number of the first nodes of ``ranked`` (with their errors) for which ``error`` is small enough."""

    ranked: list[tuple[float, Node]]
    error: Callable[[Sequence[Node]], float]

    def run(self, first: float, tolerance: float, end: float) -> tuple[int, float]:
        """The number and its error; all nodes, and NaN, if none was found before ``end`` of process time."""
        low, high, best = 0, len(self.ranked), math.nan  # ``low`` nodes are too few, ``high`` are enough
        known, found, slowest = 0, first, 0.0  # the last number whose error was finite, and that error
        for probe in range(MOST_PROBES):
            near = not math.isnan(best) and high - low <= max(2, high // 4)  # a few nodes more than the fewest
            over = probe >= LEAST_PROBES and time.process_time() + slowest > end
            if near or over or high - low <= 1:
                break
            started = time.process_time()
            count = self._predicted(known, found, tolerance) if math.isfinite(found) else 2 * low
            count = min(max(count, low + 1), high - 1 if math.isnan(best) else (low + high) // 2)
            measured = self.error([n for _, n in self.ranked[:count]])
            if measured <= tolerance:
                high, best = count, measured
            else:
                low = count
            if math.isfinite(measured):
                known, found = count, measured
            slowest = max(slowest, time.process_time() - started)
        return high, best

    def _predicted(self, known: int, found: float, tolerance: float) -> int:
        """How many must stay in f32, from the error ``found`` with ``known`` of them: squares add up."""
        squares = np.array([min(s, 1e6) ** 2 for s, _ in self.ranked])
        rest = np.append(np.cumsum(squares[::-1])[::-1], 0.0)  # of the nodes from each position on
        wanted = rest[known] * MARGIN * (tolerance / max(found, 1e-30)) ** 2
        return int(np.argmax(rest <= wanted))


def _origins(nodes: Sequence[Node]) -> frozenset[str]:
    return frozenset(o for n in nodes for o in n.origin)


def rank(
    graph: Graph, feeds: Mapping[str, np.ndarray], sizes: Mapping[str, int], half: DType
) -> list[tuple[float, Node]]:
    """The nodes with f32 results and the relative error of a node whose operands and result are rounded to ``half``.

    The largest error comes first; an overflow is infinite.
    """
    scores: list[tuple[float, int, Node]] = []
    last = {v.name: i for i, n in enumerate(graph.nodes) for v in n.operands()}
    hold = {v.name: i for i, n in enumerate(graph.nodes) for v in n.operands() if last[v.name] == i}
    for i, values in stream_reference(graph, feeds, hold=hold, bind=sizes):
        if i >= 0 and graph.nodes[i].output.dtype is DType.F32:
            node = graph.nodes[i]
            scores.append((_local_error(graph, node, values, sizes, half), -i, node))
    return [(s, n) for s, _, n in sorted(scores, key=lambda t: t[:2], reverse=True)]


def _local_error(
    graph: Graph, node: Node, values: Mapping[str, np.ndarray], sizes: Mapping[str, int], half: DType
) -> float:
    arrays: list[np.ndarray | None] = []
    for v in node.inputs:
        if v is None:
            arrays.append(None)
            continue
        a = values[v.name] if v.name in values else graph.weights[v.name].data
        with np.errstate(over="ignore"):
            arrays.append(a.astype(half.numpy) if v.dtype is DType.F32 else a)
    want = values[node.output.name]
    with np.errstate(all="ignore"):
        got = opdef(node.op).reference(arrays, concrete(node.attrs, sizes))[0]
    return relative_error(np.asarray(got, np.float32), want)
