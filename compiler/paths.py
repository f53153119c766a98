"""The folder of all caches, the atomic replacement of files, and files that another file names."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from arcweld.compiler.errors import EnvironmentError_, ModelError


def cache_dir() -> Path:
    """The cache folder, created if needed: ``ARCWELD_CACHE_DIR``, else ``~/.cache/arcweld``.

    Raises EnvironmentError_ if it cannot be created.
    """
    given = os.environ.get("ARCWELD_CACHE_DIR")
    try:
        path = Path(given) if given else Path.home() / ".cache" / "arcweld"
    except RuntimeError as error:  # a user without a home, as in some containers
        raise EnvironmentError_(str(error), hint="set ARCWELD_CACHE_DIR to a folder that can be written") from error
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentError_(
            f"the cache folder {path} cannot be created: {error.strerror}",
            hint="set ARCWELD_CACHE_DIR to a folder that can be written",
        ) from error
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` that replaces it on success and is deleted on failure.

    Readers see the old file or the whole new one, never a part; two writers of the same content do no harm.
    Raises EnvironmentError_ where the folder cannot be written.
    """
    path = replaceable(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        open(temporary, "xb").close()
    except OSError as error:
        raise EnvironmentError_(
            f"{path} cannot be written: {error.strerror}",
            hint="check permissions and disk space; for the caches, ARCWELD_CACHE_DIR names another folder",
        ) from error
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def touch(path: Path) -> None:
    """Notes that an entry of a cache was used. A cache that cannot be written keeps its order."""
    with contextlib.suppress(OSError):
        os.utime(path, ns=(time.time_ns(), os.stat(path).st_mtime_ns))


def forget_oldest(folder: Path, most: int) -> None:
    """Deletes files of ``folder`` that were not used for the longest time, a tenth of ``most``, if it has more."""
    with os.scandir(folder) as entries:
        found = [e.path for e in entries if e.is_file(follow_symlinks=False)]
    if len(found) <= most:
        return
    ages = {}
    for path in found:
        with contextlib.suppress(FileNotFoundError):  # another process forgets too
            ages[path] = os.stat(path).st_atime_ns
    for path in sorted(ages, key=ages.__getitem__)[: len(ages) - most + most // 10]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def replaceable(path: Path) -> Path:
    """The file that ``path`` stands for, symbolic links followed; it need not exist.

    Raises EnvironmentError_ for something that is no regular file, such as a device, which must not be replaced.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise EnvironmentError_(f"{path} cannot be written: it is not a file")
    return target


def open_inside(folder: Path, location: str, place: str, *, hub: bool = False) -> BinaryIO:
    """The file ``location`` below ``folder``, opened: what a model's file calls another part of the model.

    ``place`` begins errors. With ``hub``, a file may be a link that Hugging Face's cache makes: from a snapshot of a
    repository to the same repository's blobs. Raises ModelError for any other way out of the folder, and for a file
    that is missing or unreadable.
    """
    relative = Path(location)
    if not location or "\0" in location or relative.is_absolute() or ".." in relative.parts:
        raise ModelError(
            f"{place}: the location must be a relative path below the model's folder",
            hint="put the file into the model's folder, and name it so",
        )
    path = folder
    try:
        for part in relative.parts:
            path /= part
            if path.is_symlink():
                blob = _blob(folder, path) if hub else None
                if blob is None:
                    link = str(path.relative_to(folder))
                    raise ModelError(
                        f"{place}: {link!r} is a symbolic link, which may lead out of the model's folder",
                        hint="put the file itself there",
                    )
                path = blob
        return open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{place}: the file is missing or unreadable ({error})", hint="fetch or copy the model's files once more"
        ) from error


def _blob(folder: Path, link: Path) -> Path | None:
    """The file that ``link`` in a snapshot of Hugging Face's cache stands for; None for any other link.

    The cache has ``repository/snapshots/revision/name`` as a link to ``repository/blobs/hash``.
    """
    snapshot = Path(os.path.realpath(folder))
    target = Path(os.path.normpath(snapshot / link.relative_to(folder).parent / os.readlink(link)))
    inside = snapshot.parent.name == "snapshots" and target.parent == snapshot.parent.parent / "blobs"
    return target if inside else None
