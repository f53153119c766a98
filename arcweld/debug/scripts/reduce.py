"""Builds and runs the smallest failing model that was found, and compares it with the reference.

python reproduce.py [DEVICE]: exit status 1 if it fails, 0 if it does not.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from arcweld.debug.folder import load_case, read_facts
from arcweld.driver.api import import_model


def main() -> int:
    """Prints the result."""
    folder = Path(__file__).resolve().parent
    facts = read_facts(folder)
    case = load_case(folder, *sys.argv[1:2])
    if (folder / "model.onnx").exists():
        graph = import_model(folder / "model.onnx")
        case = replace(case, graph=graph.replace(output_labels=graph.labels()))
    print(f"{len(facts['nodes'])} of {facts['of']} nodes: {', '.join(facts['nodes'])} (Arcweld {version('arcweld')})")
    failure = case.failure()
    print(failure.detail if failure else "right")
    return int(failure is not None)


if __name__ == "__main__":
    sys.exit(main())
