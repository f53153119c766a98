"""The engine file: what is written is read back, other tools can open it, and damage of any kind is a typed
error.
"""

from __future__ import annotations

import io
import os
import random
import zipfile
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from runtime_programs import chain

from arcweld.compiler import dims
from arcweld.compiler.errors import ArcweldError, EngineFileError, EnvironmentError_, InputError
from arcweld.compiler.parameters import Float, Integer, Parameter, Pointer, TensorMap
from arcweld.runtime import container, engine_file, tensors_file
from arcweld.runtime.engine_file import EngineData, parse_engine, read_engine, write_engine
from arcweld.runtime.expressions import Expression
from arcweld.runtime.program import SCHEMA, Alias, Launch, Symbol, Tensor
from arcweld.runtime.validate import check_program


def full() -> EngineData:
    return replace(
        chain(),
        headers={"prims.cuh": "// header\n"},
        cubins={("sm_80", "scale_add"): b"\x7fELF80", ("sm_90a", "scale_add"): b"\x7fELF90"},
        ptx={"scale_add": b".version 8.0\0"},
    )


def same(a: EngineData, b: EngineData) -> None:
    for name in ("program", "sources", "headers", "cubins", "ptx", "graph", "provenance", "tuning", "verify"):
        assert getattr(a, name) == getattr(b, name), name
    assert a.weights.keys() == b.weights.keys()
    for name, array in a.weights.items():
        assert array.dtype == b.weights[name].dtype
        np.testing.assert_array_equal(array, b.weights[name])


def file_bytes(data: EngineData) -> bytes:
    stream = io.BytesIO()
    with container.Writer(stream) as writer:
        engine_file._write_members(writer, data)
    return stream.getvalue()


