"""A kernel's launch parameters, the members of its ``Params`` struct: one class a kind, from rendering to bytes.

``N`` is the form in which integers are written: a Dim while the kernel is rendered, its text in an engine file, a
compiled expression in an open engine, and an int once the shapes are known. ``convert`` leads from one to the next.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Generic, TypeAlias, TypeVar

import msgspec

N = TypeVar("N")
M = TypeVar("M")


def same(tensor: str) -> str:
    """Leaves the name of a tensor as it is."""
    return tensor


class Pointer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="pointer"):
    """The device address of ``tensor``."""

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
        return self.bits // 8

    @property
    def alignment(self) -> int:
        return self.bits // 8

    def convert(self, number: Callable[[N], M], tensor: Callable[[str], str] = same) -> Integer[M]:
        """The same parameter with its integers changed by ``number``."""
        return Integer(self.name, number(self.value), self.bits)


class Float(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="float"):
    """A constant in single precision."""

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
    """A TMA descriptor of a view of ``tensor`` that begins ``offset`` bytes after the tensor's first element.

    dims             elements along each dimension, the innermost first
    strides          bytes between neighbours along each dimension but the innermost
    box              elements that one copy spans along each dimension
    element_strides  distance of the elements that are copied, along each dimension
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


def struct_layout(parameters: Iterable[Parameter[N]]) -> tuple[tuple[int, ...], int]:
    """Byte offset of each member of the struct by natural alignment, and the struct's size."""
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
    """The struct's bytes for tensors at ``addresses``; ``encode`` makes a view's descriptor for its first address."""
    offsets, size = struct_layout(parameters)
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
