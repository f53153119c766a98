"""Attacks by altered files: ``python tests/attack [--of model] [--count 10000] [--seed 7] [--out DIR]``.

``--seed 7.15`` is one file of seed 7.
"""

from __future__ import annotations

import argparse
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import costs
import node_changes
from strike import Limits, prepare, strike
from targets import TARGETS, build_model

ROOT = Path(__file__).resolve().parents[2]


def case(of: str, seed: str, folder: Path) -> bytes:
    """The altered file of a seed."""
    rng = random.Random(seed)
    return TARGETS[of].alter(rng.choice(TARGETS[of].originals(folder)), rng)


def attack(of: str, seeds: Sequence[str], folder: Path, out: Path) -> dict[str, str]:
    """The findings by seed; each file is kept in ``out``."""
    ends: Counter[str] = Counter()
    findings: dict[str, str] = {}
    if TARGETS[of].suffix == "engine":
        for data in TARGETS[of].originals(folder):  # whose kernels are compiled once
            end = strike(data, TARGETS[of].open, Limits(600))
            assert end == "ran", end
    start = time.monotonic()
    for n in seeds:
        data = case(of, n, folder)
        end = strike(data, TARGETS[of].open)
        ends[end if end in ("refused", "ran") else "finding"] += 1
        if end not in ("refused", "ran"):
            findings[n] = end
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{n}.{TARGETS[of].suffix}").write_bytes(data)
            print(f"--- {of}, seed {n}\n{end}", flush=True)
    told = ", ".join(f"{n} {what}" for what, n in sorted(ends.items()))
    print(f"{ends.total()} altered {of}s in {time.monotonic() - start:.0f} s: {told}", flush=True)
    return findings


def small_files(out: Path) -> dict[str, str]:
    """The findings among the files of ``costs.py``, which may take 10 seconds of processor time and 1 GiB each."""
    findings = {}
    for name, make in costs.FILES.items():
        start, data = time.monotonic(), make()
        end = strike(data, build_model, Limits(60, 10, 1 << 30))
        print(f"{name:24} {len(data):7} bytes {time.monotonic() - start:6.1f} s  {end.strip()[-2000:]}", flush=True)
        if end not in ("refused", "ran"):
            findings[name] = end
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{name}.onnx").write_bytes(data)
    return findings


def every_node(seed: str, count: int, folder: Path, out: Path) -> dict[str, str]:
    """The findings of changes of single operands and attributes, of up to ``count`` models of ``node_changes``."""
    models = list(node_changes.originals(folder))
    random.Random(seed).shuffle(models)
    start, findings = time.monotonic(), {}
    for k, data in enumerate(models[:count]):
        opened = lambda model, inside: node_changes.open_changes(model, lambda m: build_model(m, inside), out)
        end = strike(data, opened, Limits(600))
        if end != "ran":
            findings[f"node {k}"] = end
            print(f"--- seed {seed}, model {k}\n{end}", flush=True)
    took = time.monotonic() - start
    print(f"{len(models[:count])} models, every node changed, in {took:.0f} s: {len(findings)} findings", flush=True)
    return findings


def main(arguments: list[str]) -> int:
    """Exit status 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python tests/attack", description="Opens altered files.")
    kinds = [*TARGETS, "node", "cost", "all"]
    parser.add_argument("--of", choices=kinds, default="all", help="which files (%(default)s)")
    parser.add_argument("--count", type=int, default=10_000, help="files of each kind (%(default)s)")
    parser.add_argument("--seed", default="", help="of the first file; with a dot, of one file alone")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "attack", help="for files (%(default)s)")
    options = parser.parse_args(arguments)
    seed = options.seed or str(secrets.randbelow(10**9))
    print(f"seed {seed}", flush=True)
    seeds = [seed] if "." in seed else [f"{seed}.{k}" for k in range(options.count)]
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        if options.of in ("cost", "all"):
            found |= small_files(options.out)
        if options.of in ("node", "all"):
            found |= every_node(seed, options.count, Path(folder), options.out)
        for of in TARGETS if options.of == "all" else {options.of} & set(TARGETS):
            found |= attack(of, seeds, Path(folder), options.out)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
