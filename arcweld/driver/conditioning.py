"""Estimates the error that rounding alone can cause, to tell an ill-conditioned kernel from a wrong one.

The method is Monte Carlo arithmetic (D. S. Parker, 1997). The reference is evaluated again with a random rounding error
in every intermediate result. The error of a sum of n terms grows like the square root of n (N. J. Higham, T. Mary, "A
new approach to probabilistic rounding error analysis", 2019). Where positive and negative terms cancel, it is one of
the sum of their magnitudes, far more than one of the result (N. J. Higham, "Accuracy and Stability of Numerical
Algorithms", section 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np

from arcweld.compiler.dtypes import from_numpy
from arcweld.compiler.ir import Node, Weight
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.reference import evaluate_node
from arcweld.driver.metrics import relative_error

TRIALS = 3
STEP_TRIALS = 16  # of results in steps, of which rounding changes few, and each not in every trial
SAMPLES = 32  # elements of the output in all trials: with fewer, all their random errors may happen to be small
SUMS = frozenset({"AveragePool", "Conv", "ConvTranspose", "CumSum", "MatMul", "ReduceSum"})  # of products or terms
MARGIN = 4.0  # factor between the largest error of a few random trials and that of an unlucky order of summation


def rounding_error(
    nodes: Sequence[Node], values: Mapping[str, np.ndarray], weights: Mapping[str, Weight], sizes: Mapping[str, int],
    output: str,
) -> float:  # fmt: skip
    """The relative error (see ``relative_error``) that rounding may cause in ``output``, a result of ``nodes``.

    ``values`` holds the reference's values of what the nodes read and of ``output``.
    """
    return rounding_errors(nodes, values, weights, sizes, (output,))[output]


def rounding_errors(
    nodes: Sequence[Node], values: Mapping[str, np.ndarray], weights: Mapping[str, Weight], sizes: Mapping[str, int],
    outputs: Sequence[str],
) -> dict[str, float]:  # fmt: skip
    """What ``rounding_error`` returns for each of some results, from the same trials."""
    rng = np.random.default_rng(0)
    worst = dict.fromkeys(outputs, 0.0)
    last = {v.name: k for k, node in enumerate(nodes) for v in node.inputs if v is not None}
    for _ in range(max(_trials(values[o]) for o in outputs)):
        made: dict[str, np.ndarray] = {}
        for k, node in enumerate(nodes):
            names = [None if v is None else v.name for v in node.inputs]
            arrays = [None if n is None else _operand(n, made, values, weights) for n in names]
            results = evaluate_node(node, arrays, sizes)
            sums = _magnitudes(node, arrays, sizes, len(results))
            for v, result, magnitude in zip(node.outputs, results, sums):
                made[v.name] = _rounded(result, _terms(node, arrays, result), magnitude, rng)
            for name in names:  # what nobody reads any more is freed, as large models demand
                if name is not None and last[name] == k and name not in worst:
                    made.pop(name, None)
        worst = {o: max(w, relative_error(made[o], values[o])) for o, w in worst.items()}
    return {o: MARGIN * w for o, w in worst.items()}


def _trials(output: np.ndarray) -> int:
    trials = TRIALS if from_numpy(output.dtype).is_float else STEP_TRIALS
    return max(trials, -(-SAMPLES // max(1, output.size)))


def _operand(
    name: str, made: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray], weights: Mapping[str, Weight]
) -> np.ndarray:
    if name in made:
        return made[name]
    return values[name] if name in values else weights[name].data


def _magnitudes(
    node: Node, arrays: Sequence[np.ndarray | None], sizes: Mapping[str, int], results: int
) -> Sequence[np.ndarray | None]:
    """The sums of the terms' magnitudes, one for each of the results; None for an operator that adds up no terms."""
    if node.op not in SUMS or any(a is not None and not from_numpy(a.dtype).is_float for a in arrays):
        return [None] * results
    return evaluate_node(node, [None if a is None else np.abs(a) for a in arrays], sizes)


def _rounded(
    result: np.ndarray, terms: int, magnitude: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """``result`` with a random error in every element: that of a sum of ``terms`` terms. Integers stay exact.

    Terms of ``magnitude``, if it is given, are added up in f32, or in f64 if that is the type of the result.
    """
    if not from_numpy(result.dtype).is_float:
        return result
    unit = float(ml_dtypes.finfo(result.dtype).eps) / 2
    with np.errstate(all="ignore"):
        size = np.abs(result.astype(np.float64)) * unit * math.sqrt(terms)
        if magnitude is not None:
            known = np.where(np.isfinite(magnitude), magnitude.astype(np.float64), 0.0)
            size = np.maximum(size, known * min(unit, float(np.finfo(np.float32).eps) / 2))
        noise = rng.uniform(-1, 1, result.shape) * size
        return np.asarray(np.where(np.isfinite(result), result + noise, result)).astype(result.dtype)


def _terms(node: Node, arrays: Sequence[np.ndarray | None], result: np.ndarray) -> int:
    """The number of terms that are summed for one element of the result."""
    kind, first = opdef(node.op).kind, arrays[0] if arrays else None
    if first is None or not first.size or not result.size:
        return 1
    if kind in (Kind.REDUCE, Kind.WINDOW):
        return max(1, first.size // result.size)
    if kind is Kind.SCAN:
        return int(first.shape[node.attrs["axis"]])
    if kind is Kind.RECURRENCE:  # errors of one step pass on to the next
        return int(first.shape[0] * result.shape[-1])
    if kind is Kind.CONV:
        weight = arrays[1]
        return 1 if weight is None else math.prod(weight.shape[1:])
    return first.shape[-1] if kind in (Kind.CONTRACT, Kind.ROWWISE, Kind.ATTENTION) and first.ndim else 1
