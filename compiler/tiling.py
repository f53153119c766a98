"""What a rendered kernel does, as far as its time depends on it: tiles, steps, what a step loads and multiplies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

N = TypeVar("N")
M = TypeVar("M")

ENGINES = ("wgmma", "mma", "ffma")


class Tiling(msgspec.Struct, Generic[N], frozen=True, forbid_unknown_fields=True):
    """A product, a convolution as one, or attention: blocks that compute tiles of the result step by step.

    ``N`` is the type of integers that may depend on shapes: a Dim in a rendered kernel, its text in an engine file.

    engine      what multiplies: ``wgmma`` or ``mma`` (tensor cores), ``ffma`` (ordinary arithmetic)
    dtype       of the operands: ``f16`` (bf16 too), ``tf32``, ``f32``, ``f8``, ``i8``
    tiles       tiles of the result
    steps       steps of a tile, along k or the keys, which ``split`` blocks share out
    longest     steps of the longest tile, where tiles differ in them and ``steps`` are those of a mean one; else None
    stages      steps whose loads may be under way at once
    macs        multiply-adds of a step
    loaded      bytes that a step loads
    read        bytes that tensor cores read from shared memory in a step
    elements    elements of a tile of the result
    exponents   exponentials of a step, as softmax computes them
    activation  whether special functions are computed for each element of the result
    residual    whether the epilogue reads other tensors that depend on the row
    persistent  whether each block takes several tiles
    staged      whether results are stored by TMA
    """

    engine: str
    dtype: str
    tiles: N
    steps: N
    stages: int
    macs: int
    loaded: int
    read: int
    elements: int
    split: int = 1
    exponents: int = 0
    activation: bool = False
    residual: bool = False
    persistent: bool = False
    staged: bool = False
    longest: N | None = None

    def convert(self, number: Callable[[N], M]) -> Tiling[M]:
        """The same with its integers changed by ``number``."""
        longest = None if self.longest is None else number(self.longest)
        values = msgspec.structs.asdict(self)
        return Tiling(**{**values, "tiles": number(self.tiles), "steps": number(self.steps), "longest": longest})
