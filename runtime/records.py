"""Which engine files this user built or checked on this machine: empty files named by a keyed hash of the manifest.

The key is a file of the cache that only the user can read. So neither an engine file nor records without their key,
copied from elsewhere, vouch for anything. Whoever can read the key, or run code as the user, can make records.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import stat
from pathlib import Path

from arcweld.compiler.errors import EnvironmentError_
from arcweld.compiler.paths import cache_dir, forget_oldest

log = logging.getLogger("arcweld.runtime")

KEY_BYTES = 32
MAX_RECORDS = 20_000


def add(manifest: str) -> None:
    """Records the SHA-256 of an engine file's manifest. A cache that cannot be written is logged: a record saves work,
    and a file without one is checked again."""
    try:
        path = _path(manifest, _key(create=True))
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.touch(mode=0o600)
        forget_oldest(path.parent, MAX_RECORDS)
    except (OSError, EnvironmentError_) as error:
        log.info("the engine file is not recorded as built here: %s", error)


def known(manifest: str) -> bool:
    """Whether ``add`` was called with the same hash by this user."""
    try:
        return _path(manifest, _key(create=False)).is_file()
    except (OSError, EnvironmentError_) as error:
        log.debug("no records of engine files: %s", error)
        return False


def _folder() -> Path:
    return cache_dir() / "trust"


def _path(manifest: str, key: bytes) -> Path:
    return _folder() / "engines" / hmac.new(key, manifest.encode(), hashlib.sha256).hexdigest()


def _key(*, create: bool) -> bytes:
    """The user's key. Raises OSError if there is none, EnvironmentError_ if others could have written or read it."""
    path = _folder() / "key"
    if create and not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_key(path)
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(handle, "rb") as stream:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise EnvironmentError_(f"{path} is not a file of this user alone", hint=f"rm {path}")
        key = stream.read(KEY_BYTES + 1)
    if len(key) != KEY_BYTES:
        raise EnvironmentError_(f"{path} is damaged", hint=f"rm {path}")
    return key


def _make_key(path: Path) -> None:
    """Makes the key whole or not at all; of two processes that make one, the first wins."""
    temporary = path.with_name(f".key.{secrets.token_hex(4)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(handle, "wb") as stream:
            stream.write(secrets.token_bytes(KEY_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
