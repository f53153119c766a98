"""One engine for every batch and image size in a range, without compiling anything at run time."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from small_model import write_model

import arcweld


def main(folder: Path) -> dict[tuple[int, ...], np.ndarray]:
    """Runs one engine at several shapes; returns the results by shape of the input."""
    model = write_model(folder / "model.onnx")
    image = arcweld.Input("x", (("batch", 1, 8), 3, ("height", 8, 64), ("width", 8, 64)))
    engine = arcweld.compile(model, inputs=image)
    results = {}
    for shape in ((1, 3, 8, 8), (3, 3, 20, 33), (8, 3, 64, 64)):
        results[shape] = engine(np.full(shape, 0.5, np.float32))
        n, _, h, w = shape
        print(f"{shape}: workspace {engine.memory(batch=n, height=h, width=w).arena:,} bytes")
    try:
        engine(np.zeros((9, 3, 8, 8), np.float32))
    except arcweld.InputError as error:  # kernels were simplified by the range
        print(error)
    return results


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
