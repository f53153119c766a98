"""Tensors of a checkpoint, as it stores them: where their bytes are, in which layout, and what they become in the IR.

Nothing is read before it is asked for, and what stays packed is never widened: its bits are put in the IR's order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from arcweld.compiler.checkpoints.bits import byte_fields, row_chunks
from arcweld.compiler.dtypes import DType, from_numpy


@dataclass(frozen=True, slots=True, eq=False)
class TwoLevel:
    """Scales or offsets ``f32[n, groups]`` as products of integers and floats that several groups share.

    codes  i8 or u8 ``[n, groups]``
    unit   ``[n, groups / block]``, a float type
    block  groups that share a unit
    """

    codes: np.ndarray
    unit: np.ndarray
    block: int

    @property
    def nbytes(self) -> int:
        """The bytes of both."""
        return self.codes.nbytes + self.unit.nbytes

    def rows(self, of: slice | np.ndarray) -> TwoLevel:
        """Some of the rows, in any order."""
        return TwoLevel(self.codes[of], self.unit[of], self.block)

    def decode(self) -> np.ndarray:
        """The products as f32, rounded once each; those of f16 and integers of 8 bits are exact."""
        wide = np.repeat(self.unit.astype(np.float32), self.block, axis=1)
        return wide[:, : self.codes.shape[1]] * self.codes.astype(np.float32)


Scales: TypeAlias = np.ndarray | TwoLevel


def rows_of(operand: Scales, rows: slice | np.ndarray) -> Scales:
    """Some rows of scales, zero points or offsets; all of those that all rows share."""
    if isinstance(operand, TwoLevel):
        return operand.rows(rows)
    return operand[rows] if operand.ndim else operand


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A matrix ``[n, k]`` as the operands of a DequantizeLinear: ``(elements - zero) * scale + offset``.

    A stack of matrices ``[…, n, k]`` is the matrix of all their rows.

    dtype      of the elements: an integer type of 2, 4 or 8 bits, or a float of 8; u4 beside ``high``
    elements   of a packed type ``u8[n, ceil(k * bits / 8)]``, rows of whole bytes, the first element in the lowest bits
               (UnpackBits gives the elements); of any other type ``dtype[n, k]``
    scale      ``[n, ceil(k / block)]`` where ``block`` is not 0, perhaps of two levels; else ``[n]``, or ``[]`` for all
    zero       of the elements' type as numpy has it, of u8 beside ``high``, in the shape of the scales or ``[]``; None
               for 0
    offset     in the shape of the scales; None for 0
    block      elements of a row that share a scale
    order      column j of the elements is column ``order[j]`` of the matrix; None where all are in place
    high       of elements of 5 and 6 bits, those above the four that ``elements`` has, packed as these are; else None
    high_dtype their type: an integer type of 1 or 2 bits
    """

    dtype: DType
    shape: tuple[int, int]
    elements: np.ndarray
    scale: Scales
    zero: np.ndarray | None = None
    offset: Scales | None = None
    block: int = 0
    order: np.ndarray | None = None
    high: np.ndarray | None = None
    high_dtype: DType = DType.U2

    @property
    def bits(self) -> int:
        """Bits of an element."""
        return self.dtype.bits + (0 if self.high is None else self.high_dtype.bits)

    @property
    def nbytes(self) -> int:
        """The bytes of all operands as an engine stores them."""
        rest = [a for a in (self.high, self.scale, self.zero, self.offset, self.order) if a is not None]
        sizes = (a.nbytes if isinstance(a, TwoLevel) else from_numpy(a.dtype).nbytes(a.size) for a in rest)
        return self.elements.nbytes + sum(sizes)

    def decode(self) -> np.ndarray:
        """The matrix as ``f32[n, k]``, its columns in place: DequantizeLinear's arithmetic in f32.

        The difference of integers is exact; the product and the sum are rounded once each.
        """
        n, k = self.shape
        wide = np.empty((n, k), np.float32)
        with np.errstate(all="ignore"):  # NaN and infinity are numbers like any other
            for a, b in row_chunks(n, k):
                wide[a:b, slice(None) if self.order is None else self.order] = self._rows(a, b)
        return wide

    def _rows(self, a: int, b: int) -> np.ndarray:
        """Rows ``a`` to ``b`` as f32, their columns in the order of the elements."""
        stored = self.elements[a:b]
        if self.dtype.is_packed:
            stored = byte_fields(stored, self.dtype.bits, self.shape[1])
        if self.high is not None:
            above = byte_fields(self.high[a:b], self.high_dtype.bits, self.shape[1])
            stored = stored | above << np.uint8(self.dtype.bits)
        rows = stored.astype(np.float32)
        if self.zero is not None:
            rows -= self._along(self.zero, a, b)
        rows *= self._along(self.scale, a, b)
        if self.offset is not None:
            rows += self._along(self.offset, a, b)
        return rows

    def _along(self, operand: Scales, a: int, b: int) -> np.ndarray:
        some = rows_of(operand, slice(a, b))
        # a zero point has few bits: f32 holds it, and differences, exactly
        wide = some.decode() if isinstance(some, TwoLevel) else some.astype(np.float32)
        if wide.ndim < 2:
            return wide[:, None] if wide.ndim else wide
        return np.repeat(wide, self.block, axis=1)[:, : self.shape[1]]


