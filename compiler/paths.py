"""Where Arcweld keeps files of its own on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The folder of all caches: the environment's ARCWELD_CACHE_DIR, or ``~/.cache/arcweld``. It may not
    exist yet.
    """
    named = os.environ.get("ARCWELD_CACHE_DIR")
    return Path(named) if named else Path.home() / ".cache" / "arcweld"
