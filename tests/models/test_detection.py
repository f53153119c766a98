"""torchvision's detection models, exported to ONNX: boxes, labels and scores as ONNX Runtime's."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from detection_models import MODELS, made, unmatched

import arcweld
from arcweld.driver.summary import host_text

pytestmark = pytest.mark.slow

QUICK = ("ssdlite320", "fasterrcnn", "maskrcnn")


def exported(name: str, path: Path) -> torch.Tensor:
    """Writes the model's file; returns an image."""
    module, x = made(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, ([x],), str(path), dynamo=False, opset_version=16, input_names=["image"])
    return x


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.skipif(
        "ARCWELD_EVERY" not in os.environ, reason="ARCWELD_EVERY=1 runs it")) for n in MODELS],
)  # fmt: skip
def test_detections(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.onnx"
    feeds = {"image": exported(name, path).numpy()}
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    want = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds)))
    engine = arcweld.compile(str(path), device="sim", verify="off")
    got = engine.run(feeds)
    assert unmatched(want, got) == 0
    if name in ("maskrcnn", "keypointrcnn"):
        for key in list(want)[3:]:  # masks, keypoints and their scores, in the same order
            np.testing.assert_allclose(got[key], want[key], atol=5e-3)
    assert "0 fallbacks" in host_text(engine.data)
    assert ("1 host loop" in host_text(engine.data)) == bool(MODELS[name][4])
