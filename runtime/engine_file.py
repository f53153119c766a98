"""The engine file: one archive with the program, the kernels' sources and object code, weights and evidence.

Nothing in a file is trusted. ``manifest.json`` lists every member with its size and SHA-256, the program is checked
before use, and each violation is an EngineFileError. No member holds pickles or host code. The ``sim`` device compiles
the kernels' sources for the host: ``trust.py`` decides whether it may.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import mmap
import os
import secrets
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from arcweld.compiler.dtypes import DType, stored_form
from arcweld.compiler.errors import EngineFileError, EnvironmentError_
from arcweld.compiler.paths import replaceable
from arcweld.runtime import container, records, tensors_file
from arcweld.runtime.program import Program
from arcweld.runtime.validate import check_evidence, check_program, check_schema

FORMAT = "arcweld-engine"
FORMAT_VERSION = 1
MAX_JSON = 1 << 26
MAX_TEXT = 1 << 28

MANIFEST, GRAPH, WEIGHTS = "manifest.json", "graph.txt", "weights.safetensors"
TUNING, VERIFY = "tuning.json", "verify.json"
FILES = "files/"  # before the names of the model's other files


@dataclass(frozen=True, slots=True)
class EngineData:
    """The content of an engine, as read from a file or as made by a build.

    sources, ptx  texts and PTX by kernel name
    cubins        cubins by (architecture, kernel name)
    headers       by file name: what the sources include, stored so that any later version can compile them again
    weights       host arrays by name; read-only views of the mapped file where they were read from one
    verify        the evidence, a JSON value; None if there is none
    tuning        measured choices, a JSON value; None if there are none
    files         other files of the model by name, such as its tokenizer; nothing here reads them
    unchecked     the SHA-256 of the manifest of the file that it was read from, until ``trust.accepted`` vouches for
                  it; empty for what this process made
    """

    program: Program
    sources: Mapping[str, str]
    weights: Mapping[str, np.ndarray]
    headers: Mapping[str, str] = field(default_factory=dict)
    cubins: Mapping[tuple[str, str], bytes] = field(default_factory=dict)
    ptx: Mapping[str, bytes] = field(default_factory=dict)
    graph: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)
    tuning: Any = None
    verify: Any = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    unchecked: str = ""

    def with_files(self, files: Mapping[str, bytes]) -> EngineData:
        """The same engine with these files in place of its own."""
        return replace(self, files=dict(files))

    @property
    def archs(self) -> tuple[str, ...]:
        """Architectures for which the engine holds object code, sorted."""
        return tuple(sorted({arch for arch, _ in self.cubins}))


class _Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size: int
    sha256: str


class _Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    version: int
    archs: tuple[str, ...]
    provenance: dict[str, str]
    members: dict[str, _Member]
    program: Program


class _Header(msgspec.Struct, frozen=True):
    """The part of a manifest that is decoded first, so that a file of another version is reported as one."""

    format: str = ""
    version: int = -1


class _ProgramHeader(msgspec.Struct, frozen=True):
    schema: int


class _Schema(msgspec.Struct, frozen=True):
    """The part that is decoded next: a program of another schema has other members."""

    program: _ProgramHeader


def check_data(data: EngineData) -> None:
    """Checks the program, the presence, type and shape of its weights, and the form of the evidence.

    Raises EngineFileError.
    """
    check_program(data.program, data.sources)
    check_evidence(data.verify)
    for weight in data.program.weights:
        array = data.weights.get(weight.name)
        if array is None:
            raise EngineFileError(f"weight {weight.name!r} is missing")
        if (array.dtype, array.shape) != stored_form(DType(weight.dtype), weight.shape):
            raise EngineFileError(
                f"weight {weight.name!r} is {array.dtype}{list(array.shape)}, "
                f"the program expects {weight.dtype}{list(weight.shape)}"
            )


# ---------------------------------------------------------------------------------------------------- writing


def write_engine(path: str | os.PathLike[str], data: EngineData) -> None:
    """Writes an engine file atomically: it appears whole or not at all. Equal data give equal bytes.

    A record lets this user load the file on ``sim``, unless the data are a stranger's. Raises EngineFileError for
    inconsistent data, EnvironmentError_ if the file cannot be written.
    """
    check_data(data)
    target = replaceable(Path(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            with container.Writer(stream) as writer:
                manifest = _write_members(writer, data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise EnvironmentError_(
            f"cannot write the engine file {target}: {error.strerror or error}",
            hint="check the folder and free disk space",
        ) from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    _sync_folder(target.parent)
    if not data.unchecked:
        records.add(hashlib.sha256(manifest).hexdigest())


def engine_bytes(data: EngineData) -> bytes:
    """The bytes of an engine file, to be kept within another; they are recorded as ``write_engine`` does."""
    check_data(data)
    stream = io.BytesIO()
    with container.Writer(stream) as writer:
        manifest = _write_members(writer, data)
    if not data.unchecked:
        records.add(hashlib.sha256(manifest).hexdigest())
    return stream.getvalue()


def _sync_folder(folder: Path) -> None:
    """Makes the rename durable, on file systems that can sync a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_members(writer: container.Writer, data: EngineData) -> bytes:
    """Writes all members; returns the manifest, which names each with its hash."""

    def add(name: str, content: str | bytes) -> None:
        body = content.encode() if isinstance(content, str) else content
        writer.add(name, [body], len(body))

    add(GRAPH, data.graph)
    for name, text in sorted(data.sources.items()):
        add(f"kernels/{name}.cu", text)
    for name, text in sorted(data.headers.items()):
        add(f"kernels/include/{name}", text)
    for (arch, name), code in sorted(data.cubins.items()):
        add(f"cubin/{arch}/{name}.cubin", code)
    for name, code in sorted(data.ptx.items()):
        add(f"ptx/{name}.ptx", code)
    for name, content in sorted(data.files.items()):
        add(FILES + name, content)
    if data.tuning is not None:
        add(TUNING, msgspec.json.encode(data.tuning, order="sorted"))
    if data.verify is not None:
        add(VERIFY, msgspec.json.encode(data.verify, order="sorted"))
    weights = {w.name: data.weights[w.name] for w in data.program.weights}
    header, order, size = tensors_file.header(weights)
    writer.add(WEIGHTS, tensors_file.chunks(weights, header, order), size)
    manifest = _encode_manifest(data, writer.members)
    add(MANIFEST, manifest)
    return manifest


