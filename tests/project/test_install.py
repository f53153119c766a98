"""An editable install of a checkout called ``arcweld``: imports from any folder, with its types, always current."""

from __future__ import annotations

import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest
from checkout import PARTS, copy_checkout


@dataclass(frozen=True)
class Installed:
    """An environment in which ``checkout`` is installed editable. It sees the packages of the running interpreter."""

    checkout: Path
    bin: Path

    def run(self, command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(self.bin / command[0]), *command[1:]], cwd=cwd, capture_output=True, text=True)

    def python(self, script: str, cwd: Path) -> str:
        done = self.run(["python", "-c", script], cwd)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    home = tmp_path_factory.mktemp("home")
    checkout = copy_checkout(home / "arcweld")
    venv.create(home / "venv", with_pip=False, symlinks=True)
    (site,) = (home / "venv").glob("lib/python*/site-packages")
    others = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    (site / "zz_others.pth").write_text("".join(f"{p}\n" for p in others))  # its name sorts behind the install's own
    environment = Installed(checkout, home / "venv" / "bin")
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    done = environment.run(["python", "-m", "pip", "install", *options, "--editable", str(checkout)], home)
    assert done.returncode == 0, done.stderr[-3000:]
    return environment


@pytest.mark.parametrize("place", ["parent", "checkout", "part", "elsewhere"])
def test_it_imports_from_any_folder(installed: Installed, place: str, tmp_path: Path) -> None:
    checkout = installed.checkout
    folders = {"parent": checkout.parent, "checkout": checkout, "part": checkout / "runtime", "elsewhere": tmp_path}
    script = (
        "import os, arcweld, arcweld.compiler.ir, arcweld.runtime.sim.device\n"
        "for m in (arcweld, arcweld.compiler.ir, arcweld.runtime.sim.device): print(os.path.realpath(m.__file__))\n"
        "print(arcweld.load.__module__)"
    )
    files = ("arcweld/__init__.py", "compiler/ir.py", "runtime/sim/device.py")
    assert installed.python(script, folders[place]).split() == [
        *(str(checkout.resolve() / f) for f in files),
        "arcweld.runtime.engine",
    ]


def test_new_modules_need_no_new_install(installed: Installed, tmp_path: Path) -> None:
    for new in ("arcweld/new_name.py", "arcweld/new_folder/__init__.py", "passes/new_pass.py"):
        path = installed.checkout / new
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"NAME = {new!r}\n")
    script = "from arcweld import new_name as a, new_folder as b\nfrom arcweld.passes import new_pass as c\n"
    script += "print(a.NAME, b.NAME, c.NAME)"
    wanted = "arcweld/new_name.py arcweld/new_folder/__init__.py passes/new_pass.py\n"
    assert installed.python(script, tmp_path) == wanted
    assert installed.python(script, installed.checkout) == wanted


def test_no_generic_name_becomes_importable(installed: Installed, tmp_path: Path) -> None:
    script = f"from importlib.util import find_spec\nfor n in {PARTS!r}: print(getattr(find_spec(n), 'origin', None))"
    assert str(installed.checkout) not in installed.python(script, tmp_path)


def test_the_command_and_the_backend_are_registered(installed: Installed, tmp_path: Path) -> None:
    for name in ("onnx-to-engine", "arcweld"):
        shown = installed.run([name, "--help"], tmp_path).stdout
        assert shown.startswith(f"Usage: {name} ")
        assert "explain" in shown
        completion = installed.run([name, "--show-completion", "bash"], tmp_path).stdout
        assert completion.endswith(f" {name}\n")
        assert f"_{name.upper().replace('-', '_')}_COMPLETE=complete_bash" in completion
    script = "import importlib.metadata as m; print(*m.entry_points(group='torch_dynamo_backends', name='arcweld'))"
    assert "arcweld.torch.entry_point:arcweld" in installed.python(script, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["parent", "elsewhere"])
def test_mypy_sees_the_types_in_a_users_project(installed: Installed, place: str, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text('import arcweld\nreveal_type(arcweld.compile("m.onnx"))\narcweld.load(1.5)\n')
    folder = installed.checkout.parent if place == "parent" else tmp_path
    options = ["--strict", "--cache-dir", str(installed.checkout.parent / "mypy_cache"), "--no-error-summary"]
    done = installed.run(["python", "-m", "mypy", *options, str(tmp_path / "user.py")], folder)
    revealed, wrong = done.stdout.splitlines()
    assert revealed.endswith('note: Revealed type is "arcweld.runtime.engine.Engine"')
    assert 'user.py:3: error: Argument 1 to "load" has incompatible type "float"' in wrong
    assert done.returncode == 1
