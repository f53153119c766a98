"""Engine files from strangers never run as host code, unless this version makes the same or the caller says so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cli_models import mlp, mlp_result, mlp_weights

import arcweld
from arcweld.cli.app import main
from arcweld.compiler.errors import EngineFileError, UntrustedError
from arcweld.compiler.ir import Graph
from arcweld.compiler.text import parse_graph
from arcweld.driver import remake
from arcweld.driver.api import compile as compile_model
from arcweld.runtime import injected, records
from arcweld.runtime.engine import Engine
from arcweld.runtime.engine_file import EngineData, read_engine, write_engine
from arcweld.runtime.session import InferenceSession

X = np.linspace(-1, 1, 48, dtype=np.float32).reshape(3, 16)


@pytest.fixture(autouse=True)
def other_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records of nothing, as on another machine; compiled kernels are taken from the usual cache."""
    folder = tmp_path / "trust"
    monkeypatch.setattr(records, "_folder", lambda: folder)
    monkeypatch.delenv("ARCWELD_TRUST", raising=False)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> EngineData:
    model = mlp(tmp_path_factory.mktemp("strangers") / "mlp.onnx")
    return compile_model(model, device="sim", verify="off").data


def forged(data: EngineData, path: Path) -> Path:
    """Writes a file as a stranger would: with consistent hashes, and no record of it here."""
    write_engine(path, replace(data, unchecked="a stranger's"))
    return path


def hostile(data: EngineData, path: Path, witness: Path) -> Path:
    """Audited attack: a source whose static initialiser writes a file when its library is loaded."""
    name = min(data.sources)
    attack = (
        'extern "C" void* fopen(const char*, const char*);\n'
        f'static void* written = fopen("{witness}", "w");\n'
    )  # fmt: skip
    return forged(replace(data, sources={**data.sources, name: data.sources[name] + attack}), path)


def corrupting(data: EngineData, path: Path) -> Path:
    """Audited attack: genuine sources, and a temporary that is smaller than what they write."""
    temps = tuple(msgspec.structs.replace(t, shape=("N - 1", *t.shape[1:])) for t in data.program.temps)
    assert temps
    return forged(replace(data, program=msgspec.structs.replace(data.program, temps=temps)), path)


