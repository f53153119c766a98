"""Promotion: finds the fewest nodes of a half-precision model that must stay in f32 for accurate outputs.

With ``precision="fp16"`` or ``"bf16"`` the narrowed graph is first evaluated in numpy. If its outputs are outside the
tolerance, the nodes are ranked by the error that rounding causes in each of them alone. The smallest sufficient number
of nodes, in this order, is found by doubling and then bisection.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from arcweld.compiler.dims import evaluate, product
from arcweld.compiler.dtypes import DType
from arcweld.compiler.ir import Graph, Node
from arcweld.compiler.ops.registry import concrete, opdef
from arcweld.compiler.options import Options
from arcweld.compiler.reference import run_reference, stream_reference
from arcweld.driver.metrics import REFERENCE_FLOPS, relative_error
from arcweld.passes.pipeline import run_passes

log = logging.getLogger("arcweld.passes")


@dataclass(frozen=True, slots=True)
class Promotion:
    """The nodes that stay in f32, by origin.

    ``error`` is the largest relative error of the outputs in numpy with these nodes in f32; NaN if it was not computed.
    ``note`` explains the choice in the evidence.
    """

    origins: frozenset[str]
    error: float
    note: str


def promote(
    graph: Graph, options: Options, feeds: Mapping[str, np.ndarray], sizes: Mapping[str, int], *, tolerance: float,
    budget: float,
) -> Promotion:  # fmt: skip
    """The origins of ``graph`` to keep in f32 so that no output's relative error is above ``tolerance``.

    The search takes about ``budget`` seconds. When they are over, the result is the smallest set found to be accurate
    so far, or all nodes.
    """
    end = time.monotonic() + budget
    want = run_reference(graph, feeds, bind=sizes)

    def error(origins: frozenset[str]) -> float:
        narrowed = run_passes(graph, replace(options, keep_f32=options.keep_f32 | origins))
        got = run_reference(narrowed, feeds, bind=sizes)
        pairs = zip(graph.outputs, narrowed.outputs, strict=True)
        return max((relative_error(got[n.name], want[o.name]) for o, n in pairs), default=0.0)

    first = error(frozenset())
    if first <= tolerance:
        return Promotion(frozenset(), first, "no node had to stay in f32")
    log.info("outputs in %s have relative error %.2e: promoting nodes", options.precision, first)
    ranked = rank(run_passes(graph, replace(options, precision="fp32")), feeds, sizes, options.float_type)
    low, high, probe, accurate = 0, len(ranked), 1, float("nan")  # ``low`` nodes are too few, ``high`` are enough
    while high - low > 1 and time.monotonic() < end:
        probe = min(probe, high - 1) if high == len(ranked) else (low + high) // 2
        found = error(_origins(ranked[:probe]))
        if found <= tolerance:
            high, accurate = probe, found
        else:
            low = probe
        probe *= 2
    origins = _origins(ranked[:high])
    accurate = error(origins) if np.isnan(accurate) else accurate
    return Promotion(origins, accurate, f"{high} of {len(ranked)} nodes stay in f32")


def _origins(nodes: Sequence[Node]) -> frozenset[str]:
    return frozenset(o for n in nodes for o in n.origin)


def reference_seconds(graph: Graph, sizes: Mapping[str, int]) -> float:
    """An estimate of the seconds that numpy takes for the graph's matrix products and convolutions."""
    flops = 0
    for n in graph.nodes:
        if n.op in ("MatMul", "Conv", "ConvTranspose", "Gemm") and n.inputs[0] is not None and n.inputs[1] is not None:
            inner = n.inputs[0].shape[-1] if n.op in ("MatMul", "Gemm") else product(n.inputs[1].shape[1:])
            flops += 2 * evaluate(n.output.type.numel * inner, sizes)
    return flops / REFERENCE_FLOPS


def rank(graph: Graph, feeds: Mapping[str, np.ndarray], sizes: Mapping[str, int], half: DType) -> list[Node]:
    """The nodes with f32 results, by the relative error of a node whose operands and result are rounded to ``half``.

    The largest error comes first; an overflow is infinite.
    """
    scores: list[tuple[float, int, Node]] = []
    last = {v.name: i for i, n in enumerate(graph.nodes) for v in n.operands()}
    hold = {v.name: i for i, n in enumerate(graph.nodes) for v in n.operands() if last[v.name] == i}
    for i, values in stream_reference(graph, feeds, hold=hold, bind=sizes):
        if i >= 0 and graph.nodes[i].output.dtype is DType.F32:
            node = graph.nodes[i]
            scores.append((_local_error(graph, node, values, sizes, half), -i, node))
    return [n for _, _, n in sorted(scores, key=lambda t: t[:2], reverse=True)]


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