def test_round_trip(tmp_path: Path) -> None:
    write_engine(tmp_path / "a.engine", full())
    same(full(), read_engine(tmp_path / "a.engine"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.engine"]


def test_same_data_gives_the_same_bytes(tmp_path: Path) -> None:
    write_engine(tmp_path / "a.engine", full())
    write_engine(tmp_path / "b.engine", full())
    assert (tmp_path / "a.engine").read_bytes() == (tmp_path / "b.engine").read_bytes()


def test_weights_are_aligned_read_only_views(tmp_path: Path) -> None:
    write_engine(tmp_path / "a.engine", full())
    for array in read_engine(tmp_path / "a.engine").weights.values():
        assert array.base is not None
        assert not array.flags.writeable
        assert array.ctypes.data % array.dtype.itemsize == 0


def test_other_tools_open_it(tmp_path: Path) -> None:
    write_engine(tmp_path / "a.engine", full())
    with zipfile.ZipFile(tmp_path / "a.engine") as archive:
        assert archive.testzip() is None
        assert archive.read("kernels/scale_add.cu").decode() == full().sources["scale_add"]
        tensors = safetensors.numpy.load(archive.read("weights.safetensors"))
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
    np.testing.assert_array_equal(tensors["half"], full().weights["half"])


def test_reads_what_the_safetensors_library_writes() -> None:
    import ml_dtypes

    arrays = {"a": np.arange(6, dtype=np.int8), "b": np.ones((2, 3)), "c": np.zeros((0, 4), np.float16)}
    back = tensors_file.read(memoryview(safetensors.numpy.save(arrays)))
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
    wide = {
        "h": np.arange(4).astype(ml_dtypes.bfloat16),
        "s": np.float32(3).reshape(()),
        "t": np.array([True, False]),
    }
    header, order, size = tensors_file.header(wide)
    data = b"".join(tensors_file.chunks(wide, header, order))
    assert len(data) == size
    assert tensors_file.read(memoryview(data))["h"].dtype == ml_dtypes.bfloat16
    listed = dict(safetensors.deserialize(data))
    assert listed["h"]["dtype"] == "BF16"
    assert bytes(listed["t"]["data"]) == b"\1\0"


def test_large_archives_use_64_bit_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)  # forces the records of files over 4 GB
    stream = io.BytesIO()
    with container.Writer(stream) as writer:
        writer.add("small", [b"abc"], 3)
        writer.add("large", [bytes(500)], 500)
        writer.add("late", [b"xyz"], 3)
    data = memoryview(stream.getvalue())
    spans = container.read_directory(data)
    assert bytes(data[spans["late"].offset :][:3]) == b"xyz"
    assert spans["large"].size == 500
    assert all(s.offset % container.ALIGNMENT == 0 for s in spans.values())


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.engine").write_bytes(b"older")

    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(EnvironmentError_, match="No space left"):
        write_engine(tmp_path / "a.engine", full())
    assert [p.name for p in tmp_path.iterdir()] == ["a.engine"]
    assert (tmp_path / "a.engine").read_bytes() == b"older"


def test_missing_folder_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentError_):
        write_engine(tmp_path / "no" / "a.engine", full())
    with pytest.raises(EngineFileError, match="no engine file"):
        read_engine(tmp_path / "a.engine")
    with pytest.raises(EngineFileError):
        read_engine(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(EngineFileError):
        read_engine(tmp_path / "empty")


def test_altered_weights_are_noticed_unless_told_otherwise() -> None:
    data = bytearray(file_bytes(full()))
    span = container.read_directory(memoryview(bytes(data)))["weights.safetensors"]
    data[span.offset + span.size - 1] ^= 1
    with pytest.raises(EngineFileError, match="altered"):
        parse_engine(memoryview(bytes(data)))
    parse_engine(memoryview(bytes(data)), verify_weights=False)


@pytest.mark.parametrize("verify", [True, False])
def test_two_thousand_mutations_never_do_more_than_refuse(verify: bool) -> None:
    """Bit flips, truncations, splices: the file is refused or says the same as before."""
    original = file_bytes(full())
    rng = random.Random(7)
    refused = 0
    for _ in range(1000):
        data = bytearray(original)
        kind = rng.randrange(6)
        at = rng.randrange(len(data))
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            length = rng.randrange(1, 64)
            data[at : at + length] = rng.randbytes(length)
        elif kind == 3:
            other = rng.randrange(len(data))
            data[at : at + 32] = data[other : other + 32]
        elif kind == 4:
            tail = len(data) - 1500  # the directory
            data[rng.randrange(tail, len(data))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
        else:
            del data[at : at + rng.randrange(1, 200)]
        try:
            engine = parse_engine(memoryview(bytes(data)), verify_weights=verify)
        except EngineFileError:
            refused += 1
            continue
        assert engine.program == full().program
        assert engine.sources == full().sources
    assert refused > 500


def test_mutated_manifests_never_do_more_than_refuse() -> None:
    """The same with a manifest that agrees with its hashes, as a hostile writer would make it."""
    rng = random.Random(11)
    program = msgspec.to_builtins(full().program)
    refused = 0
    for _ in range(600):
        broken = msgspec.json.decode(msgspec.json.encode(program))
        for _ in range(rng.randrange(1, 3)):
            _mutate(broken, rng)
        try:
            parsed = msgspec.json.decode(msgspec.json.encode(broken), type=type(full().program))
            check_program(parsed, full().sources)
        except (ArcweldError, msgspec.ValidationError):
            refused += 1
    assert refused > 300


def _mutate(value: object, rng: random.Random) -> None:
    """Replaces one leaf somewhere below ``value``."""
    odd = [
        None,
        -1,
        0,
        1 << 40,
        1 << 70,
        "",
        "x",
        "n*n//0",
        "(" * 300,
        "a" * 5000,
        [],
        {},
        1.5,
        "__import__('os')",
        "t",
    ]
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))  # type: ignore[call-overload, arg-type]
        if not keys:
            return
        key = rng.choice(keys)
        child = value[key]  # type: ignore[index]
        if isinstance(child, dict | list) and child and rng.random() < 0.9:
            value = child
            continue
        value[key] = rng.choice(odd)  # type: ignore[index]
        return


def archive(members: dict[str, bytes], compress: int = zipfile.ZIP_STORED) -> memoryview:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compress) as out:
        for name, content in members.items():
            out.writestr(name, content)
    return memoryview(stream.getvalue())


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/passwd",
        "a/../../b",
        "a//b",
        ".hidden",
        "a\\b",
        "a" * 300,
        "k\u00e9y",
        "a/b/c/d/e",
    ],
)
def test_odd_member_names_are_refused(name: str) -> None:
    with pytest.raises(EngineFileError):
        container.read_directory(archive({name: b"x"}))


def test_compressed_duplicate_and_bomb_members_are_refused() -> None:
    with pytest.raises(EngineFileError, match="compressed"):
        container.read_directory(archive({"a": bytes(100_000)}, zipfile.ZIP_DEFLATED))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as out:
        out.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            out.writestr("a", b"2")
    with pytest.raises(EngineFileError, match="twice"):
        container.read_directory(memoryview(stream.getvalue()))


