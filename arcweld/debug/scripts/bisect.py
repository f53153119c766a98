"""Builds a model without and with one step of optimising, and compares both with the reference.

python reproduce.py [DEVICE]: exit status 1 if the step makes the build wrong, 0 if it does not.
"""

from __future__ import annotations

import sys
from pathlib import Path

from arcweld.compiler.options import Limit
from arcweld.debug.folder import load_case, read_facts


def main() -> int:
    """Prints both results."""
    folder = Path(__file__).resolve().parent
    facts = read_facts(folder)
    case = load_case(folder, *sys.argv[1:2])
    want = case.wanted()
    step = f"{facts['pass']} (number {facts['number']})" if facts["number"] else "any pass"
    fusion = f", fusion {facts['fusion']}" if facts["fusion"] else ""
    print(f"the step: {step}{fusion}, of {', '.join(facts['nodes']) or 'no single node'}")
    before = case.limited(Limit(*facts["before"])).failure(want) if facts["number"] else None
    after = case.limited(Limit(*facts["with"])).failure(want)
    if facts["number"]:
        print(f"without it: {before.detail if before else 'right'}")
    print(f"with it: {after.detail if after else 'right'}")
    return int(before is None and after is not None)


if __name__ == "__main__":
    sys.exit(main())
