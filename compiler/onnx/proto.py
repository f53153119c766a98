"""Reads ONNX files: protobuf decoding, tensors as numpy views, external data, attributes.

No file is trusted: sizes are checked before memory is allocated, and a damaged file raises ModelError.
"""

from __future__ import annotations

import math
import mmap
import os
import secrets
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, TensorProto

from arcweld.compiler.dtypes import DType, integer_range, unpack
from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.onnx.skeleton import Cut, cut_weights
from arcweld.compiler.paths import open_inside

ModelSource: TypeAlias = "str | Path | bytes | onnx.ModelProto"
AttrValue: TypeAlias = Any  # int, float, str, tuple of them, ndarray, GraphProto

MAX_FILE_BYTES = 2**31 - 1  # protobuf's own limit
MAX_ELEMENTS = 2**40

DTYPES: Mapping[int, DType] = {
    TensorProto.DOUBLE: DType.F64,
    TensorProto.FLOAT: DType.F32,
    TensorProto.FLOAT16: DType.F16,
    TensorProto.BFLOAT16: DType.BF16,
    TensorProto.INT64: DType.I64,
    TensorProto.INT32: DType.I32,
    TensorProto.INT16: DType.I16,
    TensorProto.INT8: DType.I8,
    TensorProto.UINT64: DType.U64,
    TensorProto.UINT32: DType.U32,
    TensorProto.UINT16: DType.U16,
    TensorProto.UINT8: DType.U8,
    TensorProto.BOOL: DType.BOOL,
    TensorProto.FLOAT8E4M3FN: DType.F8E4M3FN,
    TensorProto.FLOAT8E4M3FNUZ: DType.F8E4M3FNUZ,
    TensorProto.FLOAT8E5M2: DType.F8E5M2,
    TensorProto.FLOAT8E5M2FNUZ: DType.F8E5M2FNUZ,
    TensorProto.FLOAT8E8M0: DType.F8E8M0,
    TensorProto.FLOAT4E2M1: DType.F4E2M1,
    TensorProto.INT4: DType.I4,
    TensorProto.UINT4: DType.U4,
    TensorProto.INT2: DType.I2,
    TensorProto.UINT2: DType.U2,
    TensorProto.STRING: DType.STR,
}
# the typed field that holds each element type where there is no raw data; narrow types share int32_data
_FIELDS: Mapping[DType, tuple[str, np.dtype]] = {
    DType.F32: ("float_data", np.dtype(np.float32)),
    DType.F64: ("double_data", np.dtype(np.float64)),
    DType.I64: ("int64_data", np.dtype(np.int64)),
    DType.U64: ("uint64_data", np.dtype(np.uint64)),
    DType.U32: ("uint64_data", np.dtype(np.uint64)),
}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model's data is: the folder of its external data, and the mapped file with the weights that were cut out.

    A tensor whose raw data is ``marker`` and a number n has its contents in the mapped file at ``cuts[n]``.
    """

    folder: Path | None = None
    file: mmap.mmap | None = None
    marker: bytes = b""
    cuts: Sequence[Cut] = ()

    def contents(self, raw: bytes) -> bytes | memoryview:
        """A tensor's contents, given its ``raw_data`` field: a view of the mapped file if they were cut out."""
        if not self.cuts or self.file is None or not raw.startswith(self.marker):
            return raw
        offset, length = self.cuts[int.from_bytes(raw[len(self.marker) :], "little")]
        return memoryview(self.file)[offset : offset + length]


def load_model(source: ModelSource) -> tuple[onnx.ModelProto, Source]:
    """The decoded model, and where its data is.

    Raises ModelError for a missing or undecodable file, and for a model without a graph or without opsets.
    """
    if isinstance(source, onnx.ModelProto):
        model, place, name = source, Source(), "model"
    elif isinstance(source, bytes):
        model, place, name = _decode(source, "model"), Source(), "model"
    else:
        path = Path(source)
        name, mapped = str(path), _map(path)
        marker = secrets.token_bytes(16)  # random, so that no weight in the file begins with it
        rest, cuts = (b"", ()) if mapped is None else _without_weights(mapped, marker, name)
        model, place = _decode(rest, name), Source(path.parent, mapped, marker, cuts)
    if not model.HasField("graph"):
        raise ModelError("not an ONNX model: it holds no graph", node=name)
    if not model.opset_import:
        raise ModelError("the model does not say which operator set it uses", node=name)
    return model, place


def _without_weights(mapped: mmap.mmap, marker: bytes, name: str) -> tuple[bytes, Sequence[Cut]]:
    with memoryview(mapped) as data:
        try:
            return cut_weights(data, marker)
        except ModelError as error:
            raise ModelError(error.message, node=name) from None


