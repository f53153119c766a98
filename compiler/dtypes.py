"""The element types of tensors, and their names in numpy and in CUDA source.

Types of arithmetic are computed with. Storage types (``DType.is_storage``) only hold values: an operator that computes
converts them first. Those of less than 8 bits are *packed* in memory: elements follow one another in row-major order
without gaps, the first one in the lowest bits of a byte, as in ONNX. In numpy, an element takes a byte (ml_dtypes).
Strings are values of the host only: no kernel and no pass has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, overload

import ml_dtypes
import numpy as np

from arcweld.compiler.errors import UnsupportedError

if TYPE_CHECKING:
    from arcweld.compiler.dims import Dim


class DType(Enum):
    """An element type. The enum's value is the type's name in IR text and in engine files."""

    F64 = "f64"
    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    I64 = "i64"
    I32 = "i32"
    I16 = "i16"
    I8 = "i8"
    U64 = "u64"
    U32 = "u32"
    U16 = "u16"
    U8 = "u8"
    BOOL = "bool"
    # storage types; suffixes as in ml_dtypes: fn, finite numbers and NaN; fnuz, these and no negative zero
    F8E4M3FN = "f8e4m3fn"
    F8E4M3FNUZ = "f8e4m3fnuz"
    F8E5M2 = "f8e5m2"
    F8E5M2FNUZ = "f8e5m2fnuz"
    F8E8M0 = "f8e8m0"
    F4E2M1 = "f4e2m1"
    I4 = "i4"
    U4 = "u4"
    I2 = "i2"
    U2 = "u2"
    U1 = "u1"
    STR = "str"  # text, on the host only: an object array of ``str`` in numpy

    @property
    def numpy(self) -> np.dtype:
        """The numpy dtype with the same values; those that numpy lacks come from ml_dtypes."""
        return _TRAITS[self].numpy

    @property
    def bits(self) -> int:
        """Bits of one element in memory. Raises ValueError for strings, which have no form on a device."""
        if self is DType.STR:
            raise ValueError("strings have no fixed size, and no form on a device")
        return _TRAITS[self].bits

    @property
    def size(self) -> int:
        """Bytes of one element. Raises ValueError for a packed type, whose elements take less than one."""
        if self.is_packed:
            raise ValueError(f"an element of {self.value} has {self.bits} bits, which are no whole byte")
        return self.bits // 8

    @property
    def per_byte(self) -> int:
        """Elements of a packed type in a byte; 1 for all other types."""
        return max(1, 8 // self.bits)

    @overload
    def nbytes(self, count: int) -> int: ...

    @overload
    def nbytes(self, count: Dim) -> Dim: ...

    def nbytes(self, count: Dim) -> Dim:
        """The bytes of ``count`` elements that lie together."""
        return count * self.size if not self.is_packed else (count + self.per_byte - 1) // self.per_byte

    @property
    def cuda(self) -> str:
        """The scalar type's name in generated source (``scalars.cuh``). Of a packed type: that of one byte of it."""
        return str(self.value)

    @property
    def is_float(self) -> bool:
        """True for the floating-point types."""
        return _TRAITS[self].kind == "f"

    @property
    def is_half(self) -> bool:
        """True for the 16-bit floating-point types."""
        return self in (DType.F16, DType.BF16)

    @property
    def is_int(self) -> bool:
        """True for the integer types, signed or not; false for bool."""
        return _TRAITS[self].kind in "iu"

    @property
    def is_signed(self) -> bool:
        """True for the types with negative values."""
        return _TRAITS[self].kind in "if" and self is not DType.F8E8M0

    @property
    def is_storage(self) -> bool:
        """True for the types that values are only stored in."""
        return _TRAITS[self].compute is not None and not self.is_half

    @property
    def is_packed(self) -> bool:
        """True for the types of which a byte holds several elements."""
        return _TRAITS[self].bits < 8

    @property
    def is_string(self) -> bool:
        """True for strings, which only the host has."""
        return self is DType.STR

    @property
    def compute(self) -> DType:
        """The type in which kernels compute with values of this type: f32 for narrower floats, i8 and u8 for integers
        of less than 8 bits, else the type itself.
        """
        return _TRAITS[self].compute or self


@dataclass(frozen=True, slots=True)
class _Traits:
    """``kind``: f, i, u, b for bool, O for strings. ``compute``: None for the type itself."""

    numpy: np.dtype
    bits: int
    kind: str
    compute: DType | None = None


def _traits(numpy: type, compute: DType | None = None, *, kind: str = "", bits: int = 0) -> _Traits:
    dtype = np.dtype(numpy)
    return _Traits(dtype, bits or 8 * dtype.itemsize, kind or dtype.kind, compute)


