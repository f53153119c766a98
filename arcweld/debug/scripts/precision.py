"""Builds a model in half precision without and with some nodes in f32, and compares both with the reference in f32.

python reproduce.py [DEVICE]: exit status 1 if it fails without these nodes and not with them, 0 otherwise.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from arcweld.debug.folder import load_case, read_facts


def main() -> int:
    """Prints both results."""
    folder = Path(__file__).resolve().parent
    facts = read_facts(folder)
    case = load_case(folder, *sys.argv[1:2])
    for node in facts["nodes"]:
        print(f"in f32: {node['name']} ({node['why']})")
    want = case.wanted()
    kept = case.options.keep_f32 | {node["name"] for node in facts["nodes"]}
    without, within = case.failure(want), replace(case, options=replace(case.options, keep_f32=kept)).failure(want)
    print(f"all in {case.options.precision}: {without.detail if without else 'within the tolerance'}")
    print(f"with these nodes in f32: {within.detail if within else 'within the tolerance'}")
    return int(without is not None and within is None)


if __name__ == "__main__":
    sys.exit(main())
