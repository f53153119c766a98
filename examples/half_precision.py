"""fp16, with a node that stays in f32 and the error that was measured while building."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from small_model import write_model

import arcweld


def main(folder: Path) -> dict[str, Any]:
    """Builds in fp16, except the last product; returns the evidence that the engine stores."""
    model = write_model(folder / "model.onnx")
    try:
        engine = arcweld.compile(model, precision="fp16", keep_f32=["fc"], tolerance=1e-2)
    except arcweld.AccuracyError as error:  # a build above the tolerance is refused, never saved
        raise SystemExit(f"not accurate enough: {error}") from None
    evidence: dict[str, Any] = engine.data.verify
    for output in evidence["outputs"]:
        print(f"{output['output']}: relative error {output['error']:.1e}, allowed {output['tolerance']:.0e}")
    print("in half precision:", [t.name for t in engine.program.weights if t.dtype == "f16"])
    return evidence


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