class Layout(Protocol):
    """How tensors of one kind lie in their files: a description without data."""

    @property
    def kind(self) -> str:
        """The layout's name, such as ``f16``, ``Q4_1`` or ``gptq 4 bits``."""
        ...

    def widened(self, tensor: StoredTensor) -> str:
        """Why the tensor has no packed form in the IR, and becomes f32; empty if it has one, or is not quantised."""
        ...

    def decode(self, tensor: StoredTensor) -> np.ndarray:
        """The tensor as f32, in its logical shape."""
        ...

    def stored(self, tensor: StoredTensor) -> np.ndarray | Packed:
        """What the tensor is in the IR, if it is not widened."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor of a checkpoint.

    name    as a module's parameter is called: of a quantised layer ``….weight``, whatever its parts are called
    shape   the logical shape: of a layer's matrix ``[outputs, inputs]``
    layout  how it is stored
    parts   views of the mapped files, by the layout's names for them
    file    the file with the first part, for errors
    """

    name: str
    shape: tuple[int, ...]
    layout: Layout
    parts: Mapping[str, np.ndarray]
    file: str

    @property
    def nbytes(self) -> int:
        """The bytes of all parts in the files."""
        return sum(p.nbytes for p in self.parts.values())

    @property
    def widened(self) -> str:
        """Why the tensor becomes f32 in the IR; empty if it is there as it is stored."""
        return self.layout.widened(self)

    def decode(self) -> np.ndarray:
        """The tensor as f32, in its logical shape: the reference of what it means."""
        with np.errstate(all="ignore"):  # NaN and infinity are numbers like any other
            return self.layout.decode(self)

    def to_stored(self) -> np.ndarray | Packed:
        """What the tensor is in the IR: an array of its own type, or of a quantised one its packed operands.

        A tensor that is ``widened`` gives ``decode()``. An array of an own type is a view of the file. Of a packed one
        the bits are reordered where the IR has another order: at most ``bits.CHUNK`` elements are unpacked at a time,
        so that the peak of memory is that of the result and some megabytes.
        """
        with np.errstate(all="ignore"):
            return self.layout.decode(self) if self.widened else self.layout.stored(self)


@dataclass(frozen=True, slots=True)
class Plain:
    """Elements of one type in row-major order."""

    dtype: DType

    @property
    def kind(self) -> str:
        """The type's name."""
        return str(self.dtype.value)

    def widened(self, tensor: StoredTensor) -> str:
        """Empty: the IR has every such type."""
        return ""

    def decode(self, tensor: StoredTensor) -> np.ndarray:
        """The elements as f32."""
        return tensor.parts["data"].astype(np.float32)

    def stored(self, tensor: StoredTensor) -> np.ndarray | Packed:
        """A view of the file."""
        return tensor.parts["data"]
