"""Chooses how the inputs of a verification are drawn: so that the model's outputs are numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from arcweld.compiler.ir import Graph
from arcweld.compiler.reference import run_reference
from arcweld.driver.promotion import reference_seconds
from arcweld.driver.samples import Draw, sample_inputs

MOST_SECONDS = 5.0  # of the reference: a longer one is not run for this choice


def draw_inputs(graph: Graph, sizes: Mapping[str, int]) -> tuple[dict[str, np.ndarray], Draw]:
    """Random inputs, of both signs unless the outputs are then less often finite than with inputs in [0, 1).

    A model may take the logarithm or the square root of its input: where all outputs are NaN, nothing can be compared.
    """
    signed = sample_inputs(graph, sizes)
    if not any(v.dtype.is_float for v in graph.inputs) or reference_seconds(graph, sizes) > MOST_SECONDS:
        return signed, Draw.SIGNED
    odd = _nonfinite(graph, signed, sizes)
    if odd == 0:
        return signed, Draw.SIGNED
    unit = sample_inputs(graph, sizes, draw=Draw.UNIT)
    return (unit, Draw.UNIT) if _nonfinite(graph, unit, sizes) < odd else (signed, Draw.SIGNED)


def _nonfinite(graph: Graph, feeds: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> float:
    """The largest share of an output's elements that are NaN or infinite."""
    found = run_reference(graph, feeds, bind=sizes)
    floats = [a.astype(np.float64) for a in found.values() if a.size and a.dtype.kind not in "biu"]
    shares = [np.mean(~np.isfinite(a)) for a in floats]
    return float(max(shares, default=0.0))