def test_overlapping_members_are_refused() -> None:
    data = bytearray(archive({"a": b"1111", "b": b"2222"}))
    second = data.rindex(b"PK\1\2")
    data[second + 46 : second + 47] = b"a"  # both entries now name the first member's header
    data[second + 42 : second + 46] = bytes(4)
    with pytest.raises(EngineFileError):
        container.read_directory(memoryview(bytes(data)))


def test_other_versions_are_named() -> None:
    manifest = msgspec.json.encode({"format": "arcweld-engine", "version": 99, "new": 1})
    with pytest.raises(EngineFileError, match="version 99"):
        parse_engine(archive({"manifest.json": manifest}))
    with pytest.raises(EngineFileError, match="not that of an engine"):
        parse_engine(archive({"manifest.json": b"{}"}))
    old = replace(full(), program=msgspec.structs.replace(full().program, schema=77))
    with pytest.raises(EngineFileError, match="schema 77"):
        file_bytes_checked(old)


def test_a_program_of_another_schema_is_named_before_it_is_read() -> None:
    launches = [{"variants": [{"fields": [{"kind": "buffer", "value": "x"}]}]}]
    header = {"format": "arcweld-engine", "version": 1, "program": {"schema": SCHEMA - 1, "launches": launches}}
    with pytest.raises(EngineFileError, match=f"schema {SCHEMA - 1}; this version of Arcweld reads schema {SCHEMA}"):
        parse_engine(archive({"manifest.json": msgspec.json.encode(header)}))


def test_parameters_of_an_unknown_kind_are_refused() -> None:
    with zipfile.ZipFile(io.BytesIO(file_bytes(full()))) as file:
        manifest = file.read("manifest.json")
    assert b'"pointer"' in manifest
    with pytest.raises(EngineFileError, match="Invalid value 'string'"):
        parse_engine(archive({"manifest.json": manifest.replace(b'"pointer"', b'"string"', 1)}))


def file_bytes_checked(data: EngineData) -> None:
    parse_engine(memoryview(file_bytes(data)))


def changed(**parts: object) -> EngineData:
    return replace(chain(), program=msgspec.structs.replace(chain().program, **parts))


def launch(index: int = 0, **parts: object) -> tuple[Launch, ...]:
    launches = list(chain().program.launches)
    launches[index] = msgspec.structs.replace(launches[index], **parts)
    return tuple(launches)


def with_variant(**parts: object) -> EngineData:
    old = chain().program.launches[0].variants[0]
    return changed(launches=launch(variants=(msgspec.structs.replace(old, **parts),)))


def with_params(*params: Parameter[str]) -> EngineData:
    return with_variant(params=params)


def with_view(**parts: object) -> EngineData:
    good = TensorMap("map", "x", "0", ("8", "n"), ("32",), (8, 8), (1, 1))
    engine_file.check_data(with_params(good))
    return with_params(msgspec.structs.replace(good, **parts))


P = chain().program
BROKEN = {
    "tensor twice": changed(temps=(*P.temps, Tensor("t", "f32", ()))),
    "unknown dtype": changed(temps=(Tensor("t", "f31", ("n",)),)),
    "undeclared symbol": changed(temps=(Tensor("t", "f32", ("m",)),)),
    "unbound symbol": changed(symbols=(Symbol("n"), Symbol("m"))),
    "empty range": changed(symbols=(Symbol("n", 5, 4),)),
    "negative weight": changed(weights=(msgspec.structs.replace(P.weights[0], shape=(-8,)), P.weights[1])),
    "huge weight": changed(weights=(msgspec.structs.replace(P.weights[0], shape=(1 << 47, 1 << 47)), P.weights[1])),
    "alias circle": changed(aliases=(Alias("flat", "t"), Alias("t", "flat"))),
    "alias of nothing": changed(aliases=(Alias("flat", "nothing"),)),
    "alias of an input's name": changed(aliases=(Alias("x", "t"),)),
    "reads unwritten": changed(launches=P.launches[1:]),
    "writes an input": changed(launches=launch(writes=("x", "t"))),
    "output unwritten": changed(launches=P.launches[:2]),
    "unknown tensor": changed(launches=launch(reads=("nothing",))),
    "no variant": changed(launches=launch(variants=())),
    "clears what it reads": changed(launches=launch(zero=("x",))),
    "unknown kernel": with_variant(kernel="nothing"),
    "kernel outside": with_variant(kernel="../scale_add"),
    "entry with code": with_variant(entry="f();"),
    "arch": with_variant(arch="gfx90"),
    "block of 2048": with_variant(block=(1024, 2, 1)),
    "block of 0": with_variant(block=(0, 1, 1)),
    "shared": with_variant(shared_bytes=1 << 20),
    "cluster": with_variant(cluster=64),
    "grid code": with_variant(grid=("print(1)", "1", "1")),
    "pointer not declared": with_params(Pointer("y", "y")),
    "integer of 16 bits": with_params(Integer("n", "n", 16)),
    "integer code": with_params(Integer("n", "print(1)")),
    "infinite parameter": with_params(Float("f", float("inf"))),
    "tensor map not declared": with_view(tensor="y"),
    "tensor map offset": with_view(offset="m"),
    "tensor map rank": with_view(strides=()),
    "tensor map box": with_view(box=(8, 512)),
    "tensor map steps": with_view(element_strides=(1,)),
    "tensor map swizzle": with_view(swizzle=16),
    "too many parameters": with_params(*[TensorMap("map", "x", "0", ("8",), (), (8,), (1,))] * 300),
}


