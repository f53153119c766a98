"""Fixtures of the simulator's tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from arcweld.runtime.sim import build


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder that already holds this process's runtime library."""
    runtime = build.runtime_library()
    folder = tmp_path / "sim"
    folder.mkdir()
    shutil.copy(runtime, folder / runtime.name)
    monkeypatch.setenv("ARCWELD_CACHE_DIR", str(tmp_path))
    return folder
