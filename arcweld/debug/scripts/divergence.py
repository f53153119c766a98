"""Runs one kernel of an engine, or all of it, on stored inputs and compares the results with stored references.

python reproduce.py [DEVICE]: exit status 1 if a result is beyond its limit, 0 if none is. The reference is in f64 where
the model computes in floats.
"""

from __future__ import annotations

import sys
from pathlib import Path

from arcweld.compiler.dtypes import DType
from arcweld.debug.folder import load_arrays, read_facts
from arcweld.driver.kernel_checks import OUTLIER
from arcweld.driver.metrics import largest_error, relative_error
from arcweld.runtime.devices import open_device
from arcweld.runtime.engine import load


def main() -> int:
    """Prints the error of each result."""
    folder = Path(__file__).resolve().parent
    facts = read_facts(folder)
    device = open_device(sys.argv[1] if len(sys.argv) > 1 else facts["device"]).adversary()
    engine = load(folder / "case.engine", device, graphs=False)
    feeds = load_arrays(folder / "inputs.npz", {t.name: DType(t.dtype) for t in engine.inputs})
    want = load_arrays(folder / "expected.npz", {name: DType(t) for name, t in facts["expected"].items()})
    print(f"{facts['what']}, of {', '.join(facts['nodes']) or 'the whole model'}")
    with engine.poisoned():
        got = engine.run_tensors(feeds)
    # a single wrong element of many hardly changes the norm
    errors = {n: max(relative_error(got[n], w), largest_error(got[n], w) / OUTLIER) for n, w in want.items()}
    for name, error in errors.items():
        print(f"{name}: relative error {error:.2e}, may be {facts['limit']:.1e}")
    return int(any(not error <= facts["limit"] for error in errors.values()))


if __name__ == "__main__":
    sys.exit(main())