@pytest.mark.parametrize("name", BROKEN)
def test_impossible_programs_are_refused(name: str) -> None:
    with pytest.raises(EngineFileError):
        engine_file.check_data(BROKEN[name])


def test_weights_must_be_those_of_the_program() -> None:
    arrays = dict(chain().weights)
    with pytest.raises(EngineFileError, match="missing"):
        engine_file.check_data(replace(chain(), weights={"w": arrays["w"]}))
    with pytest.raises(EngineFileError, match="expects"):
        engine_file.check_data(replace(chain(), weights={**arrays, "w": arrays["w"].astype(np.float64)}))


TEXTS = [
    "7",
    "n",
    "-n + 3",
    "2*n + floordiv(h - 1, 2)",
    "mod(n, 5)*max(h, 3) - min(n, h)",
    "(n + 7)//8*h%11",
    "h*h*h",
]


@given(st.sampled_from(TEXTS), st.integers(0, 10**6), st.integers(0, 10**6))
def test_expressions_mean_what_dims_means(text: str, n: int, h: int) -> None:
    env = {"n": n, "h": h}
    assert Expression(text)(env) == dims.evaluate(dims.parse(text), env)


HOSTILE = [
    "", "n +", "n.real", "n[0]", "lambda: 0", "n ** n", "1 << 9", "f'{n}'", "__import__('os')", "eval(n, n)",
    "max(n)", "max(*n, n)", "max(a=n, b=n)", "1.5", "True", "n if n else 1", "(" * 300 + "n" + ")" * 300,
    "-" * 3000 + "n", "n*" * 2000 + "n", str(1 << 62), "floordiv", "n\0",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_expressions_are_refused(text: str) -> None:
    with pytest.raises(EngineFileError):
        Expression(text)


def test_undefined_and_huge_values_are_input_errors() -> None:
    with pytest.raises(InputError, match="zero"):
        Expression("8 // n")({"n": 0})
    with pytest.raises(InputError, match="62 bits"):
        Expression("*".join("n" * 60))({"n": 1 << 40})


@pytest.mark.parametrize(
    "evidence",
    [
        3, [], "text", {}, {"level": "full"}, {"level": 1, "kernels": [], "outputs": []},
        {"level": "full", "kernels": [1], "outputs": []}, {"level": "full", "kernels": [{}], "outputs": []},
        {"level": "full", "kernels": [{"kernel": "k", "status": "verified"}], "outputs": []},
        {"level": "full", "kernels": [{"kernel": "k", "status": "verified", "launch": {}}], "outputs": []},
        {"level": "full", "kernels": [], "outputs": [{"output": "y"}]},
        {"level": "full", "kernels": [], "outputs": [{"output": "y", "status": "verified", "nonfinite": "few"}]},
        {"level": "full", "kernels": [], "outputs": [], "shapes": {"x": "3"}},
        {"level": "full", "kernels": [], "outputs": [{"output": "y", "status": "verified", "error": "small"}]},
    ],
)  # fmt: skip
def test_evidence_of_another_form_is_refused(evidence: object) -> None:
    with pytest.raises(EngineFileError, match="evidence of verification is damaged"):
        engine_file.check_data(replace(full(), verify=evidence))
