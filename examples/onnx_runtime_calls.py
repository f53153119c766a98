"""Code written for ONNX Runtime, with an engine in the session's place."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from small_model import write_model

import arcweld


def main(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Calls a session twice, by name and with bound inputs and outputs; returns both results."""
    arcweld.compile(write_model(folder / "model.onnx")).save(folder / "model.engine")
    session = arcweld.InferenceSession(folder / "model.engine", arcweld.SessionOptions())
    print(session.get_providers(), [(a.name, a.shape, a.type) for a in session.get_inputs()])
    x = np.random.default_rng(1).random((2, 3, 16, 16), np.float32)
    (by_name,) = session.run(["y"], {"x": x})

    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    (bound,) = binding.copy_outputs_to_cpu()
    return by_name, bound


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
