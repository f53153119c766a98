"""Imports every file of operator entries, so that the registry is complete."""

from arcweld.compiler.ops import (  # noqa: F401
    attention,
    composite,
    composite_reduce,
    contract,
    einsum,
    gather,
    generate,
    grid_sample,
    integer,
    movement,
    pad,
    pointwise,
    quantize,
    reduce,
    resize,
    rowwise,
    scan,
    scatter,
    topk,
    window,
)
