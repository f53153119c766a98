"""Copies of the checkout, from which tests build and install without touching the checkout itself."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("compiler", "passes", "codegen", "runtime", "serving", "models")
_LEFT_OUT = shutil.ignore_patterns(
    ".git*", ".venv", ".ci", ".*_cache", ".hypothesis", "build", "dist", "*.egg-info", "__pycache__", "docs", "tests"
)


def copy_checkout(target: Path) -> Path:
    """Copies what the package is built from to ``target``, links as links and no left-over of an earlier build."""
    shutil.copytree(ROOT, target, symlinks=True, ignore=_LEFT_OUT)
    return target
