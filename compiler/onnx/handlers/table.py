"""The complete table from ONNX operators to their handlers: importing this module registers them all."""

from __future__ import annotations

from arcweld.compiler.onnx.handlers import (  # noqa: F401
    attention,
    blocks,
    cached,
    contrib,
    experts,
    learning,
    matmul,
    movement,
    norm,
    pointwise,
    qlinear,
    quant,
    random_numbers,
    recurrent,
    reduce,
    regions,
    resize,
    selection,
    spectral,
    tfidf,
    training,
    window,
)
from arcweld.compiler.onnx.handlers.base import HANDLERS, Handler


def handler(domain: str, op: str) -> Handler | None:
    """The handler of an operator of a domain ("" is ONNX's own), or None."""
    return HANDLERS.get((domain, op))
