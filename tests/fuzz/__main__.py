"""Fuzzing with fresh seeds: ``python tests/fuzz [--seconds 600] [--seed 7] [--out DIR]``, and one case again:
``python tests/fuzz FILE`` or ``--seed 7.15``.
"""

from __future__ import annotations

import argparse
import faulthandler
import secrets
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("codegen", "compiler")]

from case import NO_ORACLE, check, draw, read  # noqa: E402
from find import Finding, find  # noqa: E402

STUCK = 300  # seconds for a case and its shrinking, which takes 120 at most


def main(arguments: list[str]) -> int:
    """Exit status 1 where something failed."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description="Compiles random graphs and checks them.")
    parser.add_argument("file", nargs="?", type=Path, help="a failing case to run again")
    parser.add_argument("--seconds", type=float, default=600.0, help="when to stop (%(default)s)")
    parser.add_argument("--seed", default="", help="of the first case; with a dot, of one case alone")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "fuzz", help="for failing cases (%(default)s)")
    options = parser.parse_args(arguments)
    if options.file is not None:
        failure = check(read(options.file.read_text(encoding="utf-8")))
        print("no failure" if failure is None else f"{failure.stage}: {failure.kind}\n{failure.detail}")
        return int(failure is not None)
    if "." in options.seed:
        found = find(draw(options.seed), options.out)
        print("no failure" if found is None else found)
        return int(found is not None)
    return fuzz(options.seed or str(secrets.randbelow(10**9)), options.seconds, options.out)


def fuzz(seed: str, seconds: float, out: Path) -> int:
    """Runs the cases seed.0, seed.1, ... until the time is over; says what it found.

    One that takes longer than STUCK ends the run with a traceback; the file ``running`` names it.
    """
    print(f"seed {seed}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    running = out / "running"
    start, cases, simulated = time.monotonic(), 0, 0
    known: Counter[tuple[str, ...]] = Counter()
    while time.monotonic() < start + seconds:
        case = draw(f"{seed}.{cases}")
        cases, simulated = cases + 1, simulated + case.simulate
        running.write_text(case.seed, encoding="utf-8")
        faulthandler.dump_traceback_later(STUCK, exit=True)
        found: Finding | None = find(case, out)
        faulthandler.cancel_dump_traceback_later()
        if found is not None:
            known[found.key] += 1
            if known[found.key] == 1:
                print(found, flush=True)
    running.unlink(missing_ok=True)
    print(f"{cases} cases ({simulated} on the simulator too) in {time.monotonic() - start:.0f} s, seed {seed}")
    print(f"nodes without an oracle: {', '.join(f'{n} {op}' for op, n in NO_ORACLE.most_common()) or 'none'}")
    print(f"{known.total()} failed, {len(known)} in different ways" if known else "nothing failed")
    return int(bool(known))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
