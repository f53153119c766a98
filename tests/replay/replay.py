"""Kernel replay: compares every kernel of this working tree with those of another revision.

``python tests/replay/replay.py BASE`` exits with 1 if a kernel's object code or launch changed, or one came or went.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COLLECTOR = "tests/replay/collect.py"
from compare import compare, report  # noqa: E402
from records import Collection, FormatError, load  # noqa: E402

from arcweld.codegen.nvrtc.cache import DiskCache, content_key  # noqa: E402
from arcweld.compiler.errors import ArcweldError  # noqa: E402
from arcweld.compiler.paths import cache_dir, replacing  # noqa: E402

# the folders whose import name is their path below arcweld/
PARTS = ("compiler", "passes", "codegen", "runtime", "models")
# what a model's graph depends on beside this repository
PACKAGES = ("torch", "torchvision", "timm", "transformers", "onnx", "numpy", "jinja2")


class ReplayError(Exception):
    """What keeps two revisions from being compared, in one sentence."""


def git(*arguments: str) -> bytes:
    """What git prints. Raises ReplayError with its last line."""
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode().strip().splitlines()
        raise ReplayError(f"git {arguments[0]}: {said[-1] if said else f'exit status {done.returncode}'}")
    return done.stdout


def commit_of(base: str) -> str:
    """The commit that ``base`` names. Raises ReplayError if there is none or it has no collector."""
    try:
        found = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{base}^{{commit}}").decode().strip()
    except ReplayError:
        raise ReplayError(f"{base} is no revision of this repository") from None
    if not git("ls-tree", "--name-only", found, COLLECTOR):
        first = git("log", "--diff-filter=A", "--format=%h", "--", COLLECTOR).decode().split()
        since = f"kernel replay starts with {first[-1]}" if first else "no commit has one yet"
        raise ReplayError(f"{base} has no {COLLECTOR}: {since}")
    return found


def link_tree(checkout: Path, tree: Path) -> Path:
    """Makes ``tree/arcweld`` of links, which looks like the installed package of any revision."""
    package = tree / "arcweld"
    package.mkdir(parents=True)
    inside = [p for p in (checkout / "arcweld").iterdir() if p.name != "__pycache__" and not p.is_symlink()]
    for target in (*inside, *(checkout / part for part in PARTS)):
        (package / target.name).symlink_to(target)
    return tree


def start(checkout: Path, folder: Path) -> subprocess.Popen[bytes]:
    """Runs the checkout's own collector on its own package; it writes ``folder/records``."""
    tree = link_tree(checkout, folder / "tree")
    command = [sys.executable, str(checkout / COLLECTOR), str(tree), str(folder / "records")]
    # the tree comes before any installed package; two collectors with a thread each don't fight for two cores
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment)


def cached_base(commit: str) -> Path:
    """Where the records of a commit are kept, for the installed packages and the catalogue files in the cache."""
    installed = [f"{p} {importlib.metadata.version(p)}" for p in PACKAGES]
    models = sorted(p.name for p in (cache_dir() / "models").glob("*.onnx"))
    return cache_dir() / "replay" / f"{commit}-{content_key([sys.version, *installed, *models])[:12]}"


def collect(commit: str) -> tuple[Collection, Collection]:
    """The kernels of a commit, from the cache if they are there, and of the working tree. Both are made at once."""
    kept = cached_base(commit)
    with tempfile.TemporaryDirectory(prefix="arcweld-replay-") as name:
        folder = Path(name)
        runs = {"working tree": (folder / "work", ROOT)}
        if not kept.is_file():
            with tarfile.open(fileobj=io.BytesIO(git("archive", commit))) as files:
                files.extractall(folder / "checkout", filter="data")
            runs[commit] = (folder / "base", folder / "checkout")
        started = {side: start(checkout, out) for side, (out, checkout) in runs.items()}
        try:
            failed = [side for side, process in started.items() if process.wait()]
        finally:
            for process in started.values():
                process.kill()
        if failed:
            raise ReplayError(f"the kernels of {' and '.join(failed)} could not be collected: see above")
        if commit in runs:
            with replacing(kept) as temporary:
                temporary.write_bytes((folder / "base" / "records").read_bytes())
        return load(kept), load(folder / "work" / "records")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 2 where nothing could be compared."""
    parser = argparse.ArgumentParser(prog="make replay", description=__doc__)
    parser.add_argument("base", help="the revision to compare with, such as HEAD or main")
    parser.add_argument("--diffs", type=int, default=3, help="how many changed kernels to show (default %(default)s)")
    chosen = parser.parse_args(arguments)
    begin = time.perf_counter()
    try:
        base, work = collect(commit_of(chosen.base))
        collected = time.perf_counter()
        outcome = compare(base, work, DiskCache())
    except (ReplayError, FormatError, ArcweldError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in report(outcome, chosen.diffs):
        print(line)
    print(f"{collected - begin:.0f} s to render, {time.perf_counter() - collected:.0f} s to compare")
    if work.absent:
        print(f"not in the cache, so not rendered: {', '.join(work.absent)}")
    return outcome.status


if __name__ == "__main__":
    sys.exit(main())
