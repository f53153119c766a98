"""Torchvision's operators of regions and deformed windows."""

from __future__ import annotations

from arcweld.compiler.dtypes import DType
from arcweld.compiler.ops import regions
from arcweld.compiler.torch.context import AtenContext, Result, aten

_MOST_SAMPLES = 64  # along each axis of a bin


@aten("torchvision.roi_align.default")
def roi_align(c: AtenContext) -> Result:
    """The first column of the regions is the image, as a float."""
    x, rois = c["input"], c["rois"]
    bins, samples = (c["pooled_height"], c["pooled_width"]), max(c["sampling_ratio"], 0)
    if not all(isinstance(n, int) for n in bins) or samples > _MOST_SAMPLES:
        raise c.fail(f"{bins[0]} by {bins[1]} bins with {samples} samples")
    count = rois.shape[0]
    images = c.reshape(c.cast(c.slice(rois, 1, 0, 1), DType.I64), (count,))
    y = regions.roi_align(
        c, x, c.slice(rois, 1, 1, 4), images, bins=bins, samples=samples, scale=float(c["spatial_scale"]),
        half=bool(c["aligned"]),
    )  # fmt: skip
    return c.result(y)


@aten("torchvision.deform_conv2d.default")
def deform_conv2d(c: AtenContext) -> Result:
    down, right = c["pad_h"], c["pad_w"]
    return regions.deform_conv(
        c, c["input"], c["weight"], c["offset"], c["mask"] if c["use_mask"] else None, c["bias"],
        strides=(c["stride_h"], c["stride_w"]), dilations=(c["dilation_h"], c["dilation_w"]),
        pads=(down, right, down, right), group=c["groups"], own=c["offset_groups"],
    )  # fmt: skip
