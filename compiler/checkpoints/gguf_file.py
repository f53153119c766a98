"""Reads GGUF files of versions 2 and 3: text and numbers that describe the model, and where each tensor lies.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The package ``gguf`` reads these files too, but makes an
array for each entry of the vocabulary, takes the counts in a damaged file for granted, and does not look whether
tensors overlap. It decodes the types that have no packed form here (the extra ``llm``).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arcweld.compiler.checkpoints.checkpoint import Checkpoint
from arcweld.compiler.checkpoints.files import COPY_AGAIN, map_file, map_path, view
from arcweld.compiler.checkpoints.gguf_blocks import TYPES, GgufBlocks
from arcweld.compiler.checkpoints.tensors import Layout, Plain, StoredTensor
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import EnvironmentError_, ModelError, UnsupportedError
from arcweld.compiler.paths import open_inside
from arcweld.compiler.safetensors_format import Place

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_DIMENSIONS = 4
MOST_NESTING = 8  # arrays of arrays in a value that describes the model
_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_PLAIN = {
    0: DType.F32, 1: DType.F16, 24: DType.I8, 25: DType.I16, 26: DType.I32, 27: DType.I64, 28: DType.F64,
    30: DType.BF16,
}  # fmt: skip
_BLOCKS = {2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K"}


@dataclass(frozen=True, slots=True)
class OtherBlocks:
    """Blocks of a type that only the package ``gguf`` decodes: ``number`` is ggml's number of it."""

    kind: str
    number: int

    def widened(self, tensor: StoredTensor) -> str:
        """Always: the IR has no form of these blocks."""
        return f"{self.kind} has no packed form"

    def decode(self, tensor: StoredTensor) -> np.ndarray:
        """The tensor as f32, by the package ``gguf``."""
        gguf = _gguf(tensor.name, self.number)
        rows = tensor.parts["data"].reshape(*tensor.shape[:-1], -1)
        found: np.ndarray = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(self.number))
        return found.reshape(tensor.shape)

    def stored(self, tensor: StoredTensor) -> np.ndarray:
        """The tensor as f32."""
        return self.decode(tensor)


def open_gguf(path: Path) -> Checkpoint:
    """The checkpoint in a GGUF file; of a model in several files, ``path`` is the first one.

    Raises ModelError for a damaged file, UnsupportedError for versions, byte orders and types that are not read,
    EnvironmentError_ where a type needs the package ``gguf``, which is not installed.
    """
    metadata, tensors = _read(map_path(path), path.name)
    count = metadata.get("split.count", 1)
    if not isinstance(count, int) or not 0 <= count < 100_000:
        raise ModelError(f"split.count is {str(count)[:80]!r}", node=path.name, hint=COPY_AGAIN)
    for number in range(2, count + 1):
        name = _shard(path, number, count)
        with open_inside(path.parent, name, f"file {number} of {count} of the model {path.name!r}", hub=True) as file:
            _, more = _read(map_file(file, name), name)
        for tensor in more:
            if tensor in tensors:
                raise ModelError(f"tensor {tensor!r} is in two files of the model", node=name, hint=COPY_AGAIN)
        tensors.update(more)
    _check_count(metadata, tensors, path.name)
    _check_sizes(metadata, tensors, path.name)
    return Checkpoint(path, "GGUF", "", metadata, tensors)


def _shard(path: Path, number: int, count: int) -> str:
    found = _SHARD.fullmatch(path.name)
    if found is None or int(found["count"]) != count or int(found["number"]) != 1:
        raise ModelError(
            f"the model is in {count} files, and {path.name!r} is not called as the first of them",
            node=path.name,
            hint=f"open the file whose name ends in -00001-of-{count:05}.gguf",
        )
    return f"{found['stem']}-{number:05}-of-{count:05}.gguf"


def _check_count(metadata: Mapping[str, Any], tensors: Mapping[str, StoredTensor], name: str) -> None:
    stated = metadata.get("split.tensors.count", len(tensors))
    if stated != len(tensors):
        raise ModelError(f"the model has {len(tensors)} tensors, and its first file says {stated}", node=name,
                         hint=COPY_AGAIN)  # fmt: skip


