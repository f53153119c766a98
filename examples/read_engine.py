"""What an engine holds: launches and their nodes, kernels' sources, evidence, memory.

On a command line: ``onnx-to-engine inspect model.engine``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from small_model import write_model

import arcweld


def main(folder: Path) -> arcweld.Engine:
    """Prints what is in an engine file; returns the engine."""
    arcweld.compile(write_model(folder / "model.onnx"), arch=["sm_80", "sm_90a"]).save(folder / "model.engine")
    engine = arcweld.load(folder / "model.engine")
    print(f"for {', '.join(engine.data.archs)}; built with {dict(engine.data.provenance)}")
    for launch in engine.program.launches:
        print(f"{launch.template}: computes {', '.join(launch.origin)}")
    name, source = next(iter(engine.data.sources.items()))
    print(f"the CUDA source of {name} has {len(source.splitlines())} lines")
    for kernel in engine.data.verify["kernels"]:
        print(f"{kernel['kernel']}: {kernel['status']}, relative error {kernel['error']:.1e}")
    print(engine.memory(batch=4, height=32, width=32))
    return engine


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
