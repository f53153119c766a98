"""The block types of GGUF that stay packed, and what their blocks become in the IR.

A row of a matrix is a sequence of blocks of 32 or 256 elements; a block holds its scales beside its elements. The
layouts are those of ggml's ``ggml-common.h``:

    type   block                                              element
    Q4_0   d f16, 16 bytes: element i low, i + 16 high        d * (q - 8)
    Q4_1   d f16, m f16, 16 bytes as Q4_0                     d * q + m
    Q5_0   d f16, 32 fifth bits, 16 bytes as Q4_0             d * (q - 16)
    Q5_1   d f16, m f16, 32 fifth bits, 16 bytes as Q4_0      d * q + m
    Q8_0   d f16, 32 signed bytes                             d * q
    Q4_K   d f16, m f16, 8 pairs of 6-bit scale and minimum   d * scale * q - m * minimum
           in 12 bytes, 4 x 32 bytes: element i low, i + 32 high
    Q5_K   as Q4_K, with 256 fifth bits before the bytes      as Q4_K
    Q6_K   128 bytes of low and 64 of high bits, 16 signed    d * scale * (q - 32)
           8-bit scales, d f16

Elements of 4 bits stay 4 bits. Those of 5 and 6 bits are two tensors, their lower four bits and those above. Scales and
minima of the K types are products of f16 and integers, which stay apart: f32 holds what they give exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from arcweld.compiler.checkpoints.bits import packed_rows, row_chunks
from arcweld.compiler.checkpoints.tensors import Packed, Scales, StoredTensor, TwoLevel
from arcweld.compiler.dtypes import DType

Blocks = np.ndarray  # u8[rows, blocks of a row, bytes of a block]


@dataclass(frozen=True, slots=True)
class BlockType:
    """A type whose blocks have a packed form.

    elements  of a block; ``nbytes`` of it; ``group`` elements share a scale
    dtype     of the elements in the IR; ``zero`` what is subtracted from each
    codes     of blocks, their elements in order, a byte each, as ``[rows, k]``
    scales    of blocks, the scales and, where elements have offsets, these, each ``[rows, k / group]``
    high      of the elements' bits above those of ``dtype``, where there are any
    """

    elements: int
    nbytes: int
    group: int
    dtype: DType
    zero: int
    codes: Callable[[Blocks], np.ndarray]
    scales: Callable[[Blocks], tuple[Scales, Scales | None]]
    high: DType | None = None


@dataclass(frozen=True, slots=True)
class GgufBlocks:
    """Blocks of a GGUF type that stays packed, ``u8[n, blocks of a row * bytes of a block]`` in the part ``data``."""

    kind: str

    def widened(self, tensor: StoredTensor) -> str:
        """A vector becomes f32: only matrices, and stacks of them, have a packed form."""
        return "" if len(tensor.shape) >= 2 else f"{self.kind} of rank {len(tensor.shape)}"

    def decode(self, tensor: StoredTensor) -> np.ndarray:
        """The tensor as f32."""
        return self._packed(tensor).decode().reshape(tensor.shape)

    def stored(self, tensor: StoredTensor) -> np.ndarray | Packed:
        """The packed form of a matrix, of a stack of matrices that of all their rows."""
        return self._packed(tensor)

    def _packed(self, tensor: StoredTensor) -> Packed:
        of, n, k = TYPES[self.kind], math.prod(tensor.shape[:-1]), tensor.shape[-1]
        blocks, dtype = tensor.parts["data"].reshape(n, k // of.elements, of.nbytes), of.dtype
        elements = np.empty((n, dtype.nbytes(k)), np.uint8 if dtype.is_packed else dtype.numpy)
        high = None if of.high is None else np.empty((n, of.high.nbytes(k)), np.uint8)
        for a, b in row_chunks(n, k):
            codes = of.codes(blocks[a:b])
            elements[a:b] = packed_rows(codes & np.uint8(15), 4) if dtype.is_packed else codes
            if high is not None and of.high is not None:
                high[a:b] = packed_rows(codes >> np.uint8(4), of.high.bits)
        scale, offset = of.scales(blocks)
        zero = np.array(of.zero).astype(np.uint8 if of.high else dtype.numpy) if of.zero else None
        return Packed(dtype, (n, k), elements, scale, zero, offset, of.group, None, high, of.high or DType.U2)


def _f16(blocks: Blocks, at: int) -> np.ndarray:
    return np.ascontiguousarray(blocks[..., at : at + 2]).view(np.float16)[..., 0]


def _nibbles(quants: np.ndarray, half: int) -> np.ndarray:
    """Bytes ``[r, b, m * half]`` whose low and high halves are elements ``half`` apart, as elements a byte each."""
    rows, blocks, count = quants.shape
    pairs = quants.reshape(rows, blocks, count // half, 1, half) >> np.array([[0], [4]], np.uint8)
    return (pairs & np.uint8(15)).reshape(rows, blocks, 2 * count)


def _flat(codes: np.ndarray) -> np.ndarray:
    return codes.reshape(codes.shape[0], -1)


def _four(at: int, half: int) -> Callable[[Blocks], np.ndarray]:
    return lambda blocks: _flat(_nibbles(blocks[..., at:], half))


def _five(at: int) -> Callable[[Blocks], np.ndarray]:
    """Elements of 5 bits: 4 bytes of fifth bits from byte ``at``, then halves of bytes."""

    def codes(blocks: Blocks) -> np.ndarray:
        fifth = np.unpackbits(np.ascontiguousarray(blocks[..., at : at + 4]), axis=-1, bitorder="little")
        return _flat(_nibbles(blocks[..., at + 4 :], 16) | fifth << np.uint8(4))

    return codes


def _scale(blocks: Blocks) -> tuple[Scales, Scales | None]:
    return _f16(blocks, 0), None


def _scale_and_minimum(blocks: Blocks) -> tuple[Scales, Scales | None]:
    return _f16(blocks, 0), _f16(blocks, 2)


def _q5_k(blocks: Blocks) -> np.ndarray:
    """Bit j of fifth byte i belongs to element ``32 * j + i``."""
    fifth = blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & np.uint8(1)
    low = _nibbles(blocks[..., 48:], 32)
    return _flat(low | fifth.reshape(low.shape) << np.uint8(4))


def _q6_k(blocks: Blocks) -> np.ndarray:
    """Two halves of 128 elements; element ``32 * j + i`` of a half has bits 2j of high byte i."""
    rows, count = blocks.shape[:2]
    low = _nibbles(blocks[..., :128], 64)
    high = blocks[..., 128:192].reshape(rows, count, 2, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8)
    return _flat(low | (high & np.uint8(3)).reshape(low.shape) << np.uint8(4))


def _k_scales(blocks: Blocks) -> tuple[Scales, Scales | None]:
    """12 bytes: 4 scales, 4 minima of 6 bits each; then 4 and 4 low ones, whose upper bits are those of the first 8.

    A byte each is 3 % more than the file has, and is read without shifts. A minimum's unit has its sign turned.
    """
    low, high, rest = (blocks[..., at : at + 4] for at in (4, 8, 12))
    scale = np.concatenate([low & 63, rest & 15 | low >> 6 << 4], axis=-1)
    minimum = np.concatenate([high & 63, rest >> 4 | high >> 6 << 4], axis=-1)
    return TwoLevel(_flat(scale), _f16(blocks, 0), 8), TwoLevel(_flat(minimum), -_f16(blocks, 2), 8)


def _q6_scales(blocks: Blocks) -> tuple[Scales, Scales | None]:
    scale = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8)
    return TwoLevel(_flat(scale), _f16(blocks, 208), 16), None


TYPES: dict[str, BlockType] = {
    "Q4_0": BlockType(32, 18, 32, DType.U4, 8, _four(2, 16), _scale),
    "Q4_1": BlockType(32, 20, 32, DType.U4, 0, _four(4, 16), _scale_and_minimum),
    "Q5_0": BlockType(32, 22, 32, DType.U4, 16, _five(2), _scale, DType.U1),
    "Q5_1": BlockType(32, 24, 32, DType.U4, 0, _five(4), _scale_and_minimum, DType.U1),
    "Q8_0": BlockType(32, 34, 32, DType.I8, 0, lambda blocks: _flat(blocks[..., 2:]).view(np.int8), _scale),
    "Q4_K": BlockType(256, 144, 32, DType.U4, 0, _four(16, 32), _k_scales),
    "Q5_K": BlockType(256, 176, 32, DType.U4, 0, _q5_k, _k_scales, DType.U1),
    "Q6_K": BlockType(256, 210, 16, DType.U4, 32, _q6_k, _q6_scales, DType.U2),
}
