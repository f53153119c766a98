"""The wheel that users install: small, complete, importable without the repository."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from checkout import PARTS, ROOT, copy_checkout

SHIPPED = (".py", ".j2", ".css", ".js", ".cuh", ".h", ".cpp", ".typed")

IMPORT_ALL = """
import importlib, pkgutil, sys
import arcweld
assert arcweld.__file__.startswith(sys.argv[1]), arcweld.__file__
own = ("arcweld.__main__", "arcweld.model_explorer.main")  # a script, and what only Model Explorer imports
names = [m.name for m in pkgutil.walk_packages(arcweld.__path__, "arcweld.") if m.name not in own]
for name in names:
    found = importlib.import_module(name).__file__
    assert found.startswith(sys.argv[1]), found
print(len(names))
"""


def sources() -> dict[str, Path]:
    """Every file that must ship, by its path inside the wheel."""
    found = {}
    for folder in ("arcweld", *PARTS):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in SHIPPED and "__pycache__" not in path.parts:
                inside = path.relative_to(ROOT).as_posix()
                found[inside if folder == "arcweld" else f"arcweld/{inside}"] = path
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources, so that no left-over of an earlier build gets in."""
    tree, out = copy_checkout(tmp_path_factory.mktemp("tree") / "arcweld"), tmp_path_factory.mktemp("wheel")
    return build_wheel(tree, out)


def build_wheel(source: Path, out: Path) -> Path:
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(out), str(source)], check=True)
    (made,) = out.glob("arcweld-*.whl")
    return made


def test_the_wheel_is_small_and_pure_python(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    assert wheel.stat().st_size < 1_700_000
    said = re.search(r"The wheel has about ([\d.]+) MB", (ROOT / "docs" / "models.md").read_text(encoding="utf-8"))
    assert said is not None
    assert abs(wheel.stat().st_size / 1e6 - float(said[1])) < 0.1


def test_every_source_template_header_and_simulator_file_ships(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {n for n in archive.namelist() if ".dist-info/" not in n}
        licences = [n for n in archive.namelist() if n.endswith("LICENSE")]
    wanted = sources()
    assert sorted(set(wanted) - shipped) == []
    assert sorted(shipped - set(wanted)) == []
    assert licences
    for part in ("codegen/templates/pointwise/pointwise.cu.j2", "codegen/include/prims.cuh", "runtime/sim/cuda_sim.h"):
        assert f"arcweld/{part}" in shipped


def test_every_module_imports_from_the_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    options = ["--no-deps", "--no-index", "--disable-pip-version-check", "--quiet", "--no-compile"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(wheel)], check=True)
    folders = {p.name for p in target.iterdir() if p.suffix != ".dist-info"}
    assert folders == {"arcweld", "bin"}  # nothing generic lands in a user's site-packages
    script = f"import sys; sys.path.insert(0, {str(target)!r})\n{IMPORT_ALL}"
    done = subprocess.run(
        [sys.executable, "-c", script, str(target)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 100


def test_the_source_distribution_gives_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    tree, out = copy_checkout(tmp_path / "arcweld"), tmp_path / "out"
    script = f"import setuptools.build_meta as backend; backend.build_sdist({str(out)!r})"
    subprocess.run([sys.executable, "-c", script], cwd=tree, capture_output=True, check=True)
    (archive,) = out.glob("arcweld-*.tar.gz")
    again = build_wheel(archive, out)
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert {i.filename: i.CRC for i in one.infolist()} == {i.filename: i.CRC for i in other.infolist()}
