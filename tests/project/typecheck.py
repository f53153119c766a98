"""Runs mypy over the package: ``python tests/project/typecheck.py [mypy arguments]``.

The folders of the repository install under one import name (compiler/ is ``arcweld.compiler``), which mypy cannot
follow by itself. So it gets a tree of symbolic links that has the installed shape.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TREE = ROOT / "build" / "types"


def link_tree(root: Path, tree: Path) -> Path:
    """Makes ``tree/arcweld``, which looks like the package that the checkout ``root`` installs."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    folders: dict[str, str] = settings["tool"]["setuptools"]["package-dir"]
    package = tree / "arcweld"
    package.mkdir(parents=True, exist_ok=True)
    wanted = {p.name: p for p in (root / folders.pop("arcweld")).iterdir() if p.name != "__pycache__"}
    wanted.update({name.removeprefix("arcweld."): root / folder for name, folder in folders.items()})
    for old in package.iterdir():
        if old.name not in wanted:
            old.unlink()
    for name, target in wanted.items():
        link = package / name
        if not link.is_symlink():
            link.symlink_to(target)
        elif Path(os.readlink(link)) != target:
            link.unlink()
            link.symlink_to(target)
    return tree


def main(arguments: list[str]) -> int:
    """Checks the whole package with the settings of pyproject.toml; the exit status is mypy's."""
    settings = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    command = [sys.executable, "-m", "mypy", *settings, "-p", "arcweld", *arguments]
    return subprocess.run(command, cwd=link_tree(ROOT, TREE), check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
