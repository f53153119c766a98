"""A kernel's launch parameters, the members of its ``Params`` struct: one class for each kind of member.

``N`` is the type of integers that may depend on shapes: a Dim while the kernel is rendered, its text in an engine file,
a compiled expression in an open engine, and an int once the shapes are known. ``convert`` goes from one to the next.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Generic, TypeAlias, TypeVar

import msgspec

N = TypeVar("N")
M = TypeVar("M")


def same(tensor: str) -> str:
    """``tensor`` itself: the default renaming of ``convert``."""
    return tensor


class Pointer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="pointer"):
    """The device address of ``tensor``: 8 bytes."""

    size: ClassVar[int] = 8
    alignment: ClassVar[int] = 8

    name: str
    tensor: str

    def convert(self, number: Callable[..., object], tensor: Callable[[str], str] = same) -> Pointer:
        """The same parameter with its tensor named by ``tensor``."""
        return Pointer(self.name, tensor(self.tensor))


class Integer(msgspec.Struct, Generic[N], frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="integer"):
    """A signed integer of 32 or 64 bits."""

    name: str
    value: N
    bits: int = 32

    @property
    def size(self) -> int:
        """Bytes of the member."""
        return self.bits // 8

    @property
    def alignment(self) -> int:
        """Bytes of which the member's offset is a multiple."""
        return self.bits // 8

    def convert(self, number: Callable[[N], M], tensor: Callable[[str], str] = same) -> Integer[M]:
        """The same parameter with its integers changed by ``number``."""
        return Integer(self.name, number(self.value), self.bits)


class Float(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="float"):
    """A constant in single precision: 4 bytes."""

    size: ClassVar[int] = 4
    alignment: ClassVar[int] = 4

    name: str
    value: float

    def convert(self, number: Callable[..., object], tensor: Callable[[str], str] = same) -> Float:
        """The parameter itself: it holds neither an integer nor a tensor."""
        return self


class TensorMap(
    msgspec.Struct, Generic[N], frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="tensor_map"
):
    """A TMA descriptor (``CUtensorMap``, 128 bytes) of a view of ``tensor``.

    Dimensions are in the order of ``cuTensorMapEncodeTiled`` of the CUDA driver API: the innermost first. Elements of a
    packed type's view are bytes.

    offset           bytes from the tensor's first element to the view's
    dims             elements along each dimension
    strides          bytes between neighbours along each dimension but the innermost
    box              elements that one copy spans along each dimension
    element_strides  elements from one that is copied to the next, along each dimension
    swizzle          bytes of the swizzle pattern in shared memory: 32, 64, 128, or 0 for none
    """

    size: ClassVar[int] = 128
    alignment: ClassVar[int] = 64

    name: str
    tensor: str
    offset: N
    dims: tuple[N, ...]
    strides: tuple[N, ...]
    box: tuple[int, ...]
    element_strides: tuple[int, ...]
    swizzle: int = 128

    def convert(self, number: Callable[[N], M], tensor: Callable[[str], str] = same) -> TensorMap[M]:
        """The same parameter with its integers changed by ``number`` and its tensor named by ``tensor``."""
        return TensorMap(
            self.name, tensor(self.tensor), number(self.offset), tuple(map(number, self.dims)),
            tuple(map(number, self.strides)), self.box, self.element_strides, self.swizzle,
        )  # fmt: skip


Parameter: TypeAlias = Pointer | Integer[N] | Float | TensorMap[N]


def struct_offsets(parameters: Iterable[Parameter[N]]) -> tuple[tuple[int, ...], int]:
    """The offset of each member of the struct and the struct's size, in bytes, by the alignment rules of C."""
    at, most, offsets = 0, 1, []
    for p in parameters:
        at = -(-at // p.alignment) * p.alignment
        offsets.append(at)
        at += p.size
        most = max(most, p.alignment)
    return tuple(offsets), -(-at // most) * most


def pack(
    parameters: Sequence[Parameter[int]],
    addresses: Mapping[str, int],
    encode: Callable[[TensorMap[int], int], bytes],
) -> bytes:
    """The struct's bytes, little-endian.

    ``addresses`` maps tensors to device addresses. ``encode`` makes the 128 bytes of a descriptor, given its parameter
    and the address at which its view begins. Raises KeyError for a tensor without an address, struct.error for an
    integer that does not fit its member.
    """
    offsets, size = struct_offsets(parameters)
    packed = bytearray(size)
    for at, p in zip(offsets, parameters):
        match p:
            case Pointer():
                struct.pack_into("<Q", packed, at, addresses[p.tensor])
            case Integer():
                struct.pack_into("<i" if p.bits == 32 else "<q", packed, at, p.value)
            case Float():
                struct.pack_into("<f", packed, at, p.value)
            case TensorMap():
                packed[at : at + p.size] = encode(p, addresses[p.tensor] + p.offset)
    return bytes(packed)
