"""Images read between their pixels: Resize with tf_crop_and_resize, RoiAlign and DeformConv.

Against ONNX Runtime, the standard's evaluator and torchvision.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from graph_runs import built, on_simulator
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx_models import compare, evaluate, floats, ints, model, one_node, runtime

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


# ------------------------------------------------------------------------------------------------------------ RoiAlign

# inside, across the borders, less than a pixel, without a size, far outside, much larger than the image
ROIS = np.array(
    [[1, 2, 7, 9], [-3, -2, 4.3, 20], [5.1, 5.2, 5.6, 5.9], [4, 4, 4, 4], [30, 30, 40, 44], [-40.3, -20, 90, 77.7]],
    np.float32,
)  # fmt: skip
IMAGES = ints(0, 1, 1, 0, 1, 0)


@pytest.mark.parametrize("transform", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize(("mode", "samples"), [("avg", 2), ("avg", 3), ("avg", 0), ("max", 1), ("max", 2)])
def test_regions_of_interest(transform: str, mode: str, samples: int) -> None:
    attrs = {"output_height": 3, "output_width": 4, "spatial_scale": 0.75, "sampling_ratio": samples, "mode": mode}
    attrs["coordinate_transformation_mode"] = transform
    proto, feeds = one_node("RoiAlign", 16, [F(2, 3, 10, 9), ROIS, IMAGES], attrs)
    (expected,) = ReferenceEvaluator(proto).run(None, feeds)
    graph = import_onnx(proto)
    np.testing.assert_allclose(evaluate(graph, feeds)[0], expected, rtol=1e-4, atol=1e-4)
    if mode == "avg":  # ONNX Runtime's maximum is another
        compare(proto, feeds, tolerance=1e-4)
    (computed,) = on_simulator(built(graph), feeds).values()
    np.testing.assert_allclose(computed, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("aligned", [True, False])
def test_as_many_samples_as_a_region_has_pixels(seed: int, aligned: bool) -> None:
    """torchvision's, of random regions: the number of samples of a bin goes from 1 to 17."""
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(-5, 20, (40, 2)), rng.exponential(12, (40, 2))
    rois = np.concatenate([corner, corner + size], 1).astype(np.float32)
    x = F(2, 2, 17, 14, seed=seed)
    attrs = {"output_height": 3, "output_width": 5, "sampling_ratio": 0}
    attrs["coordinate_transformation_mode"] = "half_pixel" if aligned else "output_half_pixel"
    proto, feeds = one_node("RoiAlign", 16, [x, rois, rng.integers(0, 2, 40)], attrs)
    boxes = torch.from_numpy(np.concatenate([feeds["x2"][:, None].astype(np.float32), rois], 1))
    expected = torchvision.ops.roi_align(torch.from_numpy(x), boxes, (3, 5), 1.0, 0, aligned).numpy()
    np.testing.assert_allclose(evaluate(import_onnx(proto), feeds)[0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 0.75])
def test_the_maximum_of_whole_pixels(scale: float) -> None:
    """ONNX Runtime's, of regions inside, across the borders, of one pixel, and outside."""
    rois = np.concatenate([IMAGES[:, None].astype(np.float32), np.abs(ROIS)], 1)
    attrs = {"pooled_shape": [3, 4], "spatial_scale": scale}
    proto, feeds = one_node("MaxRoiPool", 16, [F(2, 3, 10, 9), rois], attrs)
    compare(proto, feeds)
    (computed,) = on_simulator(built(import_onnx(proto)), feeds).values()
    np.testing.assert_array_equal(computed, runtime(proto, feeds)[0])


def test_regions_of_images_of_open_size() -> None:
    attrs = {"output_height": 2, "output_width": 2, "sampling_ratio": 0}
    node = helper.make_node("RoiAlign", ["x", "rois", "images"], ["y"], **attrs)
    inputs = {"x": (np.float32, ["n", 3, "h", "w"]), "rois": (np.float32, ["r", 4]), "images": (np.int64, ["r"])}
    compare(model([node], inputs, ["y"]), {"x": F(2, 3, 10, 9), "rois": ROIS, "images": IMAGES}, tolerance=1e-4)


def test_the_maximum_of_an_open_number_of_samples_is_refused() -> None:
    proto, _ = one_node("RoiAlign", 16, [F(2, 3, 10, 9), ROIS, IMAGES], {"mode": "max"})
    with pytest.raises(UnsupportedError, match="sampling_ratio 0"):
        import_onnx(proto)


# ---------------------------------------------------------------------------------------------------------- DeformConv


@pytest.mark.parametrize(
    ("group", "own", "masked", "attrs"),
    [
        (1, 1, False, {}),
        (1, 1, True, {"pads": [1, 0, 1, 2], "strides": [2, 1]}),
        (2, 1, True, {"dilations": [1, 2], "pads": [1, 1, 1, 1]}),
        (2, 4, True, {"pads": [1, 1, 1, 1]}),
        (4, 2, False, {}),
    ],
)
def test_deformable_convolution(group: int, own: int, masked: bool, attrs: dict[str, Any]) -> None:
    x, weights, bias = F(2, 4, 7, 8), F(8, 4 // group, 3, 2, seed=1), F(8, seed=2)
    pads, strides, dilations = attrs.get("pads", [0] * 4), attrs.get("strides", [1, 1]), attrs.get("dilations", [1, 1])
    out = [
        (d + pads[i] + pads[i + 2] - dilations[i] * (k - 1) - 1) // strides[i] + 1
        for i, (d, k) in enumerate(zip((7, 8), (3, 2)))
    ]
    offset, mask = F(2, own * 12, *out, seed=3) * 2, F(2, own * 6, *out, seed=4) if masked else None
    proto, feeds = one_node(
        "DeformConv", 19, [x, weights, offset, bias, mask], {"group": group, "offset_group": own, **attrs}
    )
    larger = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    expected = torchvision.ops.deform_conv2d(
        *(torch.from_numpy(a) for a in (larger, offset, weights, bias)), strides, 0, dilations,
        None if mask is None else torch.from_numpy(mask),
    ).numpy()  # fmt: skip
    graph = import_onnx(proto)
    np.testing.assert_allclose(evaluate(graph, feeds)[0], expected, rtol=1e-4, atol=1e-4)
    (computed,) = on_simulator(built(graph), feeds).values()
    np.testing.assert_allclose(computed, expected, rtol=1e-4, atol=1e-4)


def test_offsets_of_another_kernel_are_broken() -> None:
    proto, _ = one_node("DeformConv", 19, [F(1, 2, 5, 5), F(2, 2, 2, 2), F(1, 6, 4, 4)], {})
    with pytest.raises(ModelError, match="6 offsets of 1 groups of 4 taps"):
        import_onnx(proto)