def _map(path: Path) -> mmap.mmap | None:
    """The file, mapped; None for an empty one, which cannot be mapped."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ModelError(
                "the file is larger than protobuf's limit of 2 GiB",
                node=str(path),
                hint="save the weights as external data",
            )
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
    except OSError as error:
        raise ModelError(f"cannot read the model file: {error.strerror or error}", node=str(path)) from error


def _decode(data: bytes, name: str) -> onnx.ModelProto:
    try:
        model = onnx.ModelProto.FromString(data)
    except (DecodeError, RuntimeError, ValueError) as error:
        raise ModelError(f"not an ONNX model: {error}", node=name) from error
    _check_text(model, name)
    return model


def _check_text(message: Any, name: str) -> None:
    """Raises ModelError if the field ``name`` is no valid UTF-8, for which the decoder returns bytes."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            for text in [value] if isinstance(value, str | bytes) else value:
                if not isinstance(text, str):
                    raise ModelError(f"the field {field.name} is not valid text", node=name)
        elif field.type == field.TYPE_MESSAGE:
            for inner in [value] if hasattr(value, "ListFields") else value:
                _check_text(inner, name)


# --------------------------------------------------------------------------------------------------------- tensors


def element_type(code: int) -> DType:
    """The DType of an ONNX element type. Raises UnsupportedError for complex numbers."""
    if code in DTYPES:
        return DTYPES[code]
    known = {v: k for k, v in TensorProto.DataType.items()}
    raise UnsupportedError(f"element type {known.get(code, code)} is not supported")


def tensor_shape(tensor: TensorProto) -> tuple[int, ...]:
    """The shape of a tensor. Raises ModelError for negative dimensions and for too many elements."""
    shape = tuple(int(d) for d in tensor.dims)
    if any(d < 0 for d in shape) or math.prod(shape) > MAX_ELEMENTS or max(shape, default=0) > MAX_ELEMENTS:
        raise ModelError(f"tensor {tensor.name!r} has the impossible shape {list(shape)}")
    return shape


def tensor_array(tensor: TensorProto, source: Source) -> tuple[np.ndarray, DType]:
    """A tensor's contents: a view of its raw bytes, or a read-only memory map of its external data.

    Elements of packed types get a byte each. Raises ModelError where sizes disagree, UnsupportedError for the type.
    """
    shape = tensor_shape(tensor)
    if tensor.HasField("segment"):
        raise UnsupportedError(f"tensor {tensor.name!r} is stored in segments")
    dtype = element_type(tensor.data_type)
    if dtype.is_string:
        return _strings(tensor, shape), dtype
    if tensor.data_location == TensorProto.EXTERNAL:
        array = _external(tensor, shape, dtype, source.folder)
    elif tensor.HasField("raw_data"):
        array = _raw(tensor, shape, dtype, source)
    else:
        array = _typed(tensor, shape, dtype)
    return (unpack(array, dtype, shape) if dtype.is_packed else array.reshape(shape)), dtype


def _strings(tensor: TensorProto, shape: tuple[int, ...]) -> np.ndarray:
    """The elements of a tensor of strings. Raises ModelError for others than its shape needs, and for bytes."""
    need = math.prod(shape)
    if len(tensor.string_data) != need or tensor.data_location == TensorProto.EXTERNAL or tensor.HasField("raw_data"):
        found = len(tensor.string_data)
        raise ModelError(f"tensor {tensor.name!r} of shape {list(shape)} needs {need} strings, it has {found}")
    try:
        return np.array([s.decode() for s in tensor.string_data], object).reshape(shape)
    except UnicodeDecodeError as error:
        raise ModelError(f"tensor {tensor.name!r} holds bytes that are not valid text") from error


def _stored(dtype: DType) -> np.dtype:
    """What a file's bytes are read as."""
    return np.dtype(np.uint8) if dtype.is_packed else dtype.numpy


def _raw(tensor: TensorProto, shape: tuple[int, ...], dtype: DType, source: Source) -> np.ndarray:
    raw = source.contents(tensor.raw_data)
    need = dtype.nbytes(math.prod(shape))
    if len(raw) != need:
        raise ModelError(f"tensor {tensor.name!r} of shape {list(shape)} needs {need} bytes but holds {len(raw)}")
    return np.frombuffer(raw, _stored(dtype))


