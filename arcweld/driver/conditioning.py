"""How much rounding alone may change what a kernel computes: tells an ill-conditioned computation from a wrong one.

Monte Carlo arithmetic (D. S. Parker, 1997): the reference is evaluated again with every intermediate result off by a
random rounding error, a sum of n terms by that of n additions in some order, which grows like the square root of n
(N. J. Higham, T. Mary, "A new approach to probabilistic rounding error analysis", 2019).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from arcweld.compiler.ir import Node, Weight
from arcweld.compiler.ops.registry import Kind, opdef
from arcweld.compiler.reference import evaluate_node
from arcweld.driver.metrics import relative_error

TRIALS = 3
MARGIN = 4.0  # between what a few random trials show and what one order of summation may do


def rounding_error(
    nodes: Sequence[Node], values: Mapping[str, np.ndarray], weights: Mapping[str, Weight], sizes: Mapping[str, int],
    output: str,
) -> float:  # fmt: skip
    """The relative error that rounding may cause in ``output``, one of the nodes' results.

    ``values`` hold what the nodes read from outside and the exact ``output``.
    """
    rng = np.random.default_rng(0)
    worst = 0.0
    for _ in range(TRIALS):
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
    """``result``, every element off by the rounding error of a sum of ``terms`` terms."""
    if result.dtype.kind in "iub":
        return result
    unit = float(np.finfo(result.dtype).eps) / 2 if result.dtype.kind == "f" else 2.0**-8  # bfloat16
    noise = rng.uniform(-1, 1, result.shape) * unit * math.sqrt(terms)
    with np.errstate(all="ignore"):
        return np.asarray(result * (1 + noise)).astype(result.dtype)


def _terms(node: Node, arrays: Sequence[np.ndarray | None], result: np.ndarray) -> int:
    """How many terms are summed for one element of the result."""
    kind, first = opdef(node.op).kind, arrays[0] if arrays else None
    if first is None or not first.size or not result.size:
        return 1
    if kind in (Kind.REDUCE, Kind.WINDOW):
        return max(1, first.size // result.size)
    if kind is Kind.CONV:
        weight = arrays[1]
        return 1 if weight is None else math.prod(weight.shape[1:])
    return first.shape[-1] if kind in (Kind.CONTRACT, Kind.ROWWISE, Kind.ATTENTION) and first.ndim else 1