def _encode_manifest(data: EngineData, members: Mapping[str, tuple[int, str]]) -> bytes:
    manifest = _Manifest(
        format=FORMAT,
        version=FORMAT_VERSION,
        archs=data.archs,
        provenance=dict(sorted(data.provenance.items())),
        members={name: _Member(size, digest) for name, (size, digest) in members.items()},
        program=data.program,
    )
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1)


# ---------------------------------------------------------------------------------------------------- reading


def read_engine(path: str | os.PathLike[str], *, verify_weights: bool = True) -> EngineData:
    """Maps an engine file into memory and checks it. The weights are views of the mapping and keep it alive.

    ``verify_weights`` compares the weights' hash too (about a second for 2 GB). The other members' hashes are always
    compared. Raises EngineFileError for anything but an intact engine file of this format version.
    """
    try:
        with open(path, "rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise EngineFileError(f"there is no engine file {os.fspath(path)!r}") from None
    except (OSError, ValueError) as error:
        raise EngineFileError(f"cannot map the engine file {os.fspath(path)!r}: {error}") from None
    try:
        return parse_engine(memoryview(mapped), verify_weights=verify_weights)
    except EngineFileError as error:
        if error.node is None:
            raise EngineFileError(error.message, node=os.fspath(path), hint=error.hint) from None
        raise


def parse_engine(data: memoryview, *, verify_weights: bool = True) -> EngineData:
    """Like ``read_engine``, for the bytes of a file. Raises EngineFileError."""
    spans = container.read_directory(data)
    views = {name: data[s.offset : s.offset + s.size] for name, s in spans.items()}
    if MANIFEST not in spans or zlib.crc32(views[MANIFEST]) != spans[MANIFEST].crc:
        raise EngineFileError("the archive has no intact manifest.json", hint="is this an engine file?")
    listing = views.pop(MANIFEST)
    manifest = _read_manifest(listing)
    _check_members(views, manifest, verify_weights)
    sources, headers, cubins, ptx = _sort_kernels(views)
    if WEIGHTS not in views:
        raise EngineFileError("the engine file has no weights member")
    engine = EngineData(
        program=manifest.program,
        sources=sources,
        weights=tensors_file.read(views[WEIGHTS]),
        headers=headers,
        cubins=cubins,
        ptx=ptx,
        graph=_text(views[GRAPH], GRAPH) if GRAPH in views else "",
        provenance=manifest.provenance,
        tuning=_json(views.get(TUNING), TUNING),
        verify=_json(views.get(VERIFY), VERIFY),
        files={n.removeprefix(FILES): bytes(v) for n, v in views.items() if n.startswith(FILES)},
        unchecked=hashlib.sha256(listing).hexdigest(),
    )
    if tuple(manifest.archs) != engine.archs:
        raise EngineFileError("the manifest's architectures are not those of the object code")
    check_data(engine)
    return engine


def _read_manifest(view: memoryview) -> _Manifest:
    if len(view) > MAX_JSON:
        raise EngineFileError("manifest.json is too large")
    try:
        header = msgspec.json.decode(view, type=_Header)
        if header.format != FORMAT:
            raise EngineFileError("the archive's manifest is not that of an engine")
        if header.version != FORMAT_VERSION:
            raise EngineFileError(
                f"the engine file has format version {header.version}; this Arcweld reads {FORMAT_VERSION}",
                hint="build the engine again, or use the Arcweld version that wrote it",
            )
        check_schema(msgspec.json.decode(view, type=_Schema).program.schema)
        return msgspec.json.decode(view, type=_Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineFileError(f"manifest.json is damaged: {error}") from None


def _check_members(views: Mapping[str, memoryview], manifest: _Manifest, verify_weights: bool) -> None:
    if views.keys() != manifest.members.keys():
        odd = min(views.keys() ^ manifest.members.keys())
        raise EngineFileError(f"member {odd[:80]!r} is in the archive or in its manifest, not in both")
    for name, view in views.items():
        listed = manifest.members[name]
        if listed.size != len(view):
            raise EngineFileError(f"member {name} has {len(view)} bytes, the manifest says {listed.size}")
        if (name != WEIGHTS or verify_weights) and hashlib.sha256(view).hexdigest() != listed.sha256:
            raise EngineFileError(f"member {name} was altered or damaged: its hash is not the manifest's")


def _sort_kernels(
    views: Mapping[str, memoryview],
) -> tuple[dict[str, str], dict[str, str], dict[tuple[str, str], bytes], dict[str, bytes]]:
    sources: dict[str, str] = {}
    headers: dict[str, str] = {}
    cubins: dict[tuple[str, str], bytes] = {}
    ptx: dict[str, bytes] = {}
    for name, view in views.items():
        match name.split("/"):
            case ["kernels", file] if file.endswith(".cu"):
                sources[file.removesuffix(".cu")] = _text(view, name)
            case ["kernels", "include", file]:
                headers[file] = _text(view, name)
            case ["cubin", arch, file] if file.endswith(".cubin"):
                cubins[arch, file.removesuffix(".cubin")] = bytes(view)
            case ["ptx", file] if file.endswith(".ptx"):
                ptx[file.removesuffix(".ptx")] = bytes(view)
            case ["files", file] if file:
                continue
            case [_] if name in (GRAPH, WEIGHTS, TUNING, VERIFY):
                continue
            case _:
                raise EngineFileError(f"the archive holds the unknown member {name!r}")
    _require_sources([*(k for _, k in cubins), *ptx], sources)
    return sources, headers, cubins, ptx


def _require_sources(kernels: Iterable[str], sources: Mapping[str, str]) -> None:
    for kernel in kernels:
        if kernel not in sources:
            raise EngineFileError(f"kernel {kernel!r} has object code but no source")


def _text(view: memoryview, name: str) -> str:
    if len(view) > MAX_TEXT:
        raise EngineFileError(f"member {name} is too large for a text")
    try:
        return str(view, "utf-8")
    except UnicodeDecodeError as error:
        raise EngineFileError(f"member {name} is not a text: {error}") from None


def _json(view: memoryview | None, name: str) -> Any:
    if view is None:
        return None
    if len(view) > MAX_JSON:
        raise EngineFileError(f"member {name} is too large")
    try:
        return msgspec.json.decode(view)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EngineFileError(f"member {name} is damaged: {error}") from None
