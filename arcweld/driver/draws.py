"""The inputs that a build is verified with: a user's, or random ones for which the model's outputs are numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from arcweld.compiler.errors import ModelError
from arcweld.compiler.ir import Graph
from arcweld.compiler.reference import bind_symbols, run_reference
from arcweld.driver.costs import ReferenceCost
from arcweld.driver.metrics import nonfinite_share
from arcweld.driver.samples import Draw, sample_inputs, sample_sizes, smaller

MOST_SECONDS = 10.0  # of the reference, by estimate: a longer one is not run to choose how to draw
HALVINGS = 3  # of usual sizes, where a model is not defined for them
TRIES = 8  # draws, where a model is not defined for every input: it may divide by what it computes


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
    Raises ModelError if the model is defined for none of the inputs that were tried.
    """
    usual = sample_sizes(graph, sizes)
    if ReferenceCost.of(graph).seconds(usual) > MOST_SECONDS:
        return Sample(sample_inputs(graph, usual), usual, Draw.SIGNED)
    signed, odd = _signed(graph, usual, sizes)
    every_size = signed.sizes
    if odd == 0 or not any(v.dtype.is_float for v in graph.inputs):
        return signed
    unit, less = _defined(graph, every_size, Draw.UNIT)
    return unit if less < odd else signed


def _signed(graph: Graph, usual: Mapping[str, int], given: Mapping[str, int] | None) -> tuple[Sample, float]:
    """The first sample for which the model is defined, at the usual sizes or smaller ones."""
    failed: ModelError | None = None
    tried: list[Mapping[str, int]] = []
    for times in range(HALVINGS + 1):
        every_size = smaller(graph, usual, given, times) if times else usual
        if every_size in tried:
            continue
        tried.append(every_size)
        try:
            return _defined(graph, every_size, Draw.SIGNED)
        except ModelError as error:
            failed = failed or error
    assert failed is not None
    raise failed


def _defined(graph: Graph, sizes: Mapping[str, int], draw: Draw) -> tuple[Sample, float]:
    """The first sample for which the model is defined, as ``_evaluated`` returns it."""
    failed = ModelError("no inputs were tried")
    for seed in range(TRIES):
        try:
            return _evaluated(graph, Sample(sample_inputs(graph, sizes, seed=seed, draw=draw), sizes, draw))
        except ModelError as error:
            failed = error
    hint = "give inputs to verify with (feeds=, --loadInputs), or build with verify off"
    raise ModelError(f"the model fails for random inputs: {failed.message}", node=failed.node, hint=hint)


def _evaluated(graph: Graph, sample: Sample) -> tuple[Sample, float]:
    """The sample with the reference's outputs, and the largest share of one that is NaN or infinite."""
    outputs = run_reference(graph, sample.feeds, bind=sample.sizes)
    share = max((nonfinite_share(a) for a in outputs.values()), default=0.0)
    return replace(sample, outputs=outputs), share
