"""Cuts the large weights out of an encoded ONNX model, so that decoding the rest neither reads nor copies them.

It follows the protobuf wire format (protobuf.dev/programming-guides/encoding) along the fields that hold weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from arcweld.compiler.errors import ModelError

LARGE = 1 << 16
Tree: TypeAlias = "Mapping[int, Tree]"
Cut: TypeAlias = tuple[int, int]  # offset and length in the file

_CUT_HERE: Tree = {}
_TENSOR: Tree = {9: _CUT_HERE}  # raw_data
# ModelProto.graph . GraphProto.initializer, and GraphProto.node . NodeProto.attribute . AttributeProto.t
_MODEL: Tree = {7: {5: _TENSOR, 1: {5: {5: _TENSOR}}}}


def cut_weights(data: memoryview, marker: bytes) -> tuple[bytes, Sequence[Cut]]:
    """The encoded model without its large weights, and the place of each in ``data``.

    The n-th large ``raw_data`` is replaced by ``marker`` and the 4 bytes of n. Raises ModelError for bytes that are no
    protobuf message.
    """
    cuts: list[Cut] = []
    return bytes(_copy(data, 0, len(data), _MODEL, marker, cuts)), cuts


def _copy(data: memoryview, start: int, end: int, tree: Tree, marker: bytes, cuts: list[Cut]) -> bytearray:
    """One message without its large weights."""
    out = bytearray()
    at = start
    while at < end:
        key, body = _varint(data, at, end)
        kind, inside = key & 7, tree.get(key >> 3)
        size = {1: 8, 5: 4}.get(kind, 0)
        if kind == 0:
            _, body = _varint(data, body, end)
        elif kind == 2:
            size, body = _varint(data, body, end)
        elif kind not in (1, 5):
            raise ModelError(f"not an ONNX model: wire type {kind} at byte {at}")
        stop = body + size
        if stop > end:
            raise ModelError(f"not an ONNX model: the field at byte {at} is cut off")
        if kind != 2 or inside is None or size < LARGE:
            out += data[at:stop]
        else:
            if inside is _CUT_HERE:
                payload = marker + len(cuts).to_bytes(4, "little")
                cuts.append((body, size))
            else:
                payload = bytes(_copy(data, body, stop, inside, marker, cuts))
            out += _encoded(key) + _encoded(len(payload)) + payload
        at = stop
    return out


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """The varint at offset ``at``, and the offset of its end."""
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise ModelError(f"not an ONNX model: a number at byte {at} has no end")


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