def _check_sizes(metadata: Mapping[str, Any], tensors: Mapping[str, StoredTensor], name: str) -> None:
    """Raises ModelError where sizes that describe the model contradict its tensors."""
    arch = str(metadata.get("general.architecture", ""))[:80]
    table = tensors.get("token_embd.weight")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if table is not None and len(table.shape) == 2:
        for what, size, stated in (
            (f"{arch}.embedding_length", table.shape[1], metadata.get(f"{arch}.embedding_length")),
            ("the vocabulary", table.shape[0], len(tokens) if isinstance(tokens, Sequence) else None),
        ):
            if stated is not None and stated != size:
                raise ModelError(f"token_embd.weight is {list(table.shape)}, and {what} has {str(stated)[:80]}",
                                 node=name, hint="the file was put together wrongly: fetch another one")  # fmt: skip
    blocks = metadata.get(f"{arch}.block_count")
    found = 1 + max((int(m[1]) for m in (re.match(r"blk\.(\d{1,9})\.", t) for t in tensors) if m), default=-1)
    if isinstance(blocks, int) and found and found != blocks:
        raise ModelError(f"{arch}.block_count is {blocks}, and the file has tensors of {found} blocks", node=name,
                         hint="a part of the model is missing: fetch it again")  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- one file


class _Reader:
    """Reads one value after another; every length is compared with what is left before anything is made of it."""

    def __init__(self, data: np.ndarray, name: str) -> None:
        self.data, self.name, self.at, self.inside = data, name, 0, "the header"

    def broken(self, message: str) -> ModelError:
        return ModelError(f"{message}, in {self.inside}", node=self.name, hint=COPY_AGAIN)

    def take(self, size: int) -> np.ndarray:
        if size > self.data.size - self.at:
            raise self.broken(f"the file ends at byte {self.data.size}, and {size} bytes from {self.at} were expected")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)).data)[0]

    def count(self, least: int) -> int:
        """A number of things of at least ``least`` bytes each."""
        count: int = self.number("<Q")
        if count * least > self.data.size - self.at:
            raise self.broken(f"a count of {count} is more than the file has bytes for")
        return count

    def text(self) -> str:
        try:
            return self.take(self.count(1)).tobytes().decode()
        except UnicodeDecodeError as error:
            raise self.broken("text is not valid UTF-8") from error

    def value(self, kind: int, depth: int = 0) -> Any:
        """A value that describes the model: a number, text, a tuple of these, or an array of numbers."""
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY or depth == MOST_NESTING:
            raise self.broken(f"a value has the unknown type {kind}" if kind != _ARRAY else "arrays are nested deeply")
        inner = self.number("<I")
        if inner in _SCALARS:
            dtype = np.dtype(_SCALARS[inner])
            return self.take(self.count(dtype.itemsize) * dtype.itemsize).view(dtype)
        return tuple(self.value(inner, depth + 1) for _ in range(self.count(8)))


@dataclass(frozen=True, slots=True)
class _Info:
    """A tensor's logical shape, layout, offset from the start of the contents, and bytes."""

    shape: tuple[int, ...]
    layout: Layout
    offset: int
    nbytes: int


def _read(data: np.ndarray, name: str) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    reader = _Reader(data, name)
    if reader.take(4).tobytes() != MAGIC:
        raise ModelError("not a GGUF file: it does not begin with GGUF", node=name,
                         hint="name a GGUF file, or the folder of a Hugging Face model")  # fmt: skip
    version = reader.number("<I")
    if version not in VERSIONS:
        swapped = version & 0xFFFF == 0
        raise UnsupportedError(
            "a GGUF file in big-endian order" if swapped else f"version {version} of GGUF: versions 2 and 3 are read",
            node=name,
            hint="convert the file with llama.cpp",
        )
    tensors, values = reader.count(24), reader.count(13)  # an entry's name, type and least contents take these bytes
    metadata: dict[str, Any] = {}
    for _ in range(values):
        key = reader.text()
        if key in metadata:
            raise reader.broken(f"{key[:80]!r} is there twice")
        reader.inside = f"the value of {key[:80]!r}"
        metadata[key] = reader.value(reader.number("<I"))
    infos = _infos(reader, tensors)
    return metadata, _places(reader, infos, _alignment(reader, metadata))