WAYS: dict[str, Callable[[Path], object]] = {
    "load": lambda p: arcweld.load(p, "sim"),
    "bytes": lambda p: arcweld.load(p.read_bytes(), "sim"),
    "session": lambda p: InferenceSession(p, "sim"),
    "engine": lambda p: Engine(read_engine(p), "sim"),
    "unhashed weights": lambda p: arcweld.load(p, "sim", verify_weights=False),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_static_initialiser_never_runs(way: str, built: EngineData, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    path = hostile(built, tmp_path / "h.engine", witness)
    with pytest.raises(UntrustedError) as caught:
        WAYS[way](path)
    assert "source of" in caught.value.message
    assert "host code" in caught.value.message
    for remedy in ("trusted=True", "--trust", "ARCWELD_TRUST=1"):
        assert remedy in str(caught.value.hint)
    assert not witness.exists()
    arcweld.load(path, "sim", trusted=True)
    assert witness.exists()  # so it would have run


@pytest.mark.parametrize("way", WAYS)
def test_an_altered_program_never_runs(way: str, built: EngineData, tmp_path: Path) -> None:
    path = corrupting(built, tmp_path / "c.engine")
    with pytest.raises(UntrustedError, match="other temps"):
        WAYS[way](path)


@pytest.mark.parametrize("command", ["run", "bench", "verify"])
def test_the_commands_refuse(
    command: str, built: EngineData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    witness = tmp_path / "witness"
    path = hostile(built, tmp_path / "h.engine", witness)
    model = mlp(tmp_path / "mlp.onnx")
    words = [command, str(path), "--device=sim", *(["--onnx", str(model)] if command == "verify" else [])]
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert "hint: " in shown
    assert "--trust" in shown
    assert not witness.exists()
    assert main([*words, "--trust", *(["--duration=0"] if command == "bench" else [])]) == 0
    assert witness.exists()


def test_inspecting_needs_no_trust(built: EngineData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    witness = tmp_path / "witness"
    path = hostile(built, tmp_path / "h.engine", witness)
    assert main(["inspect", str(path)]) == 0
    assert not witness.exists()


def test_the_variable(built: EngineData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hostile(built, tmp_path / "h.engine", tmp_path / "witness")
    for value in ("0", "", "yes"):
        monkeypatch.setenv("ARCWELD_TRUST", value)
        with pytest.raises(UntrustedError):
            arcweld.load(path, "sim")
    monkeypatch.setenv("ARCWELD_TRUST", "1")
    arcweld.load(path, "sim")


def test_a_genuine_engine_of_a_stranger_runs(built: EngineData, tmp_path: Path, other_machine: Path) -> None:
    path = forged(built, tmp_path / "g.engine")
    assert not other_machine.exists()
    got = arcweld.load(path, "sim")(X)
    np.testing.assert_allclose(got, mlp_result(X, mlp_weights()), rtol=1e-4, atol=1e-6)


def test_a_file_is_compared_once(built: EngineData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = forged(built, tmp_path / "g.engine")
    calls: list[str] = []
    compare = injected.difference
    assert compare is not None

    def counted(data: EngineData) -> str:
        calls.append(data.unchecked)
        return compare(data)

    monkeypatch.setattr(injected, "difference", counted)
    for _ in range(3):
        arcweld.load(path, "sim")
    assert len(calls) == 1


def test_what_was_built_here_runs_whatever_it_is(built: EngineData, tmp_path: Path) -> None:
    """As an engine of an older version, which the comparison would not accept."""
    name = min(built.sources)
    older = replace(built, sources={**built.sources, name: built.sources[name] + "// of an older version\n"})
    path = tmp_path / "o.engine"
    Engine(older, "sim").save(path)
    assert arcweld.load(path, "sim")(X).shape == (3, 10)
    shutil.copy(path, tmp_path / "copy.engine")
    arcweld.load(tmp_path / "copy.engine", "sim")


def test_weights_of_a_strangers_file_stay_strangers(
    built: EngineData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a file and writing it again vouches for nothing."""
    path = hostile(built, tmp_path / "h.engine", tmp_path / "witness")
    write_engine(tmp_path / "again.engine", read_engine(path))
    with pytest.raises(UntrustedError):
        arcweld.load(tmp_path / "again.engine", "sim")


def test_without_the_code_generator(built: EngineData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(injected, "difference", None)
    path = forged(built, tmp_path / "g.engine")
    with pytest.raises(UntrustedError, match="nothing here can compare it"):
        arcweld.load(path, "sim")
    arcweld.load(path, "sim", trusted=True)


# ------------------------------------------------------------------------------------------------------ records


@pytest.fixture
def recorded(other_machine: Path) -> Path:
    records.add("a" * 64)
    assert records.known("a" * 64)
    assert not records.known("b" * 64)
    return other_machine


def test_the_key_is_the_users_alone(recorded: Path) -> None:
    assert (recorded / "key").stat().st_mode & 0o777 == 0o600
    assert recorded.stat().st_mode & 0o777 == 0o700
    assert len((recorded / "key").read_bytes()) == 32
    assert all("a" * 64 not in p.name for p in recorded.rglob("*"))


@pytest.mark.parametrize("fault", ["readable", "short", "link", "folder", "other key", "gone"])
def test_a_key_of_somebody_else_vouches_for_nothing(fault: str, recorded: Path, tmp_path: Path) -> None:
    key = recorded / "key"
    content = key.read_bytes()
    if fault == "readable":
        key.chmod(0o640)
    else:
        key.unlink()
    if fault == "folder":
        key.mkdir()
    elif fault == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        (tmp_path / "elsewhere").chmod(0o600)
        key.symlink_to(tmp_path / "elsewhere")
    elif fault in ("short", "other key"):
        key.write_bytes(content[:-1] if fault == "short" else bytes(32))
        key.chmod(0o600)
    assert not records.known("a" * 64)
    records.add("c" * 64)  # harms nothing
    assert records.known("c" * 64) == (fault in ("other key", "gone"))


def test_the_number_of_records_is_bounded(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORDS", 20)
    for n in range(60):
        records.add(f"{n:064}")
    assert len(os.listdir(recorded / "engines")) <= 20
    assert records.known(f"{59:064}")


def test_a_cache_that_cannot_be_written_harms_nothing(
    built: EngineData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(records, "_folder", lambda: tmp_path / "file" / "trust")
    write_engine(tmp_path / "g.engine", built)
    assert arcweld.load(tmp_path / "g.engine", "sim")(X).shape == (3, 10)


def test_a_damaged_file_is_damaged_first(built: EngineData, tmp_path: Path) -> None:
    path = forged(built, tmp_path / "g.engine")
    data = bytearray(path.read_bytes())
    at = data.find(b"EXPORT_KERNEL")
    data[at] ^= 1
    with pytest.raises(EngineFileError, match="altered or damaged") as caught:
        arcweld.load(bytes(data), "sim", trusted=True)
    assert not isinstance(caught.value, UntrustedError)


def test_a_graph_that_takes_too_long_is_refused(
    built: EngineData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = "".join(f"%v{n + 1}: f32[3] = Relu(%v{n})\n" for n in range(60_000))
    graph = f"graph 'g'\ninput %v0: f32[3]\n{nodes}output %v60000\n"
    path = forged(replace(built, graph=graph), tmp_path / "g.engine")
    monkeypatch.setattr(remake, "SECONDS", 1)
    with pytest.raises(UntrustedError, match="takes more than 1 s of processor time") as caught:
        arcweld.load(path, "sim")
    assert "trusted=True" in (caught.value.hint or "")
    assert arcweld.load(path, "sim", trusted=True)(X).shape == (3, 10)


@pytest.mark.parametrize(
    ("what", "message"), [("abort", "ended with SIGABRT"), ("memory", "takes more than 64 MiB of memory")]
)
def test_a_graph_that_ends_the_comparison_is_refused(
    what: str, message: str, built: EngineData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(text: str) -> Graph:
        if what == "abort":
            os.abort()
        return parse_graph(text + " " * len(bytearray(256 << 20)))

    monkeypatch.setattr(remake, "parse_graph", parse)
    monkeypatch.setattr(remake, "MEMORY", 64 << 20)
    with pytest.raises(UntrustedError, match=f"comparing it with its graph {message}"):
        arcweld.load(forged(built, tmp_path / "g.engine"), "sim")
