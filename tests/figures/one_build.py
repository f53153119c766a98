"""One build in a process of its own: ``python one_build.py MODEL PRECISION`` prints seconds and peak memory as JSON.

Reading the model is part of the seconds, writing the engine is not. Bytes are those of the whole process.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

from arcweld.driver import api
from arcweld.runtime.engine_file import write_engine


def _peak() -> int:
    """The largest resident memory of this program in bytes; what rusage says includes the process that started it."""
    line = next(x for x in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if x.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    path, precision = sys.argv[1:]
    warnings.simplefilter("ignore", RuntimeWarning)
    begin = time.perf_counter()
    graph = api.import_model(path)
    build, _, _ = api.build_data(graph, precision=precision, arch="sm_90a", device="sim", verify="off")
    seconds = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as folder:
        write_engine(Path(folder) / "m.engine", build.data)
    found = {
        "seconds": seconds,
        "kernels": len(build.data.sources),
        "weights": sum(w.data.nbytes for w in graph.weights.values()),
        "peak": _peak(),
    }
    print(json.dumps(found))