def _alignment(reader: _Reader, metadata: Mapping[str, Any]) -> int:
    found = metadata.get("general.alignment", 32)
    if not isinstance(found, int) or found <= 0 or found & (found - 1):
        raise reader.broken(f"general.alignment is {str(found)[:80]!r}, which is no power of two")
    return found


def _infos(reader: _Reader, count: int) -> dict[str, _Info]:
    infos: dict[str, _Info] = {}
    for number in range(count):
        reader.inside = f"the entry of tensor {number + 1} of {count}"
        name = reader.text()
        if name in infos:
            raise reader.broken(f"tensor {name[:80]!r} is there twice")
        reader.inside = f"the entry of tensor {name[:80]!r}"
        rank = reader.number("<I")
        if rank > MOST_DIMENSIONS:
            raise reader.broken(f"it has {rank} dimensions")
        shape = tuple(reader.number("<Q") for _ in range(rank))[::-1]
        if not all(shape):
            raise reader.broken(f"it has no elements, its shape is {list(shape)}")
        layout, elements, nbytes = _layout(reader, name, reader.number("<I"))
        if math.prod(shape) >= 1 << 48 or max(shape, default=0) >= 1 << 48 or (shape or (1,))[-1] % elements:
            raise reader.broken(f"{list(shape)} elements do not fill blocks of {elements}")
        infos[name] = _Info(shape, layout, reader.number("<Q"), math.prod(shape) // elements * nbytes)
    return infos


def _layout(reader: _Reader, name: str, number: int) -> tuple[Layout, int, int]:
    """The layout of a tensor's type, the elements of a block of it, and their bytes."""
    if number in _PLAIN:
        return Plain(_PLAIN[number]), 1, _PLAIN[number].size
    if number in _BLOCKS:
        kind = _BLOCKS[number]
        return GgufBlocks(kind), TYPES[kind].elements, TYPES[kind].nbytes
    gguf = _gguf(name, number)
    try:
        kind = gguf.GGMLQuantizationType(number)
        elements, nbytes = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise UnsupportedError(
            f"tensor {name[:80]!r} has type {number}, which the installed package gguf does not know", node=reader.name,
            hint="install a newer version: pip install --upgrade gguf",
        ) from None  # fmt: skip
    return OtherBlocks(kind.name, number), elements, nbytes


def _gguf(name: str, number: int) -> Any:
    try:
        import gguf
    except ImportError:
        raise EnvironmentError_(
            f"tensor {name[:80]!r} has blocks of GGUF's type {number}, which the package gguf decodes",
            hint='pip install gguf, or ".[llm]"',
        ) from None
    return gguf


def _places(reader: _Reader, infos: Mapping[str, _Info], alignment: int) -> dict[str, StoredTensor]:
    """The tensors, after checks that each lies in the file, aligned, and apart from the others."""
    data, start = reader.data, -(-reader.at // alignment) * alignment
    end, before = start, ""
    for name, info in sorted(infos.items(), key=lambda i: (i[1].offset, i[1].nbytes)):
        reader.inside = f"tensor {name[:80]!r}"
        at = start + info.offset
        if info.offset % alignment:
            raise reader.broken(f"its offset {info.offset} is no multiple of {alignment}")
        if at + info.nbytes > data.size:
            raise reader.broken(f"the file ends at byte {data.size}, and it has bytes {at} to {at + info.nbytes}")
        if at < end:
            raise reader.broken(f"it overlaps tensor {before[:80]!r}")
        end, before = at + info.nbytes, name
    return {n: StoredTensor(n, i.shape, i.layout, {"data": _data(data, i, start)}, reader.name)
            for n, i in infos.items()}  # fmt: skip


def _data(data: np.ndarray, info: _Info, start: int) -> np.ndarray:
    at = start + info.offset
    if isinstance(info.layout, Plain):
        return view(data, Place(info.layout.dtype, info.shape, at, at + info.nbytes))
    return data[at : at + info.nbytes]
