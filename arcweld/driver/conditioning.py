"""Estimates the error that rounding alone can cause, to tell an ill-conditioned kernel from a wrong one.

The method is Monte Carlo arithmetic (D. S. Parker, 1997). The reference is evaluated again with a random rounding error
in every intermediate result. The error of a sum of n terms grows like the square root of n (N. J. Higham, T. Mary, "A
new approach to probabilistic rounding error analysis", 2019).
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
MARGIN = 4.0  # factor between the largest error of a few random trials and that of an unlucky order of summation


def rounding_error(
    nodes: Sequence[Node], values: Mapping[str, np.ndarray], weights: Mapping[str, Weight], sizes: Mapping[str, int],
    output: str,
) -> float:  # fmt: skip
    """The relative error (see ``relative_error``) that rounding may cause in ``output``, a result of ``nodes``.

    ``values`` holds the reference's values of what the nodes read and of ``output``.
    """
    rng = np.random.default_rng(0)
    worst = 0.0
    trials = TRIALS if from_numpy(values[output].dtype).is_float else STEP_TRIALS
    for _ in range(max(trials, -(-SAMPLES // max(1, values[output].size)))):
        made: dict[str, np.ndarray] = {}
        for node in nodes:
            names = [None if v is None else v.name for v in node.inputs]
            arrays = [None if n is None else _operand(n, made, values, weights) for n in names]
            for v, result in zip(node.outputs, evaluate_node(node, arrays, sizes)):
                made[v.name] = _rounded(result, _terms(node, arrays, result), rng)
        worst = max(worst, relative_error(made[output], values[output]))
    return MARGIN * worst


def _operand(
    name: str, made: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray], weights: Mapping[str, Weight]
) -> np.ndarray:
    if name in made:
        return made[name]
    return values[name] if name in values else weights[name].data


def _rounded(result: np.ndarray, terms: int, rng: np.random.Generator) -> np.ndarray:
    """``result`` with a random error in every element: that of a sum of ``terms`` terms. Integers stay exact."""
    if not from_numpy(result.dtype).is_float:
        return result
    unit = float(ml_dtypes.finfo(result.dtype).eps) / 2
    noise = rng.uniform(-1, 1, result.shape) * unit * math.sqrt(terms)
    with np.errstate(all="ignore"):
        return np.asarray(result * (1 + noise)).astype(result.dtype)


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
