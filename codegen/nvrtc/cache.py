"""A content-addressed cache on disk: the key is a hash of everything that determines the value.

Entries are written to a temporary file and renamed, and begin with a hash of their content: a reader sees a whole entry
or none. Nothing depends on the cache: an entry that cannot be read is logged, and its value is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

from arcweld.compiler.errors import EnvironmentError_
from arcweld.compiler.paths import cache_dir, forget_oldest, replacing, touch

log = logging.getLogger("arcweld.codegen.nvrtc.cache")

MAX_ENTRIES = 100_000  # of all keys: about 4 GB
_FOLDERS = 256  # the first two digits of a key name its folder

_MAGIC = b"AWC1"


def content_key(parts: Iterable[str | bytes]) -> str:
    """The SHA-256 of ``parts`` in hexadecimal. Each part is hashed with its length: ["ab"] and ["a", "b"] differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


class DiskCache:
    """Byte strings by key under ``folder`` (default ``cache_dir()/nvrtc``). Safe for concurrent processes."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else cache_dir() / "nvrtc"
        self._write_failed = False

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key[2:]

    def get(self, key: str) -> bytes | None:
        """The value, or None when absent. A damaged entry is removed, logged, and counts as absent."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("cannot read cache entry %s: %s", path, error)
            return None
        head, value = data[:36], data[36:]
        if head[:4] == _MAGIC and head[4:] == hashlib.sha256(value).digest():
            touch(path)
            return value
        log.warning("cache entry %s is damaged: it will be rebuilt", path)
        self.remove(key)
        return None

    def put(self, key: str, value: bytes) -> None:
        """Stores a value. A cache that cannot be written logs one warning; nothing is raised."""
        path = self._path(key)
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(_MAGIC + hashlib.sha256(value).digest() + value)
            forget_oldest(path.parent, MAX_ENTRIES // _FOLDERS)
        except (OSError, EnvironmentError_) as error:
            if not self._write_failed:
                log.warning(
                    "the cache %s cannot be written (%s): what it keeps will be made again",
                    self.folder,
                    error,
                )
            self._write_failed = True

    def remove(self, key: str) -> None:
        """Removes an entry, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            self._path(key).unlink()

    def keys(self) -> list[str]:
        """Every stored key, sorted."""
        return sorted(p.parent.name + p.name for p in self.folder.glob("??/*") if not p.name.startswith("."))
