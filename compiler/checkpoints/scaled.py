"""Matrices of 8-bit integers or floats beside their scales: compressed-tensors' int- and float-quantized, and FP8."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arcweld.compiler.checkpoints.scales import Blocks, contradiction, in_shape
from arcweld.compiler.checkpoints.tensors import Packed, StoredTensor
from arcweld.compiler.dtypes import from_numpy


@dataclass(frozen=True, slots=True)
class Scaled:
    """Elements of a type of 8 bits in the part ``data``, with scales in ``scale`` for each of ``blocks``.

    A part ``zero`` has zero points in the shape of the scales.
    """

    kind: str
    blocks: Blocks

    def widened(self, tensor: StoredTensor) -> str:
        """Empty: every such weight has a packed form."""
        return ""

    def decode(self, tensor: StoredTensor) -> np.ndarray:
        """The matrix as f32."""
        return self._packed(tensor).decode()

    def stored(self, tensor: StoredTensor) -> np.ndarray | Packed:
        """The packed form, whose elements are a view of the file."""
        return self._packed(tensor)

    def _packed(self, tensor: StoredTensor) -> Packed:
        data, scale, zero = (tensor.parts.get(p) for p in ("data", "scale", "zero"))
        assert data is not None
        assert scale is not None
        n, k = tensor.shape
        dtype = from_numpy(data.dtype)
        if zero is not None and dtype.is_float:
            if zero.astype(np.float32).any():
                raise contradiction(tensor.name, tensor.file, "floats have a zero point other than 0")
            zero = None
        point = None if zero is None else in_shape(zero, self.blocks, n)
        shaped = in_shape(scale, self.blocks, n)
        return Packed(dtype, (n, k), data, shaped, point, None, self.blocks.columns)
