"""The element types of tensors, and their names in numpy and in CUDA source."""

from __future__ import annotations

from enum import Enum

import ml_dtypes
import numpy as np

from arcweld.compiler.errors import UnsupportedError


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

    @property
    def numpy(self) -> np.dtype:
        """The numpy dtype with the same bits (bfloat16 comes from ml_dtypes)."""
        return _NUMPY[self]

    @property
    def size(self) -> int:
        """Bytes of one element."""
        return _NUMPY[self].itemsize

    @property
    def cuda(self) -> str:
        """The scalar type's name in generated source (typedefs of ``prims.cuh``)."""
        return self.value

    @property
    def is_float(self) -> bool:
        """True for the floating-point types."""
        return self in (DType.F64, DType.F32, DType.F16, DType.BF16)

    @property
    def is_half(self) -> bool:
        """True for the 16-bit floating-point types."""
        return self in (DType.F16, DType.BF16)

    @property
    def is_int(self) -> bool:
        """True for the integer types, signed or not; false for bool."""
        return not self.is_float and self is not DType.BOOL

    @property
    def is_signed(self) -> bool:
        """True for the types with negative values."""
        return self.is_float or self in (DType.I64, DType.I32, DType.I16, DType.I8)

    @property
    def compute(self) -> DType:
        """The type in which kernels compute with values of this type: f32 for 16-bit floats, else the type itself."""
        return DType.F32 if self.is_half else self


_NUMPY: dict[DType, np.dtype] = {
    DType.F64: np.dtype(np.float64),
    DType.F32: np.dtype(np.float32),
    DType.F16: np.dtype(np.float16),
    DType.BF16: np.dtype(ml_dtypes.bfloat16),
    DType.I64: np.dtype(np.int64),
    DType.I32: np.dtype(np.int32),
    DType.I16: np.dtype(np.int16),
    DType.I8: np.dtype(np.int8),
    DType.U64: np.dtype(np.uint64),
    DType.U32: np.dtype(np.uint32),
    DType.U16: np.dtype(np.uint16),
    DType.U8: np.dtype(np.uint8),
    DType.BOOL: np.dtype(np.bool_),
}
_FROM_NUMPY = {v: k for k, v in _NUMPY.items()}


def from_numpy(dtype: np.dtype | type) -> DType:
    """The DType of a numpy dtype. Raises UnsupportedError for one without, such as complex, string and object."""
    try:
        return _FROM_NUMPY[np.dtype(dtype)]
    except (KeyError, TypeError):
        raise UnsupportedError(
            f"element type {dtype} is not supported", hint="use f64, f32, f16, bf16, an integer type or bool"
        ) from None
