"""Attacks on engine files: ``python tests/attack [--count 10000] [--seed 7] [--out DIR]``; ``--seed 7.15`` for one."""

from __future__ import annotations

import argparse
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from alter import altered
from strike import originals, prepare, strike

ROOT = Path(__file__).resolve().parents[2]


def case(seed: str, folder: Path) -> bytes:
    """The altered file of a seed."""
    rng = random.Random(seed)
    return altered(rng.choice(originals(folder)), rng)


def attack(seed: str, count: int, folder: Path, out: Path) -> dict[str, str]:
    """The findings by seed; each file is kept in ``out``."""
    prepare(folder)
    ends: Counter[str] = Counter()
    findings: dict[str, str] = {}
    start = time.monotonic()
    for n in [seed] if "." in seed else [f"{seed}.{k}" for k in range(count)]:
        data = case(n, folder)
        end = strike(data)
        ends[end if end in ("refused", "ran") else "finding"] += 1
        if end not in ("refused", "ran"):
            findings[n] = end
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{n}.engine").write_bytes(data)
            print(f"--- seed {n}\n{end}", flush=True)
    told = ", ".join(f"{n} {what}" for what, n in sorted(ends.items()))
    print(f"{ends.total()} altered files in {time.monotonic() - start:.0f} s, seed {seed}: {told}", flush=True)
    return findings


def main(arguments: list[str]) -> int:
    """Exit status 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python tests/attack", description="Opens altered engine files.")
    parser.add_argument("--count", type=int, default=10_000, help="files (%(default)s)")
    parser.add_argument("--seed", default="", help="of the first file; with a dot, of one file alone")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "attack", help="for files (%(default)s)")
    options = parser.parse_args(arguments)
    seed = options.seed or str(secrets.randbelow(10**9))
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        return int(bool(attack(seed, options.count, Path(folder), options.out)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
