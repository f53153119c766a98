"""An ONNX file becomes a verified engine file, which is loaded and called.

On a command line: ``onnx-to-engine model.onnx -o model.engine``, then ``onnx-to-engine run model.engine``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from small_model import write_model

import arcweld


def main(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Builds, saves, loads and runs; returns the images and the result."""
    model = write_model(folder / "model.onnx")
    engine = arcweld.compile(model)  # verified against numpy references while it is built
    engine.save(folder / "model.engine")

    engine = arcweld.load(folder / "model.engine")  # needs neither onnx nor torch
    x = np.random.default_rng(1).random((2, 3, 16, 16), np.float32)
    y: np.ndarray = engine(x)
    print(engine)
    print(f"classes {y.argmax(-1)}, probabilities {y.max(-1)}")
    return x, y


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