def _typed(tensor: TensorProto, shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    """The elements of a typed field. Narrow types are there as patterns, packed ones byte by byte."""
    field, wide = _FIELDS.get(dtype, ("int32_data", np.dtype(np.int32)))
    values = getattr(tensor, field)
    need = dtype.nbytes(math.prod(shape)) if dtype.is_packed else math.prod(shape)
    if len(values) != need:
        raise ModelError(f"tensor {tensor.name!r} of shape {list(shape)} needs {need} elements, it has {len(values)}")
    array = np.array(values, wide)
    _check_range(tensor, array, dtype)
    if dtype.is_packed:
        return array.astype(np.uint8)
    if dtype.compute is dtype:
        return array.astype(dtype.numpy)
    return array.astype(np.uint16 if dtype.is_half else np.uint8).view(dtype.numpy)


def _check_range(tensor: TensorProto, values: np.ndarray, dtype: DType) -> None:
    """Raises ModelError for a value that a narrow type cannot hold. Floats are patterns, packed types whole bytes."""
    if not values.size or values.dtype.kind == "f" or dtype.bits >= 32:
        return
    patterns = dtype.is_float or dtype.is_packed
    low, high = (0, (1 << max(dtype.bits, 8)) - 1) if patterns else (0, 1)
    if dtype.is_int and not patterns:
        low, high = integer_range(dtype)
    wrong = values[(values < low) | (values > high)]
    if wrong.size:
        raise ModelError(f"tensor {tensor.name!r} holds {wrong[0]}, which {dtype.value} cannot be: {low} to {high} can")


def _external(
    tensor: TensorProto, shape: tuple[int, ...], dtype: DType, folder: Path | None
) -> np.ndarray:
    info = {e.key: e.value for e in tensor.external_data}
    location = info.get("location", "")
    place = f"external data of tensor {tensor.name!r} in file {location!r}"
    if folder is None:
        raise ModelError(f"{place}: the model was not read from a file", hint="pass the path of the .onnx file")
    try:
        offset = int(info.get("offset", "0"))
        length = int(info["length"]) if "length" in info else None
    except ValueError as error:
        raise ModelError(f"{place}: {error}") from error
    need = dtype.nbytes(math.prod(shape))
    with open_inside(folder, location, place) as file:
        found = os.fstat(file.fileno())
        size = found.st_size if stat.S_ISREG(found.st_mode) else -1
        if offset < 0 or (length is not None and length != need) or offset + need > size:
            raise ModelError(f"{place}: bytes {offset}..{offset + need} were expected, the file has {max(size, 0)}")
        stored = _stored(dtype)
        return np.memmap(file, stored, "r", offset, (need // stored.itemsize,)) if need else np.zeros(0, stored)


# ------------------------------------------------------------------------------------------------------ attributes

_KINDS = {
    AttributeProto.INT: "i", AttributeProto.FLOAT: "f", AttributeProto.STRING: "s", AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g", AttributeProto.INTS: "ints", AttributeProto.FLOATS: "floats",
    AttributeProto.STRINGS: "strings", AttributeProto.TENSORS: "tensors", AttributeProto.GRAPHS: "graphs",
    AttributeProto.TYPE_PROTO: "tp",
}  # fmt: skip


def attribute_value(attr: AttributeProto, source: Source) -> AttrValue:
    """An attribute as a Python value: int, float, str, tuple of them, (ndarray, DType), GraphProto, or TypeProto.

    Raises ModelError for an attribute without a value and for text that is not UTF-8.
    """
    kind = _KINDS.get(attr.type)
    if kind is None:  # files older than IR version 3 may leave the type out
        kind = next((k for k in ("i", "f", "s", "t", "g") if attr.HasField(k)), None)
        kind = kind or next((k for k in ("ints", "floats", "strings") if len(getattr(attr, k))), None)
    if kind is None:
        raise UnsupportedError(f"attribute {attr.name!r} has the unknown type {attr.type}")
    value = getattr(attr, kind)
    try:
        if kind == "s":
            return value.decode()
        if kind == "strings":
            return tuple(v.decode() for v in value)
    except UnicodeDecodeError as error:
        raise ModelError(f"attribute {attr.name!r} is not valid text") from error
    if kind == "t":
        return tensor_array(value, source)
    return tuple(value) if kind in ("ints", "floats", "tensors", "graphs") else value


def complaint(node: onnx.NodeProto, opsets: Mapping[str, int]) -> str | None:
    """What ONNX's checker has against the node's attributes and numbers of operands, in its words; None for nothing.

    It is empty for an operator that ONNX does not know.
    """
    context = onnx.checker.C.CheckerContext()
    context.ir_version = onnx.IR_VERSION
    context.opset_imports = {d: v for d, v in opsets.items() if 0 < v < 2**31}  # others make the checker raise
    domain = "" if node.domain == "ai.onnx" else node.domain
    if not onnx.defs.has(node.op_type, domain=domain):
        return ""
    try:
        onnx.checker.check_node(node, context)
    except onnx.checker.ValidationError as error:
        return str(error).partition("\n")[0].rstrip(".")
    return None
