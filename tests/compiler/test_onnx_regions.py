"""Regions of images: Resize with tf_crop_and_resize, against ONNX Runtime and the standard's evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx_models import compare, evaluate, floats, ints, model

from arcweld.compiler.errors import ModelError, UnsupportedError
from arcweld.compiler.onnx.importer import import_onnx

F = floats


def crop(shape: list[Any], roi: list[float], given: np.ndarray, **attrs: Any) -> onnx.ModelProto:
    """``given``: sizes if they are integers, else scales."""
    inputs = ["x", "roi", "", "g"] if given.dtype == np.int64 else ["x", "roi", "g"]
    node = helper.make_node("Resize", inputs, ["y"], coordinate_transformation_mode="tf_crop_and_resize", **attrs)
    constants = {"roi": np.array(roi, np.float32), "g": given}
    return model([node], {"x": (np.float32, shape)}, ["y"], constants, opset=18)


ROI = [0, 0, 0.4, -0.2, 1, 1, 0.6, 1.1]


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("size", [(3, 7), (9, 1), (1, 2)])
def test_a_region_is_resized(mode: str, size: tuple[int, int]) -> None:
    compare(crop([1, 2, 6, 5], ROI, ints(1, 2, *size), mode=mode, extrapolation_value=9.0), {"x": F(1, 2, 6, 5)})


def test_scales_are_those_of_the_image() -> None:
    """The standard's text multiplies by the region's size too, its shape inference and every implementation do not."""
    roi = [0, 0, 0.25, 0, 1, 1, 0.75, 1]
    compare(crop([1, 1, 8, 5], roi, np.array([1, 1, 3, 2], np.float32), mode="linear"), {"x": F(1, 1, 8, 5)})


def test_a_region_of_the_image_s_own_size() -> None:
    """ONNX Runtime copies an axis that keeps its size, whatever the region."""
    proto, x = crop([1, 1, 4, 5], [0, 0, 0.75, 0.2, 1, 1, 0.25, 1.2], ints(1, 1, 4, 5), mode="linear"), F(1, 1, 4, 5)
    (expected,) = ReferenceEvaluator(proto).run(None, {"x": x})
    np.testing.assert_allclose(evaluate(import_onnx(proto), {"x": x})[0], expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("size", [(6, 5), (1, 9)])
def test_a_region_of_an_image_of_open_size(mode: str, size: tuple[int, int]) -> None:
    roi = [0, 0, 0.2, 0.1, 1, 1, 0.9, 1.25]
    proto = crop([1, 2, "h", "w"], roi, np.array([1, 1, 2, 1.5], np.float32), mode=mode)
    compare(proto, {"x": F(1, 2, *size)})


def test_regions_that_are_not_computed() -> None:
    with pytest.raises(UnsupportedError, match="antialiasing"):
        import_onnx(crop([1, 2, 6, 5], ROI, ints(1, 2, 3, 3), mode="linear", antialias=1))
    with pytest.raises(ModelError, match="of 4 axes"):
        import_onnx(crop([1, 2, 6, 5], ROI[:6], ints(1, 2, 3, 3), mode="linear"))
