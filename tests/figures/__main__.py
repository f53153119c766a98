"""Measures the figures of the documentation and writes them into it: ``python tests/figures [NAME …]``, or all.

README and docs hold measured figures in marked blocks only, each with the machine it was measured on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from measures import MEASURES
from pages import blocks, write


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="make figures", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MEASURES)}")
    places = blocks()
    names = parser.parse_args().names or list(places)
    if unknown := sorted(set(names) - set(places)):
        parser.error(f"no page has a block called {', '.join(unknown)}")
    for name in names:
        print(f"{name} …", flush=True)
        lines = MEASURES[name]()
        write(places[name], {name: lines})  # at once, so that an interrupted run keeps what it measured
        print("\n".join(lines), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
