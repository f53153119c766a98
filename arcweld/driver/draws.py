"""The inputs that a build is verified with: a user's, or random ones for which the model's outputs are numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from arcweld.compiler.ir import Graph
from arcweld.compiler.reference import bind_symbols, run_reference
from arcweld.driver.costs import ReferenceCost
from arcweld.driver.metrics import nonfinite_share
from arcweld.driver.samples import Draw, sample_inputs, sample_sizes

MOST_SECONDS = 10.0  # of the reference, by estimate: a longer one is not run to choose how to draw


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Inputs to verify with.

    feeds    an array for each input, by name
    sizes    of all symbols
    draw     how the inputs were drawn; None if a user gave them
    outputs  the reference's, by name; None if it has not been evaluated for these inputs
    """

    feeds: Mapping[str, np.ndarray]
    sizes: Mapping[str, int]
    draw: Draw | None = None
    outputs: Mapping[str, np.ndarray] | None = None


def given_sample(graph: Graph, sizes: Mapping[str, int] | None, feeds: Mapping[str, np.ndarray]) -> Sample:
    """The inputs that a user gave, with usual sizes for symbols that neither they nor ``sizes`` decide."""
    every_size = {**sample_sizes(graph, sizes), **bind_symbols(graph.inputs, feeds, None)}
    return Sample(dict(feeds), every_size)


def draw_sample(graph: Graph, sizes: Mapping[str, int] | None) -> Sample:
    """Random inputs, of both signs unless the outputs are then less often finite than with inputs in [0, 1).

    A model may take the logarithm or the square root of its input: where all outputs are NaN, nothing can be compared.
    """
    every_size = sample_sizes(graph, sizes)
    signed = Sample(sample_inputs(graph, every_size), every_size, Draw.SIGNED)
    chosen = any(v.dtype.is_float for v in graph.inputs)
    if not chosen or ReferenceCost.of(graph).seconds(every_size) > MOST_SECONDS:
        return signed
    signed, odd = _evaluated(graph, signed)
    if odd == 0:
        return signed
    unit = Sample(sample_inputs(graph, every_size, draw=Draw.UNIT), every_size, Draw.UNIT)
    unit, less = _evaluated(graph, unit)
    return unit if less < odd else signed


def _evaluated(graph: Graph, sample: Sample) -> tuple[Sample, float]:
    """The sample with the reference's outputs, and the largest share of one that is NaN or infinite."""
    outputs = run_reference(graph, sample.feeds, bind=sample.sizes)
    share = max((nonfinite_share(a) for a in outputs.values()), default=0.0)
    return Sample(sample.feeds, sample.sizes, sample.draw, outputs), share