_TRAITS: dict[DType, _Traits] = {
    DType.F64: _traits(np.float64),
    DType.F32: _traits(np.float32),
    DType.F16: _traits(np.float16, DType.F32),
    DType.BF16: _traits(ml_dtypes.bfloat16, DType.F32, kind="f"),
    DType.I64: _traits(np.int64),
    DType.I32: _traits(np.int32),
    DType.I16: _traits(np.int16),
    DType.I8: _traits(np.int8),
    DType.U64: _traits(np.uint64),
    DType.U32: _traits(np.uint32),
    DType.U16: _traits(np.uint16),
    DType.U8: _traits(np.uint8),
    DType.BOOL: _traits(np.bool_),
    DType.F8E4M3FN: _traits(ml_dtypes.float8_e4m3fn, DType.F32, kind="f"),
    DType.F8E4M3FNUZ: _traits(ml_dtypes.float8_e4m3fnuz, DType.F32, kind="f"),
    DType.F8E5M2: _traits(ml_dtypes.float8_e5m2, DType.F32, kind="f"),
    DType.F8E5M2FNUZ: _traits(ml_dtypes.float8_e5m2fnuz, DType.F32, kind="f"),
    DType.F8E8M0: _traits(ml_dtypes.float8_e8m0fnu, DType.F32, kind="f"),
    DType.F4E2M1: _traits(ml_dtypes.float4_e2m1fn, DType.F32, kind="f", bits=4),
    DType.I4: _traits(ml_dtypes.int4, DType.I8, kind="i", bits=4),
    DType.U4: _traits(ml_dtypes.uint4, DType.U8, kind="u", bits=4),
    DType.I2: _traits(ml_dtypes.int2, DType.I8, kind="i", bits=2),
    DType.U2: _traits(ml_dtypes.uint2, DType.U8, kind="u", bits=2),
    DType.U1: _traits(ml_dtypes.uint1, DType.U8, kind="u", bits=1),
    DType.STR: _traits(np.object_),
}
_FROM_NUMPY = {t.numpy: k for k, t in _TRAITS.items() if k is not DType.STR}  # any object is no string
# by name: the types that kernels and passes know
DEVICE_TYPES: dict[str, DType] = {str(k.value): k for k in DType if k is not DType.STR}
FLOATS8 = (DType.F8E4M3FN, DType.F8E4M3FNUZ, DType.F8E5M2, DType.F8E5M2FNUZ)
INTS4 = (DType.I4, DType.U4, DType.I2, DType.U2)  # integers that are packed and quantised to
PLANES = (DType.U2, DType.U1)  # upper bits of integers whose lower four lie by themselves


def integer_range(dtype: DType) -> tuple[int, int]:
    """The least and the largest integer of an integer type."""
    bits = dtype.bits
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if dtype.is_signed else (0, (1 << bits) - 1)


def from_numpy(dtype: np.dtype | type) -> DType:
    """The DType of a numpy dtype. Raises UnsupportedError for one without, such as complex, string and object."""
    try:
        return _FROM_NUMPY[np.dtype(dtype)]
    except (KeyError, TypeError):
        raise UnsupportedError(
            f"element type {dtype} is not supported",
            hint="use f64, f32, f16, bf16, an integer type, bool, or one of ml_dtypes' types of 8 bits and less",
        ) from None


def stored_form(dtype: DType, shape: tuple[int, ...]) -> tuple[np.dtype, tuple[int, ...]]:
    """The dtype and the shape of the array that holds a tensor's bytes: of a packed type, u8 of one axis."""
    return (np.dtype(np.uint8), (dtype.nbytes(math.prod(shape)),)) if dtype.is_packed else (dtype.numpy, shape)


def pack(array: np.ndarray) -> np.ndarray:
    """The bytes that hold an array of a packed type, as u8 of one axis; bits behind the last element are 0.

    Of any other type: the array itself.
    """
    dtype = from_numpy(array.dtype)
    if not dtype.is_packed:
        return array
    per = dtype.per_byte
    patterns = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    whole = patterns.size // per * per
    packed = np.zeros(-(-patterns.size // per), np.uint8)
    for k in range(per):
        packed[: whole // per] |= (patterns[k:whole:per] & ((1 << dtype.bits) - 1)) << (k * dtype.bits)
    for k, last in enumerate(patterns[whole:]):
        packed[-1] |= (last & ((1 << dtype.bits) - 1)) << (k * dtype.bits)
    return packed


def unpack(packed: np.ndarray, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """The array of a packed type that ``pack`` made ``packed`` of. Of any other type: ``packed`` in that shape.

    ml_dtypes has an element's bits in the lowest ones of its byte, with zeros above.
    """
    if not dtype.is_packed:
        return packed.view(dtype.numpy).reshape(shape)
    per, bits = dtype.per_byte, dtype.bits
    flat = packed.reshape(-1).view(np.uint8)
    patterns = np.empty(flat.size * per, np.uint8)
    for k in range(per):
        patterns[k::per] = flat >> (k * bits) & ((1 << bits) - 1)
    return patterns[: math.prod(shape)].view(dtype.numpy).reshape(shape)
