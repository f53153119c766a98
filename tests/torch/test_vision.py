"""Torchvision's own operators against torchvision: regions of interest and deformable convolutions."""

from __future__ import annotations

import torch
import torchvision
from torch_oracle import check, rand


def test_regions() -> None:
    x = rand(2, 3, 9, 7)
    rois = torch.tensor([[0, 1.0, 0.5, 5.0, 6.0], [1, 0.0, 0.0, 6.5, 8.0], [0, 2.2, 3.1, 2.4, 3.3], [1, -2, -3, 3, 40]])
    align = torchvision.ops.roi_align
    check(
        {
            "aligned": lambda x, r: align(x, r, (3, 2), 1.0, 2, True),
            "not aligned": lambda x, r: align(x, r, (3, 2), 0.5, 2, False),
            "adaptive": lambda x, r: align(x, r, (2, 4), 1.0, -1, True),
            "adaptive, not aligned": lambda x, r: align(x, r, 3, 0.7, 0, False),
            "one bin": lambda x, r: align(x, r, 1, 1.0, 3, True),
        },
        x, rois, atol=1e-4,
    )  # fmt: skip


def test_deformable_convolutions() -> None:
    x, w, b = rand(2, 4, 7, 6), rand(6, 2, 3, 3), rand(6)
    offset, mask = rand(2, 2 * 2 * 9, 7, 6, seed=1), rand(2, 2 * 9, 7, 6, seed=2).sigmoid()
    deform = torchvision.ops.deform_conv2d
    check(
        {
            "plain": lambda x, w, b, o, m: deform(x, o, w, b, padding=1),
            "modulated": lambda x, w, b, o, m: deform(x, o, w, b, padding=1, mask=m),
            "without a bias": lambda x, w, b, o, m: deform(x, o, w, padding=(1, 1), mask=m),
        },
        x, w, b, offset, mask, atol=1e-4,
    )  # fmt: skip
