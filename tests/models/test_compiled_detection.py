"""torchvision's detection models by ``torch.compile``: eager's detections, and no graph break that Dynamo doesn't make.

Each break is where Python reads data, such as the number of boxes; what lies between two is compiled.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from detection_models import MODELS, made, unmatched

from arcweld.torch.report import torch_report

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("fresh_dynamo")]

QUICK = ("ssdlite320",)
# reasons that no operator of Arcweld could change: too little between two breaks, or nothing to compute
ALLOWED = (
    "part of a block smaller than min_block_size", "part of a block that only moves elements",
    "a tensor without elements",
)  # fmt: skip
# A second RoIAlign of another size makes Dynamo trace the numbers of bins, and a mask's factor, as symbols.
LEFT = {
    "maskrcnn": {"aten.mul.Tensor": 2, "torchvision.roi_align.default": 1},
    "keypointrcnn": {"torchvision.roi_align.default": 1},
}


def graphs_of_dynamo(module: torch.nn.Module, x: torch.Tensor) -> int:
    """How many graphs Dynamo makes for a backend that runs them as they are."""
    made = 0

    def count(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        nonlocal made
        made += 1
        forward: Callable[..., Any] = graph.forward
        return forward

    torch.compile(module, backend=count)([x])
    torch._dynamo.reset()
    return made


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=[pytest.mark.timeout(3000), pytest.mark.skipif(
        "ARCWELD_EVERY" not in os.environ, reason="ARCWELD_EVERY=1 runs it")]) for n in MODELS],
)  # fmt: skip
def test_detections(name: str) -> None:
    module, x = made(name)
    (want,) = module([x])
    theirs = graphs_of_dynamo(module, x)
    (got,) = torch.compile(module, backend="arcweld", options={"device": "sim", "verify": "off"})([x])
    assert unmatched(_arrays(want), _arrays(got)) == 0
    for key in ("masks", "keypoints", "keypoints_scores"):  # in the same order
        if key in want:
            np.testing.assert_allclose(got[key].numpy(), want[key].numpy(), atol=5e-3)
    reports = torch_report()
    assert len(reports) <= theirs
    assert [b.fallback for r in reports for b in r.blocks if b.fallback] == []
    refused = Counter[str]()
    for report in reports:
        for (op, why), n in report.left.items():
            refused.update({op: n} if why not in ALLOWED else {})
    assert refused == LEFT.get(name, {})
    assert sum(r.compiled for r in reports) >= 0.9 * sum(r.nodes for r in reports)


def _arrays(found: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {k: v.numpy() for k, v in found.items()}
