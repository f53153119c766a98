"""Runs mypy over the package: ``python tests/project/typecheck.py [mypy arguments]``.

The folders of the repository install under one import name (compiler/ is ``arcweld.compiler``), which mypy cannot
follow by itself. So it gets a tree of symbolic links that has the installed shape.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TREE = ROOT / "build" / "types"
PARTS = ("compiler", "passes", "codegen", "runtime", "models")


def link_tree() -> Path:
    """Makes ``build/types/arcweld``, which looks like the installed package."""
    package = TREE / "arcweld"
    package.mkdir(parents=True, exist_ok=True)
    wanted = {p.name: p for p in (ROOT / "arcweld").iterdir() if p.name != "__pycache__"}
    wanted.update({part: ROOT / part for part in PARTS})
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
    return TREE


def main(arguments: list[str]) -> int:
    """Checks the whole package with the settings of pyproject.toml; the exit status is mypy's."""
    settings = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    command = [sys.executable, "-m", "mypy", *settings, "-p", "arcweld", *arguments]
    return subprocess.run(command, cwd=link_tree(), check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
