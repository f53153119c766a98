"""One build in a process of its own: ``python one_build.py MODEL PRECISION`` prints seconds and peak memory as JSON.

Reading the model is part of the seconds, writing the engine is not. Bytes are those of the whole process.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

from arcweld.driver import api
from arcweld.runtime.engine import Engine

if __name__ == "__main__":
    path, precision = sys.argv[1:]
    warnings.simplefilter("ignore", RuntimeWarning)
    begin = time.perf_counter()
    graph = api.import_model(path)
    build, device, _ = api.build_data(graph, precision=precision, arch="sm_90a", device="sim", verify="off")
    seconds = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as folder:
        Engine(build.data, device).save(Path(folder) / "m.engine")
    found = {
        "seconds": seconds,
        "kernels": len(build.data.sources),
        "weights": sum(w.nbytes for w in graph.weights.values()),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(found))
