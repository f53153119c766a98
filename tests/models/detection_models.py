"""torchvision's detection models with random weights, the same in every test, and a comparison of what they detect.

Activations are about 1: statistics of batch norms are those of the inputs, and heads are scaled until their scores
differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torchvision.models.detection as zoo
from torch import nn
from torch.nn.functional import interpolate

SMALL = {"min_size": 96, "max_size": 96}
FEW = {"rpn_pre_nms_top_n_test": 50, "rpn_post_nms_top_n_test": 20, "box_score_thresh": 0.21}
# the model, its side, what its heads are scaled by, its loops
MODELS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any], int, float, int]] = {
    "ssdlite320": (zoo.ssdlite320_mobilenet_v3_large, {}, 320, 2.0, 0),
    "fasterrcnn": (zoo.fasterrcnn_mobilenet_v3_large_320_fpn, {**SMALL, "box_score_thresh": 0.21}, 96, 4.0, 0),
    "maskrcnn": (zoo.maskrcnn_resnet50_fpn, {**SMALL, **FEW}, 96, 4.0, 1),
    "retinanet": (zoo.retinanet_resnet50_fpn, {**SMALL, "score_thresh": 0.01, "topk_candidates": 50}, 96, 1.0, 0),
    "keypointrcnn": (zoo.keypointrcnn_resnet50_fpn, {**SMALL, **FEW, "num_keypoints": 5}, 96, 4.0, 1),
}
HEADS = (
    "cls_score", "cls_logits", "classification_head", "bbox_pred", "regression_head", "kps_score", "mask_fcn_logits",
    "rpn.head.cls",
)  # fmt: skip


def image(size: int, generator: torch.Generator) -> torch.Tensor:
    rough = torch.randn(1, 3, size // 8, size // 8, generator=generator)
    return interpolate(rough, size=(size, size), mode="bilinear")[0] * 0.3 + 0.5


def made(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The model, in evaluation mode, and an image."""
    make, options, size, scale, _ = MODELS[name]
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    classes = 2 if name == "keypointrcnn" else 5
    module = make(weights=None, weights_backbone=None, num_classes=classes, **options).eval()
    for key, p in module.named_parameters():
        if p.dim() > 1 and any(h in key for h in HEADS):
            factor = scale if "cls" in key or "classification" in key else 1.0
            p.data = torch.randn(p.shape, generator=generator) * (0.4 * factor / p[0].numel() ** 0.5)
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:
        m.momentum = 1.0
        m.train()
    module_: Any = module
    with torch.no_grad():
        found = module_.backbone(module_.transform([image(size, generator) for _ in range(3)])[0].tensors)
        if hasattr(module, "head"):
            module_.head(list(found.values()))
    return module.eval(), image(size, generator)


def unmatched(want: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]) -> int:
    """How many detections have no equal among the others', whose order differs where scores do in the last digits."""

    def parts(found: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        arrays = list(found.values())
        boxes = next(a for a in arrays if a.ndim == 2 and a.shape[1] == 4)
        labels = next(a for a in arrays if a.ndim == 1 and a.dtype == np.int64)
        scores = next(a for a in arrays if a.ndim == 1 and a.dtype == np.float32)
        return boxes, labels, scores

    (boxes, labels, scores), (a, b, c) = parts(want), parts(got)
    assert len(boxes) == len(a) >= 10
    assert scores.std() > 1e-5
    near = (labels[:, None] == b) & (np.abs(scores[:, None] - c) < 2e-4)
    near &= np.abs(boxes[:, None] - a[None]).max(-1) < 0.02
    return int((~near.any(0)).sum() + (~near.any(1)).sum())
