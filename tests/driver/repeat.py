"""Whether cold builds of a model give one file: ``python tests/driver/repeat.py [--builds 4] [MODEL ...]``.

Each build is a process of its own with an empty cache, on one core or two, idle or under load, for all architectures.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from arcweld.driver.build import DEFAULT_ARCHS

SMALL: Mapping[str, Mapping[str, int]] = {
    "resnet18": {"size": 64}, "resnet50": {"size": 64}, "mobilenet_v2": {"size": 64}, "vit_tiny": {"depth": 2},
    "vit_b16": {}, "bert": {"layers": 2}, "gpt2": {"layers": 2},
    "llama": {"layers": 1, "hidden": 256, "intermediate": 512, "heads": 8, "groups": 2},
}  # fmt: skip
CONDITIONS = ((2, 0), (1, 0), (2, 2), (1, 2))  # (cores, processes that only compute)
PRECISIONS = ("fp32", "fp16")


def build_one(name: str, precision: str, path: str) -> None:
    """Builds and writes one engine in this process."""
    import torch

    torch.set_num_threads(1)  # batch statistics of the model are sums, whose order depends on the threads

    from arcweld.driver.api import build_data, import_model
    from arcweld.models.builders import build
    from arcweld.runtime.engine_file import write_engine

    made = build(name, **SMALL[name])
    graph = import_model(made.module, *made.args)
    write_engine(path, build_data(graph, precision=precision, arch=DEFAULT_ARCHS, device="sim")[0].data)


def cold_build(name: str, precision: str, path: Path, cores: int) -> None:
    """Builds in a process with an empty cache, on so many cores."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED"} | {"ARCWELD_CACHE_DIR": cache}
        chosen = sorted(os.sched_getaffinity(0))[:cores]
        command = [sys.executable, "-W", "ignore", __file__, "--one", name, precision, str(path)]
        subprocess.run(command, env=environment, check=True, preexec_fn=lambda: os.sched_setaffinity(0, chosen))


@contextmanager
def load(processes: int) -> Iterator[None]:
    """So many processes that only compute, meanwhile. They end with this one, however it ends."""
    code = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
    busy = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def differing(first: Path, second: Path) -> list[str]:
    """The members of two engines that differ."""
    with zipfile.ZipFile(first) as a, zipfile.ZipFile(second) as b:
        names = sorted({*a.namelist(), *b.namelist()})
        held = {*a.namelist()} & {*b.namelist()}
        return [n for n in names if n not in held or a.read(n) != b.read(n)]


def repeat(name: str, precision: str, builds: int, folder: Path) -> bool:
    """Prints how many files ``builds`` builds gave. True for one."""
    seen: dict[str, Path] = {}
    started = time.monotonic()
    for k in range(builds):
        cores, others = CONDITIONS[k % len(CONDITIONS)]
        path = folder / f"{name}.{precision}.{k}.engine"
        with load(others):
            cold_build(name, precision, path, cores)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest in seen:
            path.unlink()
        else:
            seen[digest] = path
    seconds = time.monotonic() - started
    digests = " ".join(d[:12] for d in seen)  # of the same tree and tools, runs may be compared
    print(f"{name} {precision}: {builds} builds, {len(seen)} different files ({digests}), {seconds:.0f} s", flush=True)
    first, *others_found = seen.values()
    for other in others_found:
        print(f"  {other}: {', '.join(differing(first, other)[:8])}", flush=True)
    return len(seen) == 1


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0 if each model gave one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(SMALL))
    parser.add_argument("--builds", type=int, default=4)
    parser.add_argument("--precision", choices=PRECISIONS, action="append")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        cases = [(m, p) for m in options.models for p in options.precision or PRECISIONS]
        equal = [repeat(m, p, options.builds, Path(folder)) for m, p in cases]
    return 0 if all(equal) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        build_one(*sys.argv[2:5])
    else:
        sys.exit(main(sys.argv[1:]))
